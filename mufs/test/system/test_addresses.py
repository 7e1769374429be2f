"""Real connections to names and addresses of both families, on loopback."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from mufs.addresses import ServerAddress, parse_listen
from mufs.endpoints import CannotConnect, ServerEndpoint, listen_endpoint
from mufs.test.support import loopback
from mufs.test.support.loopback import make_loopback
from mufs.test.support.processes import Service


def why_no_ipv6() -> str | None:
    """Return why ::1 cannot be used, or None if it can."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return "needs ::1"
    return None


@implementer(IHostnameResolver)
class Both:
    """Every name is 127.0.0.1 and ::1."""

    def resolveHostName(
        self, resolutionReceiver: Any, hostName: str, portNumber: int = 0, *args: Any, **more: Any
    ) -> Any:
        """See L{IHostnameResolver}."""
        resolutionReceiver.resolutionBegan(None)
        resolutionReceiver.addressResolved(IPv6Address("TCP", "::1", portNumber))
        resolutionReceiver.addressResolved(IPv4Address("TCP", "127.0.0.1", portNumber))
        resolutionReceiver.resolutionComplete()


class NameTests(TestCase):
    """A name with an address of each family."""

    skip = why_no_ipv6()

    def setUp(self) -> None:
        """Have all names be both addresses."""
        reactor: Any = the_reactor
        former = reactor.installNameResolver(Both())
        self.addCleanup(reactor.installNameResolver, former)

    async def reached(self, *listens: str) -> str:
        """The address that is reached when a server listens at these."""
        port = 0
        for text in listens:
            address = parse_listen(f"{text}:{port}")
            listening: Any = await listen_endpoint(the_reactor, address).listen(
                Factory.forProtocol(Protocol)
            )
            self.addCleanup(listening.stopListening)
            port = listening.getHost().port
        endpoint = ServerEndpoint(the_reactor, ServerAddress("both", port or 9))
        client: Any = await endpoint.connect(Factory.forProtocol(Protocol))
        self.addCleanup(client.transport.abortConnection)
        return str(client.transport.getPeer().host)

    async def check(self) -> None:
        self.assertEqual(await self.reached("127.0.0.1"), "127.0.0.1")
        self.assertEqual(await self.reached("[::1]"), "::1")
        self.assertEqual(await self.reached("127.0.0.1", "[::1]"), "127.0.0.1")
        try:
            await self.reached()
        except CannotConnect as error:
            self.assertEqual(str(error), "Connection refused")
        else:
            self.fail("connected to nobody")

    def test_name(self) -> Deferred[None]:
        """The server is reached at whichever address it listens, and at that of IPv4 if at both."""
        return ensureDeferred(self.check())


class MountTests(SynchronousTestCase):
    """Server and client that are given addresses in their short forms."""

    skip = loopback.why_unavailable() or why_no_ipv6()

    def setUp(self) -> None:
        """Make an image."""
        self.loopback = make_loopback(self)
        self.content = bytes(range(256)) * 4096
        (self.loopback.images / "disk.img").write_bytes(self.content)

    def mounted(self, *options: str) -> Service:
        """Mount by a client with these options, and read the image."""
        client = self.loopback.start_client("client", *options)
        path = self.loopback.mount_point("client") / "disk.img"
        self.assertEqual(path.read_bytes(), self.content)
        return client

    def test_ipv6(self) -> None:
        """A server and a client meet over IPv6, and multicast works on the interface they name."""
        port = self.loopback.port
        self.loopback.start_server(
            options=("--listen", f"[::1]:{port}", "--interface", "127.0.0.1")
        )
        client = self.mounted("--server", f"[::1]:{port}", "--interface", "127.0.0.1")
        self.assertEqual(client.status()["multicast"], "working")
        self.assertIn(f"connected to the server at [::1]:{port}", client.output)

    def test_ipv4(self) -> None:
        """The same goes for ADDRESS:PORT with IPv4."""
        port = self.loopback.port
        self.loopback.start_server(options=("--listen", f"127.0.0.1:{port}"))
        client = self.mounted("--server", f"127.0.0.1:{port}")
        self.assertEqual(client.status()["server"], f"127.0.0.1:{port}")

    def test_absent(self) -> None:
        """A server that is not there is named with the reason, in words."""
        port = self.loopback.port
        client = self.loopback.launch_client("client", "--server", f"127.0.0.1:{port}")
        line = f"waiting for the server at 127.0.0.1:{port}: Connection refused\n"
        client.wait_until(lambda: line in client.output, 20, "waits")
