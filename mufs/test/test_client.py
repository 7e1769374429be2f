"""The client as a service, with a server that the test speaks for, and without a mount."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mufs import client
from mufs.cache.client.blocks import BlockCache
from mufs.client import WRITER_TIMEOUT, ClientMount, ClientSettings
from mufs.filesystem.client.mounting import MountFailed, MountSettings
from mufs.filesystem.client.pull import Progress
from mufs.sockets import VARIABLE
from mufs.test.support.doubles import FakeTransport, make_attributes
from mufs.wire.channel import Type, pack_tagged
from mufs.wire.metadata import VERSION, Caller, Failure, Hello, Welcome, decode, encode

SERVER = "tcp:images.example.org:7040"
MIB = 1 << 20
REFUSED = ConnectionRefusedError("nobody there")


@implementer(IStreamClientEndpoint)
class ServerEndpoint:
    """
    Connects in memory.

    @ivar error: what connecting fails with.
    @ivar connections: those that were made.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.tries = 0
        self.connections: list[FakeTransport] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        """See L{IStreamClientEndpoint.connect}."""
        self.tries += 1
        if self.error is not None:
            return fail(self.error)
        transport = FakeTransport()
        transport.protocol = protocol = factory.buildProtocol(None)
        self.connections.append(transport)
        protocol.makeConnection(transport)
        return succeed(protocol)


class StandInBridge:
    """
    Runs nothing; the test says when it ends.

    @ivar ran: what was to run in a thread, by its name.
    """

    def __init__(self, reactor: object, remote: object, timeout: float) -> None:
        self.ran: dict[str, Deferred[None]] = {}
        self.stopped = False

    def run(self, function: object, name: str) -> Deferred[None]:
        """See L{Bridge.run}."""
        self.ran[name] = Deferred()
        return self.ran[name]

    def stop(self) -> None:
        """See L{Bridge.stop}."""
        self.stopped = True


class StandInMounting:
    """
    Mounts nothing.

    @ivar served: fires when the mount ends; C{None} before it is made.
    @ivar unmounted: how often it was taken away.
    """

    def __init__(
        self, reactor: object, bridge: object, settings: MountSettings, *, on_mounted: Any
    ) -> None:
        self.on_mounted = on_mounted
        self.served: Deferred[None] | None = None
        self.unmounted = 0

    def mount(self) -> Deferred[None]:
        """See L{Mounting.mount}."""
        assert self.served is None, "mounted twice"
        self.served = Deferred()
        return self.served

    def unmount(self) -> Deferred[None]:
        """See L{Mounting.unmount}."""
        self.unmounted += 1
        if self.served is not None and not self.served.called:
            self.served.callback(None)
        return succeed(None)


