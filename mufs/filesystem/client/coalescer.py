"""The way of a read that the cache cannot answer (paper, section 4, steps 2 to 6)."""

import errno
from collections.abc import Callable
from typing import TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import Interface

from mufs.cache.client.blocks import BlockCache, ImageKey
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.filesystem.client.readahead import ReadAheadWindow, SequenceDetector
from mufs.wire.channel import MAX_READ, Data, Priority, ProtocolError, Read, Sent
from mufs.wire.metadata import NOBODY, Attributes, Caller
from mufs.wire.pages import BLOCK, PAGE, PAGES, byte_range, mask_of, runs, split_into_blocks
from mufs.wire.segments import Descriptor

T = TypeVar("T")

ALL = (1 << PAGES) - 1
"""The pages of a whole block."""

URGENT_DELAY = 0.1
"""Seconds after which a reader that waits for read-ahead says so."""

TCP_DELAY = 3.0
"""Seconds after which a reader asks for TCP, whatever multicast does."""

WHOLE_BLOCK_MAX_SECONDS = 0.005
"""Seconds that a whole block may take to come for a read at random that needs a page of it."""

WHOLE_BLOCK_WARMUP_READS = 32
"""First reads at random that bring whole blocks in any case."""

GAP_FILL_MAX_PAGES = 16
"""Pages within which a read at random brings what lies between it and others in the cache."""

PROBE_EVERY_READS = 64
"""Later one of so many does, in case the path has become another one."""

MAX_BYTES_IN_FLIGHT = 8 * 1024 * 1024
"""Bytes that may be on their way for any reads before nothing more is read ahead: who waits for
more than 16 MiB is served after the others."""

CHECK_INTERVAL = 0.05
"""Seconds between two looks at the readers that wait: one timer for all of them."""


def stale() -> OSError:
    """What a read of an image that is no longer what was opened ends with."""
    return OSError(errno.ESTALE, "the image was changed on the server")


@define(eq=False)
class OpenImage:
    """
    An image as one C{open} on this host got it.

    @ivar key: image and generation.
    @ivar server_handle: the server's handle, C{None} while there is no connection.
    @ivar stale: the file on the server is no longer this generation.
    @ivar was_read: somebody has read from it.
    @ivar caller: who opened it.
    """

    path: bytes
    key: ImageKey
    attributes: Attributes
    sequence_detector: SequenceDetector
    server_handle: int | None = None
    stale: bool = False
    was_read: bool = False
    caller: Caller = NOBODY

    @property
    def size(self) -> int:
        """Bytes."""
        return self.attributes.size


@define(eq=False)
class _Request:
    """
    A READ that the server has not answered in full; C{pages} are those lacking, by block.

    @ivar alone: the only read that it is for, of nothing that this one does not want.
    """

    tag: int
    opened: OpenImage
    priority: Priority
    over_tcp: bool
    pages: dict[int, int] = field(factory=dict)
    alone: "_Waiting | None" = None


@define(eq=False)
class _Waiting:
    """
    A read that somebody waits for; C{pages} are those lacking, by block.

    @ivar target: where the bytes go, which is not touched any longer once C{done} has a result.
    @ivar since: when it began to wait.
    @ivar look: when it has waited for too long.
    """

    opened: OpenImage
    offset: int
    target: memoryview
    pages: dict[int, int]
    done: "Deferred[int]"
    since: float
    look: float
    urged: bool = False

    def part(self, offset: int, length: int) -> tuple[int, memoryview]:
        """What of the range lies within another one: offset in the image, and its target."""
        start = max(offset, self.offset)
        stop = max(start, min(offset + length, self.offset + len(self.target)))
        return start, self.target[start - self.offset : stop - self.offset]


class IFiller(Interface):
    """Who wants to know what comes of an image, and what becomes of his L{ReadCoalescer.fill}."""

    def received(block: int, length: int) -> None:
        """So many bytes of a block came, on whose account ever."""

    def failed(error: OSError) -> None:
        """The server cannot answer what was asked for."""

    def resumed() -> None:
        """There is a connection again; what was asked for on the last one was lost with it."""


