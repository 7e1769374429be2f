"""What is on its way from the server: requests, and the reads that wait for them."""

from typing import TypeVar

from attrs import define, field

from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.reading.deliveries import Histogram
from mufs.wire.channel import MAX_READ, Priority
from mufs.wire.pages import EXTENT, PAGE, ImageKey, byte_range, runs, split_into_extents

T = TypeVar("T")

ExtentKey = tuple[ImageKey, int]
"""Image, generation, and number of an extent."""


@define(eq=False)
class ReadRequest:
    """
    A READ that the server has not answered in full.

    @ivar pages: those still missing, by extent.
    @ivar only_for: the one read that it was sent for, if it asks for nothing else.
    """

    tag: int
    opened: OpenImage
    priority: Priority
    over_tcp: bool
    pages: dict[int, int] = field(factory=dict)
    only_for: "WaitingRead | None" = None


@define(eq=False)
class WaitingRead:
    """
    A read that somebody waits for.

    @ivar target: where the bytes go; not touched once the read has ended.
    @ivar since: when it began to wait, in seconds.
    @ivar kind: how it is counted when it ends.
    @ivar is_urged: the server was asked to hurry.
    @ivar asked_alone_at: when its whole blocks were asked for while nothing else was on its way, in
        seconds.
    @ivar pages: those still missing, by extent; none once it has ended.
    """

    opened: OpenImage
    offset: int
    target: memoryview
    since: float
    kind: Histogram
    is_urged: bool = False
    asked_alone_at: float | None = None
    pages: dict[int, int] = field(factory=dict)

    def part(self, offset: int, length: int) -> tuple[int, memoryview]:
        """The part of the read within a range: its offset in the image, and its target."""
        start = max(offset, self.offset)
        stop = max(start, min(offset + length, self.offset + len(self.target)))
        return start, self.target[start - self.offset : stop - self.offset]


