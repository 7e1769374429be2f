"""The grid of pages and blocks."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.properties import examples
from mufs.wire.pages import BLOCK, BLOCK_PAGES, PAGE, byte_range, mask_of, runs, split_into_blocks


def pages_of(mask: int) -> set[int]:
    """The pages in a bitmap, one by one."""
    return {page for page in range(mask.bit_length()) if mask >> page & 1}


class PagesTests(SynchronousTestCase):
    """Sets of pages as numbers."""

    def test_sizes(self) -> None:
        """A block is 128 KiB, and has 32 pages of 4 KiB."""
        self.assertEqual((PAGE, BLOCK, BLOCK_PAGES), (4096, 131072, 32))

    def test_examples(self) -> None:
        """The sets of some ranges, as they are written down."""
        self.assertEqual(mask_of(0, BLOCK), 0xFFFFFFFF)
        self.assertEqual(mask_of(4095, 4097), 0b11)
        self.assertEqual(mask_of(4096, 4096), 0)
        self.assertEqual(list(split_into_blocks(BLOCK - 1, 2)), [(0, 1 << 31), (1, 1)])
        self.assertEqual(list(split_into_blocks((1 << 63) + PAGE, 1)), [(1 << 46, 0b10)])
        self.assertEqual(list(split_into_blocks(7, 0)), [])
        self.assertEqual(list(runs(0b1110_0110)), [(1, 2), (5, 3)])
        self.assertEqual(
            byte_range(2 * BLOCK, 31, 1, 3 * BLOCK - 96), (3 * BLOCK - PAGE, PAGE - 96)
        )
        self.assertEqual(byte_range(2 * BLOCK, 0, 1, 10), (2 * BLOCK, 0))

    @examples(100)
    @given(st.integers(0, 3 * BLOCK), st.integers(0, 3 * BLOCK))
    def test_pieces(self, offset: int, length: int) -> None:
        """The pieces of a range have just the pages that its bytes touch, block by block."""
        found = [
            block * BLOCK_PAGES + page
            for block, mask in split_into_blocks(offset, length)
            for page in sorted(pages_of(mask))
        ]
        last = -(-(offset + length) // PAGE) if length else 0
        self.assertEqual(found, list(range(offset // PAGE, last)))

    @examples(100)
    @given(st.integers(0, 0xFFFFFFFF))
    def test_runs(self, mask: int) -> None:
        """The runs of a set are all of it, in order, and no two of them adjoin."""
        found, end = set(), -1
        for first, count in runs(mask):
            self.assertGreater(first, end)
            self.assertGreater(count, 0)
            found |= set(range(first, first + count))
            end = first + count
        self.assertEqual(found, pages_of(mask))

    @examples(100)
    @given(st.integers(1, 4 * BLOCK), st.integers(0, 3), st.integers(1, 0xFFFFFFFF))
    def test_byte_ranges(self, size: int, block: int, mask: int) -> None:
        """The bytes of runs, cut at the end of the image, are those of their pages."""
        found = [byte_range(block * BLOCK, first, count, size) for first, count in runs(mask)]
        expected = sum(
            max(0, min(PAGE, size - block * BLOCK - page * PAGE)) for page in pages_of(mask)
        )
        self.assertEqual(sum(length for _, length in found), expected)
        for offset, length in found:
            self.assertTrue(length == 0 or offset + length <= size)
