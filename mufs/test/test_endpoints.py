"""Endpoints: every address of a name, and failures in words."""

import errno
import os
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import CannotListenError, ConnectionRefusedError, TimeoutError
from twisted.internet.interfaces import IHostnameResolver, IReactorPluggableNameResolver
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mufs.addresses import ListenAddress, ServerAddress, TLSFiles, WrongValue
from mufs.commands.keys import make_keys
from mufs.communication.certificates import UnusableAuthority, UnusableFile
from mufs.endpoints import (
    CannotConnect,
    ServerEndpoint,
    listen_endpoint,
    reload_of,
    resolve,
    why_not_listening,
)

NAMES: dict[str, list[IPv4Address | IPv6Address]] = {
    "both": [IPv6Address("TCP", "fd00::1", 7040), IPv4Address("TCP", "192.0.2.1", 7040)],
    "two": [IPv4Address("TCP", "192.0.2.1", 7040), IPv4Address("TCP", "192.0.2.2", 7040)],
    "six": [IPv6Address("TCP", "fd00::1", 7040)],
}


@implementer(IHostnameResolver)
class Names:
    """Knows the names of L{NAMES}."""

    def resolveHostName(
        self, resolutionReceiver: Any, hostName: str, *args: Any, **more: Any
    ) -> Any:
        """See L{IHostnameResolver}."""
        resolutionReceiver.resolutionBegan(None)
        for address in NAMES.get(hostName, []):
            resolutionReceiver.addressResolved(address)
        resolutionReceiver.resolutionComplete()