class ClientMountTests(SynchronousTestCase):
    """A client from its start to its end."""

    def setUp(self) -> None:
        """Start a client."""
        self.patch(os, "environ", {**os.environ, VARIABLE: self.mktemp()})
        self.failures: list[str] = []
        self.patch(client, "fail", lambda reactor, name, message: self.failures.append(message))
        self.patch(client, "Bridge", StandInBridge)
        self.patch(client, "Mounting", StandInMounting)
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.reactor: Any = MemoryReactorClock()
        self.server = ServerEndpoint()
        settings = ClientSettings(
            server=SERVER,
            mount=MountSettings("/mnt/images", SERVER, allow_other=False, noexec=False),
            interface=None,
            cache_size=MIB,
            timeout=30.0,
            host="host1",
        )
        self.cache = BlockCache(MIB)
        self.client = ClientMount(
            self.reactor, settings, cache=self.cache, server=self.server, status=None
        )
        bridge: Any = self.client._bridge
        mounting: Any = self.client._mounting
        self.bridge: StandInBridge = bridge
        self.mounting: StandInMounting = mounting

    def logged(self, text: str) -> int:
        """How many lines of the log contain a text."""
        return sum(text in str(formatEvent(event)) for event in self.events)

    def answer(self, kind: Type, body: object) -> None:
        """Answer the last request of the client on its last connection."""
        transport = self.server.connections[-1]
        (_, tag, _) = transport.tagged()[-1]
        transport.protocol.dataReceived(pack_tagged(kind, tag, encode(body)))

    def welcome(self) -> None:
        """The server serves the client, by TCP alone."""
        self.answer(Type.WELCOME, Welcome(VERSION, "", 7041, ("", 0), 1400))

    def start_and_mount(self) -> None:
        """Start the client, and have it mount."""
        self.client.startService()
        self.welcome()
        self.answer(Type.REPLY, make_attributes())
        self.mounting.on_mounted()

    def lose_connection(self) -> None:
        """The connection ends, and the client makes another one."""
        self.server.connections[-1].loseConnection()
        self.reactor.advance(5)

    def stop(self) -> Deferred[Any]:
        """Stop the client."""
        stopped: Deferred[Any] = self.client.stopService()
        return stopped

    def test_hello(self) -> None:
        """It connects, and says its name; it mounts only when the server has answered."""
        self.client.startService()
        ((kind, _, body),) = self.server.connections[0].tagged()
        self.assertEqual((kind, decode(Hello, body)), (Type.HELLO, Hello(VERSION, "host1")))
        self.assertIsNone(self.mounting.served)
        self.assertEqual(self.logged("no TLS"), 1)

    def test_mounts(self) -> None:
        """It mounts once the root is known, and is ready when the kernel has the mount."""
        self.client.startService()
        self.welcome()
        self.assertIsNone(self.mounting.served)
        self.answer(Type.REPLY, make_attributes())
        self.assertIsNotNone(self.mounting.served)
        self.assertNoResult(self.client.ready)
        self.assertEqual(self.client.state(), f"connected to {SERVER}")
        self.mounting.on_mounted()
        self.successResultOf(self.client.ready)
        self.assertIn("mounted at /mnt/images; connected to", self.client.state())

    def test_root_late(self) -> None:
        """A connection that ends before the root is known is no failure: it is asked again."""
        self.client.startService()
        self.welcome()
        self.lose_connection()
        self.welcome()
        self.answer(Type.REPLY, make_attributes())
        self.assertIsNotNone(self.mounting.served)
        self.assertEqual(self.failures, [])

    def test_connected_again(self) -> None:
        """Another connection does not mount again."""
        self.start_and_mount()
        self.lose_connection()
        self.welcome()
        self.assertEqual(self.logged("connected to the server"), 2)
        self.assertEqual(self.server.connections[-1].tagged(), [])

    def test_root_unreadable(self) -> None:
        """A root that cannot be looked up ends the client."""
        self.client.startService()
        self.welcome()
        self.answer(Type.ERROR, Failure("EACCES", "not for you"))
        (message,) = self.failures
        self.assertIn("cannot mount: ", message)
        self.assertIn("not for you", message)
        self.assertIsNone(self.mounting.served)

    def test_refused(self) -> None:
        """A server that will not serve this client ends it, and the reason is told."""
        self.client.startService()
        self.answer(Type.ERROR, Failure("EPROTO", "too old"))
        self.assertEqual(self.failures, [f"the server at {SERVER} refused: too old"])

    def test_absent(self) -> None:
        """A server that is away is waited for; that is logged once, and is in the state."""
        self.server.error = REFUSED
        self.client.startService()
        self.reactor.pump([1.0] * 10)
        self.assertGreater(self.server.tries, 3)
        self.assertEqual(self.logged("waiting for the server"), 1)
        self.assertIn("nobody there", self.client.state())
        self.assertEqual(self.failures, [])
        self.server.error = None
        self.reactor.advance(5)
        self.welcome()
        self.assertEqual(self.client.state(), f"connected to {SERVER}")

    def test_unmounted(self) -> None:
        """When somebody unmounts, the client ends, without an error."""
        self.start_and_mount()
        assert self.mounting.served is not None
        self.mounting.served.callback(None)
        self.assertTrue(self.reactor.hasStopped)
        self.assertEqual(self.failures, [])

    def test_mount_failed(self) -> None:
        """A mount that cannot be made, or is aborted, ends the client with its error."""
        self.start_and_mount()
        assert self.mounting.served is not None
        self.mounting.served.errback(MountFailed("the mount was aborted"))
        self.assertEqual(self.failures, ["the mount was aborted"])

    def test_cache_failed(self) -> None:
        """A writer of the cache that fails is logged, and the mount goes on."""
        self.start_and_mount()
        self.bridge.ran["cache"].errback(KeyError("damaged"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(self.failures, [])

    def test_stop(self) -> None:
        """In the end readers get errors, the mount is taken away, and no timer is left."""
        self.start_and_mount()
        stopped = self.stop()
        self.assertTrue(self.bridge.stopped)
        self.assertEqual(self.mounting.unmounted, 1)
        self.bridge.ran["cache"].callback(None)
        self.successResultOf(stopped)
        self.assertTrue(self.server.connections[-1].aborted)
        self.reactor.advance(WRITER_TIMEOUT)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertFalse(self.reactor.hasStopped)
        self.assertEqual(self.failures, [])

    def test_slow_cache(self) -> None:
        """What the cache has not written in time is not waited for."""
        self.start_and_mount()
        stopped = self.stop()
        self.reactor.advance(WRITER_TIMEOUT - 0.01)
        self.assertNoResult(stopped)
        self.reactor.advance(0.01)
        self.successResultOf(stopped)

    def test_stop_before_mounting(self) -> None:
        """A client that ends does not begin to mount, nor complain that the server is away."""
        self.client.startService()
        self.welcome()
        stopped = self.stop()
        self.bridge.ran["cache"].callback(None)
        self.successResultOf(stopped)
        self.assertIsNone(self.mounting.served)
        self.assertEqual((self.failures, self.logged("waiting for the server")), ([], 0))

    def test_figures(self) -> None:
        """The figures say what is mounted from where, and how."""
        figures = self.client.figures()
        self.assertEqual((figures["mount"], figures["server"]), ("/mnt/images", SERVER))
        self.assertEqual((figures["tls"], figures["cache_size"]), (False, MIB))


class PullTests(SynchronousTestCase):
    """Pulls that are asked for at the control socket."""

    def test_pull(self) -> None:
        """An image is pulled as the user of this process; its progress and its end are told."""
        pulling: Deferred[Progress] = Deferred()
        asked: list[Any] = []

        class Pulls:
            """Begins a pull."""

            def pull(self, path: bytes, caller: Caller, progress: Any) -> Deferred[Progress]:
                """See L{mufs.filesystem.client.pull.Pulls.pull}."""
                asked.append((path, caller, progress))
                return pulling

        pulls: Any = Pulls()
        told: list[Any] = []
        done = client._pull(pulls, {"path": "dir/\udcff.img"}, told.append)
        ((path, caller, progress),) = asked
        self.assertEqual(path, b"dir/\xff.img")
        groups = os.getgroups()[:256]
        self.assertEqual(caller, Caller(os.geteuid(), os.getegid(), groups))
        now = Progress(size=10, held=5, asked=3, overheard=2, connected=True)
        progress(now)
        self.assertEqual([each["held"] for each in told], [5])
        self.assertNotIn("ended", told[0])
        pulling.callback(now)
        self.assertEqual(self.successResultOf(done), {**told[0], "ended": True})
