"""The space that a cache leaves free on the disk of its directory, also when others fill it."""

import errno
import os
from math import ceil

from twisted.logger import Logger

from mufs.wire.pages import BLOCK

MAX_DEFAULT_RESERVE = 1 << 30
"""Bytes."""

DEFAULT_RESERVE = 20
"""By default a 20th of the disk stays free, but no more than C{MAX_DEFAULT_RESERVE}."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors that blocks which are dropped may cure."""

MIN_LACK = 64
"""Blocks to drop after an error of C{FULL}; a quota does not show in the free space."""


class FreeSpace:
    """
    How many blocks are to be dropped so that the reserve stays free.

    The thread that changes the cache calls L{take_lack}, the one that writes the other methods.

    @ivar lack: number of blocks.
    @ivar is_full: whether no further block should be written: half of the reserve is used up.
    @ivar given_back: slots of dropped blocks whose space comes free soon.
    """

    _log = Logger()

    def __init__(self, fd: int, path: str, reserve: int | None) -> None:
        """
        @param fd: of a directory on the disk.
        @param path: of the same, for the log.
        @param reserve: bytes; C{None} for the default.
        @raise OSError: when the disk cannot be asked.
        """
        self._fd = fd
        self._path = path
        found = os.statvfs(fd)
        self.size = found.f_blocks * found.f_frsize
        default = min(MAX_DEFAULT_RESERVE, self.size // DEFAULT_RESERVE)
        self.reserve = default if reserve is None else reserve
        self.lack = 0
        self.is_full = False
        self.given_back: dict[int, None] = {}
        self._told = False

    def take_lack(self) -> int:
        """The number of blocks to drop now."""
        lack, self.lack = self.lack, 0
        return lack

    def look(self) -> None:
        """Find out how much is free. Raises C{OSError}."""
        found = os.statvfs(self._fd)
        free = found.f_bavail * found.f_frsize
        self.is_full = free < self.reserve // 2
        lack = ceil((self.reserve - free) / BLOCK) - len(self.given_back)
        self._note(max(0, lack), free)

    def failed(self) -> None:
        """Something could not be written because the disk is full."""
        self._note(max(self.lack, MIN_LACK), 0)

    def _note(self, lack: int, free: int) -> None:
        self.lack = lack
        if lack and not self._told:
            self._told = True
            self._log.warn(
                "the disk of {path} is filling up: the cache gives up old blocks, to leave "
                "{reserve} MiB free", path=self._path, reserve=self.reserve >> 20,
            )  # fmt: skip
        elif free > 2 * self.reserve:
            self._told = False
