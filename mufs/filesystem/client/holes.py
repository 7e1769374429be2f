"""
Holes of images: what the server's file system has no bytes for is known here, and not asked for.

With OPEN comes the first part of an image's map. The next ones are asked for in the background, and
what lies behind those that are kept when it is wanted.
"""

import errno
import os
from collections.abc import Callable
from contextlib import suppress

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import Logger

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.channel import ChannelLost, ClientChannel
from mufs.filesystem.client.data_map import holes
from mufs.filesystem.client.images import OpenImage, stale
from mufs.wire.channel import Type
from mufs.wire.metadata import UNKNOWN, DataMap, MapRequest
from mufs.wire.pages import PAGE


class Holes:
    """
    Learns where open images have data, and tells the cache what is zero, and programs what
    lseek(2) finds. Any thread may call L{known}, the reactor's the others.
    """

    _log = Logger()

    def __init__(self, cache: BlockCache, channel: Callable[[], ClientChannel | None]) -> None:
        """@param channel: returns the connection to the server, if there is one."""
        self._cache = cache
        self._channel = channel
        self._incomplete: dict[OpenImage, None] = {}
        self._is_asking = False
        self._waiting: dict[OpenImage, list[Deferred[None]]] = {}

    def opened(self, opened: OpenImage, first: DataMap) -> None:
        """An image was opened. @param first: the first part of its map."""
        self._learn(opened, first)
        self._complete(opened)

    def reopened(self, opened: OpenImage) -> None:
        """The server has opened an image again, or has another one there, on a new connection."""
        for waiting in self._waiting.pop(opened, ()):
            waiting.callback(None)
        self._complete(opened)

    def known(self, opened: OpenImage, offset: int, *, data: bool) -> int | None:
        """
        Where data, or else a hole, is at C{offset} or after it, in bytes, if that is known.

        @raise OSError: ENXIO when there is none, ESTALE when the image is stale.
        """
        if opened.stale:
            raise stale()
        if not 0 <= offset < opened.size:
            raise _nothing()
        found, is_known = opened.data_map.find(offset, data=data)
        if is_known and data and found == opened.size:
            raise _nothing()
        return found if is_known else None

    def find(self, opened: OpenImage, offset: int, data: bool) -> "Deferred[int]":
        """The same, asking the server for what is not known; may be cancelled."""
        return ensureDeferred(self._find(opened, offset, data))

    async def _find(self, opened: OpenImage, offset: int, data: bool) -> int:
        while (found := self.known(opened, offset, data=data)) is None:
            offset, _ = opened.data_map.find(offset, data=data)
            if opened.server_handle is None:
                await self._reopening(opened)
                continue
            try:
                part = await self._ask(opened, offset)
            except ChannelLost:
                continue
            if part.end <= offset:
                raise OSError(errno.EIO, "the server does not tell where the image has data")
            self._learn(opened, part)
        return found

    def _reopening(self, opened: OpenImage) -> "Deferred[None]":
        """Fires when the server has opened an image again."""
        waiting = self._waiting.setdefault(opened, [])
        deferred: Deferred[None] = Deferred(waiting.remove)
        waiting.append(deferred)
        return deferred

    async def _ask(self, opened: OpenImage, offset: int) -> DataMap:
        """@raise ChannelLost: when there is no connection, or it is lost."""
        channel, handle = self._channel(), opened.server_handle
        if channel is None or handle is None:
            raise ChannelLost
        try:
            part = await channel.ask(Type.MAP, MapRequest(handle, offset), DataMap)
        except OSError as error:
            opened.stale |= error.errno == errno.ESTALE
            raise
        if part.start != offset or part.end > opened.size:
            raise OSError(errno.EIO, "the server sent a wrong map")
        return part

    def _complete(self, opened: OpenImage) -> None:
        """Have the map of an image asked for, as far as there is room for it."""
        if opened.data_map.wants_more:
            self._incomplete[opened] = None
            if not self._is_asking:
                asking = ensureDeferred(self._ask_on())
                asking.addErrback(lambda failure: self._log.failure("no map of an image", failure))

    async def _ask_on(self) -> None:
        self._is_asking = True
        try:
            while self._incomplete:
                opened = next(iter(self._incomplete))
                part = UNKNOWN
                if opened.data_map.wants_more:
                    # What fails goes on with the next connection, or never.
                    with suppress(ChannelLost, OSError):
                        part = await self._ask(opened, opened.data_map.end)
                        self._learn(opened, part)
                if part.start == part.end:
                    del self._incomplete[opened]
        finally:
            self._is_asking = False

    def _learn(self, opened: OpenImage, part: DataMap) -> None:
        opened.data_map.add(part)
        if part.end <= opened.data_map.end:
            size = opened.size
            # The last page ends with the image.
            ranges = (
                (begin, end + -end % PAGE if end == size else end) for begin, end in holes(part)
            )
            self._cache.zeros.add_holes(opened.key, ranges)


def _nothing() -> OSError:
    return OSError(errno.ENXIO, os.strerror(errno.ENXIO))
