"""The mount point: checks that it is usable, and removes what a killed client left there."""

import errno
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress

from attrs import frozen
from twisted.logger import Logger

TYPE = "fuse.mufs"
"""The type of this file system in the kernel's list of mounts."""

AUTOMOUNT = "autofs"
"""
The type of an automount point there. Every access to one waits for its mount, except by the
process group that is to make it.
"""

DEVICE = "/dev/fuse"
"""What libfuse mounts with."""

MOUNT_TABLE = "/proc/self/mountinfo"
"""The kernel's list of mounts, see proc(5)."""

DEVICES = "/sys/class/bdi"
"""Where the kernel shows how it reads ahead, by the number of the device."""

READ_AHEAD_KB = 1024
"""
KiB that the kernel reads ahead of who reads in sequence, and asks libfuse 3 for at once.
"""

_log = Logger()


class UnusableMountPoint(Exception):
    """Nothing can be mounted at a directory; the text says why."""


@frozen
class Mounted:
    """
    A mount as the kernel lists it.

    @ivar number: is unique.
    @ivar device: the number of its device, such as C{0:52}.
    """

    number: int
    device: str
    type: str


def mounts() -> Iterator[tuple[bytes, Mounted]]:
    """All mounts by path, in the order of mounting; accesses none of them."""
    with open(MOUNT_TABLE, "rb") as table:
        for line in table:
            # Blanks, tabs, newlines and backslashes in a path are in octal, other blank characters
            # are as they are.
            fields = line.split(b" ")
            where = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), fields[4])
            kind = fields[fields.index(b"-") + 1]
            yield where, Mounted(int(fields[0]), fields[2].decode(), kind.decode())


def uppermost(path: str) -> Mounted | None:
    """The mount at an absolute path; of several mounts the topmost."""
    found = None
    for where, there in mounts():
        if where == os.fsencode(path):
            found = there
    return found


def raise_read_ahead(there: Mounted) -> None:
    """
    Have the kernel ask for more at once than the 128 KiB of its default, where it lets root do so.
    """
    try:
        with open(f"{DEVICES}/{there.device}/read_ahead_kb", "w") as setting:
            setting.write(str(READ_AHEAD_KB))
    except OSError as error:
        _log.info(
            "the kernel reads 128 KiB at once: read_ahead_kb cannot be set to {size} ({reason})",
            size=READ_AHEAD_KB, reason=error.strerror,
        )  # fmt: skip


def fusermount() -> str:
    """The program that unmounts: libfuse 3 and 2 have one each, which take what either mounted."""
    return "fusermount3" if shutil.which("fusermount3") else "fusermount"


def make_ready(path: str) -> str:
    """
    Make sure that a client can be mounted at C{path}; blocks.

    @return: the path from the root, without symbolic links.
    @raise UnusableMountPoint: when it is missing, not a directory, not empty, or in use.
    """
    if not os.path.exists(DEVICE):
        raise UnusableMountPoint(
            f"cannot be mounted at: {DEVICE} is missing (modprobe fuse; to a container, pass it in)"
        )
    path = os.path.realpath(path)
    there = uppermost(path)
    ours = there is not None and there.type == TYPE
    if _is_dead(path):
        if not ours:
            raise UnusableMountPoint("a dead mount of another file system is left there")
        try:
            subprocess.run([fusermount(), "-u", "-z", "-q", "--", path], check=False)
        except OSError as error:
            raise UnusableMountPoint(
                f"a dead mount is left there; fusermount: {error.strerror}"
            ) from None
        if _is_dead(path):
            raise UnusableMountPoint("a dead mount is left there, and cannot be unmounted")
    elif ours:
        raise UnusableMountPoint("an mUFS client is mounted there already")
    try:
        if os.listdir(path):
            raise UnusableMountPoint("is not empty")
    except OSError as error:
        raise UnusableMountPoint(error.strerror) from None
    return path


def claim(path: str) -> int:
    """
    Keep other clients away from a mount point until something is mounted there.

    @return: a descriptor of the directory; the claim ends with it, or with the process.
    @raise UnusableMountPoint: when another client has it, or has mounted.
    """
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # Not every file system has locks.
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnusableMountPoint("another mUFS client is about to mount there") from None
        there = uppermost(path)
        if there is not None and there.type == TYPE:
            raise UnusableMountPoint("an mUFS client is mounted there already")
    except UnusableMountPoint:
        os.close(directory)
        raise
    return directory


def _is_dead(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False
