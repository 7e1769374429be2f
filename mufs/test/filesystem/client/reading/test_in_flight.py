"""Requests and the reads that wait for them."""

from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.reading.deliveries import Histogram
from mufs.filesystem.client.reading.in_flight import (
    ReadRequest,
    ReadsInFlight,
    WaitingRead,
    first_pages,
    merge_ranges,
)
from mufs.filesystem.client.reading.sequences import SequenceDetector
from mufs.test.support.doubles import make_attributes
from mufs.wire.channel import MAX_READ, Priority
from mufs.wire.pages import EXTENT, EXTENT_PAGES, PAGE

SIZE = 40 * EXTENT
ALL_PAGES = (1 << EXTENT_PAGES) - 1


def make_image(generation: int = 1) -> OpenImage:
    """An open image."""
    detector = SequenceDetector(SIZE)
    return OpenImage(b"image", (1, generation), make_attributes(SIZE), detector, 5)


class TableTests(SynchronousTestCase):
    """One image, two requests and two reads."""

    def setUp(self) -> None:
        """Request pages of extents 0 and 1, and wait for some of them."""
        self.image = image = make_image()
        self.table = ReadsInFlight()
        self.ahead = ReadRequest(1, image, Priority.AHEAD, False, {0: ALL_PAGES, 1: ALL_PAGES})
        self.fill = ReadRequest(2, image, Priority.BACKGROUND, False, {1: 0b11})
        self.table.add_request(self.ahead)
        self.table.add_request(self.fill)
        self.first = self.wait({0: 0b1, 1: 0b1})
        self.second = self.wait({1: 0b1100})

    def wait(self, pages: dict[int, int], image: OpenImage | None = None) -> WaitingRead:
        """Have a read wait for pages."""
        target = memoryview(bytearray(PAGE))
        waiting = WaitingRead(image or self.image, 0, target, 0.0, Histogram(), pages=pages)
        self.table.add_waiting(waiting)
        return waiting

    def test_belong_together(self) -> None:
        """A read belongs to each request of its pages, and not to others of its extents."""
        self.assertEqual(self.table.waiting_for(self.ahead), [self.first, self.second])
        self.assertEqual(self.table.waiting_for(self.fill), [self.first])
        self.assertEqual(self.table.requests_for(self.first), [self.ahead, self.fill])
        self.assertEqual(self.table.requests_for(self.second), [self.ahead])
        other = self.wait({0: 1}, make_image(2))
        self.assertEqual(self.table.requests_for(other), [])
        self.assertEqual(list(self.table.all_waiting()), [self.first, self.second, other])

    def test_lacks(self) -> None:
        """A request lacks what it asked for and has not got, and nothing else."""
        self.assertTrue(self.table.lacks(2, EXTENT, PAGE))
        self.assertFalse(self.table.lacks(2, EXTENT + 2 * PAGE, PAGE))
        self.assertFalse(self.table.lacks(2, 0, EXTENT))
        self.assertTrue(self.table.lacks(2, 0, 2 * EXTENT))
        self.assertFalse(self.table.lacks(3, 0, EXTENT))

    def test_not_requested(self) -> None:
        """What was requested in the background only counts for the background."""
        key = self.image.key
        self.table.drop_request(1)
        self.assertEqual(self.table.not_requested(key, 1, 0b111, Priority.BACKGROUND), 0b100)
        self.assertEqual(self.table.not_requested(key, 1, 0b111, Priority.AHEAD), 0b111)
        self.assertEqual(self.table.not_requested(key, 2, 0b111, Priority.AHEAD), 0b111)

    def test_not_over_tcp(self) -> None:
        """What a read lacks is given but for what comes over TCP."""
        self.assertEqual(self.table.not_over_tcp(self.first), {0: 0b1, 1: 0b1})
        self.table.add_request(ReadRequest(3, self.image, Priority.BLOCKED, True, {1: 0b101}))
        self.assertEqual(self.table.not_over_tcp(self.first), {0: 0b1, 1: 0})
        self.assertEqual(self.table.not_over_tcp(self.second), {1: 0b1000})
        self.assertEqual(self.second.pages, {1: 0b1100})

    def test_arrived(self) -> None:
        """
        What came is lacked by nobody; a request without pages is answered, and all who waited for
        something of the extent are told.
        """
        key, pending = self.image.key, self.table.pending
        self.assertEqual(self.table.arrived(key, 1, 0b111), [self.first, self.second])
        self.assertEqual((self.first.pages, self.second.pages), ({0: 0b1}, {1: 0b1000}))
        self.assertEqual(list(self.table.requests), [1])
        self.assertEqual(self.table.pending, pending - 5 * PAGE)
        self.assertEqual(self.table.arrived(key, 0, ALL_PAGES), [self.first])
        self.assertEqual(self.first.pages, {})
        self.assertEqual(self.table.requested, {(key, 1): [self.ahead]})
        self.assertEqual(self.table.arrived(key, 1, ALL_PAGES), [self.second])
        self.assertEqual(self.table.arrived(key, 1, ALL_PAGES), [])
        self.assertEqual((self.table.requests, self.table.requested), ({}, {}))
        self.assertEqual((self.table.waiting, self.table.pending), ({}, 0))

    def test_drop(self) -> None:
        """A dropped request keeps its pages, so that they can be asked for again."""
        self.assertIs(self.table.drop_request(1), self.ahead)
        self.assertEqual(self.ahead.pages, {0: ALL_PAGES, 1: ALL_PAGES})
        self.assertEqual(self.table.pending, 2 * PAGE)
        self.assertEqual(self.table.waiting_for(self.ahead), [self.first, self.second])
        self.assertIsNone(self.table.drop_request(1))
        self.table.drop_all_requests()
        self.assertEqual((self.table.requests, self.table.requested), ({}, {}))
        self.assertEqual((len(self.table.all_waiting()), self.table.pending), (2, 0))

    def test_remove_waiting(self) -> None:
        """Nothing is left of a read that stops waiting."""
        self.table.remove_waiting(self.first)
        self.table.remove_waiting(self.second)
        self.assertEqual(self.table.waiting, {})


