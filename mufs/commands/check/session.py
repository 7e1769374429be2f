"""A client without a mount: it connects, looks for an image, and reads it for a while."""

import os
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from attrs import frozen
from cryptography import x509
from OpenSSL import SSL
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import SSL4ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IHandshakeListener, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.channel import ClientChannel, ClientChannelFactory, Refused
from mufs.communication.client.membership import Membership
from mufs.communication.client.multicast_health import JOIN_DELAY
from mufs.communication.tls import is_tls
from mufs.filesystem.client.pull import Pulls
from mufs.filesystem.client.remote import RemoteFileSystem
from mufs.filesystem.client.server_pulls import ServerPulls
from mufs.wire.channel import Priority
from mufs.wire.metadata import Caller, Welcome
from mufs.wire.pages import BLOCK

T = TypeVar("T")

CACHE = 16 * 1024 * 1024
"""Bytes: of what is read nothing is used again."""

RATE = 20_000_000
"""Bits a second that are read at the most, so that a busy network is not harmed."""

PATIENCE = 5.0
"""Seconds that any one answer may take."""

LATE = 1.0
"""Seconds that may pass after the last question until what comes is counted."""

MOST_DIRECTORIES = 256
"""Directories that are searched for images."""

MOST_TRIES = 16
"""Images that are tried, the largest first, until one may be opened."""


class Unreachable(Exception):
    """There is no connection that can be used; the text says why."""


@frozen
class Reading:
    """
    What came of reading an image for a while.

    @ivar bytes_asked: bytes asked for; C{bytes_over_tcp} those that came over TCP.
    @ivar segments: that the group brought, also for others.
    @ivar loss: from 0 to 1, or C{None} if nothing was heard of any transfer.
    @ivar dropped: datagrams of others than the server.
    @ivar works: whether the client finds that multicast works; C{state} says it for people.
    @ivar is_lost: whether the connection was lost.
    """

    seconds: float
    bytes_asked: int
    bytes_over_tcp: int
    segments: int
    segment: int
    loss: float | None
    dropped: int
    works: bool
    state: str
    is_lost: bool

    @property
    def rate(self) -> float:
        """Of multicast, in bits a second."""
        return self.segments * self.segment * 8 / self.seconds


class _Factory(ClientChannelFactory):
    """Tells why a connection came to nothing."""

    lost: Callable[[str], None]

    def connect_failed(self, reason: str) -> None:
        self.lost(reason)


