"""The way of a read that the cache cannot answer (paper, section 4, steps 2 to 6)."""

import errno
from collections.abc import Callable

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.filesystem.client.images import OpenImage, stale
from mufs.filesystem.client.reading.deliveries import Deliveries
from mufs.filesystem.client.reading.in_flight import ReadsInFlight, WaitingRead
from mufs.filesystem.client.reading.overdue import OverdueReads
from mufs.filesystem.client.reading.random_reads import RandomReads, whole_blocks
from mufs.filesystem.client.reading.requests import MAX_BYTES_IN_FLIGHT, Requests
from mufs.wire.channel import MAX_READ, Data, Priority, ProtocolError, Sent
from mufs.wire.pages import (
    BLOCK,
    EXTENT,
    PAGE,
    ImageKey,
    byte_range,
    mask_of,
    runs,
    split_into_blocks,
    split_into_extents,
)
from mufs.wire.segments import Descriptor

MAX_WINDOW = 8 * 1024 * 1024
"""Bytes that are read ahead of a sequence at most: more than 300 MB/s have on a path of 20 ms."""


class ReadCore:
    """
    Asks the server for what is missing, once, and ends each read as soon as its bytes arrived.

    It is called with reads, with what arrives, and with the time; all times are seconds of one
    clock. What follows is left in C{requests} and C{ended} for the caller to take away.

    It alone decides what is asked for again: a read that waits too long (L{check_overdue}), a
    request whose transfer expired (L{expired}) or was lost (L{lost}) or that failed (L{failed}),
    all reads after a reconnect (L{resume}).

    Only L{ahead_of_hit} and L{lacks} may be called from any thread.

    @ivar ended: the reads that have ended, each with the number of its bytes, or why it failed.
    @ivar window: bytes that are read ahead of a sequence.
    @ivar deliveries: what became of all reads.
    @ivar in_flight: what is on its way, and the waiting reads.
    @ivar requests: asks the server; has the READs to be sent.
    @ivar bytes_overheard: bytes that came without having been asked for.
    @ivar bytes_over_tcp: bytes that came over TCP.
    """

    def __init__(
        self,
        cache: BlockCache,
        multicast_health: MulticastHealth,
        max_ahead: int,
        *,
        new_tag: Callable[[], int],
    ) -> None:
        """
        @param max_ahead: bytes that may be read ahead, whatever the receive buffer has room for.
        @param new_tag: makes a tag that no other request in flight has.
        """
        self._cache = cache
        self._multicast_health = multicast_health
        self._max_ahead = max_ahead
        self._random_reads = RandomReads(cache)
        self._overdue = OverdueReads()
        self._longest_wait = 0.0
        self.ended: list[tuple[WaitingRead, int | OSError]] = []
        self.window = min(MAX_WINDOW, max_ahead)
        self.deliveries = Deliveries()
        self.in_flight = ReadsInFlight()
        self.requests = Requests(cache, multicast_health, self.in_flight, new_tag=new_tag)
        self.bytes_overheard = 0
        self.bytes_over_tcp = 0

    def limit(self, buffer: int) -> None:
        """
        Have what is read ahead fit into half of a receive buffer of so many bytes, and what a read
        asks for at a time into all of it.
        """
        self.window = max(BLOCK, min(MAX_WINDOW, self._max_ahead, buffer // 2))
        self.requests.max_burst = min(MAX_READ, max(BLOCK, buffer))

    def read(self, opened: OpenImage, offset: int, target: memoryview, now: float) -> WaitingRead:
        """
        Fill C{target} with the bytes at C{offset}, less at the end of the image.

        @raise OSError: when the image is stale.
        """
        if opened.stale:
            raise stale()
        ahead = opened.sequence_detector.advance(offset, len(target), self.window)
        target = target[: max(0, opened.size - offset)]
        waiting = WaitingRead(opened, offset, target, now, self.deliveries.joined)
        self._take_cached(waiting)
        if waiting.pages:
            self.in_flight.add_waiting(waiting)
            self._overdue.add(waiting, now)
            if ahead is None:
                self._ask_at_random(waiting)
            else:
                self._ask_for(waiting, waiting.pages)
        else:
            self._end(waiting, len(target), now)
        if ahead is not None:
            self.prefetch(opened, *ahead)
        return waiting

    def ahead_of_hit(self, opened: OpenImage, offset: int, length: int) -> tuple[int, int] | None:
        """
        Take note of a read that the cache answered; from any thread.

        @return: the range to L{prefetch} now, offset and length in bytes; C{None} for nothing.
        """
        ahead = opened.sequence_detector.advance(offset, length, self.window)
        return ahead if ahead is not None and self.lacks(opened, *ahead) else None

    def prefetch(
        self, opened: OpenImage, offset: int, length: int, *, priority: Priority = Priority.AHEAD
    ) -> None:
        """Ask for a range that will be read soon, or, in the background, may be read."""
        has_room = self.in_flight.pending + length <= min(MAX_BYTES_IN_FLIGHT, 2 * self.window)
        if has_room and opened.server_handle is not None and not opened.stale:
            self.requests.ask(opened, dict(split_into_extents(offset, length)), priority)

    def fill(self, opened: OpenImage, wanted: dict[int, int]) -> None:
        """Ask for pages, by extent, that nobody waits for."""
        self.requests.ask(opened, wanted, Priority.BACKGROUND)

    def give_up(self, waiting: WaitingRead, now: float) -> None:
        """A read was cancelled. Drop its requests, so that the next read asks again."""
        requests = self.in_flight.requests_for(waiting)
        self.in_flight.remove_waiting(waiting)
        self._count(waiting, 0, now)
        for request in requests:
            self.in_flight.drop_request(request.tag)
        for request in requests:
            for other in self.in_flight.waiting_for(request):
                self.requests.ask_for(other)

    def lacks(self, opened: OpenImage, offset: int, length: int) -> bool:
        """Whether some of a range is not in the cache; from any thread."""
        return any(
            self._cache.missing_of_extent(opened.key, extent, pages)
            for extent, pages in split_into_extents(offset, length)
        )

    def take_lag(self, now: float) -> float:
        """
        The longest wait in seconds of the reads that ended since the last call, and of those
        that still wait.
        """
        waits = (now - waiting.since for waiting in self.in_flight.all_waiting())
        longest, self._longest_wait = max([self._longest_wait, *waits]), 0.0
        return longest

    def delivered(
        self, descriptor: Descriptor, data: bytes | memoryview, now: float, *, zeros: int = 0
    ) -> None:
        """A transfer of the group was opened; C{zeros} are those of its pages that are zero."""
        key = descriptor.image, descriptor.generation
        extent, start = divmod(descriptor.offset, EXTENT)
        pages = mask_of(start, start + len(data))
        unasked = self.in_flight.not_requested(key, extent, pages).bit_count()
        self.bytes_overheard += min(len(data), PAGE * unasked)
        self._arrived(key, descriptor.offset, data, now, zeros)

    def data(self, data: Data, now: float) -> bool:
        """
        File bytes came over TCP.

        @return: whether they were asked for; what was not is dropped.
        @raise ProtocolError: when they end within a page that is not the last of the image.
        """
        self.bytes_over_tcp += len(data.payload)
        key, end = (data.image, data.generation), data.offset + len(data.payload)
        requested = self.in_flight.requested.get((key, data.offset // EXTENT))
        if not requested:
            return False
        size = requested[0].opened.size
        if end % PAGE and end != size:
            raise ProtocolError(f"DATA that ends at {end} of {size} bytes")
        self._arrived(key, data.offset, data.payload, now)
        return True

    def is_wanted(self, sent: Sent) -> bool:
        """Whether the request that SENT names still lacks some of what the transfer carried."""
        return self.in_flight.lacks(sent.tag, sent.offset, sent.length)

    def expired(self, tag: int) -> None:
        """The server no longer has the transfer that a request waits for."""
        self._retry(tag, over_tcp=not self._multicast_health.works)

    def lost(self, tag: int) -> None:
        """What a request waits for was lost, and multicast brings it no more."""
        self._retry(tag, over_tcp=True)

    def failed(self, tag: int, error: OSError, now: float) -> OpenImage | None:
        """
        The server cannot answer a request. That may have asked for more than any one read wants,
        so a read fails only with a request that was sent for nothing else.

        @return: the image that the request was for, C{None} when there is none of that tag.
        """
        request = self.in_flight.drop_request(tag)
        if request is None:
            return None
        if error.errno == errno.ESTALE:
            request.opened.stale = True
        for waiting in self.in_flight.waiting_for(request):
            if error.errno == errno.ESTALE or request.only_for is waiting:
                self._end(waiting, error, now)
            elif not any(each.only_for is waiting for each in self.in_flight.requests_for(waiting)):
                self.requests.repeat(waiting, over_tcp=True, exclusive=True)
        return request.opened

    def interrupted(self) -> None:
        """The connection is lost, and all requests with it; the reads go on waiting."""
        self.in_flight.drop_all_requests()

    def resume(self, opened: OpenImage, now: float) -> None:
        """There is a connection again: ask for what the reads of an image wait for."""
        for waiting in self.in_flight.all_waiting():
            if waiting.opened is opened:
                if opened.stale:
                    self._end(waiting, stale(), now)
                else:
                    self.requests.ask_for(waiting)

    @property
    def due(self) -> float | None:
        """When L{check_overdue} is to be called, in seconds; C{None} while nothing waits."""
        return self._overdue.due

    def check_overdue(self, now: float) -> None:
        """Hurry the reads that have waited too long: first by multicast, then over TCP."""
        for waiting in self._overdue.pop(now):
            if waiting.is_urged:
                self.requests.repeat(waiting, over_tcp=True)
            else:
                waiting.is_urged = True
                self._urge(waiting)

    def _take_cached(self, waiting: WaitingRead) -> None:
        """Copy what the cache has of a read, and note the pages that it lacks."""
        opened, cache = waiting.opened, self._cache
        for block, pages in split_into_blocks(waiting.offset, len(waiting.target)):
            missing = cache.missing(opened.key, block, pages)
            for first, count in runs(pages & ~missing):
                where = byte_range(block * BLOCK, first, count, opened.size)
                if not cache.read(opened.key, *waiting.part(*where)):
                    cache.discard(opened.key, block)
                    missing = pages
                    break
            if missing:
                extent, start = divmod(block * BLOCK, EXTENT)
                shifted = missing << start // PAGE
                waiting.pages[extent] = waiting.pages.get(extent, 0) | shifted

    def _ask_for(self, waiting: WaitingRead, wanted: dict[int, int]) -> bool:
        """Ask for what a read that begins needs; whether that makes it a miss."""
        is_miss = self.requests.ask_for(waiting, wanted)
        if is_miss:
            waiting.kind = self.deliveries.misses
        return is_miss

    def _ask_at_random(self, waiting: WaitingRead) -> None:
        """Ask for what a read at random lacks, and for some of what lies around it."""
        opened, offset, random_reads = waiting.opened, waiting.offset, self._random_reads
        if not random_reads.wants_block():
            gaps = random_reads.gaps(opened.key, offset, len(waiting.target))
            if self._ask_for(waiting, waiting.pages):
                for gap in gaps:
                    self.prefetch(opened, *gap)
            return
        is_alone = not self.in_flight.requested
        if self._ask_for(waiting, whole_blocks(waiting.pages, opened.size)):
            if is_alone:
                waiting.asked_alone_at = waiting.since
            # The more of an image is read at random, the sooner all of it had better be here.
            has_room = self._cache.has_room and self.in_flight.pending < self.window
            if has_room and random_reads.wants_surroundings:
                self.prefetch(opened, *opened.sequence_detector.around(offset))

    def _arrived(
        self, key: ImageKey, offset: int, data: bytes | memoryview, now: float, zeros: int = 0
    ) -> None:
        """Whole pages of one extent came, by multicast or TCP."""
        extent, start = divmod(offset, EXTENT)
        self._cache.store(key, offset, data, zeros)
        source = memoryview(data)
        for waiting in self.in_flight.arrived(key, extent, mask_of(start, start + len(data))):
            begin, target = waiting.part(offset, len(data))
            target[:] = source[begin - offset :][: len(target)]
            if waiting.pages:
                # Not all of it may have been asked for at a time.
                self.requests.ask_for(waiting)
            else:
                if waiting.asked_alone_at is not None:
                    self._random_reads.block_arrived(now - waiting.asked_alone_at)
                self._end(waiting, len(waiting.target), now)

    def _retry(self, tag: int, *, over_tcp: bool) -> None:
        """Ask again for what a request still lacks."""
        request = self.in_flight.drop_request(tag)
        if request is None:
            return
        self.requests.ask(request.opened, request.pages, request.priority, over_tcp=over_tcp)
        # Its handle may be closed by now; each read that waits for the same has its own.
        for waiting in self.in_flight.waiting_for(request):
            self.requests.ask_for(waiting, over_tcp=over_tcp)

    def _urge(self, waiting: WaitingRead) -> None:
        """Have what a read waits for sent before what is only read ahead."""
        requests = self.in_flight.requests_for(waiting)
        if any(each.priority > Priority.BLOCKED and not each.over_tcp for each in requests):
            self.requests.repeat(waiting)

    def _end(self, waiting: WaitingRead, result: int | OSError, now: float) -> None:
        self.in_flight.remove_waiting(waiting)
        self._count(waiting, result if isinstance(result, int) else 0, now)
        self.ended.append((waiting, result))

    def _count(self, waiting: WaitingRead, length: int, now: float) -> None:
        seconds = now - waiting.since
        self._longest_wait = max(self._longest_wait, seconds)
        self.deliveries.note(waiting.kind, seconds, length)
