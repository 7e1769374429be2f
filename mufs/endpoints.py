"""
Endpoints of Twisted for the addresses of L{mufs.addresses}, and what is wrong when they fail, in
words.
"""

import errno
import os
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from twisted.internet.address import IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    SSL4ServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXClientEndpoint,
    serverFromString,
    wrapClientTLS,
)
from twisted.internet.error import (
    CannotListenError,
    ConnectError,
    ConnectingCancelledError,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IResolutionReceiver,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.ssl import optionsForClientTLS, platformTrust, trustRootFromCertificates
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from mufs.addresses import ListenAddress, ServerAddress, TLSFiles, WrongValue
from mufs.communication.certificates import authorities, own_certificate
from mufs.communication.tls import ServerTLS


class CannotConnect(ConnectError):
    """There is no connection; the text says why, for each address that was tried."""

    def __init__(self, text: str) -> None:
        super().__init__(string=text)

    def __str__(self) -> str:
        return str(self.args[0])


@implementer(IStreamClientEndpoint)
class ServerEndpoint:
    """
    Connects to a server at all addresses of its name, one after the other (RFC 8305), until one
    answers. Those of IPv4 come first, as multicast takes the interface of the connection.

    With TLS it checks the certificate and the name of the server.

    @ivar reload: see L{reload_of}.
    @ivar expires: see L{expiry_of}.
    """

    def __init__(self, reactor: Any, address: ServerAddress) -> None:
        """@raise UnusableFile: when a certificate or key cannot be used."""
        self._reactor = reactor
        self._address = address
        self._tls: IOpenSSLClientConnectionCreator | None = None
        self.expires: datetime | None = None
        self.reload = None if address.tls is None else partial(self._load, address.tls)
        if self.reload is not None:
            self.reload()

    def _load(self, files: TLSFiles) -> None:
        own = None
        if files.certificate is not None:
            own = own_certificate(files.certificate, files.private_key)
        roots = platformTrust()
        if files.authorities is not None:
            roots = trustRootFromCertificates(authorities(files.authorities))
        self._tls = optionsForClientTLS(self._address.host, trustRoot=roots, clientCertificate=own)
        if own is not None:
            self.expires = own.original.to_cryptography().not_valid_after_utc

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See C{IStreamClientEndpoint}; fails with L{CannotConnect}."""
        address = self._address
        attempts = _Attempts(self._reactor)
        endpoint: IStreamClientEndpoint
        if address.path is not None:
            endpoint = UNIXClientEndpoint(self._reactor, address.path)
        else:
            endpoint = HostnameEndpoint(
                attempts, address.host, address.port, address.timeout, address.bind
            )
        if self._tls is not None:
            endpoint = wrapClientTLS(self._tls, endpoint)
        return endpoint.connect(protocolFactory).addErrback(self._failed, attempts)

    def _failed(self, failure: Failure, attempts: "_Attempts") -> Failure:
        if failure.check(ConnectingCancelledError):
            return failure
        reasons = [(host, self._reason(error)) for host, error in attempts.failures]
        if len({reason for _, reason in reasons}) > 1:
            raise CannotConnect("; ".join(f"{host}: {reason}" for host, reason in reasons))
        raise CannotConnect(self._reason(failure.value))

    def _reason(self, error: BaseException | None) -> str:
        if isinstance(error, DNSLookupError | ValueError):
            return f"the name {self._address.host} is not known"
        number = getattr(error, "osError", None) or getattr(error, "errno", None)
        if isinstance(number, int):
            return os.strerror(number)
        if isinstance(error, TimeoutError):
            return f"no answer within {self._address.timeout} s"
        return "the connection failed"


class _Attempts:
    """
    A reactor for one try to connect.

    @ivar nameResolver: sorts addresses of IPv6 behind those of IPv4.
    @ivar failures: the addresses that failed, and why.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.nameResolver = _IPv4First(reactor.nameResolver)
        self.failures: list[tuple[str, BaseException | None]] = []
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def connectTCP(self, host: str, port: int, factory: Any, *args: Any, **more: Any) -> Any:
        """See C{IReactorTCP}."""
        failed = factory.clientConnectionFailed

        def note(connector: object, reason: Failure) -> None:
            self.failures.append((host, reason.value))
            failed(connector, reason)

        factory.clientConnectionFailed = note
        return self._reactor.connectTCP(host, port, factory, *args, **more)


@implementer(IHostnameResolver)
class _IPv4First:
    def __init__(self, resolver: IHostnameResolver) -> None:
        self._resolver = resolver

    def resolveHostName(
        self, resolutionReceiver: IResolutionReceiver, *args: Any, **more: Any
    ) -> IHostResolution:
        """See C{IHostnameResolver}."""
        receiver = _Sorter(resolutionReceiver)
        return self._resolver.resolveHostName(receiver, *args, **more)


@implementer(IResolutionReceiver)
class _Sorter:
    def __init__(self, receiver: IResolutionReceiver) -> None:
        self._receiver = receiver
        self._addresses: list[IAddress] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self._receiver.resolutionBegan(resolutionInProgress)

    def addressResolved(self, address: IAddress) -> None:
        self._addresses.append(address)

    def resolutionComplete(self) -> None:
        for address in sorted(self._addresses, key=lambda each: isinstance(each, IPv6Address)):
            self._receiver.addressResolved(address)
        self._receiver.resolutionComplete()


@implementer(IResolutionReceiver)
class _Collector:
    def __init__(self) -> None:
        self.found: Deferred[list[str]] = Deferred()
        self._addresses: list[str] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """See C{IResolutionReceiver}."""

    def addressResolved(self, address: Any) -> None:
        """See C{IResolutionReceiver}."""
        self._addresses.append(address.host)

    def resolutionComplete(self) -> None:
        """See C{IResolutionReceiver}."""
        if not self.found.called:
            self.found.callback(self._addresses)


def resolve(reactor: Any, name: str) -> Deferred[list[str]]:
    """The addresses of a name or an address, those of IPv4 first; none if it is not known."""
    collector = _Collector()
    _IPv4First(reactor.nameResolver).resolveHostName(collector, name)
    return collector.found


class _TLSServerEndpoint(SSL4ServerEndpoint):
    """Listens for clients with certificates; can read its own again."""

    def __init__(self, reactor: Any, address: ListenAddress, tls: ServerTLS) -> None:
        super().__init__(reactor, address.port, tls, address.backlog, address.interface or "")
        self.tls = tls
        self.reload = tls.renew

    @property
    def expires(self) -> datetime:
        """See L{expiry_of}."""
        return self.tls.expires


def listen_endpoint(reactor: Any, address: ListenAddress) -> IStreamServerEndpoint:
    """
    The endpoint to listen on. With TLS it checks the certificates of clients.

    @raise WrongValue: when it is an endpoint string that Twisted cannot use.
    @raise UnusableFile: when a certificate or key cannot be used.
    """
    interface = address.interface or ""
    if address.endpoint is not None:
        try:
            found: IStreamServerEndpoint = serverFromString(reactor, address.endpoint)
        except Exception:  # Twisted's parsers raise errors of any class
            raise WrongValue("cannot be used as an endpoint") from None
        return found
    if address.tls is not None:
        files = address.tls
        tls = ServerTLS(files.certificate or "", files.private_key, files.authorities or "")
        return _TLSServerEndpoint(reactor, address, tls)
    kind = TCP6ServerEndpoint if ":" in interface else TCP4ServerEndpoint
    return kind(reactor, address.port, address.backlog, interface)


def reload_of(endpoint: object) -> Callable[[], None] | None:
    """
    The function that reads the certificates of an endpoint again, for new connections; C{None} if
    it has none. It raises L{UnusableFile}, and changes nothing, if they cannot be used.
    """
    return getattr(endpoint, "reload", None)


def expiry_of(endpoint: object) -> datetime | None:
    """
    When the certificate that an endpoint of the request channel uses expires; C{None} if it has
    none.
    """
    return getattr(endpoint, "expires", None)


def revocation_of(endpoint: object) -> Callable[[object], bool]:
    """Tells whether an endpoint to listen on has revoked the certificate at a connection."""
    tls = getattr(endpoint, "tls", None)
    return tls.has_revoked if isinstance(tls, ServerTLS) else lambda _: False


def why_not_listening(error: BaseException | None) -> str:
    """Why an endpoint cannot listen, in words."""
    if not isinstance(error, CannotListenError):
        return getattr(error, "strerror", None) or str(error)
    number = getattr(error.socketError, "errno", None)
    port = f"port {error.port}" if isinstance(error.port, int) else str(error.port)
    if number == errno.EADDRNOTAVAIL:
        return f"this host has no address {error.interface}"
    if number == errno.EADDRINUSE:
        return f"{port} is in use by another program"
    if number == errno.EACCES and isinstance(error.port, int):
        return f"only root may use {port}"
    return f"{port}: {getattr(error.socketError, 'strerror', None) or error.socketError}"
