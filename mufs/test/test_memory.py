"""Memory that was freed, and goes back to the system."""

import ctypes
import re
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs import memory
from mufs.memory import TRIM_INTERVAL, Trimming, trim

MIB = 1 << 20


def held() -> int:
    """Bytes of memory that this process holds, without files."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


class TrimTests(SynchronousTestCase):
    """Giving memory back."""

    def test_between_others(self) -> None:
        """Memory that was freed goes back although memory in use lies behind it."""
        buffers = [bytearray(b"x" * 50_000) for _ in range(1000)]
        last = buffers.pop()
        del buffers
        before = held()
        trim()
        self.assertLess(held(), before - 20 * MIB)
        self.assertEqual(len(last), 50_000)

    def test_other_library(self) -> None:
        """A C library that cannot do so is left alone."""
        self.patch(ctypes, "CDLL", lambda name: object())
        trim()

    def test_repeated(self) -> None:
        """It happens at the start, and once in each interval until the service stops."""
        Trimming(Clock()).stopService()
        calls: list[None] = []
        self.patch(memory, "trim", lambda: calls.append(None))
        clock = Clock()
        service = Trimming(clock)
        service.startService()
        clock.pump([TRIM_INTERVAL] * 3)
        self.assertEqual(len(calls), 4)
        service.stopService()
        clock.pump([TRIM_INTERVAL] * 3)
        self.assertEqual(len(calls), 4)
