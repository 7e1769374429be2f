"""The way of a read that the cache cannot answer (paper, section 4, steps 2 to 6)."""

import errno
from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.filesystem.client.deliveries import Deliveries, Histogram
from mufs.filesystem.client.images import OpenImage, stale
from mufs.filesystem.client.in_flight import (
    IFiller,
    ReadRequest,
    ReadsInFlight,
    WaitingRead,
    merge_ranges,
)
from mufs.filesystem.client.random_reads import RandomReads
from mufs.filesystem.client.readahead import ReadAheadWindow
from mufs.wire.channel import Data, Priority, ProtocolError, Read, Sent
from mufs.wire.pages import BLOCK, PAGE, ImageKey, byte_range, mask_of, runs, split_into_blocks
from mufs.wire.segments import Descriptor

T = TypeVar("T")

URGENT_DELAY = 0.1
"""Seconds until a read that waits for read-ahead has it sent before other read-ahead."""

TCP_DELAY = 3.0
"""Seconds from then until a read is asked for over TCP, whatever multicast does."""

MAX_BYTES_IN_FLIGHT = 8 * 1024 * 1024
"""
Bytes that may be on their way before nothing more is read ahead: the server serves a client that
waits for more than 16 MiB after the others.
"""

CHECK_INTERVAL = 0.05
"""Seconds between two checks for overdue reads; one timer serves them all."""


