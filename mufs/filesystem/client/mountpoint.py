"""The directory to mount at: fit for it, and rid of what a killed client left there."""

import errno
import os
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
        subprocess.run(["fusermount", "-u", "-z", "-q", "--", path], check=False)
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
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            where = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            if where == path:
                found = fields[fields.index("-") + 1]
    return found
