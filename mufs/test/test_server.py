"""The server as a service, over endpoints in memory."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mufs import server
from mufs.communication.server import channel
from mufs.filesystem.server.access import EVERYBODY, Access, parse_rule
from mufs.filesystem.server.threads import DaemonThreads
from mufs.server import ServerService, ServerSettings
from mufs.sockets import VARIABLE
from mufs.test.support.doubles import FakeTransport
from mufs.test.support.memory import MemoryLibrary
from mufs.test.test_client import StandInNetworkChanges
from mufs.test.test_listening import RecordingEndpoint
from mufs.wire.channel import Type, pack_tagged
from mufs.wire.metadata import VERSION, Hello, encode

LOOPBACK = IPv4Address("TCP", "127.0.0.1", 7040)
STATUS = IPv4Address("TCP", "127.0.0.1", 7080)


class Port:
    """A listening port without a socket."""

    def __init__(self, address: object) -> None:
        self.address = address
        self.listening = True

    def getHost(self) -> object:
        """See L{IListeningPort.getHost}."""
        return self.address

    def stopListening(self) -> None:
        """See L{IListeningPort.stopListening}."""
        self.listening = False


class Reactor(MemoryReactorClock):
    """A reactor in memory that cannot open a port for multicast."""

    def listenMulticast(self, port: int, protocol: object, interface: str) -> None:
        """See L{IReactorMulticast.listenMulticast}."""
        raise CannotListenError(interface, port, OSError(99, "no such address"))


class ServerServiceTests(SynchronousTestCase):
    """A server from its start to its end."""

    def setUp(self) -> None:
        """Have a directory for its control socket, and keep what is logged."""
        self.run_directory = self.mktemp()
        self.patch(os, "environ", {**os.environ, VARIABLE: self.run_directory})
        self.failures: list[str] = []
        self.patch(server, "fail", lambda reactor, name, message: self.failures.append(message))
        self.patch(server, "bound_by_files", lambda limits: None)
        self.patch(DaemonThreads, "call", lambda _, function, *args: maybeDeferred(function, *args))
        self.patch(server, "NetworkChanges", StandInNetworkChanges)
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.reactor: Any = Reactor()

    def start(
        self,
        listen: Deferred[Any],
        status: Deferred[Any] | None = None,
        access: Access = EVERYBODY,
        **settings: Any,
    ) -> ServerService:
        """Start a server whose endpoints give these results."""
        chosen = {"interface": None, "rate_min": 10**6, "rate_max": 10**8, **settings}
        service = ServerService(
            self.reactor,
            ServerSettings(group="239.5.5.0", port=7041, **chosen),
            library=MemoryLibrary(),
            secret=bytes(32),
            listen=RecordingEndpoint(listen),
            status=None if status is None else RecordingEndpoint(status),
            access=access,
        )
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def logged(self, text: str) -> int:
        """How many lines of the log contain a text."""
        return sum(text in str(formatEvent(event)) for event in self.events)

    def test_ready(self) -> None:
        """It is ready once it listens at both endpoints, in whatever order that happens."""
        for order in ((0, 1), (1, 0)):
            endpoints: list[Deferred[Any]] = [Deferred(), Deferred()]
            service = self.start(endpoints[0], endpoints[1])
            endpoints[order[0]].callback(Port(LOOPBACK))
            self.assertNoResult(service.ready)
            endpoints[order[1]].callback(Port(STATUS))
            self.successResultOf(service.ready)

    def test_no_status(self) -> None:
        """Without an endpoint for the status it is ready once it listens for clients."""
        service = self.start(succeed(Port(LOOPBACK)))
        self.successResultOf(service.ready)

    def test_threads(self) -> None:
        """All of its pools of threads run once it is started."""
        started: list[DaemonThreads] = []
        self.patch(DaemonThreads, "start", lambda threads: started.append(threads))
        service = self.start(succeed(Port(LOOPBACK)))
        pools = [each for each in vars(service).values() if isinstance(each, DaemonThreads)]
        self.assertEqual(set(started), set(pools))
        self.assertGreater(len(pools), 1)

    def test_addresses(self) -> None:
        """The log says where it listens, and the control socket is named after that."""
        self.start(succeed(Port(LOOPBACK)), succeed(Port(UNIXAddress(b"/run/status"))))
        self.assertEqual(self.logged("listening for clients on 127.0.0.1:7040"), 1)
        self.assertEqual(self.logged("listening for status requests on /run/status"), 1)
        ((path, *_),) = self.reactor.unixServers
        self.assertEqual(path, f"{self.run_directory}/server/127.0.0.1:7040.sock")

    def test_cannot_listen(self) -> None:
        """An endpoint that cannot be listened at ends the server, which says which one it is."""
        taken = CannotListenError("127.0.0.1", 7040, OSError(98, "in use"))
        service = self.start(fail(taken), succeed(Port(STATUS)))
        self.assertEqual(self.failures, [
            "cannot listen for clients: port 7040 is in use by another program: choose another, "
            "such as --listen 7050"
        ])  # fmt: skip
        self.assertNoResult(service.ready)
        self.failures.clear()
        self.start(succeed(Port(LOOPBACK)), fail(taken))
        (message,) = self.failures
        self.assertIn("cannot listen for status requests: ", message)

    def test_unusable_interface(self) -> None:
        """A server without the interface that was set serves over TCP, and says so."""
        service = self.start(succeed(Port(LOOPBACK)), interface="192.0.2.1")
        self.assertEqual(self.logged("no interface 192.0.2.1 is up"), 1)
        self.assertEqual(self.failures, [])
        self.assertIsNone(service.figures()["interface"])

    def test_tls(self) -> None:
        """Without TLS there is a warning, with it none; the figures say which it is."""
        with_tls = self.start(succeed(Port(LOOPBACK)), tls=True)
        self.assertEqual(self.logged("no TLS"), 0)
        without = self.start(succeed(Port(LOOPBACK)))
        self.assertEqual(self.logged("no TLS"), 1)
        self.assertEqual([each.figures()["tls"] for each in (with_tls, without)], [True, False])

    def test_rates(self) -> None:
        """It sends no faster than is set."""
        service = self.start(succeed(Port(LOOPBACK)), rate_min=10**6, rate_max=2 * 10**6)
        self.assertEqual(service.figures()["rate"], 2 * 10**6)
        self.assertIn("rate: at most 2 Mbit/s", service.state())

    def test_access(self) -> None:
        """What a client may see is decided by the rules."""
        service = self.start(succeed(Port(LOOPBACK)), access=Access((parse_rule("*.lab:/a"),)))
        self.assertIsNone(service.core.factory.view("elsewhere"))
        self.assertIsNotNone(service.core.factory.view("host1.lab"))

    def test_missing_path(self) -> None:
        """A rule whose path is not there is a warning."""
        self.start(succeed(Port(LOOPBACK)), access=Access((parse_rule("*.lab:/a"),)))
        self.assertEqual(self.logged("access rule *.lab:/a: there is no such path"), 1)

    def connect(self, service: ServerService, name: str) -> FakeTransport:
        """Connect a client, which is welcomed under this name."""
        protocol: Any = service.core.factory.buildProtocol(None)
        transport = FakeTransport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        patch = self.patch(channel, "peer_name", lambda _: name)
        protocol.dataReceived(pack_tagged(Type.HELLO, 0, encode(Hello(VERSION, "told"))))
        patch.restore()
        self.assertEqual(protocol.name, name)
        return transport

    def test_other_rules(self) -> None:
        """Clients that may see more are disconnected; all are if somebody may see less."""
        both = parse_rule("one.lab:/a"), parse_rule("two.lab:/a")
        more = parse_rule("two.lab:/b")
        service = self.start(succeed(Port(LOOPBACK)), access=Access(both))
        one, two = (self.connect(service, name) for name in ("one.lab", "two.lab"))
        key = service.core.keys.key(1, 1)
        service.rules.replace(Access((*both, more)), service.core)
        self.assertEqual((one.aborted, two.aborted), (False, True))
        self.assertEqual(service.core.keys.key(1, 1), key)
        service.rules.replace(Access((*both, more)), service.core)
        self.assertFalse(one.aborted)
        service.rules.replace(Access(both), service.core)
        self.assertTrue(one.aborted)
        self.assertNotEqual(service.core.keys.key(1, 1), key)

    def test_stop(self) -> None:
        """A server that ends aborts its connections, closes its ports, and leaves no timer."""
        ports = [Port(LOOPBACK), Port(STATUS)]
        service = self.start(succeed(ports[0]), succeed(ports[1]))
        protocol: Any = service.core.factory.buildProtocol(None)
        transport = FakeTransport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.successResultOf(service.stopService())
        self.assertTrue(transport.aborted)
        self.assertEqual([port.listening for port in ports], [False, False])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
