"""Read-ahead of one open image."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client.readahead import SLACK, ReadAhead
from mufs.test.properties import examples
from mufs.wire.pages import BLOCK, PAGE

SIZE = 40 * BLOCK + 12345
MOST = 16 * BLOCK


class ReadAheadTests(SynchronousTestCase):
    """What is asked for before it is read."""

    @examples(50)
    @given(
        st.integers(1, SIZE),
        st.sampled_from([PAGE, 5000, 64 * 1024, BLOCK]),
        st.sampled_from([BLOCK, 3 * BLOCK, 10 * BLOCK + 1, MOST]),
        st.randoms(use_true_random=False),
    )
    def test_in_sequence(self, size: int, step: int, most: int, random: Any) -> None:
        """
        Reads in sequence, also when a few of them change places, have all that comes after the
        first asked for once, in order, never further ahead than allowed.
        """
        ahead = ReadAhead(size, most)
        offsets = list(range(0, size, step))
        for i in range(1, len(offsets) - 1, 2):
            if random.random() < 0.5:
                offsets[i], offsets[i + 1] = offsets[i + 1], offsets[i]
        asked = position = min(step, size)
        for offset in offsets:
            length = min(step, size - offset)
            found = ahead.advance(offset, length)
            position = max(position, offset + length)
            if found is not None:
                start, count = found
                self.assertGreater(count, 0)
                self.assertEqual(start, max(asked, position))
                asked = start + count
                self.assertLessEqual(asked, min(size, position + most + BLOCK))
        self.assertGreaterEqual(max(asked, position), size)

    def test_keeps_ahead(self) -> None:
        """Once a reader was seen to read in sequence, what it reads was always asked for."""
        ahead, asked = ReadAhead(SIZE, MOST), 0
        for offset in range(0, SIZE, BLOCK):
            if offset:
                self.assertGreaterEqual(asked, min(SIZE, offset + BLOCK))
            found = ahead.advance(offset, BLOCK)
            if found is not None:
                asked = sum(found)
            if 8 * BLOCK < offset < SIZE - MOST:
                self.assertGreaterEqual(asked - offset, MOST // 2)
        self.assertEqual(asked, SIZE)

    def test_grows(self) -> None:
        """The first reads have little asked for, later ones more."""
        ahead = ReadAhead(SIZE, MOST)
        found = [ahead.advance(offset, BLOCK) for offset in range(0, 20 * BLOCK, BLOCK)]
        lengths = [length for each in found if each is not None for _, length in [each]]
        self.assertEqual(lengths[0], 2 * BLOCK)
        self.assertGreater(max(lengths), 4 * BLOCK)

    def test_at_random(self) -> None:
        """Reads here and there have nothing asked for."""
        ahead = ReadAhead(SIZE, MOST)
        places = [20, 3, 33, 10, 38, 15, 25]
        found = [ahead.advance(place * BLOCK, PAGE) for place in places]
        self.assertEqual(found, [None] * len(places))

    def test_anywhere(self) -> None:
        """A reader that jumps, and reads in sequence from there on, is read ahead of there."""
        ahead = ReadAhead(SIZE, MOST)
        self.assertIsNone(ahead.advance(20 * BLOCK, BLOCK))
        self.assertEqual(ahead.advance(21 * BLOCK, BLOCK), (22 * BLOCK, 2 * BLOCK))
        self.assertIsNone(ahead.advance(21 * BLOCK - SLACK - 1 - BLOCK, PAGE))

    @examples(150)
    @given(
        st.integers(0, SIZE),
        st.lists(st.tuples(st.integers(0, SIZE + BLOCK), st.integers(0, BLOCK)), max_size=30),
    )
    def test_any_reads(self, size: int, reads: list[tuple[int, int]]) -> None:
        """Whatever is read, only what lies behind it and within the image is asked for."""
        ahead = ReadAhead(size, MOST)
        for offset, length in reads:
            found = ahead.advance(offset, length)
            if found is not None:
                self.assertGreaterEqual(found[0], offset + length)
                self.assertGreater(found[1], 0)
                self.assertLessEqual(sum(found), size)
