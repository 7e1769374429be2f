"""Files without a name, in memory."""

import ctypes
import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client import anonymous_file
from mufs.wire.pages import BLOCK, PAGE


class AnonymousFileTests(SynchronousTestCase):
    """Made in both ways; without root, the second one is both times."""

    def check(self) -> None:
        """A file has a name for readers of /proc alone, and as much memory as was written."""
        before = len(os.listdir("/proc/self/fd"))
        made = anonymous_file.make("mufs-test")
        self.addCleanup(os.close, made)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before + 1)
        self.assertIn("mufs-test (deleted)", os.readlink(f"/proc/self/fd/{made}"))
        self.assertEqual(os.fstat(made).st_nlink, 0)
        for number in range(64):
            os.pwrite(made, bytes([number + 1]) * PAGE, number * BLOCK)
        self.assertEqual(os.fstat(made).st_blocks * 512, 64 * PAGE)
        os.pwrite(made, b"x" * BLOCK, 64 * BLOCK)
        self.assertEqual(os.fstat(made).st_blocks * 512, 64 * PAGE + BLOCK)
        self.assertEqual(os.pread(made, PAGE, 63 * BLOCK), bytes([64]) * PAGE)

    def test_best(self) -> None:
        """What this process may have."""
        self.check()

    def test_not_allowed(self) -> None:
        """Without the right to mount, or the system calls, a file has pages of the usual size."""

        class Library:
            def fsopen(self, *arguments: Any) -> int:
                return -1

        for library in (Library(), object()):
            self.patch(ctypes, "CDLL", lambda *arguments, library=library, **options: library)
            self.check()
