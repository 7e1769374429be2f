"""What is on its way from the server: requests, and the reads and fillers that wait for them."""

from typing import TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from zope.interface import Interface

from mufs.filesystem.client.images import OpenImage
from mufs.wire.channel import MAX_READ, Priority
from mufs.wire.pages import BLOCK, ImageKey, byte_range, runs, split_into_blocks

T = TypeVar("T")

BlockKey = tuple[ImageKey, int]
"""Image, generation, and number of a block."""


@define(eq=False)
class ReadRequest:
    """
    A READ that the server has not answered in full.

    @ivar pages: those still missing, by block.
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

    @ivar target: where the bytes go; not touched once C{done} has a result.
    @ivar done: fires with the number of bytes.
    @ivar since: when it began to wait, in seconds.
    @ivar overdue_at: when it has waited for too long, in seconds.
    @ivar is_urged: the server was asked to hurry.
    @ivar pages: those still missing, by block.
    """

    opened: OpenImage
    offset: int
    target: memoryview
    done: "Deferred[int]"
    since: float
    overdue_at: float
    is_urged: bool = False
    pages: dict[int, int] = field(factory=dict)

    def part(self, offset: int, length: int) -> tuple[int, memoryview]:
        """The part of the read within a range: its offset in the image, and its target."""
        start = max(offset, self.offset)
        stop = max(start, min(offset + length, self.offset + len(self.target)))
        return start, self.target[start - self.offset : stop - self.offset]


class IFiller(Interface):
    """Learns what arrives of an image, and what becomes of its calls of L{ReadCoalescer.fill}."""

    def received(block: int, length: int) -> None:
        """C{length} bytes of a block came, whoever requested them."""

    def failed(error: OSError) -> None:
        """The server cannot answer what was asked for."""

    def resumed() -> None:
        """The connection was replaced; what was requested over the last one is lost."""


class ReadsInFlight:
    """
    Requests and waiting reads by the blocks that they lack pages of.

    The tables are public for the hot path, which looks up each block that arrives.

    @ivar requests: by tag.
    @ivar requested: requests by block, in the order of sending.
    @ivar waiting: reads by block, in the order of waiting.
    """

    def __init__(self) -> None:
        self.requests: dict[int, ReadRequest] = {}
        self.requested: dict[BlockKey, list[ReadRequest]] = {}
        self.waiting: dict[BlockKey, list[WaitingRead]] = {}

    def add_request(self, request: ReadRequest) -> None:
        """A request is sent."""
        self.requests[request.tag] = request
        for block in request.pages:
            self.requested.setdefault((request.opened.key, block), []).append(request)

    def add_waiting(self, waiting: WaitingRead, block: int, pages: int) -> None:
        """A read lacks pages of a block."""
        waiting.pages[block] = pages
        self.waiting.setdefault((waiting.opened.key, block), []).append(waiting)

    def finish_block(self, request: ReadRequest, block: int) -> None:
        """A request lacks nothing of a block any more; with its last block it is answered."""
        del request.pages[block]
        _discard(self.requested, (request.opened.key, block), request)
        if not request.pages:
            del self.requests[request.tag]

    def drop_request(self, tag: int) -> ReadRequest | None:
        """
        Expect nothing of a request any more.

        @return: the request, C{None} when there is none of that tag.
        """
        request = self.requests.pop(tag, None)
        if request is not None:
            for block in request.pages:
                _discard(self.requested, (request.opened.key, block), request)
        return request

    def drop_all_requests(self) -> None:
        """The connection is lost, and all requests with it; the reads go on waiting."""
        self.requests.clear()
        self.requested.clear()

    def remove_waiting(self, waiting: WaitingRead, block: int | None = None) -> None:
        """A read no longer waits for a block, or, without one, for anything."""
        for each in list(waiting.pages) if block is None else [block]:
            del waiting.pages[each]
            _discard(self.waiting, (waiting.opened.key, each), waiting)

    def lacks(self, tag: int, offset: int, length: int) -> bool:
        """Whether the request of that tag still lacks some of a range."""
        request = self.requests.get(tag)
        return request is not None and any(
            request.pages.get(block, 0) & pages
            for block, pages in split_into_blocks(offset, length)
        )

    def not_requested(self, key: ImageKey, block: int, pages: int, lowest: Priority) -> int:
        """Those of a block's pages that no request has asked for with a C{lowest} priority."""
        for request in self.requested.get((key, block), ()):
            if request.priority <= lowest:
                pages &= ~request.pages[block]
        return pages

    def not_over_tcp(self, waiting: WaitingRead) -> dict[int, int]:
        """
        Those of a read's missing pages that no request has asked for over TCP, by block. What was
        requested over TCP will come: there is nothing better to ask for.
        """
        missing = dict(waiting.pages)
        for request in self.requests_for(waiting):
            if request.over_tcp:
                for block in missing:
                    missing[block] &= ~request.pages.get(block, 0)
        return missing

    def all_waiting(self) -> "dict[WaitingRead, None]":
        """Every waiting read, once."""
        return dict.fromkeys(each for line in self.waiting.values() for each in line)

    def requests_for(self, waiting: WaitingRead) -> list[ReadRequest]:
        """The requests for blocks that a read waits for, once for each of these blocks."""
        key = waiting.opened.key
        return [each for block in waiting.pages for each in self.requested.get((key, block), ())]

    def waiting_for(self, request: ReadRequest) -> list[WaitingRead]:
        """The reads that wait for pages that a request still lacks."""
        key = request.opened.key
        return list(
            dict.fromkeys(
                waiting
                for block, pages in request.pages.items()
                for waiting in self.waiting.get((key, block), ())
                if waiting.pages[block] & pages
            )
        )


def merge_ranges(pages: dict[int, int], size: int) -> list[tuple[int, int]]:
    """
    The byte ranges of pages given by block; adjacent ones are merged up to the size of a READ.

    @param size: of the image, in bytes.
    @return: offsets and lengths.
    """
    ranges: list[tuple[int, int]] = []
    for block, wanted in pages.items():
        for first, count in runs(wanted):
            offset, length = byte_range(block * BLOCK, first, count, size)
            if ranges and sum(ranges[-1]) == offset and ranges[-1][1] + length <= MAX_READ:
                offset, length = ranges[-1][0], ranges.pop()[1] + length
            ranges.append((offset, length))
    return ranges


def _discard(table: dict[BlockKey, list[T]], key: BlockKey, item: T) -> None:
    """Take an item out of the list of its block, and an empty list out of the table."""
    table[key].remove(item)
    if not table[key]:
        del table[key]
