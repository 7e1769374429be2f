"""What a host knows to be zero."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client.blocks import BlockCache
from mufs.cache.client.zeros import MAX_IMAGES, MAX_MARKED, Zeros
from mufs.test.support.properties import examples
from mufs.wire.pages import ALL_PAGES, BLOCK, BLOCK_PAGES, EXTENT, EXTENT_PAGES, PAGE, ImageKey

IMAGE: ImageKey = (1, 1)

BLOCKS = 6

RANGES = st.lists(
    st.tuples(st.integers(0, BLOCKS * BLOCK), st.integers(0, 2 * BLOCK)).map(
        lambda drawn: (drawn[0], min(drawn[0] + drawn[1], BLOCKS * BLOCK))
    ),
    max_size=12,
)
"""Where ranges begin and end, in bytes."""


class ZerosTests(SynchronousTestCase):
    """The ranges and marks by themselves."""

    @examples(300)
    @given(st.lists(RANGES, max_size=3))
    def test_holes(self, parts: list[list[tuple[int, int]]]) -> None:
        """A page is zero if all of it lies in one of the ranges, in whatever order they come."""
        zeros = Zeros()
        for part in parts:
            zeros.add_holes(IMAGE, part)
        ranges = [each for part in parts for each in part]
        for block in range(BLOCKS):
            pages = 0
            for page in range(BLOCK_PAGES):
                start = block * BLOCK + page * PAGE
                pages |= any(a <= start and start + PAGE <= b for a, b in ranges) << page
            self.assertEqual(zeros.of_block(IMAGE, block), pages)

    def test_huge(self) -> None:
        """A hole of any size costs no more than a small one."""
        zeros = Zeros()
        zeros.add_holes(IMAGE, [(PAGE, 1 << 63)])
        self.assertEqual(zeros.of_block(IMAGE, 0), ALL_PAGES - 1)
        self.assertEqual(zeros.of_block(IMAGE, (1 << 62) // BLOCK), ALL_PAGES)
        self.assertEqual(zeros.of_block(IMAGE, (1 << 63) // BLOCK), 0)

    def test_marks(self) -> None:
        """A mark is of one block of one image, and has a bound."""
        zeros = Zeros()
        for block in (0, 9, MAX_MARKED - 1):
            self.assertTrue(zeros.mark(IMAGE, block))
            self.assertEqual(zeros.of_block(IMAGE, block), ALL_PAGES)
        self.assertFalse(zeros.mark(IMAGE, MAX_MARKED))
        for block in (1, 8, 10, MAX_MARKED - 2, MAX_MARKED, 1 << 46):
            self.assertEqual(zeros.of_block(IMAGE, block), 0)
        self.assertEqual(zeros.of_block((1, 2), 0), 0)

    def test_bounded(self) -> None:
        """Of many images, what was learnt first is forgotten first."""
        zeros = Zeros()
        for number in range(MAX_IMAGES + 1):
            zeros.mark((number, 1), 3)
            zeros.add_holes((number, 1), [(0, BLOCK)])
        for block in (0, 3):
            found = [zeros.of_block((number, 1), block) for number in (0, 1, MAX_IMAGES)]
            self.assertEqual(found, [0, ALL_PAGES, ALL_PAGES])


class CacheTests(SynchronousTestCase):
    """A cache that is told what is zero."""

    def setUp(self) -> None:
        """A cache of two blocks."""
        self.cache = BlockCache(2 * BLOCK)

    def read(self, offset: int, length: int) -> bytes | None:
        """Bytes of the image, C{None} if some are lacking."""
        target = bytearray(b"\xff" * length)
        return bytes(target) if self.cache.read(IMAGE, offset, memoryview(target)) else None

    def test_holes(self) -> None:
        """A hole is read, is not missing, and takes no room."""
        self.cache.zeros.add_holes(IMAGE, [(0, 8 * BLOCK)])
        self.assertEqual(self.read(100, 3 * BLOCK), bytes(3 * BLOCK))
        self.assertEqual(self.cache.missing(IMAGE, 1, ALL_PAGES), 0)
        self.assertEqual(self.cache.missing_of_extent(IMAGE, 0, (1 << EXTENT_PAGES) - 1), 0)
        self.assertEqual(self.cache.missing(IMAGE, 8, ALL_PAGES), ALL_PAGES)
        self.assertIsNone(self.read(8 * BLOCK - 1, 2))
        self.assertEqual((self.cache.held, self.cache.evictions), (0, 0))
        self.assertEqual(self.cache.zero_bytes_read, 3 * BLOCK)

    def test_between_data(self) -> None:
        """A read may touch pages that are held and pages that are zero, in any order."""
        self.cache.zeros.add_holes(IMAGE, [(0, PAGE), (2 * PAGE, 3 * PAGE)])
        self.cache.store(IMAGE, PAGE, b"a" * PAGE)
        self.assertIsNone(self.read(PAGE, 2 * PAGE + 1))
        self.cache.store(IMAGE, 3 * PAGE, b"b" * PAGE)
        whole = bytes(PAGE) + b"a" * PAGE + bytes(PAGE) + b"b" * PAGE
        for offset, length in [(0, 4 * PAGE), (10, 2 * PAGE), (PAGE + 1, 2 * PAGE + 7), (0, 1)]:
            self.assertEqual(self.read(offset, length), whole[offset : offset + length])
        self.assertEqual(self.cache.held, 2 * PAGE)
        self.assertEqual(self.cache.zero_bytes_read, 4 * PAGE + 1)

    def test_stored_zeros(self) -> None:
        """Blocks that are zero take no room; what is zero in others is kept with them."""
        data = b"".join(
            [b"a" * BLOCK, bytes(BLOCK), bytes(PAGE), b"b" * (BLOCK - PAGE), bytes(BLOCK)]
        )
        pages = [i for i in range(len(data) // PAGE) if not any(data[i * PAGE : (i + 1) * PAGE])]
        self.cache.store(IMAGE, EXTENT, data, sum(1 << page for page in pages))
        self.assertEqual(self.read(EXTENT, len(data)), data)
        self.assertEqual((self.cache.held, self.cache.evictions), (2 * BLOCK, 0))

    def test_ends(self) -> None:
        """A block of which only a part came is not zero; the last one of an image is short."""
        pages = (1 << BLOCK_PAGES) - 1
        self.cache.store(IMAGE, BLOCK, bytes(BLOCK - PAGE), pages)
        self.assertEqual(self.cache.held, BLOCK - PAGE)
        self.assertIsNone(self.read(BLOCK, BLOCK))
        self.cache.store(IMAGE, 2 * BLOCK, bytes(PAGE + 5), pages)
        self.assertEqual(self.cache.held, BLOCK - PAGE)
        self.assertEqual(self.read(2 * BLOCK, PAGE + 5), bytes(PAGE + 5))
        self.cache.store(IMAGE, 4 * BLOCK + PAGE, bytes(BLOCK - PAGE), pages)
        self.assertIsNone(self.read(4 * BLOCK, 1))

    def test_another_generation(self) -> None:
        """What was zero of a file that has changed is forgotten."""
        self.cache.opened(IMAGE, b"a.img", 8 * BLOCK)
        self.cache.zeros.add_holes(IMAGE, [(0, BLOCK)])
        self.cache.store(IMAGE, BLOCK, bytes(BLOCK), ALL_PAGES)
        self.cache.opened((1, 2), b"a.img", 8 * BLOCK)
        self.assertIsNone(self.read(0, 1))
        self.assertIsNone(self.read(BLOCK, 1))
