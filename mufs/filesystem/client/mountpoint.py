"""The directory to mount at: fit for it, and rid of what a killed client left there."""

import errno
import os
import re
import subprocess


class Unusable(Exception):
    """Nothing can be mounted there; the text says why."""


def make_ready(path: str) -> str:
    """
    Make sure that a client can be mounted at C{path}; blocks.

    @return: the absolute path.
    @raise Unusable: when it is missing, no directory, not empty, or in use.
    """
    path = os.path.abspath(path)
    if _is_dead(path):
        try:
            subprocess.run(["fusermount", "-u", "-z", "-q", "--", path], check=False)
        except OSError as error:
            raise Unusable(f"a dead mount is left there; fusermount: {error.strerror}") from None
        if _is_dead(path):
            raise Unusable("a dead mount is left there, and cannot be unmounted")
    elif _mounted_type(path) == "fuse.mufs":
        raise Unusable("an mUFS client is mounted there already")
    try:
        if os.listdir(path):
            raise Unusable("is not empty")
    except OSError as error:
        raise Unusable(error.strerror) from None
    return path


def _is_dead(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def _mounted_type(path: str) -> str | None:
    """The type of the file system mounted at C{path}, the uppermost if several are."""
    found = None
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields = line.split()
            # Blanks in it are written as their octal numbers.
            where = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), fields[4])
            if where == os.fsencode(path):
                found = fields[fields.index(b"-") + 1].decode()
    return found
