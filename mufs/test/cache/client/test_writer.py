"""What waits to be written to a cache directory."""

import errno
from typing import Any

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client import writer
from mufs.cache.client.index import CachedImage, PendingWrite, Place
from mufs.cache.client.writer import MAX_QUEUED, Part, Writer
from mufs.wire.pages import BLOCK

MAX_JOBS = MAX_QUEUED // BLOCK
CONTENT = bytes(BLOCK)


class WriterTests(SynchronousTestCase):
    """A writer whose writes are recorded, and fail when told to."""

    def setUp(self) -> None:
        """Nothing fails yet."""
        self.patch(writer, "RETRY_INTERVAL", 0.0)
        self.done: list[Any] = []
        self.failures = 0
        self.writer = Writer("/cache", self.write)

    def write(self, parts: list[Part]) -> None:
        """Record a write, or fail."""
        if self.failures:
            self.failures -= 1
            raise OSError(errno.ENOSPC, "disk full")
        self.done.append([place.number for place, _ in parts])

    def queue(self, number: int, blocks: int = 1) -> Place:
        """Queue whole blocks."""
        parts = []
        for each in range(number, number + blocks):
            pending = PendingWrite(0, memoryview(CONTENT))
            parts.append((Place(CachedImage((1, 2), 0), each, each, unwritten=[pending]), pending))
        self.writer.write(parts)
        return parts[0][0]

    def run_all(self) -> None:
        """Do what is queued."""
        self.writer.stop()
        self.writer.run()

    def test_order(self) -> None:
        """Writes and calls are done in the order in which they were queued."""
        self.queue(0)
        self.writer.call(self.done.append, "call")
        self.queue(1)
        self.run_all()
        self.assertEqual(self.done, [[0], "call", [1]])

    def test_retry(self) -> None:
        """What fails is tried again after the rest; the log says so once, and when it works."""
        self.failures = 2
        with capturedLogs() as logged:
            self.queue(0)
            self.queue(1)
            self.queue(2)
            self.run_all()
            self.assertEqual(self.done, [[2]])
            self.run_all()
        self.assertEqual(self.done, [[2], [0], [1]])
        levels = [each["log_level"].name for each in logged]
        self.assertEqual(levels, ["warn", "info"])
        self.assertEqual((logged[0]["path"], logged[0]["reason"]), ("/cache", "disk full"))

    def test_behind(self) -> None:
        """The writer is behind from half of the jobs on that may wait."""
        for number in range(MAX_JOBS // 2 - 1):
            self.queue(number)
        self.assertFalse(self.writer.is_behind())
        self.queue(MAX_JOBS)
        self.assertTrue(self.writer.is_behind())
        self.run_all()
        self.assertFalse(self.writer.is_behind())

    def test_overflow(self) -> None:
        """With too many jobs the oldest write is dropped, and its block is returned."""
        self.queue(7)
        for number in range(1, MAX_JOBS - 1):
            self.queue(100 + number)
        self.assertIsNone(self.writer.pop_overflow())
        self.queue(8)
        self.assertEqual(self.writer.pop_overflow(), ((1, 2), 7))
        self.assertIsNone(self.writer.pop_overflow())
        self.run_all()
        self.assertEqual(len(self.done), MAX_JOBS - 1)

    def test_bytes(self) -> None:
        """Writes of several blocks count as what they have, and are dropped as a whole."""
        for number in range(0, MAX_JOBS, 8):
            self.assertIsNone(self.writer.pop_overflow())
            self.assertEqual(self.writer.is_behind(), number >= MAX_JOBS // 2)
            self.queue(number, 8)
        dropped = [self.writer.pop_overflow() for _ in range(8)]
        self.assertEqual(dropped, [((1, 2), number) for number in range(8)])
        self.run_all()
        self.assertEqual(len(self.done), MAX_JOBS // 8 - 1)
        self.assertFalse(self.writer.is_behind())
        self.queue(0, 8)
        self.run_all()
        self.assertFalse(self.writer.is_behind())

    def test_overflow_of_freed(self) -> None:
        """A write of a block that was freed meanwhile makes room without dropping a block."""
        freed = self.queue(7)
        for number in range(1, MAX_JOBS):
            self.queue(100 + number)
        assert freed.unwritten is not None
        freed.unwritten.clear()
        self.assertIsNone(self.writer.pop_overflow())
        self.assertTrue(self.writer.is_behind())
