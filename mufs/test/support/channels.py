"""A server without sockets, and clients that send the packets of a test."""

from __future__ import annotations

from itertools import count
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.queue import MulticastQueue
from mufs.cache.server.sent import SentWindow
from mufs.communication.server.channel import ServerChannel, ServerChannelFactory
from mufs.communication.server.controller import MulticastController
from mufs.communication.server.limits import Limits
from mufs.communication.server.pacing import Pace
from mufs.communication.server.packer import Packer
from mufs.filesystem.server.reads import Reads
from mufs.test.support.doubles import FakeTransport, RecordingOutput
from mufs.test.support.memory import MemoryLibrary
from mufs.test.support.virtual import VirtualTime
from mufs.wire.channel import (
    Priority,
    Read,
    Sent,
    Type,
    pack_tagged,
    parse_tagged,
)
from mufs.wire.metadata import (
    VERSION,
    At,
    Failure,
    Hello,
    Opened,
    Welcome,
    decode,
    encode,
)
from mufs.wire.pages import BLOCK
from mufs.wire.sealing import Keys
from mufs.wire.segments import SEGMENT, segment_count

HELLO = pack_tagged(Type.HELLO, 0, encode(Hello(VERSION, "host")))
PING = pack_tagged(Type.PING, 1, b"")
SIZE = 3 * BLOCK + 1000


class Server:
    """
    A server without sockets and threads.

    @ivar at_once: whether the library answers immediately, or only on L{answer}.
    @ivar spent: the processor time in seconds that the server's limits see.
    """

    def __init__(self, at_once: bool = True) -> None:
        self.clock = VirtualTime()
        self.library = MemoryLibrary()
        self.library.put(b"disk.img", bytes(range(256)) * (SIZE // 256) + bytes(SIZE % 256))
        self.asked: list[Any] = []
        self.spent = 0.0
        self.addresses = count(1)
        self.at_once = at_once
        reads = Reads(maybeDeferred)
        keys = Keys(b"secret")
        self.queue = MulticastQueue(SentWindow())
        self.controller = MulticastController(
            self.queue,
            self.queue._window,
            keys=keys,
            pace=Pace(self.clock, floor=1e12, ceiling=1e12, start=1e12),
            read=reads,
            packer=Packer(maybeDeferred, None),
            clock=self.clock,
        )
        self.output = RecordingOutput()
        self.controller.output = self.output
        self.factory = ServerChannelFactory(
            view=lambda _: self.library,
            controller=self.controller,
            keys=keys,
            read=reads,
            in_thread=self.in_thread,
            welcome=lambda _: Welcome(VERSION, "239.5.5.0", 7041, ("10.0.0.1", 40000), SEGMENT),
            clock=self.clock,
            limits=Limits(self.clock, lambda: self.spent),
        )

    def in_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        """Call a function of the library, either now or on L{answer}."""
        if self.at_once:
            return maybeDeferred(function, *args)
        waiting: Deferred[Any] = Deferred()
        waiting.addCallback(lambda _: function(*args))
        self.asked.append(waiting)
        return waiting

    def answer(self) -> None:
        """Make the pending calls of the library."""
        asked, self.asked = self.asked, []
        for each in asked:
            each.callback(None)

    def connect(
        self, hello: bool = True, host: str | None = None
    ) -> tuple[ServerChannel, FakeTransport]:
        """Connect another client, from a new host unless C{host} is given."""
        address = IPv4Address("TCP", host or f"10.0.1.{next(self.addresses)}", 50000)
        channel, wire = self.factory.buildProtocol(address), FakeTransport(peerAddress=address)
        assert channel is not None
        channel.makeConnection(wire)
        if hello:
            channel.dataReceived(HELLO)
            wire.packets()
        return channel, wire


class ServerChannelTestCase(SynchronousTestCase):
    """One client of a server."""

    def setUp(self) -> None:
        """Connect a client that has received WELCOME."""
        self.server = Server()
        self.channel, self.wire = self.server.connect()

    def tearDown(self) -> None:
        """Check that no failure was logged."""
        self.assertEqual(self.flushLoggedErrors(), [])

    def say(self, *packets: bytes) -> list[tuple[int, int, bytes]]:
        """Send packets, and return the answers: type, offset, data."""
        self.channel.dataReceived(b"".join(packets))
        self.server.clock.advance(0.01)
        return self.wire.packets()

    def send(self, *packets: bytes) -> list[tuple[int, int, bytes]]:
        """Send packets, and return the answers: type, tag, the data after the tag."""
        return [(kind, *parse_tagged(data)) for kind, _, data in self.say(*packets)]

    def open(self) -> Opened:
        """Open the image."""
        ((kind, _, body),) = self.send(pack_tagged(Type.OPEN, 1, encode(At(b"disk.img"))))
        self.assertEqual(kind, Type.REPLY)
        return decode(Opened, body)

    def transfer(self) -> Sent:
        """Have the first block of the image sent, and return its SENT."""
        handle = self.open().handle
        ((kind, offset, body),) = self.say(Read(7, handle, 0, BLOCK, Priority.BLOCKED).encode())
        self.assertEqual(kind, Type.SENT)
        self.assertEqual(self.server.output.take_segments(), segment_count(BLOCK, SEGMENT))
        return Sent.parse(offset, body)

    def assert_error(self, answers: list[tuple[int, int, bytes]], tag: int, name: str) -> None:
        """Assert that the only answer is this error, and that the connection stays open."""
        ((kind, answered, body),) = answers
        self.assertEqual((kind, answered), (Type.ERROR, tag))
        self.assertEqual(decode(Failure, body).errno, name)
        self.assertFalse(self.wire.ended)

    def assert_closes(self, *packets: bytes) -> None:
        """Assert that these packets end the connection, without an answer."""
        self.assertEqual(self.send(*packets), [])
        self.assertTrue(self.wire.ended)


class TwoClientsTestCase(SynchronousTestCase):
    """A greedy client, and an honest one of another host."""

    def setUp(self) -> None:
        """A server with two clients."""
        self.server = Server()
        self.clock = self.server.clock
        self.greedy, self.its_wire = self.server.connect()
        self.honest, self.wire = self.server.connect()

    def tearDown(self) -> None:
        """Check that no failure was logged."""
        self.assertEqual(self.flushLoggedErrors(), [])

    def ask(
        self, channel: ServerChannel, wire: FakeTransport, *packets: bytes
    ) -> list[tuple[int, int]]:
        """Send packets, and return the type and tag of each answer within 20 ms."""
        channel.dataReceived(b"".join(packets))
        self.clock.advance(0.02)
        return [(kind, tag) for kind, tag, _ in wire.tagged()]

    def open(self, channel: ServerChannel, wire: FakeTransport, path: bytes = b"disk.img") -> int:
        """Open an image, and return its handle."""
        channel.dataReceived(pack_tagged(Type.OPEN, 1, encode(At(path))))
        ((_, _, body),) = wire.tagged()
        return decode(Opened, body).handle

    def full(self, wire: FakeTransport, full: bool = True) -> None:
        """Pause or resume the connection, as if its buffer was full or had room."""
        assert wire.producer is not None
        if full:
            wire.producer.pauseProducing()
        else:
            wire.producer.resumeProducing()
