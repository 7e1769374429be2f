"""The client as a service, with a server that the test speaks for, and without a mount."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mufs import client
from mufs.cache.client.blocks import BlockCache
from mufs.client import WRITER_TIMEOUT, ClientMount, ClientSettings
from mufs.communication.client.group_socket import GroupSocket, max_transfer
from mufs.filesystem.client.mounting import MountFailed, MountSettings
from mufs.filesystem.client.mountpoint import UnusableMountPoint
from mufs.filesystem.client.pull import Progress
from mufs.sockets import VARIABLE
from mufs.test.communication.test_multicast import RecordingSocket
from mufs.test.support.doubles import FakeTransport, make_attributes, make_libfuse
from mufs.test.test_listening import RecordingEndpoint
from mufs.wire.channel import Type, pack_tagged
from mufs.wire.metadata import VERSION, Caller, Failure, Hello, Statistics, Welcome, decode, encode
from mufs.wire.pages import BLOCK

SERVER = "tcp:images.example.org:7040"
CACHE_SIZE = 16 * BLOCK
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

    def __init__(self, reactor: object, remote: object, timeout: float, **more: Any) -> None:
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
    @ivar unusable: what keeps the mount point from being used.
    """

    def __init__(
        self, reactor: object, bridge: object, settings: MountSettings, *, on_mounted: Any
    ) -> None:
        self.on_mounted = on_mounted
        self.served: Deferred[None] | None = None
        self.unmounted = 0
        self.unusable: Exception | None = None

    def claim(self) -> None:
        """See L{Mounting.claim}."""
        if self.unusable is not None:
            raise self.unusable

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


class StandInNetworkChanges(Service):
    """A network that does not change."""

    def __init__(self, reactor: object, on_change: object) -> None:
        pass


class MulticastPort:
    """A port for multicast, without a socket."""

    def getHandle(self) -> RecordingSocket:
        """See L{ISystemHandle.getHandle}."""
        return RecordingSocket()

    def stopListening(self) -> None:
        """See L{IListeningPort.stopListening}."""


class Reactor(MemoryReactorClock):
    """
    A reactor in memory that receives multicast.

    @ivar buffer: bytes of the receive buffer that the system grants.
    """

    buffer = 0

    def listen(self, port: int, group: str, socket: Any) -> MulticastPort:
        """Have the socket of a group open."""
        socket.transport = MulticastPort()
        socket._receiver.buffer = self.buffer
        return socket.transport  # type: ignore[no-any-return]


