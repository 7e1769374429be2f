"""The core of a server, with a client in memory."""

from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.channel import ServerChannel
from mufs.communication.server.limits import Limits
from mufs.server_core import INITIAL_RATE, make_server_core
from mufs.test.support.doubles import FakeTransport
from mufs.test.support.memory import MemoryLibrary
from mufs.wire.channel import Priority, Read, Type, pack_tagged
from mufs.wire.metadata import VERSION, At, Hello, Opened, Welcome, decode, encode
from mufs.wire.pages import BLOCK
from mufs.wire.segments import SEGMENT


class ServerCoreTests(SynchronousTestCase):
    """The parts of a core know one another."""

    def setUp(self) -> None:
        """Have a core, and a client that has said HELLO."""
        self.clock = Clock()
        library = MemoryLibrary()
        library.put(b"disk.img", bytes(BLOCK))
        self.looked_up = self.read = 0
        self.core = make_server_core(
            self.clock,
            rate_min=1e6,
            rate_max=1e9,
            secret=b"secret",
            view=lambda name: library,
            read_in_thread=self.read_in_thread,
            look_up_in_thread=self.look_up_in_thread,
            pack_in_thread=self.look_up_in_thread,
            welcome=self.welcome,
            limits=Limits(self.clock, lambda: 0.0),
        )
        self.transport = FakeTransport()
        self.channel = self.core.factory.buildProtocol(None)
        self.channel.makeConnection(self.transport)
        self.answers = self.say(Type.HELLO, Hello(VERSION, "host"))

    def read_in_thread(self, function: Any, *args: Any) -> Any:
        """Read at once."""
        self.read += 1
        return maybeDeferred(function, *args)

    def look_up_in_thread(self, function: Any, *args: Any) -> Any:
        """Look up at once."""
        self.looked_up += 1
        return maybeDeferred(function, *args)

    def welcome(self, channel: ServerChannel) -> Welcome:
        """The answer to HELLO."""
        return Welcome(VERSION, "239.5.5.0", 7041, ("192.0.2.1", 40000), SEGMENT)

    def say(self, kind: Type, body: object) -> list[tuple[int, int, bytes]]:
        """Send a packet with tag 1, and return the answers."""
        self.channel.dataReceived(pack_tagged(kind, 1, encode(body)))
        self.clock.advance(0.1)
        return self.transport.tagged()

    def test_welcome(self) -> None:
        """A client gets what C{welcome} returns, and counts as a connection."""
        self.assertEqual(self.answers[0][0], Type.WELCOME)
        self.assertEqual(decode(Welcome, self.answers[0][2]).group, "239.5.5.0")
        self.assertEqual(self.core.limits.connections, 1)

    def test_threads(self) -> None:
        """Lookups and reads of images each run where they are to run."""
        (opened,) = [body for kind, _, body in self.say(Type.OPEN, At(b"disk.img"))]
        self.assertGreater(self.looked_up, 0)
        self.assertEqual(self.read, 0)
        handle = decode(Opened, opened).handle
        read = Read(2, handle, 0, BLOCK, Priority.BLOCKED, over_tcp=True)
        self.channel.dataReceived(read.encode())
        self.clock.pump([0.01] * 10)
        self.assertEqual(self.core.reads.image_read_bytes, BLOCK)
        self.assertGreater(self.read, 0)

    def test_rate(self) -> None:
        """Sending begins at C{INITIAL_RATE}, within the bounds."""
        self.assertEqual(self.core.pace.rate, INITIAL_RATE)
