"""The file system's operations on a host (paper, section 5.2), without FUSE and threads."""

import errno
from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.channel import ChannelLost, ClientChannel, IChannelUser, Refused
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.receiver import MulticastReceiver
from mufs.communication.client.repairs import Repairs
from mufs.communication.client.timer import Timer
from mufs.filesystem.client.holes import Holes
from mufs.filesystem.client.images import OpenImage, OpenImages, PageCache
from mufs.filesystem.client.metadata import Metadata
from mufs.filesystem.client.reading.core import ReadCore
from mufs.filesystem.client.reading.reader import Reader
from mufs.filesystem.client.reading.sequences import SequenceDetector
from mufs.filesystem.client.server_pulls import ServerPulls
from mufs.wire.channel import Data, Key, Sent, Type, pack
from mufs.wire.metadata import (
    NOBODY,
    At,
    Attributes,
    Caller,
    Close,
    Opened,
    Pull,
    Report,
    Statistics,
    Welcome,
    encode,
)
from mufs.wire.pages import ImageKey
from mufs.wire.segments import Descriptor

MAX_LAG = (1 << 32) - 1
"""The longest wait that a report has room for, in milliseconds; a read may wait for longer."""

BUSY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of a server that lacks something for now, and say nothing of the image."""

REOPEN_DELAY = 1.0
"""Seconds until a server that was busy is asked to reopen an image once more."""


@implementer(IChannelUser)
class RemoteFileSystem:
    """
    What the mount asks for, each operation a Deferred that fails with C{OSError}.

    Without a connection an operation that needs the server waits for the next one; the caller
    bounds the wait by cancelling. L{Metadata} decides what becomes of requests about names and
    attributes; reads wait in the core until their image is reopened (L{_reopen}); other packets
    are dropped (L{send}): the server forgets a lost connection's handles and transfers.

    Everything runs in the reactor's thread except L{opened}, L{Reader.read_cached}, L{Holes.known}
    and the attribute cache, which any thread may use. It has many attributes because it puts the
    parts of the client together.

    @ivar reads: decides on reads; C{reader} carries out what it decides.
    @ivar holes: knows where images have data.
    @ivar lag: seconds that the slowest read before the last report had to wait.
    @ivar server_pulls: carries out what the server asks for; to be set before it connects.
    """

    server_pulls: ServerPulls
    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        cache: BlockCache,
        max_ahead: int,
        *,
        offline_for: float = 0.0,
        on_welcome: Callable[[ClientChannel, Welcome], None],
        on_moved: Callable[[Welcome], None],
        on_refused: Callable[[Refused], None],
    ) -> None:
        """
        @param max_ahead: bytes that may be read ahead of a reader.
        @param offline_for: seconds for which what was last known does while the server is away.
        @param on_welcome: called at the beginning of each connection, before it is used.
        @param on_moved: called when the server sends to the group from elsewhere.
        @param on_refused: called when the server refuses this client.
        """
        self._clock = clock
        self._cache = cache
        self._on_welcome = on_welcome
        self.moved = on_moved
        self.refused = on_refused
        self.multicast_health = MulticastHealth(clock)
        self.reads = ReadCore(cache, self.multicast_health, max_ahead, new_tag=self._new_tag)
        self.reader = Reader(self.reads, cache, clock, send=self.send)
        self.holes = Holes(cache, lambda: self._channel)
        self.receiver = MulticastReceiver(self.multicast_health, self.reader.delivered)
        self.repairs = Repairs(
            self.receiver,
            self.multicast_health,
            send=self.send,
            is_wanted=self.reads.is_wanted,
            read_again=self.reader.expired,
            read_over_tcp=self.reader.lost,
        )
        self.receiver.on_incomplete = self._incomplete
        self._repair_timer = Timer(clock, self.repairs)
        self._channel: ClientChannel | None = None
        self._open = OpenImages()
        self._metadata = Metadata(clock, self._open, offline_for)
        self.attributes = self._metadata.attributes
        self.lag = 0.0

    @property
    def images(self) -> OrderedDict[ImageKey, OpenImage]:
        """The images opened last, in the order of opening, including closed ones."""
        return self._open.recent

    @property
    def is_connected(self) -> bool:
        """Whether the server can be asked now."""
        return self._channel is not None

    @property
    def last_heard(self) -> float:
        """When the last byte came from the server, in seconds."""
        return self._metadata.last_heard

    def send(self, packet: bytes) -> None:
        """Write a packet to the request channel; without a connection it is dropped."""
        if self._channel is not None:
            self._channel.send(packet)

    def stop(self) -> None:
        """End the connection at once, without sending what is queued."""
        if self._channel is not None:
            self._channel.abort()

    def connected(self, channel: ClientChannel, welcome: Welcome) -> None:
        """See L{IChannelUser.connected}."""
        self._on_welcome(channel, welcome)
        self._channel = channel
        for opened in self._open:
            if opened.stale:
                self._resume(opened)
            else:
                self._begin_reopening(opened)
        self._metadata.connected(channel)

    def silent(self) -> None:
        """See L{IChannelUser.silent}."""
        self._metadata.silent()

    def disconnected(self) -> None:
        """See L{IChannelUser.disconnected}."""
        self._log.warn("the connection to the server is lost: waiting for another")
        self._channel = None
        self._metadata.disconnected()
        self.server_pulls.disconnected()
        for opened in self._open:
            opened.server_handle = None
            opened.sequence_detector = SequenceDetector(opened.size)
        self.reads.interrupted()

    def sent(self, sent: Sent) -> None:
        """See L{IChannelUser.sent}."""
        self.repairs.sent(sent, self._clock.seconds())
        self._repair_timer.set()

    def data(self, data: Data) -> None:
        """See L{IChannelUser.data}."""
        self.reader.data(data)

    def segments(self, packets: bytes) -> None:
        """See L{IChannelUser.segments}."""
        self.reads.bytes_over_tcp += len(packets)
        self.receiver.take(packets, self._clock.seconds())

    def transfer_expired(self, tag: int) -> None:
        """See L{IChannelUser.transfer_expired}."""
        self.reader.expired(tag)

    def failed(self, tag: int, error: OSError) -> None:
        """See L{IChannelUser.failed}."""
        self.reader.failed(tag, error)

    def key(self, key: Key) -> None:
        """See L{IChannelUser.key}."""
        self.receiver.begin_epoch(key.epoch, key.secret, self._clock.seconds())

    def pull(self, pull: Pull) -> None:
        """See L{IChannelUser.pull}."""
        self.server_pulls.requested(pull)

    def report(self) -> Report:
        """See L{IChannelUser.report}."""
        self.lag = self.reads.take_lag(self._clock.seconds())
        deliveries = self.reads.deliveries
        reads, hits = deliveries.reads_and_hits
        works, state = self.multicast_health.works, self.multicast_health.state[:255]
        lag, delivered = round(self.lag * 1000), deliveries.take_delivered()
        return Report(reads, hits, min(lag, MAX_LAG), delivered, works, state)

    def getattr(
        self, path: bytes, handle: int | None = None, caller: Caller = NOBODY
    ) -> "Deferred[Attributes]":
        """
        The attributes of the file at C{path}.

        @param handle: of the open image that is meant: ESTALE when the path now leads to another
            generation.
        @param caller: who asks; with a handle, whoever opened it.
        """
        return ensureDeferred(self._metadata.getattr(path, handle, caller))

    def readdir(
        self, path: bytes, caller: Caller = NOBODY
    ) -> "Deferred[list[tuple[bytes, Attributes]]]":
        """The names in a directory with their attributes, which are cached."""
        return ensureDeferred(self._metadata.readdir(path, caller))

    def readlink(self, path: bytes, caller: Caller = NOBODY) -> "Deferred[bytes]":
        """The target of a symbolic link."""
        return ensureDeferred(self._metadata.readlink(path, caller))

    def statfs(self) -> "Deferred[Statistics]":
        """Statistics of the server's file system."""
        return ensureDeferred(self._metadata.statfs())

    def open(self, path: bytes, caller: Caller = NOBODY) -> "Deferred[tuple[int, PageCache]]":
        """
        Open the current generation of an image.

        @return: a handle, and what the kernel may do with its page cache.
        """
        return ensureDeferred(self._open_image(path, caller))

    def opened(self, handle: int) -> OpenImage:
        """The open image of a handle; from any thread."""
        return self._open[handle]

    def open_images(self) -> set[ImageKey]:
        """Image and generation of all open images."""
        return {opened.key for opened in self._open}

    def release(self, handle: int) -> None:
        """Close a handle."""
        self._close(self._open.remove(handle))

    def _close(self, opened: OpenImage) -> None:
        if opened.server_handle is not None:
            self.send(pack(Type.CLOSE, encode(Close(opened.server_handle))))
            opened.server_handle = None

    async def _open_image(self, path: bytes, caller: Caller) -> tuple[int, PageCache]:
        found, server_handle = await self._metadata.open(path, caller)
        key = found.image, found.generation
        ahead = SequenceDetector(found.attributes.size)
        opened = OpenImage(path, key, found.attributes, ahead, server_handle, caller=caller)
        self.receiver.add_key(*key, found.key)
        self._cache.opened(key, path, found.attributes.size)
        handle = self._open.add(opened)
        self.holes.opened(opened, found.data)
        if server_handle is None and self._channel is not None:
            # The server is silent, and may answer yet.
            self._begin_reopening(opened)
        return handle

    def _begin_reopening(self, opened: OpenImage) -> None:
        reopened = ensureDeferred(self._reopen(opened))
        reopened.addErrback(lambda failure: self._log.failure("cannot reopen", failure))

    async def _reopen(self, opened: OpenImage) -> None:
        channel = self._channel
        assert channel is not None
        try:
            found = await channel.ask(Type.OPEN, At(opened.path, opened.caller), Opened)
        except ChannelLost:
            return
        except OSError as error:
            if error.errno in BUSY:
                self._clock.callLater(REOPEN_DELAY, self._reopen_once_more, opened, channel)
                return
            self._log.warn("{path} cannot be opened again: {error}", path=opened.path, error=error)
            opened.stale = True
        else:
            opened.stale = opened.key != (found.image, found.generation)
            opened.server_handle = found.handle
            self.receiver.add_key(found.image, found.generation, found.key)
            if opened not in list(self._open):
                self._close(opened)
        self._resume(opened)

    def _reopen_once_more(self, opened: OpenImage, channel: ClientChannel) -> None:
        if self._channel is channel and opened in list(self._open):
            self._begin_reopening(opened)

    def _resume(self, opened: OpenImage) -> None:
        self.reader.resume(opened)
        self.holes.reopened(opened)

    def _incomplete(self, descriptor: Descriptor, now: float) -> None:
        self.repairs.on_incomplete(descriptor, now)
        self._repair_timer.set()

    def _new_tag(self) -> int:
        if self._channel is None:
            raise OSError(errno.ENOTCONN, "no connection to the server")
        return self._channel.new_tag()
