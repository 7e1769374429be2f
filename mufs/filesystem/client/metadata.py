"""Requests about names and attributes; while the server is away, what it last told of them."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from mufs.communication.client.channel import ChannelLost, ClientChannel
from mufs.filesystem.client.attributes import AttributeCache
from mufs.filesystem.client.images import OpenImages, stale
from mufs.filesystem.client.last_known import LastKnown
from mufs.wire.channel import Type
from mufs.wire.metadata import (
    MAX_PATH_BYTES,
    At,
    Attributes,
    Caller,
    Link,
    Names,
    Opened,
    Statistics,
)

T = TypeVar("T")

Recall = Callable[[], object]
"""Returns what was last known, or C{None}; raises what is certain, an C{OSError}."""


class ServerAway(Exception):
    """
    The server does not answer.

    @ivar known: what it would have answered when it was last heard.
    """

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.known = known


@define
class _Request:
    """
    One that the server has not answered.

    @ivar recall: what does instead of the answer.
    @ivar always: whether that does however long ago it was.
    @ivar outcome: what to raise after it was cancelled for the server's silence.
    """

    recall: Recall
    always: bool
    outcome: Exception | None = None


class Metadata:
    """
    Asks the server about names and attributes, on whatever connection there is.

    A request whose connection is lost is made anew on the next one. While the server is away, that
    is without a connection, or while it leaves the last one without an answer, requests are
    answered at once by what was last known, for C{offline_for} seconds at most, and for as long as
    it takes about the root and the file system: umount(8) and df(1) wait for nobody. What is not
    known waits.

    @ivar attributes: what any thread may look up.
    """

    def __init__(self, clock: IReactorTime, images: OpenImages, offline_for: float) -> None:
        self._clock = clock
        self._images = images
        self._offline_for = offline_for
        self.attributes = AttributeCache(clock)
        self._last_known = LastKnown(self.attributes)
        self._channel: ClientChannel | None = None
        self._awaiting_channel: list[Deferred[ClientChannel]] = []
        self._requests: dict[Deferred[Any], _Request] = {}
        self._lost_at = clock.seconds()

    @property
    def last_heard(self) -> float:
        """When the last byte came from the server, in seconds."""
        return self._lost_at if self._channel is None else self._channel.last_received

    def connected(self, channel: ClientChannel) -> None:
        """There is a connection again."""
        self._channel = channel
        waiting, self._awaiting_channel = self._awaiting_channel, []
        for each in waiting:
            each.callback(channel)

    def disconnected(self) -> None:
        """The connection is lost."""
        self._lost_at = self.last_heard
        self._channel = None

    def silent(self) -> None:
        """The server leaves the connection without an answer."""
        for asked, request in list(self._requests.items()):
            request.outcome = self._instead(request)
            if request.outcome is not None:
                asked.cancel()

    async def getattr(self, path: bytes, handle: int | None, caller: Caller) -> Attributes:
        """See L{RemoteFileSystem.getattr}."""
        if handle is None and path and self.attributes.take_walk(path.rpartition(b"/")[0]):
            with suppress(OSError):
                await self.readdir(path.rpartition(b"/")[0], caller)
            known = self.attributes.get(path)
            if known is not None:
                return known
        now = self._now()
        recall: Recall = partial(self._last_known.attributes, path)
        if handle is not None and handle in self._images:
            opened = self._images[handle]
            # Whoever opened a file may read its attributes, also after a change of user.
            caller, recall = opened.caller, lambda: opened.attributes
        always = not path and handle is None
        try:
            attributes: Attributes = await self._ask(
                Type.GETATTR, At(path, caller), Attributes, recall=recall, always=always
            )
        except ServerAway as away:
            attributes = away.known
        else:
            self._learn(path, attributes, now)
        if handle is not None and handle in self._images and self._images[handle].stale:
            raise stale()
        return attributes

    async def readdir(self, path: bytes, caller: Caller) -> list[tuple[bytes, Attributes]]:
        """See L{RemoteFileSystem.readdir}."""
        now = self._now()
        recall = partial(self._last_known.listing, path)
        try:
            names = await self._ask(Type.READDIR, At(path, caller), Names, recall=recall)
        except ServerAway as away:
            listed: list[tuple[bytes, Attributes]] = away.known
            return listed
        time, next_handle = now
        # A file renamed while the server lists the directory may be listed twice.
        entries = dict(names.entries)
        self.attributes.put_listing(path, entries, time)
        for opened in self._images:
            directory, _, name = opened.path.rpartition(b"/")
            if directory == path and name in entries:
                self._images.mark_stale(opened.path, entries[name], next_handle)
        return list(entries.items())

    async def readlink(self, path: bytes, caller: Caller) -> bytes:
        """See L{RemoteFileSystem.readlink}."""
        recall = partial(self._last_known.link, path)
        try:
            link = await self._ask(Type.READLINK, At(path, caller), Link, recall=recall)
        except ServerAway as away:
            target: bytes = away.known
            return target
        self._last_known.note_link(path, link.target)
        return link.target

    async def statfs(self) -> Statistics:
        """See L{RemoteFileSystem.statfs}."""
        try:
            found = await self._ask(
                Type.STATFS,
                At(b""),
                Statistics,
                recall=lambda: self._last_known.statistics,
                always=True,
            )
        except ServerAway as away:
            last: Statistics = away.known
            return last
        self._last_known.statistics = found
        return found

    async def open(self, path: bytes, caller: Caller) -> tuple[Opened, int | None]:
        """
        Open an image on the server.

        @return: the image, and the server's handle; C{None} while the server is away.
        """
        now = self._now()
        recall = partial(self._last_known.image, path, caller)
        try:
            found = await self._ask(Type.OPEN, At(path, caller), Opened, recall=recall)
        except ServerAway as away:
            return away.known, None
        self._learn(path, found.attributes, now)
        self._last_known.note_image(path, found, caller)
        return found, found.handle

    async def _ask(
        self,
        kind: Type,
        body: At,
        answer: type[T],
        *,
        recall: Recall,
        always: bool = False,
    ) -> T:
        """
        Ask the server.

        @param always: what was last known does however long ago that was.
        @raise ServerAway: when it is away, with what was last known.
        """
        if len(body.path) > MAX_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        request = _Request(recall, always)
        while True:
            outcome = self._instead(request)
            if outcome is not None:
                raise outcome
            channel = self._channel or await self._next_channel()
            asked = channel.ask(kind, body, answer)
            self._requests[asked] = request
            try:
                return await asked
            except ChannelLost:
                continue
            except CancelledError:
                if request.outcome is None:
                    raise
                raise request.outcome from None
            except FileNotFoundError:
                self._last_known.forget(body.path)
                raise
            finally:
                del self._requests[asked]

    def _instead(self, request: _Request) -> Exception | None:
        """What to raise instead of waiting for an answer: nothing while the server is there."""
        if self._channel is not None and not self._channel.is_silent:
            return None
        if not request.always and self._clock.seconds() - self.last_heard > self._offline_for:
            return None
        try:
            known = request.recall()
        except OSError as error:
            return error
        return None if known is None else ServerAway(known)

    def _next_channel(self) -> "Deferred[ClientChannel]":
        waiting: Deferred[ClientChannel] = Deferred(self._awaiting_channel.remove)
        self._awaiting_channel.append(waiting)
        return waiting

    def _now(self) -> tuple[float, int]:
        """When the server was asked: the time, and the handle that the next open gets."""
        return self._clock.seconds(), self._images.next_handle

    def _learn(self, path: bytes, attributes: Attributes, asked: tuple[float, int]) -> None:
        """Remember attributes; open images that they do not match are stale."""
        time, next_handle = asked
        self.attributes.put(path, attributes, time)
        self._images.mark_stale(path, attributes, next_handle)