class Session:
    """
    One connection to a server.

    @ivar welcome: what the server told of multicast, once connected.
    @ivar connect_time: seconds that it took to connect.
    """

    welcome: Welcome
    channel: ClientChannel

    def __init__(self, reactor: Any, interface: str | None, name: str) -> None:
        """@param interface: address of the one to listen on, or C{None} for that of the route."""
        self._reactor = reactor
        self._met: Deferred[None] = Deferred()
        cache = BlockCache(CACHE)
        self.remote = RemoteFileSystem(
            reactor,
            cache,
            CACHE // 4,
            on_welcome=self._welcomed,
            on_refused=self._refused,
        )
        pulls = Pulls(self.remote, cache, reactor)
        self.remote.server_pulls = ServerPulls(pulls, reactor, self.remote.send)
        self._membership = Membership(
            reactor,
            self.remote.receiver,
            self.remote.multicast_health,
            interface=interface,
            on_joined=lambda: None,
            on_unusable=lambda message: None,
        )
        self._factory = _Factory(self.remote, reactor, name)
        self._factory.lost = lambda reason: self._end(Unreachable(reason))
        self._caller = Caller(os.geteuid(), os.getegid(), os.getgroups()[:256])
        self.connect_time: float | None = None

    @property
    def interface(self) -> str | None:
        """Address of the interface on which the group is listened to; C{None} if it is not."""
        return self._membership.interface

    async def connect(self, endpoint: IStreamClientEndpoint) -> None:
        """
        Be taken by the server, and join the group if that is possible.

        @raise Unreachable: when that comes to nothing.
        @raise Refused: when the server will not have this client.
        """
        began = self._reactor.seconds()
        try:
            await self._within(endpoint.connect(self._factory))
        except TimeoutError:
            raise Unreachable(f"no answer within {PATIENCE:g} s") from None
        except (ConnectError, OSError) as error:
            raise Unreachable(_reason(error)) from None
        self.connect_time = self._reactor.seconds() - began
        try:
            await self._within(self._met)
        except TimeoutError:
            raise Unreachable(f"connected, but no WELCOME within {PATIENCE:g} s") from None

    def certificate(self) -> x509.Certificate | None:
        """That of the server; C{None} without TLS."""
        transport: Any = self.channel.transport
        return transport.getPeerCertificate().to_cryptography() if is_tls(transport) else None

    def socket(self) -> Any:
        """That of the connection."""
        transport: Any = self.channel.transport
        if is_tls(transport):
            transport = transport.transport
        return transport.getHandle()

    async def images(self) -> list[tuple[int, bytes]]:
        """
        Sizes and paths of the images that this user sees, the largest first.

        @raise OSError: when what the server shares cannot be listed at all.
        """
        found: list[tuple[int, bytes]] = []
        directories = [b""]
        until = self._reactor.seconds() + PATIENCE
        for path in directories:
            try:
                names = await self._within(self.remote.readdir(path, self._caller))
            except OSError:
                if path:
                    continue
                raise
            for name, attributes in names:
                below = path + b"/" + name if path else name
                if attributes.mode & 0o170000 == 0o100000:
                    found.append((attributes.size, below))
                elif attributes.mode & 0o170000 == 0o040000:
                    directories.append(below)
            if len(directories) > MOST_DIRECTORIES or self._reactor.seconds() > until:
                break
        return sorted(found, reverse=True)

    async def open_first(self, paths: list[bytes]) -> tuple[bytes, int]:
        """
        Open the first of some images that can be.

        @return: its path and its handle.
        @raise OSError: why the last one that was tried could not.
        """
        fault = OSError("there is no image")
        for path in paths[:MOST_TRIES]:
            try:
                handle, _ = await self._within(self.remote.open(path, self._caller))
                return path, handle
            except OSError as error:
                fault = error
        raise fault

    async def read(self, handle: int, seconds: float) -> Reading:
        """Have an image sent, at background priority, until so many seconds are over or it ends."""
        remote, opened = self.remote, self.remote.opened(handle)
        # Until switches know that this host is in the group, what is sent does not come here.
        await self.pause(JOIN_DELAY)
        began, offset = self._reactor.seconds(), 0
        end = began + seconds
        # Before the keys came, what the server sent for others could not be told from forgeries.
        dropped, segments = remote.receiver.datagrams_dropped, remote.receiver.segments_received
        while self._reactor.seconds() < end and offset < opened.size and remote.is_connected:
            length = min(BLOCK, opened.size - offset)
            remote.coalescer.prefetch(opened, offset, length, priority=Priority.BACKGROUND)
            offset += length
            await self.pause(BLOCK * 8 / RATE)
        end = self._reactor.seconds() + LATE
        last = max(0, offset - CACHE // 2)
        while self._reactor.seconds() < end and remote.lacks(opened, last, offset - last):
            await self.pause(0.05)
        remote.receiver.flush_batch()
        receiver = remote.receiver
        return Reading(
            seconds=self._reactor.seconds() - began,
            bytes_asked=remote.coalescer.bytes_requested,
            bytes_over_tcp=remote.coalescer.bytes_over_tcp,
            segments=receiver.segments_received - segments,
            segment=receiver.segment,
            loss=receiver.segments_late / receiver.segments_due if receiver.segments_due else None,
            dropped=receiver.datagrams_dropped - dropped,
            works=remote.multicast_health.works,
            state=remote.multicast_health.state,
            is_lost=not remote.is_connected,
        )

    async def pause(self, seconds: float) -> None:
        """Let the reactor run."""
        await deferLater(self._reactor, seconds)

    async def stop(self) -> None:
        """Leave the group, and end the connection."""
        self.remote.stop()
        await self._membership.stop()

    async def _within(self, answer: "Deferred[T]") -> T:
        return await answer.addTimeout(PATIENCE, self._reactor, late)

    def _welcomed(self, channel: ClientChannel, welcome: Welcome) -> None:
        self.channel, self.welcome = channel, welcome
        self._membership.welcomed(channel.transport.getHost(), welcome)
        # Files knows of the channel only when this has returned.
        self._reactor.callLater(0, self._met.callback, None)

    def _refused(self, reason: Refused) -> None:
        self._end(reason)

    def _end(self, why: Exception) -> None:
        if not self._met.called:
            self._met.errback(why)


def late(result: object, seconds: float) -> NoReturn:
    """What a Deferred ends with that took too long."""
    raise TimeoutError(None, f"no answer within {seconds:g} s")


def _reason(error: Exception) -> str:
    number = getattr(error, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(error).rstrip(".")


@implementer(IHandshakeListener)
class _Look(Protocol):
    """Shakes hands, and does not say a word."""

    def __init__(self, found: "Deferred[x509.Certificate | None]") -> None:
        self._found = found

    def handshakeCompleted(self) -> None:
        """See C{IHandshakeListener}."""
        transport: Any = self.transport
        shown = transport.getPeerCertificate()
        self._tell(None if shown is None else shown.to_cryptography())
        transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It came to nothing."""
        self._tell(None)

    def _tell(self, certificate: x509.Certificate | None) -> None:
        if not self._found.called:
            self._found.callback(certificate)


async def shown_certificate(reactor: Any, host: str, port: int) -> x509.Certificate | None:
    """What a server shows to whoever connects, believed or not; C{None} if it does not."""
    found: Deferred[x509.Certificate | None] = Deferred()
    # Without authorities to trust nothing is verified: this one is to be looked at, not believed.
    endpoint = SSL4ClientEndpoint(reactor, host, port, CertificateOptions(), timeout=int(PATIENCE))

    async def look() -> x509.Certificate | None:
        await endpoint.connect(Factory.forProtocol(lambda: _Look(found)))
        return await found

    try:
        return await ensureDeferred(look()).addTimeout(PATIENCE, reactor, late)
    except (ConnectError, TimeoutError, OSError, SSL.Error):
        return None
