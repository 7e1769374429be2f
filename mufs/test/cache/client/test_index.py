"""The index of a cache directory."""

import os
from pathlib import Path
from struct import error as StructError

from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client import index as module
from mufs.cache.client.index import CacheIndex, Place, checksums
from mufs.cache.client.layout import INDEX, RECORD
from mufs.wire.pages import ALL_PAGES, BLOCK, BLOCK_PAGES, PAGE, ImageKey

KEY: ImageKey = (1, 2)
SUMS = tuple(range(1, BLOCK_PAGES + 1))


class IndexTests(SynchronousTestCase):
    """An index in a directory with the data file of one image, of four blocks."""

    def setUp(self) -> None:
        """The directory."""
        self.path = Path(self.mktemp())
        self.path.mkdir()
        os.truncate(self.touch("{:016x}-{:016x}".format(*KEY)), 4 * BLOCK)
        self.fd = os.open(self.path, os.O_RDONLY)
        self.addCleanup(os.close, self.fd)
        self.index = self.open()

    def touch(self, name: str) -> Path:
        """Make an empty file."""
        (self.path / name).touch()
        return self.path / name

    def open(self) -> CacheIndex:
        """Open the index."""
        index = CacheIndex(self.fd, "tcp:192.0.2.1:7040")
        self.addCleanup(index.close)
        return index

    def record(self, number: int, now: int, first: int = 0, count: int = BLOCK_PAGES) -> Place:
        """Give a block a slot, and record some of its pages."""
        place = self.index.place(KEY, number)
        self.index.record(place, first, sums=SUMS[:count], now=now)
        return place

    def loaded(self, max_blocks: int = 10) -> tuple[list[tuple[int, int, int]], list[int]]:
        """Numbers, slots and pages of the blocks that are loaded, and the excess slots."""
        found, excess = self.open().load(max_blocks)
        return [(place.number, place.slot, pages) for place, pages in found], excess

    def test_order(self) -> None:
        """Blocks are loaded with their slots and pages, least recently used first."""
        self.record(3, now=30)
        self.record(0, now=10, first=4, count=2)
        self.record(1, now=20)
        expected = [(0, 1, 0b11 << 4), (1, 2, ALL_PAGES), (3, 0, ALL_PAGES)]
        self.assertEqual(self.loaded(), (expected, []))

    def test_excess(self) -> None:
        """Of more blocks than there may be the least recently used ones are to be cleared."""
        for number in range(4):
            self.record(number, now=100 - number)
        found, excess = self.loaded(1)
        self.assertEqual([number for number, _, _ in found], [0])
        self.assertEqual(excess, [3, 2, 1])

    def test_foreign(self) -> None:
        """Records of unknown images, and of blocks past the end of a file, are ignored."""
        self.record(4, now=10)
        self.index.record(self.index.place((7, 7), 0), 0, sums=SUMS, now=10)
        self.assertEqual(self.loaded(), ([], []))

    def test_duplicate(self) -> None:
        """Of two records for a block the one used last counts, and the other's slot is free."""
        self.record(1, now=20)
        self.record(1, now=10)
        index = self.open()
        ((place, _),), excess = index.load(10)
        self.assertEqual((place.slot, excess), (0, []))
        self.assertEqual(index.place(KEY, 2).slot, 1)

    def test_slots(self) -> None:
        """A slot that was freed is the next to be used; others are appended."""
        places = [self.index.place(KEY, number) for number in range(3)]
        self.assertEqual([place.slot for place in places], [0, 1, 2])
        self.index.free(places[1])
        self.assertEqual(self.index.image(KEY).blocks, {0, 2})
        self.assertEqual([self.index.place(KEY, number).slot for number in (3, 4)], [1, 3])

    def test_sums(self) -> None:
        """The checksums written are read; erased ones are 0."""
        place = self.record(0, now=10, first=2, count=3)
        self.index.record(place, 10, sums=(99,), now=20)
        self.index.erase_page(place, 3)
        sums = self.index.sums(place)
        written = {page: each for page, each in enumerate(sums) if each}
        self.assertEqual(written, {2: 1, 4: 3, 10: 99})

    def test_truncated(self) -> None:
        """Checksums past the end of the file raise an error, and there is no head."""
        place = self.record(0, now=10)
        os.truncate(self.path / INDEX, RECORD - 1)
        self.assertRaises(StructError, self.index.sums, place)
        os.truncate(self.path / INDEX, 0)
        self.assertIsNone(self.index.head(0))

    def test_erase(self) -> None:
        """An erased slot has no block."""
        self.record(3, now=10)
        self.assertEqual(self.index.head(0), (KEY, 3))
        self.index.erase(0)
        self.assertIsNone(self.index.head(0))
        self.assertEqual(self.loaded(), ([], []))

    def test_stamp(self) -> None:
        """A stamp changes the order of blocks, unless the slot has another block by now."""
        first, second = self.record(0, now=10), self.record(1, now=20)
        self.index.stamp(first, 30)
        self.assertEqual([number for number, _, _ in self.loaded()[0]], [1, 0])
        self.index.stamp(Place(second.image, 2, second.slot), 40)
        self.assertEqual([number for number, _, _ in self.loaded()[0]], [1, 0])

    def test_known_images(self) -> None:
        """Images without blocks are forgotten when there are too many; those with blocks stay."""
        self.patch(module, "MAX_KNOWN_IMAGES", 3)
        self.index.place(KEY, 0)
        for number in range(10, 14):
            self.index.image((number, 1))
        self.assertIn(KEY, self.index.images)
        self.assertLessEqual(len(self.index.images), 3)

    def test_checksums(self) -> None:
        """A page's checksum depends on its bytes, position, image and server, and is never 0."""
        place = self.index.place(KEY, 0)
        data = bytes(2 * PAGE)
        one, two = checksums(place, 0, data)
        self.assertEqual(checksums(place, 1, data[:PAGE]), (two,))
        other = self.index.place((1, 3), 0)
        elsewhere = CacheIndex(self.fd, "tcp:192.0.2.2:7040")
        self.addCleanup(elsewhere.close)
        sums = {one, two, *checksums(other, 0, data), *checksums(elsewhere.place(KEY, 0), 0, data)}
        self.assertEqual(len(sums), 6)
        self.assertNotIn(0, sums)