@implementer(IReactorPluggableNameResolver)
class NamesReactor(MemoryReactorClock):
    """A reactor that resolves names without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = Names()

    def hosts(self) -> list[str]:
        """The addresses that connections were tried to."""
        return [host for host, *_ in self.tcpClients]

    def accept(self, number: int) -> None:
        """Have a try succeed."""
        factory: Any = self.tcpClients[number][2]
        factory.buildProtocol(None).makeConnection(None)

    def refuse(self, number: int, error: Exception) -> None:
        """Have a try fail."""
        factory = self.tcpClients[number][2]
        factory.clientConnectionFailed(self.connectors[number], Failure(error))


class ConnectTests(SynchronousTestCase):
    """Connecting to a name."""

    def setUp(self) -> None:
        self.reactor = NamesReactor()

    def connect(self, name: str) -> Any:
        """Begin to connect."""
        endpoint = ServerEndpoint(self.reactor, ServerAddress(name))
        return endpoint.connect(Factory.forProtocol(Protocol))

    def why(self, connecting: Any) -> str:
        """Why a connection failed."""
        return str(self.failureResultOf(connecting, CannotConnect).value)

    def test_first(self) -> None:
        """An address of IPv4 is tried first, and the first that answers is taken."""
        connecting = self.connect("both")
        self.assertEqual(self.reactor.hosts(), ["192.0.2.1"])
        self.reactor.accept(0)
        self.assertIsNotNone(self.successResultOf(connecting))

    def test_silent(self) -> None:
        """The next address is tried soon while one does not answer."""
        for name, expected in (
            ("both", ["192.0.2.1", "fd00::1"]),
            ("two", ["192.0.2.1", "192.0.2.2"]),
        ):
            self.reactor = NamesReactor()
            connecting = self.connect(name)
            self.reactor.advance(1)
            self.assertEqual(self.reactor.hosts(), expected)
            self.reactor.accept(1)
            self.assertIsNotNone(self.successResultOf(connecting))

    def test_only_ipv6(self) -> None:
        """A name without an address of IPv4 is connected to."""
        self.connect("six")
        self.assertEqual(self.reactor.hosts(), ["fd00::1"])

    def test_all_failed(self) -> None:
        """When all addresses fail, each is named with its reason, or the reason that all have."""
        connecting = self.connect("both")
        self.reactor.advance(1)
        self.reactor.refuse(0, ConnectionRefusedError(osError=errno.ECONNREFUSED))
        self.assertNoResult(connecting)
        self.reactor.refuse(1, OSError(errno.ENETUNREACH, "x"))
        self.reactor.advance(1)
        self.assertEqual(
            self.why(connecting),
            "192.0.2.1: Connection refused; fd00::1: Network is unreachable",
        )
        connecting = self.connect("six")
        self.reactor.refuse(-1, TimeoutError())
        self.reactor.advance(1)
        self.assertEqual(self.why(connecting), "no answer within 30 s")

    def test_unknown(self) -> None:
        """A name that nobody knows is named."""
        self.assertEqual(self.why(self.connect("none")), "the name none is not known")

    def test_resolve(self) -> None:
        """The addresses of a name are sorted in the same way."""
        self.assertEqual(
            self.successResultOf(resolve(self.reactor, "both")), ["192.0.2.1", "fd00::1"]
        )
        self.assertEqual(self.successResultOf(resolve(self.reactor, "none")), [])


class CertificateFileTests(SynchronousTestCase):
    """Files of TLS, and what is wrong with them."""

    def setUp(self) -> None:
        self.reactor = NamesReactor()
        self.keys = Path(self.mktemp())
        make_keys(self.keys, ["localhost"], ["host"])
        self.own = str(self.keys / "host.pem")
        self.ca = str(self.keys / "ca")

    def assert_unusable(self, files: TLSFiles, *telling: str) -> UnusableFile:
        """Client and server refuse these files, and say why in these words."""
        address = ServerAddress("host", tls=files)
        error: UnusableFile
        error = self.assertRaises(UnusableFile, ServerEndpoint, self.reactor, address)
        for each in telling:
            self.assertIn(each, str(error))
        where = ListenAddress(7040, tls=files)
        again = self.assertRaises(UnusableFile, listen_endpoint, self.reactor, where)
        self.assertEqual(str(again), str(error))
        return error

    def test_own(self) -> None:
        """A certificate that is missing, no certificate, or without its key is named."""
        other = self.keys / "other"
        make_keys(other, [], ["host"])
        empty, alone = self.keys / "empty.pem", self.keys / "alone.pem"
        empty.write_text("")
        pem = Path(self.own).read_bytes()
        alone.write_bytes(pem[pem.index(b"-----BEGIN CERT") :])
        secret, damaged = self.keys / "secret.pem", self.keys / "damaged.pem"
        secret.write_bytes(alone.read_bytes() + b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
        damaged.write_bytes(pem.replace(b"M", b"N"))
        for path, words in (
            (f"{self.keys}/none.pem", os.strerror(errno.ENOENT)),
            (str(self.keys), os.strerror(errno.EISDIR)),
            (str(empty), "holds no certificate"),
            (str(alone), "holds no private key"),
            (str(secret), "passphrase"),
            (str(damaged), "is damaged"),
        ):
            self.assert_unusable(TLSFiles(path, None, self.ca), path, words)
        key = f"{other}/host.pem"
        self.assert_unusable(TLSFiles(self.own, key, self.ca), key, self.own, "is not that of")

    def test_authorities(self) -> None:
        """Authorities that are missing or malformed are named, in a directory and in a file."""
        empty = self.keys / "empty"
        empty.mkdir()
        for path, words in (
            (str(empty), "no *.pem"),
            (f"{self.keys}/none", os.strerror(errno.ENOENT)),
            (f"{self.keys}/ca.key", "holds no certificate"),
        ):
            error = self.assert_unusable(TLSFiles(self.own, None, path), path, words)
            self.assertIsInstance(error, UnusableAuthority)

    def test_several(self) -> None:
        """A file may hold several authorities."""
        make_keys(self.keys / "other", [], ["x"])
        both = self.keys / "both.pem"
        both.write_bytes(
            (self.keys / "ca/ca.pem").read_bytes() + (self.keys / "other/ca/ca.pem").read_bytes()
        )
        for path in (both, self.keys / "ca", self.keys / "ca/ca.pem"):
            files = TLSFiles(self.own, None, str(path))
            ServerEndpoint(self.reactor, ServerAddress("host", tls=files))

    def test_reload(self) -> None:
        """Reloading a file that went bad says so, and one without TLS has nothing to reload."""
        files = TLSFiles(self.own, None, self.ca)
        client = ServerEndpoint(self.reactor, ServerAddress("host", tls=files))
        server = listen_endpoint(self.reactor, ListenAddress(0, tls=files))
        Path(self.own).write_text("")
        for endpoint in (client, server):
            reload = reload_of(endpoint)
            assert reload is not None
            self.assertRaises(UnusableFile, reload)
        self.assertIsNone(reload_of(ServerEndpoint(self.reactor, ServerAddress("host"))))
        self.assertIsNone(reload_of(listen_endpoint(self.reactor, ListenAddress(0))))


class ListenTests(SynchronousTestCase):
    """Endpoints to listen at."""

    def test_interfaces(self) -> None:
        """The endpoint has the port and the interface of the address."""
        for interface in ("127.0.0.1", "::1", "::", None):
            reactor = MemoryReactorClock()
            listen_endpoint(reactor, ListenAddress(7040, interface)).listen(Factory())
            ((port, _, _, where),) = reactor.tcpServers
            self.assertEqual((port, where), (7040, interface or ""))

    def test_strings(self) -> None:
        """Other endpoint strings are Twisted's, and those that it refuses are refused."""
        reactor = MemoryReactorClock()
        listen_endpoint(reactor, ListenAddress(0, endpoint="unix:a")).listen(Factory())
        self.assertEqual(reactor.unixServers[0][0], "a")
        for text in ("unix", "unix:a:b=c", "systemd:INET:index=0", "ssl:443:privateKey=/none"):
            with self.assertRaises(WrongValue):
                listen_endpoint(reactor, ListenAddress(0, endpoint=text))

    def test_words(self) -> None:
        """An error of any class has words."""
        error = CannotListenError("", 7040, OSError(errno.EADDRINUSE, "x"))
        self.assertEqual(why_not_listening(error), "port 7040 is in use by another program")
        self.assertEqual(why_not_listening(OSError(13, "Permission denied")), "Permission denied")
