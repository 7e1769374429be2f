"""Read-ahead of one open image."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client.reading.sequences import (
    MAX_AROUND,
    MAX_REORDERED_READS,
    MAX_SEQUENCES,
    MIN_EXTENTS_AHEAD,
    MIN_SEQUENTIAL_BYTES,
    READ_PER_AHEAD,
    READS_PER_DOUBLING,
    SequenceDetector,
)
from mufs.test.support.properties import examples
from mufs.wire.pages import BLOCK, EXTENT, PAGE

SIZE = 40 * BLOCK + 12345
MOST = 16 * BLOCK


class ReadAheadTests(SynchronousTestCase):
    """What is requested before it is read."""

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
        ahead = SequenceDetector(size)
        offsets = list(range(0, size, step))
        for i in range(1, len(offsets) - 1, 2):
            if random.random() < 0.5:
                offsets[i], offsets[i + 1] = offsets[i + 1], offsets[i]
        asked = position = min(step, size)
        for offset in offsets:
            length = min(step, size - offset)
            found = ahead.advance(offset, length, most)
            position = max(position, offset + length)
            if found is not None:
                start, count = found
                self.assertGreater(count, 0)
                self.assertEqual(start, max(asked, position))
                asked = start + count
                self.assertLessEqual(asked, min(size, position + most + BLOCK))
        self.assertGreaterEqual(max(asked, position), size)

    def test_keeps_ahead(self) -> None:
        """Once a sequence is detected, everything it reads was requested before."""
        size = 4 * READ_PER_AHEAD * MOST
        ahead, asked = SequenceDetector(size), 0
        for offset in range(0, size, BLOCK):
            if offset >= MIN_SEQUENTIAL_BYTES:
                self.assertGreaterEqual(asked, min(size, offset + BLOCK))
            found = ahead.advance(offset, BLOCK, MOST)
            if found is not None:
                asked = sum(found)
            if READ_PER_AHEAD * MOST < offset < size - MOST:
                self.assertGreaterEqual(asked - offset, MOST // 2)
        self.assertEqual(asked, size)

    def test_grows(self) -> None:
        """At first nothing is read ahead, and then no more than a part of what was read."""
        ahead = SequenceDetector(SIZE)
        for offset in range(0, SIZE - MOST, BLOCK):
            found = ahead.advance(offset, BLOCK, MOST)
            read = offset + BLOCK
            if read < MIN_SEQUENTIAL_BYTES:
                self.assertIsNone(found)
            elif found is not None:
                self.assertLess(sum(found) - read, read // READ_PER_AHEAD + BLOCK)

    def test_at_random(self) -> None:
        """Reads at random are not read ahead of."""
        ahead = SequenceDetector(SIZE)
        places = [20, 3, 33, 10, 38, 15, 25]
        found = [ahead.advance(place * BLOCK, PAGE, MOST) for place in places]
        self.assertEqual(found, [None] * len(places))

    def read_on(self, ahead: SequenceDetector, start: int, blocks: int) -> "tuple[int, int] | None":
        """Read blocks in sequence; what the last read requested."""
        found = None
        for number in range(blocks):
            found = ahead.advance(start + number * BLOCK, BLOCK, MOST)
        return found

    def test_anywhere(self) -> None:
        """A reader that jumps and goes on in sequence is read ahead of at its new place."""
        ahead, start = SequenceDetector(SIZE), 20 * BLOCK
        self.assertIsNone(self.read_on(ahead, start, MIN_SEQUENTIAL_BYTES // BLOCK - 1))
        last = start + MIN_SEQUENTIAL_BYTES - BLOCK
        self.assertEqual(
            ahead.advance(last, BLOCK, MOST),
            (start + MIN_SEQUENTIAL_BYTES, MIN_SEQUENTIAL_BYTES // READ_PER_AHEAD),
        )
        elsewhere = start - MAX_REORDERED_READS * BLOCK - 1
        self.assertIsNone(ahead.advance(elsewhere, PAGE, MOST))

    def test_by_turns(self) -> None:
        """Several interleaved sequences are each read ahead of; too many are forgotten."""
        for count in (MAX_SEQUENCES, MAX_SEQUENCES + 1):
            ahead = SequenceDetector(100 * SIZE)
            starts = [(number + 1) * MOST * 2 for number in range(count)]
            found = [
                ahead.advance(start + done, BLOCK, MOST)
                for done in range(0, MIN_SEQUENTIAL_BYTES, BLOCK)
                for start in starts
            ]
            expected = [
                (start + MIN_SEQUENTIAL_BYTES, MIN_SEQUENTIAL_BYTES // READ_PER_AHEAD)
                for start in starts
            ]
            self.assertEqual(found[-count:], expected if count == MAX_SEQUENCES else [None] * count)

    def test_extents(self) -> None:
        """Far ahead, whole extents are asked for, once each, and never more than the window."""
        size, window = 100 * EXTENT + 12345, 2 * MIN_EXTENTS_AHEAD
        ahead, ranges = SequenceDetector(size), []
        for offset in range(0, size, BLOCK):
            found = ahead.advance(offset, min(BLOCK, size - offset), window)
            if found is not None and offset >= READ_PER_AHEAD * MIN_EXTENTS_AHEAD:
                ranges.append(found)
                self.assertLessEqual(sum(found) - offset - BLOCK, window)
        for (start, length), (following, _) in pairwise(ranges):
            self.assertEqual(start + length, following)
            self.assertEqual(following % EXTENT, 0)
        self.assertEqual(sum(ranges[-1]), size)
        self.assertLess(len(ranges), 100)

    def test_reordered(self) -> None:
        """Large reads may be out of order by as many of them."""
        ahead, start = SequenceDetector(1000 * EXTENT), 100
        found = [
            ahead.advance((start + number) * EXTENT, EXTENT, MOST) for number in (0, 4, 2, 1, 3)
        ]
        self.assertIsNone(found[0])
        self.assertEqual(found[1], ((start + 5) * EXTENT, EXTENT // 2))
        self.assertEqual(sum(found[3] or ()), (start + 6) * EXTENT)

    @examples(150)
    @given(
        st.integers(0, SIZE),
        st.lists(st.tuples(st.integers(0, SIZE + BLOCK), st.integers(0, BLOCK)), max_size=30),
    )
    def test_any_reads(self, size: int, reads: list[tuple[int, int]]) -> None:
        """Whatever is read, only what follows it within the image is requested."""
        ahead = SequenceDetector(size)
        for offset, length in reads:
            found = ahead.advance(offset, length, MOST)
            if found is not None:
                self.assertGreaterEqual(found[0], offset + length)
                self.assertGreater(found[1], 0)
                self.assertLessEqual(sum(found), size)


class AroundTests(SynchronousTestCase):
    """What a read at random brings with it."""

    def test_ever_more(self) -> None:
        """The more reads at random in a row, the more each brings, up to a limit."""
        ahead = SequenceDetector(1000 * MAX_AROUND)
        sizes = []
        for number in range(6 * READS_PER_DOUBLING):
            offset = (number * 37 % 999) * MAX_AROUND + PAGE
            ahead.advance(offset, PAGE, MOST)
            start, length = ahead.around(offset)
            self.assertTrue(start <= offset < start + length)
            self.assertEqual(start % length, 0)
            sizes.append(length)
        self.assertEqual(sizes[0], BLOCK)
        self.assertEqual(sizes[READS_PER_DOUBLING], 2 * BLOCK)
        self.assertEqual(sizes[-1], MAX_AROUND)
        self.assertEqual(sizes, sorted(sizes))

    def test_in_sequence(self) -> None:
        """A sequence resets that."""
        ahead = SequenceDetector(1000 * MAX_AROUND)
        for number in range(6 * READS_PER_DOUBLING):
            ahead.advance((number * 37 % 999) * MAX_AROUND, PAGE, MOST)
        offset = 5 * MAX_AROUND
        for start in range(offset, offset + MIN_SEQUENTIAL_BYTES, BLOCK):
            ahead.advance(start, BLOCK, MOST)
        self.assertEqual(ahead.around(offset), (offset, BLOCK))

    def test_end(self) -> None:
        """It ends with the image."""
        ahead = SequenceDetector(SIZE)
        self.assertEqual(ahead.around(SIZE - 1), (40 * BLOCK, SIZE - 40 * BLOCK))
