"""Reads of image files on the server."""

from collections.abc import Callable
from errno import EIO, ESTALE
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.server.reads import MAX_READ, MAX_RUNS, MAX_THREADS, Reads
from mufs.test.support.memory import MemoryImage

CONTENT = bytes(range(256)) * (MAX_READ // 32)


class ReadsTests(SynchronousTestCase):
    """What is read, and how often."""

    def setUp(self) -> None:
        """Have an image, and a thread that waits."""
        self.image = MemoryImage(1, 1, CONTENT)
        self.calls: list[tuple[Deferred[Any], Callable[..., Any], tuple[int, int]]] = []
        self.reads = Reads(self.in_thread)

    def in_thread(self, function: Callable[..., Any], *args: Any) -> "Deferred[Any]":
        """Call later."""
        self.calls.append((Deferred(), function, args))
        return self.calls[-1][0]

    def work(self) -> list[tuple[int, int]]:
        """Have the thread do what waits; the offsets and lengths that it read."""
        calls, self.calls = self.calls, []
        for done, function, args in calls:
            try:
                done.callback(function(*args))
            except OSError:
                done.errback()
        return [args for _, _, args in calls]

    def test_together(self) -> None:
        """What will be asked for next is read at once, before and after it was asked for."""
        first = self.reads(self.image, 1000, 100, 200)
        second = self.reads(self.image, 1100, 100, 100)
        self.assertEqual(self.work(), [(1000, 300)])
        third = self.reads(self.image, 1200, 100, 0)
        self.assertEqual(self.successResultOf(first), CONTENT[1000:1100])
        self.assertEqual(self.successResultOf(second), CONTENT[1100:1200])
        self.assertEqual(self.successResultOf(third), CONTENT[1200:1300])
        self.assertEqual((self.reads.image_reads, self.reads.image_read_bytes), (1, 300))

    def test_partly(self) -> None:
        """Of what was read in part with what came before, only the rest is read."""
        self.reads(self.image, 0, 100, 100)
        other = self.reads(self.image, 150, 100, 50)
        self.assertEqual(self.work(), [(0, 200), (200, 100)])
        self.assertEqual(self.successResultOf(other), CONTENT[150:250])
        last = self.reads(self.image, 250, 50, 0)
        self.assertEqual(self.successResultOf(last), CONTENT[250:300])
        self.assertEqual(self.work(), [])

    def test_partly_failed(self) -> None:
        """The error of the rest is that of the whole."""
        self.reads(self.image, 0, 100, 100)
        other = self.reads(self.image, 150, 100, 0)
        self.calls[0][0].callback(CONTENT[:200])
        self.calls[1][0].errback(OSError(EIO, "bad sector"))
        self.assertEqual(self.failureResultOf(other, OSError).value.errno, EIO)

    def test_once(self) -> None:
        """When all of what was read was asked for, in any order, it is held no longer."""
        for _ in range(2):
            self.reads(self.image, 0, 100, 200)
            self.reads(self.image, 200, 100, 0)
            self.reads(self.image, 100, 100, 100)
            self.assertEqual(self.work(), [(0, 300)])

    def test_bounds(self) -> None:
        """Not too much is read at once, and not held for too many images."""
        images = [MemoryImage(number, 1, CONTENT) for number in range(MAX_RUNS + 1)]
        for image in images:
            self.reads(image, 0, 100, 2 * MAX_READ)
        self.assertEqual(self.work(), [(0, MAX_READ)] * len(images))
        for image in reversed(images):
            self.reads(image, 100, 100, 0)
        self.assertEqual(self.work(), [(100, 100)])
        self.reads(self.image, 0, MAX_READ + 5, 0)
        self.assertEqual(self.work(), [(0, MAX_READ + 5)])

    def test_extents(self) -> None:
        """What is read ahead ends with the extent: transfers have nothing of two reads."""
        self.reads(self.image, MAX_READ - 100, 50, MAX_READ)
        self.reads(self.image, MAX_READ, 50, 2 * MAX_READ)
        self.assertEqual(self.work(), [(MAX_READ - 100, 100), (MAX_READ, MAX_READ)])

    def test_at_once(self) -> None:
        """What is short and takes no waiting is read without a thread."""
        self.image.at_once = True
        asked = self.reads(self.image, 0, MAX_READ - 50, 100)
        self.assertEqual(self.successResultOf(asked), CONTENT[: MAX_READ - 50])
        self.assertEqual((self.reads.image_reads, self.reads.image_read_bytes), (1, MAX_READ))
        self.assertEqual(
            self.successResultOf(self.reads(self.image, MAX_READ - 50, 50, 0)),
            CONTENT[MAX_READ - 50 : MAX_READ],
        )
        self.assertEqual(self.reads.image_reads, 1)
        self.reads(self.image, 0, MAX_READ + 1, 0)
        self.assertEqual(self.work(), [(0, MAX_READ + 1)])
        self.image.at_once = False
        self.reads(self.image, 2 * MAX_READ, MAX_READ, 0)
        self.assertEqual(self.work(), [(2 * MAX_READ, MAX_READ)])

    def test_not_at_once(self) -> None:
        """While a thread reads of an image, which may hang, nothing of it is read without one."""
        other = MemoryImage(2, 1, CONTENT)
        self.reads(self.image, 0, 2 * MAX_READ, 0)
        self.image.at_once = other.at_once = True
        self.assertNoResult(self.reads(self.image, 4 * MAX_READ, MAX_READ, 0))
        self.successResultOf(self.reads(other, 0, MAX_READ, 0))
        self.assertEqual(self.work(), [(0, 2 * MAX_READ), (4 * MAX_READ, MAX_READ)])
        self.successResultOf(self.reads(self.image, 6 * MAX_READ, MAX_READ, 0))

    def test_failure(self) -> None:
        """What cannot be read together is read part by part, and fails part by part."""
        self.image.bad = range(120, 130)
        asked = [self.reads(self.image, offset, 50, 150 - offset) for offset in (0, 50, 100)]
        self.assertEqual(self.work(), [(0, 200)])
        self.assertEqual(self.work(), [(0, 50), (50, 50), (100, 50)])
        self.assertEqual(self.successResultOf(asked[0]), CONTENT[:50])
        self.assertEqual(self.successResultOf(asked[1]), CONTENT[50:100])
        self.assertEqual(self.failureResultOf(asked[2], OSError).value.errno, EIO)
        self.assertEqual(self.work(), [])
        self.image.bad = range(0)
        again = self.reads(self.image, 0, 100, 100)
        self.assertEqual(self.work(), [(0, 200)])
        self.assertEqual(self.successResultOf(again), CONTENT[:100])

    def test_stale(self) -> None:
        """An image that has changed is not read again: all that waits fails."""
        self.image.error = ESTALE
        asked = [self.reads(self.image, 0, 100, 100), self.reads(self.image, 100, 50, 50)]
        self.assertEqual(self.work(), [(0, 200)])
        for each in asked:
            self.assertEqual(self.failureResultOf(each, OSError).value.errno, ESTALE)
        self.assertEqual(self.work(), [])

    def test_hanging(self) -> None:
        """An image whose reads hang has but a few threads wait for it."""
        asked = [self.reads(self.image, number * 100, 100, 0) for number in range(MAX_THREADS + 2)]
        other = self.reads(MemoryImage(2, 1, CONTENT), 0, 100, 0)
        self.assertEqual(len(self.calls), MAX_THREADS + 1)
        self.assertEqual(len(self.work()), MAX_THREADS + 1)
        self.assertEqual(self.successResultOf(other), CONTENT[:100])
        self.assertEqual(len(self.work()), 2)
        for number, each in enumerate(asked):
            self.assertEqual(self.successResultOf(each), CONTENT[number * 100 :][:100])