class PartTests(SynchronousTestCase):
    """The part of a read within a range."""

    def test_part(self) -> None:
        """Offset and length of the common part, which is empty when there is none."""
        target = memoryview(bytearray(100))
        waiting = WaitingRead(make_image(), 1000, target, 0.0, Histogram())
        for offset, length, expected in (
            (0, 5000, (1000, 100)), (1050, 10, (1050, 10)), (900, 150, (1000, 50)),
            (1090, 50, (1090, 10)), (0, 1000, (1000, 0)), (1100, 10, (1100, 0)),
        ):  # fmt: skip
            begin, part = waiting.part(offset, length)
            self.assertEqual((begin, len(part)), expected)


class RangeTests(SynchronousTestCase):
    """The ranges of READs."""

    def test_merged(self) -> None:
        """Adjacent pages share a range, over extents, and the last ends with the image."""
        self.assertEqual(merge_ranges({}, SIZE), [])
        self.assertEqual(merge_ranges({0: 0b1011}, SIZE), [(0, 2 * PAGE), (3 * PAGE, PAGE)])
        self.assertEqual(merge_ranges({0: 0, 1: ALL_PAGES, 2: 1}, SIZE), [(EXTENT, EXTENT + PAGE)])
        self.assertEqual(
            merge_ranges({0: ALL_PAGES, 2: ALL_PAGES}, SIZE), [(0, EXTENT), (2 * EXTENT, EXTENT)]
        )
        self.assertEqual(merge_ranges({0: 0b11}, PAGE + 1), [(0, PAGE + 1)])

    def test_first(self) -> None:
        """The first pages are as many as there is room for, over gaps and extents."""
        pages = {0: 0b1011, 2: 0b11}
        self.assertEqual(first_pages(pages, 5 * PAGE), pages)
        self.assertEqual(first_pages(pages, 4 * PAGE), {0: 0b1011, 2: 0b1})
        self.assertEqual(first_pages(pages, 3 * PAGE - 1), {0: 0b11})
        self.assertEqual(first_pages({0: ALL_PAGES - 1}, PAGE), {0: 0b10})

    def test_bound(self) -> None:
        """No range is longer than a READ may be."""
        extents = 2 * MAX_READ // EXTENT
        ranges = merge_ranges(dict.fromkeys(range(extents), ALL_PAGES), 2 * MAX_READ)
        self.assertEqual(ranges, [(0, MAX_READ), (MAX_READ, MAX_READ)])