class ReadsInFlight:
    """
    Requests and waiting reads by the extents that they lack pages of.

    @ivar requests: by tag.
    @ivar requested: requests by extent, in the order of sending.
    @ivar waiting: reads by extent, in the order of waiting.
    @ivar pending: bytes that all requests lack, in whole pages.
    """

    def __init__(self) -> None:
        self.requests: dict[int, ReadRequest] = {}
        self.requested: dict[ExtentKey, list[ReadRequest]] = {}
        self.waiting: dict[ExtentKey, list[WaitingRead]] = {}
        self.pending = 0

    def add_request(self, request: ReadRequest) -> None:
        """A request is sent."""
        self.requests[request.tag] = request
        for extent, pages in request.pages.items():
            self.requested.setdefault((request.opened.key, extent), []).append(request)
            self.pending += PAGE * pages.bit_count()

    def add_waiting(self, waiting: WaitingRead) -> None:
        """A read waits for the pages that it lacks."""
        for extent in waiting.pages:
            self.waiting.setdefault((waiting.opened.key, extent), []).append(waiting)

    def arrived(self, key: ImageKey, extent: int, pages: int) -> list[WaitingRead]:
        """
        Pages of an extent came: no request or read lacks them any more.

        @return: the reads that waited for something of that extent; those without C{pages} now have
            all that they lacked.
        """
        place = key, extent
        for request in self.requested.get(place, ())[:]:
            lacked = request.pages[extent]
            left = request.pages[extent] = lacked & ~pages
            self.pending -= PAGE * (lacked.bit_count() - left.bit_count())
            if not left:
                del request.pages[extent]
                _discard(self.requested, place, request)
                if not request.pages:
                    del self.requests[request.tag]
        waited = self.waiting.get(place, [])[:]
        for waiting in waited:
            waiting.pages[extent] &= ~pages
            if not waiting.pages[extent]:
                del waiting.pages[extent]
                _discard(self.waiting, place, waiting)
        return waited

    def drop_request(self, tag: int) -> ReadRequest | None:
        """
        Expect nothing of a request any more.

        @return: the request, C{None} when there is none of that tag.
        """
        request = self.requests.pop(tag, None)
        if request is not None:
            for extent, pages in request.pages.items():
                _discard(self.requested, (request.opened.key, extent), request)
                self.pending -= PAGE * pages.bit_count()
        return request

    def drop_all_requests(self) -> None:
        """The connection is lost, and all requests with it; the reads go on waiting."""
        self.requests.clear()
        self.requested.clear()
        self.pending = 0

    def remove_waiting(self, waiting: WaitingRead) -> None:
        """A read no longer waits for anything."""
        for extent in waiting.pages:
            _discard(self.waiting, (waiting.opened.key, extent), waiting)
        waiting.pages.clear()

    def lacks(self, tag: int, offset: int, length: int) -> bool:
        """Whether the request of that tag still lacks some of a range."""
        request = self.requests.get(tag)
        return request is not None and any(
            request.pages.get(extent, 0) & pages
            for extent, pages in split_into_extents(offset, length)
        )

    def not_requested(
        self, key: ImageKey, extent: int, pages: int, lowest: Priority = Priority.BACKGROUND
    ) -> int:
        """Those of an extent's pages that no request has asked for with a C{lowest} priority."""
        for request in self.requested.get((key, extent), ()):
            if request.priority <= lowest:
                pages &= ~request.pages[extent]
        return pages

    def not_over_tcp(self, waiting: WaitingRead) -> dict[int, int]:
        """
        Those of a read's missing pages that no request has asked for over TCP, by extent. What was
        requested over TCP will come: there is nothing better to ask for.
        """
        missing = dict(waiting.pages)
        for request in self.requests_for(waiting):
            if request.over_tcp:
                for extent in missing:
                    missing[extent] &= ~request.pages.get(extent, 0)
        return missing

    def all_waiting(self) -> "dict[WaitingRead, None]":
        """Every waiting read, once."""
        return dict.fromkeys(each for line in self.waiting.values() for each in line)

    def requests_for(self, waiting: WaitingRead) -> list[ReadRequest]:
        """The requests for pages that a read waits for."""
        key = waiting.opened.key
        return list(
            dict.fromkeys(
                request
                for extent, pages in waiting.pages.items()
                for request in self.requested.get((key, extent), ())
                if request.pages[extent] & pages
            )
        )

    def waiting_for(self, request: ReadRequest) -> list[WaitingRead]:
        """The reads that wait for pages that a request still lacks."""
        key = request.opened.key
        return list(
            dict.fromkeys(
                waiting
                for extent, pages in request.pages.items()
                for waiting in self.waiting.get((key, extent), ())
                if waiting.pages[extent] & pages
            )
        )


def merge_ranges(pages: dict[int, int], size: int) -> list[tuple[int, int]]:
    """
    The byte ranges of pages given by extent; adjacent ones are merged up to the size of a READ.

    @param size: of the image, in bytes.
    @return: offsets and lengths.
    """
    ranges: list[tuple[int, int]] = []
    for extent, wanted in pages.items():
        for first, count in runs(wanted):
            offset, length = byte_range(extent * EXTENT, first, count, size)
            if ranges and sum(ranges[-1]) == offset and ranges[-1][1] + length <= MAX_READ:
                offset, length = ranges[-1][0], ranges.pop()[1] + length
            ranges.append((offset, length))
    return ranges


def first_pages(pages: dict[int, int], size: int) -> dict[int, int]:
    """The first of pages given by extent, of C{size} bytes at most."""
    left = size // PAGE
    if sum(map(int.bit_count, pages.values())) <= left:
        return pages
    first: dict[int, int] = {}
    for extent, wanted in pages.items():
        for start, count in runs(wanted):
            part = min(count, left)
            if part:
                first[extent] = first.get(extent, 0) | (1 << part) - 1 << start
                left -= part
    return first


def _discard(table: dict[ExtentKey, list[T]], key: ExtentKey, item: T) -> None:
    """Take an item out of the list of its extent, and an empty list out of the table."""
    table[key].remove(item)
    if not table[key]:
        del table[key]
