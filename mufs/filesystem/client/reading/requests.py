"""What is asked of the server, and by which way."""

from collections.abc import Callable

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.reading.in_flight import (
    ReadRequest,
    ReadsInFlight,
    WaitingRead,
    first_pages,
    merge_ranges,
)
from mufs.wire.channel import MAX_READ, Priority, Read
from mufs.wire.pages import BLOCK, split_into_extents

MAX_BYTES_IN_FLIGHT = 12 * 1024 * 1024
"""
Bytes that may be on their way before nothing more is read ahead, and reads ask for no more than a
block at a time: the server serves a client that waits for more than 16 MiB after the others.
"""


class Requests:
    """
    Makes the READs for pages, none for what is cached or on its way.

    Whether a request goes by multicast or TCP is L{MulticastHealth.should_use}'s decision, but for
    reads that must be answered over TCP by now.

    @ivar max_burst: bytes that one read asks for at a time.
    @ivar bytes_requested: bytes that the server was asked for.
    """

    def __init__(
        self,
        cache: BlockCache,
        multicast_health: MulticastHealth,
        in_flight: ReadsInFlight,
        *,
        new_tag: Callable[[], int],
    ) -> None:
        """@param new_tag: makes a tag that no other request in flight has."""
        self._cache = cache
        self._multicast_health = multicast_health
        self._in_flight = in_flight
        self._new_tag = new_tag
        self._to_send: list[Read] = []
        self.max_burst = MAX_READ
        self.bytes_requested = 0

    def take(self) -> list[Read]:
        """The READs made since the last call, to be sent now."""
        taken, self._to_send = self._to_send, []
        return taken

    def ask(
        self,
        opened: OpenImage,
        wanted: dict[int, int],
        priority: Priority,
        *,
        over_tcp: bool | None = None,
        waiting: WaitingRead | None = None,
    ) -> bool:
        """
        Make READs for the pages that are neither in the cache nor on their way.

        @param waiting: a read whose pages are asked for whatever the cache has learnt of them since
            it began to wait: only what arrives ends it.
        @return: whether the server has to be asked: now, or, without a connection, once there is.
        """
        if opened.server_handle is None:
            return True
        missing: dict[int, int] = {}
        # A read must not wait for what was only requested in the background.
        lowest = max(priority, Priority.AHEAD)
        for extent, pages in wanted.items():
            pages = self._in_flight.not_requested(opened.key, extent, pages, lowest)
            if pages:
                needed = pages & waiting.pages.get(extent, 0) if waiting is not None else 0
                others = self._cache.missing_of_extent(opened.key, extent, pages & ~needed)
                missing[extent] = needed | others
        ranges = merge_ranges(missing, opened.size)
        for offset, length in ranges:
            self._request(opened, offset, length, priority=priority, over_tcp=over_tcp)
        return bool(ranges)

    def ask_for(
        self,
        waiting: WaitingRead,
        wanted: dict[int, int] | None = None,
        *,
        over_tcp: bool | None = None,
    ) -> bool:
        """
        Ask for the first of what a read still lacks.

        @param wanted: what to ask for instead.
        @return: see L{ask}.
        """
        room = max(BLOCK, MAX_BYTES_IN_FLIGHT - self._in_flight.pending)
        size = min(self.max_burst, room)
        wanted = first_pages(waiting.pages if wanted is None else wanted, size)
        opened = waiting.opened
        return self.ask(opened, wanted, Priority.BLOCKED, over_tcp=over_tcp, waiting=waiting)

    def repeat(
        self, waiting: WaitingRead, *, over_tcp: bool | None = None, exclusive: bool = False
    ) -> None:
        """
        Ask for what a read lacks although it was asked for before.

        @param exclusive: the read fails if the server cannot answer.
        """
        opened, only_for = waiting.opened, waiting if exclusive else None
        if opened.server_handle is None:
            return
        for where in merge_ranges(self._in_flight.not_over_tcp(waiting), opened.size):
            self._request(
                opened, *where, priority=Priority.BLOCKED, over_tcp=over_tcp, only_for=only_for
            )

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
        Make a READ.

        @param over_tcp: whether it is to be answered over TCP; C{None} has the health of
            multicast decide.
        """
        assert opened.server_handle is not None
        if over_tcp is None:
            over_tcp = not self._multicast_health.should_use()
        pages = dict(split_into_extents(offset, length))
        request = ReadRequest(self._new_tag(), opened, priority, over_tcp, pages, only_for)
        self._in_flight.add_request(request)
        self.bytes_requested += length
        self._to_send.append(
            Read(request.tag, opened.server_handle, offset, length, priority, over_tcp)
        )
