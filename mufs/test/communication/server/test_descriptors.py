"""Whether this process may open more files."""

from __future__ import annotations

import errno
import os
from resource import RLIM_INFINITY

from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server import descriptors
from mufs.communication.server.descriptors import exhausted


class ExhaustedTests(SynchronousTestCase):
    """How many file descriptors are left."""

    def process(self, limit: int, used: int) -> None:
        """Have a process that may open this many descriptors, and has opened some."""
        self.patch(descriptors, "getrlimit", lambda resource: (limit, RLIM_INFINITY))
        self.closed: list[int] = []

        def open_lowest(*args: object) -> int:
            if used >= limit >= 0:
                raise OSError(errno.EMFILE, "too many open files")
            return used

        self.patch(os, "open", open_lowest)
        self.patch(os, "close", self.closed.append)

    def test_unlimited(self) -> None:
        """Without a limit descriptors are never exhausted."""
        self.process(RLIM_INFINITY, 1 << 20)
        self.assertFalse(exhausted(1 << 30))

    def test_reserved(self) -> None:
        """They are when no more than the reserved ones are free."""
        self.process(1024, 1024 - 64)
        self.assertTrue(exhausted(64))
        self.assertFalse(exhausted(63))

    def test_low_limit(self) -> None:
        """Of a limit below 512 only a part is reserved: of 256 half as many."""
        self.process(256, 256 - 32)
        self.assertTrue(exhausted(64))
        self.assertFalse(exhausted(62))

    def test_nothing_left(self) -> None:
        """They are when none can be opened."""
        self.process(1024, 1024)
        self.assertTrue(exhausted(0))

    def test_closed(self) -> None:
        """What is opened to find out is closed."""
        self.process(1024, 100)
        exhausted(64)
        self.assertEqual(self.closed, [100])
