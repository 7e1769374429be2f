"""Files without a name, whose bytes are in memory."""

import ctypes
import os
from typing import Any

FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6
"""Commands of fsconfig(2)."""

OPTIONS = {b"size": b"0", b"huge": b"within_size"}
"""
Of the file system, see tmpfs(5): no limit, and pieces of memory as large as what is written at the
end of the file. Finding and clearing each page by itself costs more than copying into it does.
"""


def make(name: str) -> int:
    """
    The descriptor of a new file. It has large pages if this process may mount, as root may.

    @param name: as other programs show it.
    @raise OSError: when there is no memory.
    """
    try:
        return _with_large_pages(name)
    except (OSError, AttributeError):
        # Not allowed, or a system without these calls.
        return os.memfd_create(name)


def _with_large_pages(name: str) -> int:
    """The same in a tmpfs of its own, which is mounted nowhere and ends with the file."""
    library = ctypes.CDLL(None, use_errno=True)
    opened: list[int] = []

    def call(function: Any, *arguments: Any) -> int:
        result: int = function(*arguments)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    try:
        opened.append(call(library.fsopen, b"tmpfs", 0))
        for option, value in OPTIONS.items():
            call(library.fsconfig, opened[0], FSCONFIG_SET_STRING, option, value, 0)
        call(library.fsconfig, opened[0], FSCONFIG_CMD_CREATE, None, None, 0)
        opened.append(call(library.fsmount, opened[0], 0, 0))
        made = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=opened[1])
        os.unlink(name, dir_fd=opened[1])
        return made
    finally:
        for descriptor in opened:
            os.close(descriptor)
