"""Entries being read ahead of sending: how many, in which order, and beside slow images."""

from errno import EIO

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.items import Entry
from mufs.communication.server.disk_reads import (
    MAX_ENTRIES_AHEAD,
    SLOW_READ_SECONDS,
    DiskReads,
)
from mufs.interfaces import IImage
from mufs.test.support.doubles import ImageInMemory
from mufs.wire.channel import Priority
from mufs.wire.packing import Encoding, Packed
from mufs.wire.pages import BLOCK, EXTENT, PAGE

BLOCKED, AHEAD, BACKGROUND = Priority


class DiskReadsTests(SynchronousTestCase):
    """Reads that end when the test says so."""

    def setUp(self) -> None:
        """Record what is read, and what fails."""
        self.clock = Clock()
        self.image = ImageInMemory(bytes(3 * BLOCK + PAGE + 100))
        self.reading: list[Deferred[Packed]] = []
        self.ranges: list[tuple[int, int, int]] = []
        self.failed: list[Entry] = []
        self.woken = 0
        self.reads = DiskReads(self.read, self.clock, wake=self.wake, failed=self.fail_entry)

    def read(self, image: IImage, offset: int, length: int, following: int) -> "Deferred[Packed]":
        """Begin a read."""
        self.ranges.append((offset, length, following))
        self.reading.append(Deferred())
        return self.reading[-1]

    def wake(self) -> None:
        """Count how often it is called."""
        self.woken += 1

    def fail_entry(self, entry: Entry, failure: Failure) -> None:
        """Record an entry that cannot be read."""
        self.failed.append(entry)

    def begin(
        self, service_class: int = BLOCKED, image: IImage | None = None, block: int = 0
    ) -> Entry:
        """Begin to read a block."""
        entry = Entry(image or self.image, 0, 32 * block, 32, None, service_class=service_class)
        self.reads.begin(entry, 0)
        return entry

    def test_limit(self) -> None:
        """Entries that are read or ready count towards the limit, until they are taken."""
        for _ in range(MAX_ENTRIES_AHEAD):
            self.assertTrue(self.reads.has_room)
            self.begin()
        self.assertFalse(self.reads.has_room)
        self.reading[0].callback((Encoding.PLAIN, b"data"))
        self.assertFalse(self.reads.has_room)
        self.reads.pop()
        self.assertTrue(self.reads.has_room)

    def test_large(self) -> None:
        """Two entries of an extent each are as much as is read ahead."""
        image = ImageInMemory(bytes(3 * EXTENT))
        for extent in range(2):
            self.assertTrue(self.reads.has_room)
            self.reads.begin(Entry(image, extent, 0, 256, None), 0)
        self.assertFalse(self.reads.has_room)

    def test_order(self) -> None:
        """The most urgent entry comes first; of equally urgent ones, the first that was read."""
        entries = [self.begin(each) for each in (BACKGROUND, AHEAD, BLOCKED, AHEAD)]
        for reading in self.reading:
            reading.callback((Encoding.PLAIN, b""))
        found = [self.reads.pop()[0] for _ in range(self.reads.ready)]
        self.assertEqual(found, [entries[2], entries[1], entries[3], entries[0]])

    def test_raised(self) -> None:
        """One that becomes more urgent while it is ready goes before what is less urgent."""
        entries = [self.begin(AHEAD), self.begin(AHEAD)]
        for reading in self.reading:
            reading.callback((Encoding.PLAIN, b""))
        entries[1].service_class = BLOCKED
        self.assertIs(self.reads.pop()[0], entries[1])

    def test_read(self) -> None:
        """An entry that was read is ready with its bytes."""
        entry = self.begin()
        self.assertEqual((self.reads.ready, self.reads.is_idle), (0, False))
        self.reading[0].callback((Encoding.PLAIN, b"data"))
        self.assertEqual((self.woken, self.reads.ready, self.reads.is_idle), (1, 1, False))
        self.assertEqual(self.reads.pop(), (entry, (Encoding.PLAIN, b"data")))
        self.assertTrue(self.reads.is_idle)

    def test_failure(self) -> None:
        """An entry that cannot be read is handed back, and makes room."""
        entry = self.begin()
        self.reading[0].errback(OSError(EIO, "broken"))
        self.assertEqual((self.failed, self.woken, self.reads.ready), ([entry], 1, 0))
        self.assertTrue(self.reads.is_idle)

    def test_following(self) -> None:
        """The disk learns how much will be read next, up to the end of the image."""
        for block, following in ((0, 2), (2, 64)):
            self.reads.begin(Entry(self.image, 0, 32 * block, 32, None), following)
        self.assertEqual(self.ranges, [(0, BLOCK, 2 * PAGE), (2 * BLOCK, BLOCK, PAGE + 100)])

    def test_slow_image(self) -> None:
        """Reads of an image with a slow one do not count, until they end."""
        slow = ImageInMemory(bytes(BLOCK), image=2)
        for _ in range(MAX_ENTRIES_AHEAD):
            self.begin(image=slow)
        self.clock.advance(SLOW_READ_SECONDS)
        self.assertEqual(self.woken, 1)
        self.assertTrue(self.reads.has_room)
        self.assertTrue(self.reads.is_idle)
        for reading in self.reading:
            reading.callback((Encoding.PLAIN, b""))
        self.assertFalse(self.reads.has_room)

    def test_no_longer_slow(self) -> None:
        """An image counts again once its slow reads ended."""
        self.begin()
        self.clock.advance(SLOW_READ_SECONDS)
        self.begin()
        self.assertTrue(self.reads.is_idle)
        self.reading[0].callback((Encoding.PLAIN, b""))
        self.reads.pop()
        self.clock.advance(SLOW_READ_SECONDS / 2)
        self.begin()
        self.reading[1].callback((Encoding.PLAIN, b""))
        self.reads.pop()
        self.clock.advance(SLOW_READ_SECONDS / 2)
        self.assertFalse(self.reads.is_idle)

    def test_timer(self) -> None:
        """Nothing is timed while nothing is read, nor once stopped."""
        self.begin()
        self.reading[0].callback((Encoding.PLAIN, b""))
        self.clock.advance(SLOW_READ_SECONDS)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.begin()
        self.reads.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
