"""Pulls: whole images are brought into the cache before they are read."""

import errno
from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import frozen
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from zope.interface import implementer

from mufs.cache.client.blocks import BlockCache
from mufs.filesystem.client.images import OpenImage, stale
from mufs.filesystem.client.reading.core import ReadCore
from mufs.filesystem.client.reading.reader import IFiller, Reader
from mufs.filesystem.client.reading.requests import MAX_BYTES_IN_FLIGHT
from mufs.units import format_bytes
from mufs.wire.metadata import Attributes, Caller
from mufs.wire.pages import BLOCK, EXTENT, PAGE, split_into_extents

PROGRESS_INTERVAL = 1.0
"""Seconds between two reports on the progress of a pull."""

MAX_PULLS = 16
"""Pulls that may run at a time."""

MAX_EXTENTS_PER_TURN = 512
"""Extents that a pull checks before it lets the reactor do something else."""

DISK_CHECK_INTERVAL = 0.05
"""Seconds between two checks whether the cache's disk has caught up."""

DISK_TIMEOUT = 30.0
"""Seconds after which a disk that does not catch up ends the pull."""

MAX_PASSES = 4
"""Times that a pull goes through an image: its blocks may be evicted while it runs."""


class PullableFileSystem(Protocol):
    """What pulls need of the file system; see L{mufs.filesystem.client.remote}."""

    @property
    def reads(self) -> ReadCore:
        """Knows what is on its way, and how much may be."""

    @property
    def reader(self) -> Reader:
        """Asks the server for what is missing."""

    @property
    def is_connected(self) -> bool:
        """Whether the server can be asked now."""

    def getattr(self, path: bytes, *, caller: Caller) -> Awaitable[Attributes]:
        """The attributes of the file at a path."""

    def open(self, path: bytes, caller: Caller) -> Awaitable[tuple[int, object]]:
        """Open the present generation of an image: a handle, and a value unused here."""

    def opened(self, handle: int) -> OpenImage:
        """What a handle stands for."""

    def release(self, handle: int) -> None:
        """An open image is no longer needed."""


@frozen
class Progress:
    """
    The progress of a pull, in bytes.

    @ivar size: of the image; 0 before it is open.
    @ivar held: found in the cache, or brought.
    @ivar asked: came because the pull asked for it.
    @ivar overheard: came because of others.
    @ivar connected: whether there is a connection to the server.
    """

    size: int
    held: int
    asked: int
    overheard: int
    connected: bool


