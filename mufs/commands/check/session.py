"""A client without a mount: connects, finds an image, and reads it for some seconds."""

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
from mufs.endpoints import resolve
from mufs.filesystem.client.pull import Pulls
from mufs.filesystem.client.remote import RemoteFileSystem
from mufs.filesystem.client.server_pulls import ServerPulls
from mufs.wire.channel import Priority
from mufs.wire.metadata import Caller, Welcome
from mufs.wire.pages import BLOCK

T = TypeVar("T")

CACHE_SIZE = 16 * 1024 * 1024
"""Bytes. A small cache will do, as nothing is read twice."""

MAX_RATE = 20_000_000
"""Bits per second to read, low enough not to disturb a busy network."""

ANSWER_TIMEOUT = 5.0
"""Seconds to wait for an answer."""

DRAIN_TIMEOUT = 1.0
"""Seconds to wait for data after the last request."""

MAX_DIRECTORIES = 256
"""Directories to search for images."""

MAX_OPEN_ATTEMPTS = 16
"""Images to try, largest first, until one can be opened."""


class Unreachable(Exception):
    """There is no usable connection; the text says why."""


@frozen
class Reading:
    """
    The result of reading an image for some seconds.

    @ivar bytes_asked: bytes requested.
    @ivar bytes_over_tcp: bytes that came over TCP.
    @ivar segments: segments received from the group, including those for other clients.
    @ivar segment: bytes of a segment.
    @ivar loss: from 0 to 1, or C{None} if no transfer was received.
    @ivar dropped: datagrams that were not from the server.
    @ivar works: whether multicast works.
    @ivar state: the same as text.
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
        """Bits per second received by multicast."""
        return self.segments * self.segment * 8 / self.seconds


class _Factory(ClientChannelFactory):
    """Reports why a connection failed."""

    lost: Callable[[str], None]

    def connect_failed(self, reason: str) -> None:
        self.lost(reason)


class Session:
    """
    One connection to a server.

    @ivar welcome: the multicast parameters of the server, once connected.
    @ivar connect_time: seconds it took to connect.
    """

    welcome: Welcome
    channel: ClientChannel

    def __init__(self, reactor: Any, interface: str | None, name: str) -> None:
        """@param interface: address of the interface to use; C{None} for that of the route."""
        self._reactor = reactor
        self._met: Deferred[None] = Deferred()
        cache = BlockCache(CACHE_SIZE)
        self.remote = RemoteFileSystem(
            reactor,
            cache,
            CACHE_SIZE // 4,
            on_welcome=self._welcomed,
            on_moved=lambda welcome: self._membership.moved(welcome),
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
        )
        self._factory = _Factory(self.remote, reactor, name)
        self._factory.lost = lambda reason: self._end(Unreachable(reason))
        self._caller = Caller(os.geteuid(), os.getegid(), os.getgroups()[:256])
        self.connect_time: float | None = None

    @property
    def interface(self) -> str | None:
        """Address of the interface that has joined the group; C{None} if none has."""
        return self._membership.interface

    async def connect(self, endpoint: IStreamClientEndpoint) -> None:
        """
        Connect to the server, and join the group if possible.

        @raise Unreachable: when there is no connection or no answer.
        @raise Refused: when the server refuses this client.
        """
        began = self._reactor.seconds()
        try:
            await self._within(endpoint.connect(self._factory))
        except TimeoutError:
            raise Unreachable(f"no answer within {ANSWER_TIMEOUT:g} s") from None
        except (ConnectError, OSError) as error:
            raise Unreachable(_reason(error)) from None
        self.connect_time = self._reactor.seconds() - began
        try:
            await self._within(self._met)
        except TimeoutError:
            raise Unreachable(f"connected, but no WELCOME within {ANSWER_TIMEOUT:g} s") from None

    def certificate(self) -> x509.Certificate | None:
        """The certificate of the server; C{None} without TLS."""
        transport: Any = self.channel.transport
        return transport.getPeerCertificate().to_cryptography() if is_tls(transport) else None

    def socket(self) -> Any:
        """The socket of the connection."""
        transport: Any = self.channel.transport
        if is_tls(transport):
            transport = transport.transport
        return transport.getHandle()

    async def images(self) -> list[tuple[int, bytes]]:
        """
        Sizes and paths of the images that this user may see, largest first.

        @raise OSError: when the root of the export cannot be listed.
        """
        found: list[tuple[int, bytes]] = []
        directories = [b""]
        until = self._reactor.seconds() + ANSWER_TIMEOUT
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
            if len(directories) > MAX_DIRECTORIES or self._reactor.seconds() > until:
                break
        return sorted(found, reverse=True)

    async def open_first(self, paths: list[bytes]) -> tuple[bytes, int]:
        """
        Open the first image that can be opened.

        @return: its path and its handle.
        @raise OSError: of the last attempt, when none can be opened.
        """
        fault = OSError("there is no image")
        for path in paths[:MAX_OPEN_ATTEMPTS]:
            try:
                handle, _ = await self._within(self.remote.open(path, self._caller))
                return path, handle
            except OSError as error:
                fault = error
        raise fault

    async def read(self, handle: int, seconds: float) -> Reading:
        """Read an image at background priority for some seconds, or until its end."""
        remote, opened = self.remote, self.remote.opened(handle)
        # Switches need some time to learn that this host is in the group.
        await self.pause(JOIN_DELAY)
        began, offset = self._reactor.seconds(), 0
        end = began + seconds
        # Datagrams that came before the keys could not be authenticated; they don't count.
        dropped, segments = remote.receiver.datagrams_dropped, remote.receiver.segments_received
        while self._reactor.seconds() < end and offset < opened.size and remote.is_connected:
            length = min(BLOCK, opened.size - offset)
            remote.reader.prefetch(opened, offset, length, priority=Priority.BACKGROUND)
            offset += length
            await self.pause(BLOCK * 8 / MAX_RATE)
        end = self._reactor.seconds() + DRAIN_TIMEOUT
        last = max(0, offset - CACHE_SIZE // 2)
        while self._reactor.seconds() < end and remote.reads.lacks(opened, last, offset - last):
            await self.pause(0.05)
        remote.receiver.read_now()
        receiver = remote.receiver
        return Reading(
            seconds=self._reactor.seconds() - began,
            bytes_asked=remote.reads.requests.bytes_requested,
            bytes_over_tcp=remote.reads.bytes_over_tcp,
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
        """Leave the group, and close the connection."""
        self.remote.stop()
        await self._membership.stop()

    async def _within(self, answer: "Deferred[T]") -> T:
        return await answer.addTimeout(ANSWER_TIMEOUT, self._reactor, raise_timeout)

    def _welcomed(self, channel: ClientChannel, welcome: Welcome) -> None:
        self.channel, self.welcome = channel, welcome
        self._membership.welcomed(channel.transport.getHost(), welcome)
        # RemoteFileSystem has the channel only when this has returned.
        self._reactor.callLater(0, self._met.callback, None)

    def _refused(self, reason: Refused) -> None:
        self._end(reason)

    def _end(self, why: Exception) -> None:
        if not self._met.called:
            self._met.errback(why)


def raise_timeout(result: object, seconds: float) -> NoReturn:
    """Fail a Deferred that timed out, with C{TimeoutError}."""
    raise TimeoutError(None, f"no answer within {seconds:g} s")


def _reason(error: Exception) -> str:
    number = getattr(error, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(error).rstrip(".")


@implementer(IHandshakeListener)
class _CertificateReader(Protocol):
    """Makes a TLS handshake, and disconnects."""

    def __init__(self, found: "Deferred[x509.Certificate | None]") -> None:
        self._found = found

    def handshakeCompleted(self) -> None:
        """See C{IHandshakeListener}."""
        transport: Any = self.transport
        shown = transport.getPeerCertificate()
        self._tell(None if shown is None else shown.to_cryptography())
        transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """There was no handshake."""
        self._tell(None)

    def _tell(self, certificate: x509.Certificate | None) -> None:
        if not self._found.called:
            self._found.callback(certificate)


async def shown_certificate(reactor: Any, host: str, port: int) -> x509.Certificate | None:
    """The certificate that a server presents, not verified; C{None} if there is none."""
    found: Deferred[x509.Certificate | None] = Deferred()

    async def look() -> x509.Certificate | None:
        address = [*await resolve(reactor, host), host][0]
        # Without trusted authorities nothing is verified: the certificate is only examined.
        endpoint = SSL4ClientEndpoint(
            reactor, address, port, CertificateOptions(), timeout=int(ANSWER_TIMEOUT)
        )
        await endpoint.connect(Factory.forProtocol(lambda: _CertificateReader(found)))
        return await found

    try:
        return await ensureDeferred(look()).addTimeout(ANSWER_TIMEOUT, reactor, raise_timeout)
    except (ConnectError, TimeoutError, OSError, SSL.Error):
        return None
