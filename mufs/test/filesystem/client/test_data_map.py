"""What a host knows of where an image has data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client.data_map import MAX_RUNS_OF_IMAGE, KnownMap, holes
from mufs.test.support.properties import examples
from mufs.wire.metadata import MAX_RUNS, DataMap

SIZE = 60


def parts_of(data: list[bool], cuts: list[int]) -> Iterator[DataMap]:
    """The map of an image of so many bytes, each of which is data or not, in parts."""
    for start, end in pairwise([0, *cuts, len(data)]):
        around = [False, *data[start:end], False]
        changes = [start + place for place in range(len(around) - 1)
                   if around[place] != around[place + 1]]  # fmt: skip
        yield DataMap(start, end, tuple(changes))


class KnownMapTests(SynchronousTestCase):
    """Maps that are known in parts."""

    @examples(200)
    @given(
        st.lists(st.booleans(), min_size=SIZE, max_size=SIZE),
        st.sets(st.integers(1, SIZE - 1), max_size=4),
        st.integers(0, 5),
    )
    def test_find(self, data: list[bool], cuts: set[int], count: int) -> None:
        """Data and holes are found where they are, as far as the map is known."""
        known = KnownMap(SIZE)
        parts = list(parts_of(data, sorted(cuts)))
        for part in parts[:count]:
            known.add(part)
        end = known.end
        self.assertEqual(end, parts[:count][-1].end if count else 0)
        self.assertEqual(known.wants_more, end < SIZE)
        self.assertEqual(known.bytes_of_holes, data[:end].count(False))
        for wanted in (False, True):
            for offset in range(SIZE):
                expected = next((at for at in range(offset, end) if data[at] is wanted), None)
                if expected is not None:
                    self.assertEqual(known.find(offset, data=wanted), (expected, True))
                else:
                    unknown = max(offset, end), end == SIZE
                    self.assertEqual(known.find(offset, data=wanted), unknown)

    def test_beyond(self) -> None:
        """One part beyond what is known from the beginning on is kept: the last one."""
        known = KnownMap(100)
        known.add(DataMap(0, 10, (0, 10)))
        known.add(DataMap(50, 60, (52, 60)))
        self.assertEqual(known.find(50, data=True), (52, True))
        self.assertEqual(known.find(52, data=False), (60, False))
        self.assertEqual(known.find(5, data=False), (10, False))
        known.add(DataMap(70, 100, (70, 80)))
        self.assertEqual(known.find(50, data=True), (50, False))
        self.assertEqual(known.find(75, data=False), (80, True))
        self.assertEqual(known.find(85, data=True), (100, True))
        self.assertEqual(known.end, 10)

    def test_known_already(self) -> None:
        """A part that is known changes nothing."""
        known = KnownMap(100)
        for _ in range(2):
            known.add(DataMap(0, 100, (10, 20)))
        self.assertEqual(known.bytes_of_holes, 90)
        self.assertEqual(known.find(0, data=True), (10, True))

    def test_bounded(self) -> None:
        """Of an image with very many runs the first ones are remembered."""
        known = KnownMap(1 << 40)
        while known.wants_more:
            bounds = range(known.end, known.end + 2 * MAX_RUNS)
            known.add(DataMap(bounds[0], bounds[-1] + 1, tuple(bounds)))
        self.assertEqual(known.end, 2 * MAX_RUNS_OF_IMAGE)
        known.add(DataMap(known.end, known.end + 10, ()))
        self.assertEqual(known.end, 2 * MAX_RUNS_OF_IMAGE)
        self.assertEqual(known.find(known.end - 1, data=True), (known.end + 10, False))

    def test_holes(self) -> None:
        """The holes of a part lie between its runs, before and after them."""
        self.assertEqual(list(holes(DataMap(5, 9, ()))), [(5, 9)])
        self.assertEqual(list(holes(DataMap(5, 9, (5, 9)))), [])
        self.assertEqual(list(holes(DataMap(5, 20, (7, 9, 15, 20)))), [(5, 7), (9, 15)])