@implementer(IFiller)
class _Pull:
    """
    The pull of one image. It requests, in the background, what the cache lacks, extent after
    extent, and never has more on its way than its share of the window.
    """

    def __init__(
        self,
        remote: PullableFileSystem,
        cache: BlockCache,
        clock: IReactorTime,
        *,
        room: Callable[[], int],
    ) -> None:
        """@param room: returns the bytes that the pull may have on their way now."""
        self._remote = remote
        self._cache = cache
        self._clock = clock
        self._room = room
        self._opened: OpenImage | None = None
        self._next = 0
        self._passes = 0
        self._missed = False
        self._on_their_way: dict[int, int] = {}
        self._retry_call: IDelayedCall | None = None
        self._disk_checks = 0
        self._done: Deferred[None] = Deferred()
        self._held = self._asked = self._overheard = 0

    @property
    def progress(self) -> Progress:
        """The progress so far."""
        size = 0 if self._opened is None else self._opened.size
        held = min(size, self._held * PAGE)
        return Progress(size, held, self._asked, self._overheard, self._remote.is_connected)

    async def run(self, path: bytes, caller: Caller, key_delay: float) -> None:
        """
        Pull the image at C{path}; may be cancelled.

        @param key_delay: seconds from opening the image to the first request.
        @raise OSError: when the image cannot be opened, read or kept.
        """
        # Check before opening it: what is overheard of an open image is kept, and evicts others.
        found = await self._remote.getattr(path, caller=caller)
        self._check_fits(min(found.size, 512 * found.blocks))
        handle, _ = await self._remote.open(path, caller)
        opened = self._opened = self._remote.opened(handle)
        try:
            if not opened.data_map.wants_more:
                self._check_fits(opened.size - opened.data_map.bytes_of_holes)
            # Do not let what comes evict what is there already.
            self._cache.touch(opened.key)
            self._remote.reader.fillers[opened] = self
            if key_delay:
                await deferLater(self._clock, key_delay)
            self.refresh()
            await self._done
        finally:
            self._remote.reader.fillers.pop(opened, None)
            self._remote.release(handle)
            if self._retry_call is not None:
                self._retry_call.cancel()
            self._done.addErrback(lambda _: None)  # it may have failed while nobody waited for it

    def _check_fits(self, size: int) -> None:
        """@raise OSError: when so many bytes of data do not fit into the cache."""
        if size > self._cache.capacity:
            room = format_bytes(self._cache.capacity)
            raise OSError(
                errno.ENOSPC, f"the image has {format_bytes(size)} of data, the cache {room}"
            )

    def received(self, extent: int, length: int) -> None:
        """See L{IFiller.received}."""
        lacked = self._on_their_way.get(extent)
        if lacked is None:
            self._overheard += length
            return
        self._asked += length
        assert self._opened is not None
        missing = self._cache.missing_of_extent(self._opened.key, extent, lacked)
        self._held += (lacked & ~missing).bit_count()
        self._wait_for(extent, missing)
        if not missing:
            self._go_on()

    def failed(self, error: OSError) -> None:
        """See L{IFiller.failed}."""
        self._end(error)

    def resumed(self) -> None:
        """See L{IFiller.resumed}."""
        self._passes = 0  # what the connection lost was not evicted
        self.refresh()

    def refresh(self) -> None:
        """
        Stop waiting for pages that are no longer on their way, because the connection was lost
        or a reader cancelled the request. The next pass requests them.
        """
        opened = self._opened
        if opened is None or self._done.called or opened not in self._remote.reader.fillers:
            return
        if opened.stale:
            self._end(stale())
            return
        in_flight = self._remote.reads.in_flight
        for extent, pages in list(self._on_their_way.items()):
            lost = in_flight.not_requested(opened.key, extent, pages)
            self._wait_for(extent, pages & ~lost)
        self._go_on()

    def _wait_for(self, extent: int, pages: int) -> None:
        """Have these pages of an extent on their way, and no others."""
        if pages:
            self._on_their_way[extent] = pages
        else:
            self._on_their_way.pop(extent, None)

    def _go_on(self) -> None:
        opened = self._opened
        assert opened is not None
        if opened.server_handle is None or self._done.called or self._retry_call is not None:
            return
        if self._cache.is_behind:
            self._disk_checks += 1
            if self._disk_checks * DISK_CHECK_INTERVAL > DISK_TIMEOUT:
                self._end(OSError(errno.ENOSPC, "the disk of the cache takes nothing"))
            else:
                self._go_on_later(DISK_CHECK_INTERVAL)
            return
        self._disk_checks = 0
        wanted, checked = self._next_wanted(opened)
        if wanted:
            self._missed = True
            self._remote.reader.fill(opened, wanted)
        elif checked == MAX_EXTENTS_PER_TURN:
            self._go_on_later(0)
        elif self._next == opened.size and not self._on_their_way:
            self._end_of_pass()

    def _next_wanted(self, opened: OpenImage) -> tuple[dict[int, int], int]:
        """
        Go through the image as far as there is room for what it lacks.

        @return: pages to request, by extent, which are on their way from now on; and how many
            extents were checked.
        """
        pending = PAGE * sum(map(int.bit_count, self._on_their_way.values()))
        room = self._room() - pending
        # Extents are not cut unless the room is always less than one.
        step = min(EXTENT, self._room() // BLOCK * BLOCK)
        wanted: dict[int, int] = {}
        checked = 0
        # Many at a time: adjacent extents share a request.
        if 4 * room < pending:
            return wanted, checked
        while self._next < opened.size and room >= step and checked < MAX_EXTENTS_PER_TURN:
            length = min(step, opened.size - self._next)
            for extent, pages in split_into_extents(self._next, length):
                lacking = self._cache.missing_of_extent(opened.key, extent, pages)
                self._held += (pages & ~lacking).bit_count()
                if lacking:
                    wanted[extent] = wanted.get(extent, 0) | lacking
                    room -= PAGE * lacking.bit_count()
            self._next += length
            checked += 1
        for extent, pages in wanted.items():
            self._wait_for(extent, self._on_their_way.get(extent, 0) | pages)
        return wanted, checked

    def _end_of_pass(self) -> None:
        self._passes += 1
        if not self._missed:
            self._end(None)
        elif self._passes == MAX_PASSES:
            self._end(OSError(errno.ENOSPC, "the cache does not keep it: others need its room"))
        else:
            self._missed, self._next, self._held = False, 0, 0
            self._go_on_later(0)

    def _go_on_later(self, seconds: float) -> None:
        self._retry_call = self._clock.callLater(seconds, self._retry)

    def _retry(self) -> None:
        self._retry_call = None
        self.refresh()

    def _end(self, error: OSError | None) -> None:
        if not self._done.called:
            self._done.errback(error) if error else self._done.callback(None)


class Pulls:
    """
    All pulls of a client. They share what may be on its way for them: the read-ahead window, or
    half of what may be on its way in total.
    """

    def __init__(self, remote: PullableFileSystem, cache: BlockCache, clock: IReactorTime) -> None:
        self._remote = remote
        self._cache = cache
        self._clock = clock
        self._running: list[_Pull] = []

    def pull(
        self,
        path: bytes,
        caller: Caller,
        report: Callable[[Progress], None],
        *,
        key_delay: float = 0.0,
    ) -> "Deferred[Progress]":
        """
        Fill the cache with an image.

        @param report: called each second with the progress.
        @param key_delay: seconds from opening the image to the first request.
        @return: fires when the image is in the cache; fails with C{OSError}; may be cancelled.
        """
        if len(self._running) >= MAX_PULLS:
            raise OSError(errno.EBUSY, f"{MAX_PULLS} pulls are running")
        pull = _Pull(self._remote, self._cache, self._clock, room=self._room)
        self._running.append(pull)

        def tick() -> None:
            pull.refresh()
            report(pull.progress)

        ticks = LoopingCall(tick)
        ticks.clock = self._clock
        ticks.start(PROGRESS_INTERVAL, now=False)

        async def run() -> Progress:
            try:
                await pull.run(path, caller, key_delay)
            finally:
                self._running.remove(pull)
                ticks.stop()
            return pull.progress

        return ensureDeferred(run())

    def _room(self) -> int:
        size = min(self._remote.reads.window, MAX_BYTES_IN_FLIGHT // 2) // len(self._running)
        return max(BLOCK, size)