class ReadCoalescer:
    """
    Asks the server for what is missing, once, and answers each read as soon as its bytes arrived.

    It alone decides what is asked for again: a read that waits too long (L{_check_overdue}), a
    request whose transfer expired (L{retry}) or failed (L{failed}), all reads after a reconnect
    (L{resume}). Whether a request goes by multicast or TCP is L{MulticastHealth.should_use}'s
    decision, but for reads that must be answered over TCP by now.

    Everything here runs in the reactor's thread. It has many attributes: three are figures.

    @ivar bytes_requested: bytes that the server was asked for.
    @ivar bytes_overheard: bytes that came without having been asked for.
    @ivar bytes_over_tcp: bytes that came over TCP.
    @ivar fillers: what fills the cache, by open image.
    @ivar in_flight: the requests and the waiting reads.
    """

    def __init__(
        self,
        cache: BlockCache,
        multicast_health: MulticastHealth,
        window: ReadAheadWindow,
        deliveries: Deliveries,
        *,
        clock: IReactorTime,
        send: Callable[[bytes], None],
        new_tag: Callable[[], int],
    ) -> None:
        """
        @param window: learns the delay and the bandwidth of the path to the server.
        @param deliveries: is told of each read that has ended.
        @param send: writes a packet to the request channel.
        @param new_tag: makes a tag that no other request in flight has.
        """
        self._cache = cache
        self._multicast_health = multicast_health
        self._window = window
        self._deliveries = deliveries
        self._clock = clock
        self._send = send
        self._new_tag = new_tag
        self._check: IDelayedCall | None = None
        self._only_request: tuple[ReadRequest, float] | None = None
        self._random_reads = RandomReads(cache)
        self._longest_wait = 0.0
        self.in_flight = ReadsInFlight()
        self.fillers: dict[OpenImage, IFiller] = {}
        self.bytes_requested = 0
        self.bytes_overheard = 0
        self.bytes_over_tcp = 0

    def read(
        self, opened: OpenImage, offset: int, target: memoryview, *, at_random: bool = False
    ) -> "Deferred[int]":
        """
        Fill C{target} with the bytes at C{offset}.

        @param at_random: the read is part of no sequence, so it may also request pages around it.
        @return: the number of bytes, less at the end of the image; fails with C{OSError}; may be
            cancelled.
        """
        target = target[: max(0, opened.size - offset)]
        done: Deferred[int] = Deferred(lambda _: self._give_up(waiting))
        now = self._clock.seconds()
        waiting = WaitingRead(opened, offset, target, done, now, now + URGENT_DELAY)
        for block, pages in split_into_blocks(offset, len(target)):
            missing = self._cache.missing(opened.key, block, pages)
            if not self._take_cached(waiting, block, pages & ~missing):
                self._cache.discard(opened.key, block)
                missing = pages
            if missing:
                self.in_flight.add_waiting(waiting, block, missing)
        if not waiting.pages:
            self._deliveries.note(self._deliveries.joined, 0.0, len(target))
            done.callback(len(target))
            return done
        wanted = waiting.pages
        gaps: list[tuple[int, int]] = []
        whole = at_random and self._random_reads.wants_block()
        if whole:
            wanted = {b: mask_of(0, min(BLOCK, opened.size - b * BLOCK)) for b in wanted}
        elif at_random:
            gaps = self._random_reads.gaps(opened.key, offset, len(target))
        is_alone = not self.in_flight.requested
        kind = self._deliveries.joined
        if self._ask(opened, wanted, Priority.BLOCKED):
            kind = self._deliveries.misses
            if whole:
                if is_alone:
                    done.addCallback(self._block_arrived, self._clock.seconds())
                # The more of an image is read at random, the sooner all of it had better be here.
                has_room = self._cache.has_room and self.pending < self._window.size
                if has_room and self._random_reads.wants_surroundings:
                    self.prefetch(opened, *opened.sequence_detector.around(offset))
            for gap in gaps:
                self.prefetch(opened, *gap)
        if self._check is None:
            self._check = self._clock.callLater(CHECK_INTERVAL, self._check_overdue)
        return done.addBoth(self._waited, now, kind)

    def take_lag(self) -> float:
        """
        The longest wait in seconds of the reads that ended since the last call, and of those
        that still wait.
        """
        now = self._clock.seconds()
        waits = (now - waiting.since for waiting in self.in_flight.all_waiting())
        longest, self._longest_wait = max([self._longest_wait, *waits]), 0.0
        return longest

    def prefetch(
        self, opened: OpenImage, offset: int, length: int, *, priority: Priority = Priority.AHEAD
    ) -> None:
        """Ask for a range that will be read soon, or, in the background, may be read."""
        has_room = self.pending + length <= MAX_BYTES_IN_FLIGHT
        if has_room and opened.server_handle is not None and not opened.stale:
            self._ask(opened, dict(split_into_blocks(offset, length)), priority)

    @property
    def pending(self) -> int:
        """Bytes of the blocks of which something is on its way."""
        return len(self.in_flight.requested) * BLOCK

    def fill(self, opened: OpenImage, wanted: dict[int, int]) -> None:
        """Ask for pages, by block, that nobody waits for."""
        self._ask(opened, wanted, Priority.BACKGROUND)

    def is_requested(self, key: ImageKey, block: int) -> bool:
        """Whether something of a block is on its way."""
        return (key, block) in self.in_flight.requested

    def delivered(self, descriptor: Descriptor, data: bytes | memoryview) -> None:
        """A transfer of the group was opened."""
        key, source = (descriptor.image, descriptor.generation), memoryview(data)
        for block, _ in split_into_blocks(descriptor.offset, len(data)):
            offset = max(block * BLOCK, descriptor.offset)
            part = source[offset - descriptor.offset :][: BLOCK - offset % BLOCK]
            if (key, block) not in self.in_flight.requested:
                self.bytes_overheard += len(part)
            self._arrived(key, offset, part)

    def data(self, data: Data) -> None:
        """
        File bytes came over TCP.

        @raise ProtocolError: when they end within a page that is not the last of the image.
        """
        self.bytes_over_tcp += len(data.payload)
        key, end = (data.image, data.generation), data.offset + len(data.payload)
        if requested := self.in_flight.requested.get((key, data.offset // BLOCK)):
            size = requested[0].opened.size
            if end % PAGE and end != size:
                raise ProtocolError(f"DATA that ends at {end} of {size} bytes")
            self._arrived(key, data.offset, memoryview(data.payload))

    def is_wanted(self, sent: Sent) -> bool:
        """Whether the request that SENT names still lacks some of what the transfer carried."""
        return self.in_flight.lacks(sent.tag, sent.offset, sent.length)

    def retry(self, tag: int, *, over_tcp: bool) -> None:
        """Ask again for what a request still lacks."""
        request = self.in_flight.drop_request(tag)
        if request is None:
            return
        self._ask(request.opened, request.pages, request.priority, over_tcp=over_tcp)
        # Its handle may be closed by now; each read that waits for the same has its own.
        for waiting in self.in_flight.waiting_for(request):
            self._ask(waiting.opened, waiting.pages, Priority.BLOCKED, over_tcp=over_tcp)

    def failed(self, tag: int, error: OSError) -> None:
        """
        The server cannot answer a request. That may have asked for more than any one read wants,
        so a read fails only with a request that was sent for nothing else.
        """
        request = self.in_flight.drop_request(tag)
        if request is None:
            return
        if error.errno == errno.ESTALE:
            request.opened.stale = True
        if request.opened in self.fillers:
            self.fillers[request.opened].failed(error)
        for waiting in self.in_flight.waiting_for(request):
            if error.errno == errno.ESTALE or request.only_for is waiting:
                self._fail(waiting, error)
            elif not any(each.only_for is waiting for each in self.in_flight.requests_for(waiting)):
                self._repeat(waiting, over_tcp=True, exclusive=True)

    def interrupted(self) -> None:
        """The connection is lost, and all requests with it; the reads go on waiting."""
        self.in_flight.drop_all_requests()
        self._only_request = None

    def resume(self, opened: OpenImage) -> None:
        """There is a connection again: ask for what the reads of an image wait for."""
        if opened in self.fillers:
            self.fillers[opened].resumed()
        for waiting in self.in_flight.all_waiting():
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
        *,
        over_tcp: bool | None = None,
    ) -> bool:
        """
        Send READs for the pages that are neither in the cache nor on their way.

        @return: whether the server has to be asked: now, or, without a connection, by L{resume}.
        """
        if opened.server_handle is None:
            return True
        missing: dict[int, int] = {}
        for block, pages in wanted.items():
            pages = self._cache.missing(opened.key, block, pages)
            # A read must not wait for what was only requested in the background.
            lowest = max(priority, Priority.AHEAD)
            missing[block] = self.in_flight.not_requested(opened.key, block, pages, lowest)
        ranges = merge_ranges(missing, opened.size)
        for offset, length in ranges:
            self._request(opened, offset, length, priority=priority, over_tcp=over_tcp)
        return bool(ranges)

    def _request(
        self,
        opened: OpenImage,
        offset: int,
        length: int,
        *,
        priority: Priority,
        over_tcp: bool | None,
        only_for: WaitingRead | None = None,
    ) -> None:
        """
        Send a READ.

        @param over_tcp: whether it is to be answered over TCP; C{None} has the health of
            multicast decide.
        """
        assert opened.server_handle is not None
        if over_tcp is None:
            over_tcp = not self._multicast_health.should_use()
        pages = dict(split_into_blocks(offset, length))
        request = ReadRequest(self._new_tag(), opened, priority, over_tcp, pages, only_for)
        if not self.in_flight.requests:
            self._only_request = request, self._clock.seconds()
        self.in_flight.add_request(request)
        self.bytes_requested += length
        read = Read(request.tag, opened.server_handle, offset, length, priority, over_tcp)
        self._send(read.encode())

    def _arrived(self, key: ImageKey, offset: int, data: memoryview) -> None:
        """Whole pages of one block came, by multicast or TCP."""
        block, start = divmod(offset, BLOCK)
        pages = mask_of(start, start + len(data))
        self._cache.store(key, offset, data)
        in_flight = self.in_flight
        requested = in_flight.requested.get((key, block), [])[:]
        if requested:
            self._window.on_bytes(len(data))
        for request in requested:
            if self._only_request is not None and request is self._only_request[0]:
                self._window.on_answer(self._clock.seconds() - self._only_request[1])
                self._only_request = None
            request.pages[block] &= ~pages
            if not request.pages[block]:
                in_flight.finish_block(request, block)
        for waiting in in_flight.waiting.get((key, block), [])[:]:
            waiting.pages[block] &= ~pages
            begin, target = waiting.part(offset, len(data))
            target[:] = data[begin - offset :][: len(target)]
            if not waiting.pages[block]:
                in_flight.remove_waiting(waiting, block)
                if not waiting.pages:
                    waiting.done.callback(len(waiting.target))
        for opened, filler in list(self.fillers.items()):
            if opened.key == key:
                filler.received(block, len(data))

    def _take_cached(self, waiting: WaitingRead, block: int, pages: int) -> bool:
        """Copy pages of a block from the cache; whether it really had them."""
        for first, count in runs(pages):
            where = byte_range(block * BLOCK, first, count, waiting.opened.size)
            if not self._cache.read(waiting.opened.key, *waiting.part(*where)):
                return False
        return True

    def _block_arrived(self, length: int, asked_at: float) -> int:
        self._random_reads.block_arrived(self._clock.seconds() - asked_at)
        return length

    def _waited(self, result: T, since: float, kind: Histogram) -> T:
        seconds = self._clock.seconds() - since
        self._longest_wait = max(self._longest_wait, seconds)
        self._deliveries.note(kind, seconds, result if isinstance(result, int) else 0)
        return result

    def _check_overdue(self) -> None:
        """Hurry the reads that have waited too long: first by multicast, then over TCP."""
        now = self._clock.seconds()
        for waiting in self.in_flight.all_waiting():
            if now >= waiting.overdue_at and waiting.pages:
                waiting.overdue_at = now + TCP_DELAY
                if waiting.is_urged:
                    self._repeat(waiting, over_tcp=True)
                else:
                    waiting.is_urged = True
                    self._urge(waiting)
        waits = bool(self.in_flight.waiting)
        self._check = self._clock.callLater(CHECK_INTERVAL, self._check_overdue) if waits else None

    def _urge(self, waiting: WaitingRead) -> None:
        """Have what a read waits for sent before what is only read ahead."""
        requests = self.in_flight.requests_for(waiting)
        if any(each.priority > Priority.BLOCKED and not each.over_tcp for each in requests):
            self._repeat(waiting)

    def _repeat(
        self, waiting: WaitingRead, *, over_tcp: bool | None = None, exclusive: bool = False
    ) -> None:
        """
        Ask for what a read lacks although it was asked for before.

        @param exclusive: the read fails if the server cannot answer.
        """
        opened, only_for = waiting.opened, waiting if exclusive else None
        if opened.server_handle is None:
            return
        for block, pages in self.in_flight.not_over_tcp(waiting).items():
            for first, count in runs(pages):
                where = byte_range(block * BLOCK, first, count, opened.size)
                self._request(
                    opened, *where, priority=Priority.BLOCKED, over_tcp=over_tcp, only_for=only_for
                )

    def _give_up(self, waiting: WaitingRead) -> None:
        """A read was cancelled. Drop its requests, so that the next read asks again."""
        requests = self.in_flight.requests_for(waiting)
        self.in_flight.remove_waiting(waiting)
        for request in requests:
            self.in_flight.drop_request(request.tag)
        for request in requests:
            for other in self.in_flight.waiting_for(request):
                self._ask(other.opened, other.pages, Priority.BLOCKED)

    def _fail(self, waiting: WaitingRead, error: OSError) -> None:
        self.in_flight.remove_waiting(waiting)
        if not waiting.done.called:
            waiting.done.errback(error)