class ClientMountTests(SynchronousTestCase):
    """A client from its start to its end."""

    def setUp(self) -> None:
        """Have a client that is not started yet."""
        self.run_directory = self.mktemp()
        self.patch(os, "environ", {**os.environ, VARIABLE: self.run_directory})
        self.failures: list[str] = []
        self.patch(client, "fail", lambda reactor, name, message: self.failures.append(message))
        self.patch(client, "Bridge", StandInBridge)
        self.patch(client, "Mounting", StandInMounting)
        self.patch(GroupSocket, "listen", lambda socket, *at: socket._clock.listen(*at, socket))
        self.patch(client, "NetworkChanges", StandInNetworkChanges)
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.reactor: Any = Reactor()
        self.server = ServerEndpoint()
        self.client = self.make()

    def make(self, status: IStreamServerEndpoint | None = None) -> ClientMount:
        """A client that is not started yet."""
        settings = ClientSettings(
            server=SERVER,
            mount=MountSettings(
                make_libfuse(), "/mnt/images", SERVER, allow_other=False, noexec=False
            ),
            interface=None,
            cache_size=CACHE_SIZE,
            timeout=30.0,
            offline_for=60.0,
            host="host1",
        )
        cache = BlockCache(CACHE_SIZE)
        made = ClientMount(self.reactor, settings, cache=cache, server=self.server, status=status)
        bridge: Any = made._bridge
        mounting: Any = made._mounting
        self.bridge: StandInBridge = bridge
        self.mounting: StandInMounting = mounting
        return made

    def logged(self, text: str) -> int:
        """How many lines of the log contain a text."""
        return sum(text in str(formatEvent(event)) for event in self.events)

    def answer(self, kind: Type, body: object) -> None:
        """Answer the last request of the client on its last connection."""
        transport = self.server.connections[-1]
        (_, tag, _) = transport.tagged()[-1]
        transport.protocol.dataReceived(pack_tagged(kind, tag, encode(body)))

    def welcome(self, group: str = "") -> None:
        """The server serves the client, by TCP alone unless it has a group."""
        self.answer(Type.WELCOME, Welcome(VERSION, group, 7041, ("192.0.2.1", 40000), 1400))

    def tell_root(self) -> None:
        """The server answers what is asked before mounting."""
        self.answer(Type.REPLY, make_attributes())
        self.answer(Type.REPLY, Statistics(1, 2, 3, 4, 5, 6, 7, 8, 9))

    def start_and_mount(self) -> None:
        """Start the client, and have it mount."""
        self.client.startService()
        self.welcome()
        self.tell_root()
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
        self.assertEqual(kind, Type.HELLO)
        self.assertEqual(decode(Hello, body), Hello(VERSION, "host1", max_transfer()))
        self.assertIsNone(self.mounting.served)
        self.assertEqual(self.logged("no TLS"), 1)

    def test_mounts(self) -> None:
        """It mounts once the root is known, and is ready when the kernel has the mount."""
        self.client.startService()
        self.welcome()
        self.assertIsNone(self.mounting.served)
        self.tell_root()
        self.assertIsNotNone(self.mounting.served)
        self.assertNoResult(self.client.ready)
        self.assertEqual(self.client.state(), f"connected to {SERVER}")
        self.mounting.on_mounted()
        self.successResultOf(self.client.ready)
        self.assertIn("mounted at /mnt/images; connected to", self.client.state())

    def test_taken(self) -> None:
        """A client whose mount point another one has ends, and touches nothing."""
        for error, reason in (
            (UnusableMountPoint("another client"), "another client"),
            (PermissionError(13, "Permission denied"), "Permission denied"),
        ):
            self.failures.clear()
            self.client = self.make()
            self.mounting.unusable = error
            self.client.startService()
            self.assertEqual(self.failures, [f"--mount: /mnt/images: {reason}"])
            self.assertFalse(os.path.exists(self.run_directory))
            self.successResultOf(self.stop())

    def test_root_late(self) -> None:
        """A connection that ends before the root is known is no failure: it is asked again."""
        self.client.startService()
        self.welcome()
        self.lose_connection()
        self.welcome()
        self.tell_root()
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
        """A client that the server refuses ends, and says why."""
        self.client.startService()
        self.answer(Type.ERROR, Failure("EPROTO", "too old"))
        self.assertEqual(self.failures, [f"the server at {SERVER} refused: too old"])

    def test_refused_later(self) -> None:
        """A client that has mounted stays, says once that it is refused, and tries on."""
        self.start_and_mount()
        for _ in range(3):
            self.lose_connection()
            self.answer(Type.ERROR, Failure("EACCES", "no rule names it"))
        self.reactor.advance(5)
        self.assertEqual(self.failures, [])
        self.assertEqual(self.logged("refused: no rule names it"), 1)
        self.assertIn("mounted at /mnt/images; waiting for the server", self.client.state())
        self.assertIn("refused: no rule names it", self.client.state())
        why = self.client.figures()["why_disconnected"]
        self.assertEqual(why, "it refused: no rule names it")
        self.welcome()
        self.assertIn("mounted at /mnt/images; connected to", self.client.state())

    def test_no_answer(self) -> None:
        """A network that answers nothing is tried again before TCP itself would."""
        self.server.error = None
        waiting: list[Deferred[Any]] = []

        def connect(factory: object) -> Deferred[Any]:
            waiting.append(Deferred())
            return waiting[-1]

        self.patch(self.server, "connect", connect)
        self.client.startService()
        self.reactor.pump([1.0] * 15)
        self.assertEqual(len(waiting), 2)
        self.assertIn("no answer within 10 s", self.client.state())

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

    def test_away_again(self) -> None:
        """In every outage the reason is shown, not only in the one before the mount."""
        self.start_and_mount()
        self.server.error = REFUSED
        self.lose_connection()
        self.reactor.pump([1.0] * 10)
        self.assertEqual(self.client.figures()["why_disconnected"], str(REFUSED))

    def test_window(self) -> None:
        """No more is read ahead than fits in part of the receive buffer and of the cache."""
        self.client.startService()
        for self.reactor.buffer, bound in (
            (7 * BLOCK, 7 * BLOCK // 2),
            (100 * BLOCK, CACHE_SIZE // 4),
            (BLOCK, BLOCK),
        ):
            self.welcome(f"239.5.5.{self.reactor.buffer // BLOCK}")
            self.assertEqual(self.client._remote.reads.window, bound)
            self.lose_connection()

    def test_no_status(self) -> None:
        """A status endpoint that cannot be listened at ends the client."""
        taken = CannotListenError("127.0.0.1", 7080, OSError(98, "in use"))
        self.client = self.make(RecordingEndpoint(fail(taken)))
        self.client.startService()
        reason = "cannot serve the status: port 7080 is in use by another program"
        reason += ": choose another, such as --status 7090"
        self.assertEqual(self.failures, [reason])

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
        """A client that ends fails its readers, unmounts, and leaves no timer."""
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
        """A client that ends waits only so long for the cache to be written."""
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
        self.assertEqual((figures["tls"], figures["cache_size"]), (False, CACHE_SIZE))


class PullTests(SynchronousTestCase):
    """Pulls that are asked for at the control socket."""

    def test_pull(self) -> None:
        """An image is pulled as the user of this process; progress and end are reported."""
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