class ReadCoalescer:
    """
    Asks for what is missing, once, and answers each read as soon as its own bytes are there.

    Everything here runs in the reactor's thread.

    @ivar joined: reads that waited for bytes already on their way.
    @ivar misses: reads that had to ask the server.
    @ivar bytes_requested: bytes that the server was asked for.
    @ivar bytes_overheard: bytes that came without having been asked for.
    @ivar bytes_over_tcp: bytes that came over TCP.
    @ivar fillers: who fills the cache by an open image.
    """

    def __init__(
        self,
        cache: BlockCache,
        multicast_health: MulticastHealth,
        window: ReadAheadWindow,
        clock: IReactorTime,
        send: Callable[[bytes], None],
        new_tag: Callable[[], int],
    ) -> None:
        """
        @param window: learns of the path to the server.
        @param send: writes a packet to the request channel.
        @param new_tag: makes a tag that no other request in flight has.
        """
        self._cache = cache
        self._multicast_health = multicast_health
        self._window = window
        self._clock = clock
        self._send = send
        self._new_tag = new_tag
        self._requests: dict[int, _Request] = {}
        self._pending: dict[tuple[ImageKey, int], list[_Request]] = {}
        self._waiting: dict[tuple[ImageKey, int], list[_Waiting]] = {}
        self._watch: IDelayedCall | None = None
        self.fillers: dict[OpenImage, IFiller] = {}
        self._first: tuple[_Request, float] | None = None
        self._at_random = 0
        self._whole_time = 0.0
        self._longest_wait = 0.0
        self.joined = 0
        self.misses = 0
        self.bytes_requested = 0
        self.bytes_overheard = 0
        self.bytes_over_tcp = 0

    def read(
        self, opened: OpenImage, offset: int, target: memoryview, at_random: bool = False
    ) -> "Deferred[int]":
        """
        Put the bytes at C{offset}, as many as C{target} has room for, into it.

        @param at_random: nothing else asks for what lies around; so this does, if it is soon here.
        @return: their number, less at the end of the image; fails with C{OSError}; may be
            cancelled.
        """
        target = target[: max(0, opened.size - offset)]
        done: Deferred[int] = Deferred(lambda _: self._give_up(waiting))
        now = self._clock.seconds()
        waiting = _Waiting(opened, offset, target, {}, done, now, now + URGENT_DELAY)
        for block, pages in split_into_blocks(offset, len(target)):
            missing = self._cache.missing(opened.key, block, pages)
            if not self._take_cached(waiting, block, pages & ~missing):
                self._cache.discard(opened.key, block)
                missing = pages
            if missing:
                waiting.pages[block] = missing
                self._waiting.setdefault((opened.key, block), []).append(waiting)
        if not waiting.pages:
            self.joined += 1
            done.callback(len(target))
            return done
        wanted, whole = waiting.pages, at_random and self._whole()
        if whole:
            wanted = {b: mask_of(0, min(BLOCK, opened.size - b * BLOCK)) for b in wanted}
        gaps = self._gaps(opened, offset, len(target)) if at_random and not whole else []
        alone = not self._pending
        if self._ask(opened, wanted, Priority.BLOCKED):
            self.misses += 1
            if whole:
                if alone:
                    done.addCallback(self._came_whole, self._clock.seconds())
                # The more of an image is read at random, the sooner all of it had better be here.
                room = self._cache.has_room and self.pending < self._window.size
                if (
                    room
                    and self._at_random > WHOLE_BLOCK_WARMUP_READS
                    and self._whole_time < WHOLE_BLOCK_MAX_SECONDS
                ):
                    self.prefetch(opened, *opened.sequence_detector.around(offset))
            for gap in gaps:
                self.prefetch(opened, *gap)
        else:
            self.joined += 1
        if self._watch is None:
            self._watch = self._clock.callLater(CHECK_INTERVAL, self._look)
        return done.addBoth(self._waited, now)

    def take_lag(self) -> float:
        """
        Seconds that a read waited at the most, of those that ended since this was asked last and
        those that wait still.
        """
        waits = (self._clock.seconds() - waiting.since for waiting in self._all_waiting())
        longest, self._longest_wait = max([self._longest_wait, *waits]), 0.0
        return longest

    def prefetch(
        self, opened: OpenImage, offset: int, length: int, priority: Priority = Priority.AHEAD
    ) -> None:
        """Ask for a range that will be read soon, or, in the background, may be."""
        room = self.pending + length <= MAX_BYTES_IN_FLIGHT
        if room and opened.server_handle is not None and not opened.stale:
            self._ask(opened, dict(split_into_blocks(offset, length)), priority)

    @property
    def pending(self) -> int:
        """Bytes of blocks of which something is on its way."""
        return len(self._pending) * BLOCK

    def fill(self, opened: OpenImage, wanted: dict[int, int]) -> None:
        """Ask for pages, by block, that nobody waits for."""
        self._ask(opened, wanted, Priority.BACKGROUND)

    def is_requested(self, key: ImageKey, block: int) -> bool:
        """Whether something of a block is on its way."""
        return (key, block) in self._pending

    def delivered(self, descriptor: Descriptor, data: bytes) -> None:
        """A transfer of the group was opened."""
        key = descriptor.image, descriptor.generation
        block = descriptor.offset // BLOCK
        if (key, block) not in self._pending:
            self.bytes_overheard += len(data)
        self._arrived(key, descriptor.offset, data)

    def data(self, data: Data) -> None:
        """File bytes came over TCP."""
        self.bytes_over_tcp += len(data.payload)
        key, end = (data.image, data.generation), data.offset + len(data.payload)
        pending = self._pending.get((key, data.offset // BLOCK))
        if pending:
            size = pending[0].opened.size
            if end % PAGE and end != size:
                raise ProtocolError(f"DATA that ends at {end} of {size} bytes")
            self._arrived(key, data.offset, data.payload)

    def is_wanted(self, sent: Sent) -> bool:
        """Whether some of what a transfer carried is still lacking for the request it names."""
        request = self._requests.get(sent.tag)
        if request is None:
            return False
        return any(
            request.pages.get(block, 0) & pages
            for block, pages in split_into_blocks(sent.offset, sent.length)
        )

    def retry(self, tag: int, over_tcp: bool) -> None:
        """Ask anew for what a request still lacks."""
        request = self._drop(tag)
        if request is None:
            return
        self._ask(request.opened, request.pages, request.priority, over_tcp)
        # Its handle may be closed by now; whoever waits for the same has one of his own.
        for waiting in self._waiting_for(request):
            self._ask(waiting.opened, waiting.pages, Priority.BLOCKED, over_tcp)

    def failed(self, tag: int, error: OSError) -> None:
        """
        The server cannot answer a request. It may have been for more than a reader wants, by
        read-ahead or for another one too: so each reader fails only by a request of its own.
        """
        request = self._drop(tag)
        if request is None:
            return
        if error.errno == errno.ESTALE:
            request.opened.stale = True
        if request.opened in self.fillers:
            self.fillers[request.opened].failed(error)
        for waiting in self._waiting_for(request):
            if error.errno == errno.ESTALE or request.alone is waiting:
                self._fail(waiting, error)
            elif not any(each.alone is waiting for each in self._requests_of(waiting)):
                self._repeat(waiting, True, alone=True)

    def interrupted(self) -> None:
        """The connection has gone, and with it what was asked for; reads go on waiting."""
        self._requests.clear()
        self._pending.clear()
        self._first = None

    def resume(self, opened: OpenImage) -> None:
        """A connection is there again: ask for what the readers of an image wait for."""
        if opened in self.fillers:
            self.fillers[opened].resumed()
        for waiting in self._all_waiting():
            if waiting.opened is opened:
                if opened.stale:
                    self._fail(waiting, stale())
                else:
                    self._ask(opened, waiting.pages, Priority.BLOCKED)

    def _ask(
        self,
        opened: OpenImage,
        wanted: dict[int, int],
        priority: Priority,
        over_tcp: bool | None = None,
    ) -> bool:
        """Send READs for the pages that are neither here nor asked for; whether any were sent."""
        if opened.server_handle is None:
            return True
        ranges: list[tuple[int, int]] = []
        for block, pages in wanted.items():
            pages = self._cache.missing(opened.key, block, pages)
            for request in self._pending.get((opened.key, block), ()):
                # What nobody waited for when it was asked for would keep a reader waiting.
                if request.priority <= max(priority, Priority.AHEAD):
                    pages &= ~request.pages[block]
            for first, count in runs(pages):
                offset, length = byte_range(block, first, count, opened.size)
                if ranges and sum(ranges[-1]) == offset and ranges[-1][1] + length <= MAX_READ:
                    offset, length = ranges[-1][0], ranges.pop()[1] + length
                ranges.append((offset, length))
        for offset, length in ranges:
            self._request(opened, offset, length, priority, over_tcp)
        return bool(ranges)

    def _request(
        self,
        opened: OpenImage,
        offset: int,
        length: int,
        priority: Priority,
        over_tcp: bool | None,
        alone: _Waiting | None = None,
    ) -> None:
        assert opened.server_handle is not None
        if over_tcp is None:
            over_tcp = not self._multicast_health.should_use()
        pages = dict(split_into_blocks(offset, length))
        request = _Request(self._new_tag(), opened, priority, over_tcp, pages, alone)
        if not self._requests:
            self._first = request, self._clock.seconds()
        self._requests[request.tag] = request
        for block in pages:
            self._pending.setdefault((opened.key, block), []).append(request)
        self.bytes_requested += length
        self._send(
            Read(request.tag, opened.server_handle, offset, length, priority, over_tcp).encode()
        )

    def _arrived(self, key: ImageKey, offset: int, data: bytes) -> None:
        """Whole pages of one block came, from wherever."""
        block, start = divmod(offset, BLOCK)
        pages = mask_of(start, start + len(data))
        self._cache.store(key, offset, data)
        pending = self._pending.get((key, block), [])[:]
        if pending:
            self._window.on_bytes(len(data))
        for request in pending:
            if self._first is not None and request is self._first[0]:
                self._window.on_answer(self._clock.seconds() - self._first[1])
                self._first = None
            request.pages[block] &= ~pages
            if not request.pages[block]:
                self._settle(request, block)
        came = memoryview(data)
        for waiting in self._waiting.get((key, block), [])[:]:
            waiting.pages[block] &= ~pages
            begin, target = waiting.part(offset, len(data))
            target[:] = came[begin - offset :][: len(target)]
            if not waiting.pages[block]:
                self._remove(waiting, block)
                if not waiting.pages:
                    waiting.done.callback(len(waiting.target))
        for opened, filler in list(self.fillers.items()):
            if opened.key == key:
                filler.received(block, len(data))

    def _take_cached(self, waiting: _Waiting, block: int, pages: int) -> bool:
        """Copy what the cache has of a block; whether it really has it."""
        for first, count in runs(pages):
            begin, target = waiting.part(*byte_range(block, first, count, waiting.opened.size))
            if not self._cache.read(waiting.opened.key, begin, target):
                return False
        return True

    def _all_waiting(self) -> "dict[_Waiting, None]":
        """Every read that waits, once."""
        return dict.fromkeys(each for line in self._waiting.values() for each in line)

    def _requests_of(self, waiting: _Waiting) -> list[_Request]:
        key = waiting.opened.key
        return [r for block in waiting.pages for r in self._pending.get((key, block), ())]

    def _waiting_for(self, request: _Request) -> list[_Waiting]:
        """The reads that wait for something that a request lacks."""
        key = request.opened.key
        return list(
            dict.fromkeys(
                waiting
                for block, pages in request.pages.items()
                for waiting in self._waiting.get((key, block), ())
                if waiting.pages[block] & pages
            )
        )

    def _whole(self) -> bool:
        """Whether a read at random brings its whole block; at times to see how long it takes."""
        self._at_random += 1
        trial = (
            self._at_random <= WHOLE_BLOCK_WARMUP_READS or self._at_random % PROBE_EVERY_READS == 0
        )
        return trial or self._whole_time < WHOLE_BLOCK_MAX_SECONDS

    def _gaps(self, opened: OpenImage, offset: int, length: int) -> list[tuple[int, int]]:
        """
        What lies between a read and what the cache holds close before or behind it:
        offsets and lengths. What is read on both sides is mostly read in between, too.
        """
        first, last = offset // PAGE, (offset + length - 1) // PAGE
        before = self._held(opened, first // PAGES - 1) & (1 << PAGES + first % PAGES) - 1
        behind = self._held(opened, last // PAGES) >> last % PAGES + 1
        gaps = []
        if before:
            begin = (first // PAGES - 1) * PAGES + before.bit_length()
            if 0 < first - begin < GAP_FILL_MAX_PAGES:
                gaps.append((begin * PAGE, (first - begin) * PAGE))
        if behind:
            count = (behind & -behind).bit_length() - 1
            if 0 < count < GAP_FILL_MAX_PAGES:
                gaps.append(((last + 1) * PAGE, count * PAGE))
        return gaps

    def _held(self, opened: OpenImage, block: int) -> int:
        """The pages of a block and of the next one that the cache holds."""
        lacking = self._cache.missing(opened.key, block, ALL)
        lacking |= self._cache.missing(opened.key, block + 1, ALL) << PAGES
        return ~lacking & (1 << 2 * PAGES) - 1

    def _came_whole(self, length: int, asked: float) -> int:
        self._whole_time += (self._clock.seconds() - asked - self._whole_time) / 8
        return length

    def _waited(self, result: T, since: float) -> T:
        self._longest_wait = max(self._longest_wait, self._clock.seconds() - since)
        return result

    def _look(self) -> None:
        """Do something for those reads that have waited for too long."""
        now = self._clock.seconds()
        for waiting in self._all_waiting():
            if now >= waiting.look and waiting.pages:
                waiting.look = now + TCP_DELAY
                if waiting.urged:
                    self._insist(waiting)
                else:
                    waiting.urged = True
                    self._urge(waiting)
        self._watch = self._clock.callLater(CHECK_INTERVAL, self._look) if self._waiting else None

    def _urge(self, waiting: _Waiting) -> None:
        """Let what a reader waits for come before what is only read ahead."""
        requests = self._requests_of(waiting)
        if any(each.priority > Priority.BLOCKED and not each.over_tcp for each in requests):
            self._repeat(waiting, None)

    def _insist(self, waiting: _Waiting) -> None:
        """Have a reader answered over TCP."""
        self._repeat(waiting, True)

    def _repeat(self, waiting: _Waiting, over_tcp: bool | None, alone: bool = False) -> None:
        """Ask for what a reader lacks although it was asked for before."""
        opened = waiting.opened
        for block, pages in list(waiting.pages.items()) if opened.server_handle is not None else ():
            # What was asked for over TCP comes: there is nothing better to ask for.
            for request in self._pending.get((opened.key, block), ()):
                if request.over_tcp:
                    pages &= ~request.pages[block]
            for first, count in runs(pages):
                offset, length = byte_range(block, first, count, opened.size)
                self._request(
                    opened, offset, length, Priority.BLOCKED, over_tcp, waiting if alone else None
                )

    def _give_up(self, waiting: _Waiting) -> None:
        """Forget a read, and what was asked for it in vain: who reads next shall ask anew."""
        requests = self._requests_of(waiting)
        self._remove(waiting)
        for request in requests:
            self._drop(request.tag)
        for request in requests:
            for other in self._waiting_for(request):
                self._ask(other.opened, other.pages, Priority.BLOCKED)

    def _settle(self, request: _Request, block: int) -> None:
        """A request lacks nothing of a block any longer."""
        del request.pages[block]
        _discard(self._pending, (request.opened.key, block), request)
        if not request.pages:
            del self._requests[request.tag]

    def _drop(self, tag: int) -> _Request | None:
        request = self._requests.pop(tag, None)
        if request is not None:
            for block in request.pages:
                _discard(self._pending, (request.opened.key, block), request)
        return request

    def _remove(self, waiting: _Waiting, block: int | None = None) -> None:
        for each in list(waiting.pages) if block is None else [block]:
            del waiting.pages[each]
            _discard(self._waiting, (waiting.opened.key, each), waiting)

    def _fail(self, waiting: _Waiting, error: OSError) -> None:
        self._remove(waiting)
        if not waiting.done.called:
            waiting.done.errback(error)


def _discard(
    lines: dict[tuple[ImageKey, int], list[T]], key: tuple[ImageKey, int], item: T
) -> None:
    """Take an item out of its line, and an empty line out of the table."""
    lines[key].remove(item)
    if not lines[key]:
        del lines[key]
