"""The server's end of the request channel, as a client sees it that keeps to nothing."""

from __future__ import annotations

from itertools import count
from time import process_time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure as Error
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mufs.cache.server.queue import MulticastQueue
from mufs.cache.server.sent import IReader, SentWindow
from mufs.communication.server.channel import ServerChannel, ServerChannelFactory
from mufs.communication.server.controller import MulticastController
from mufs.communication.server.limits import HELLO_TIMEOUT, MAX_HANDLES, SILENCE, Limits
from mufs.communication.server.output import ISegmentOutput
from mufs.communication.server.pacing import Pace
from mufs.filesystem.server.reads import Reads
from mufs.test.support.memory import MemoryLibrary
from mufs.test.support.peers import FROM_CLIENTS, Wire
from mufs.test.support.properties import examples
from mufs.test.support.virtual import VirtualTime
from mufs.wire.channel import (
    HEADER,
    MAX_DATA,
    MAX_READ,
    Gone,
    Key,
    Occasion,
    Priority,
    Read,
    Repair,
    Sent,
    Type,
    pack,
    pack_tagged,
    parse_tagged,
)
from mufs.wire.metadata import (
    VERSION,
    At,
    Attributes,
    Close,
    Failure,
    Hello,
    Names,
    Opened,
    Report,
    Statistics,
    Welcome,
    decode,
    encode,
)
from mufs.wire.pages import BLOCK, PAGE
from mufs.wire.sealing import Keys
from mufs.wire.segments import ANNOUNCEMENT, SEGMENT, parse, segment_count

HELLO = pack_tagged(Type.HELLO, 0, encode(Hello(VERSION, "host")))
SIZE = 3 * BLOCK + 1000


@implementer(ISegmentOutput)
class RecordingOutput:
    """Takes what is sent to the group."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, packets: bytes | memoryview) -> int:
        """See L{ISegmentOutput.write}."""
        self.written.append(bytes(packets))
        return len(packets)

    def writable(self) -> Deferred[None]:
        """See L{ISegmentOutput.writable}."""
        return succeed(None)

    @property
    def segments(self) -> int:
        """How many segments were sent since this was asked last."""
        written, self.written = b"".join(self.written), []
        return sum(len(packet[2]) for packet in parse(written) if len(packet) == 3)


class Server:
    """A server without sockets, whose library is asked at once or when the test says so."""

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
            clock=self.clock,
        )
        self.output = RecordingOutput()
        self.controller.output = self.output
        self.factory = ServerChannelFactory(
            lambda _: self.library,
            self.controller,
            keys,
            reads,
            self.in_thread,
            lambda _: Welcome(VERSION, "239.5.5.0", 7041, ("10.0.0.1", 40000), SEGMENT),
            self.clock,
            Limits(self.clock, lambda: self.spent),
        )

    def in_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        """Call a function of the library now, or when L{answer} is told."""
        if self.at_once:
            return maybeDeferred(function, *args)
        waiting: Deferred[Any] = Deferred()
        waiting.addCallback(lambda _: function(*args))
        self.asked.append(waiting)
        return waiting

    def answer(self) -> None:
        """Let the library answer what it was asked."""
        asked, self.asked = self.asked, []
        for each in asked:
            each.callback(None)

    def connect(self, hello: bool = True, host: str | None = None) -> tuple[ServerChannel, Wire]:
        """One more client, of another host unless one is given."""
        address = IPv4Address("TCP", host or f"10.0.1.{next(self.addresses)}", 50000)
        channel, wire = self.factory.buildProtocol(address), Wire(peerAddress=address)
        assert channel is not None
        channel.makeConnection(wire)
        if hello:
            channel.dataReceived(HELLO)
            wire.packets()
        return channel, wire


class ServerChannelTestCase(SynchronousTestCase):
    """One client of a server."""

    def setUp(self) -> None:
        """A server and a client that was welcomed."""
        self.server = Server()
        self.channel, self.wire = self.server.connect()

    def tearDown(self) -> None:
        """Nothing was logged as a failure."""
        self.assertEqual(self.flushLoggedErrors(), [])

    def say(self, *packets: bytes) -> list[tuple[int, int, bytes]]:
        """What is answered to packets: type, offset, data."""
        self.channel.dataReceived(b"".join(packets))
        self.server.clock.advance(0.01)
        return self.wire.packets()

    def send(self, *packets: bytes) -> list[tuple[int, int, bytes]]:
        """What is answered to packets: type, tag, what follows."""
        return [(kind, *parse_tagged(data)) for kind, _, data in self.say(*packets)]

    def open(self) -> Opened:
        """Open the image."""
        ((kind, _, body),) = self.send(pack_tagged(Type.OPEN, 1, encode(At(b"disk.img"))))
        self.assertEqual(kind, Type.REPLY)
        return decode(Opened, body)

    def transfer(self) -> Sent:
        """Have the first block of the image sent."""
        handle = self.open().handle
        ((kind, offset, body),) = self.say(Read(7, handle, 0, BLOCK, Priority.BLOCKED).encode())
        self.assertEqual(kind, Type.SENT)
        self.assertEqual(self.server.output.segments, segment_count(BLOCK, SEGMENT))
        return Sent.parse(offset, body)

    def assert_error(self, answers: list[tuple[int, int, bytes]], tag: int, name: str) -> None:
        """The one answer is that error, to that request, and the connection goes on."""
        ((kind, answered, body),) = answers
        self.assertEqual((kind, answered), (Type.ERROR, tag))
        self.assertEqual(decode(Failure, body).errno, name)
        self.assertFalse(self.wire.ended)

    def assert_closes(self, *packets: bytes) -> None:
        """These packets end the connection, and are answered by nothing."""
        self.assertEqual(self.send(*packets), [])
        self.assertTrue(self.wire.ended)


class HelloTests(ServerChannelTestCase):
    """The first exchange."""

    def setUp(self) -> None:
        """A server and a client that has said nothing yet."""
        self.server = Server()
        self.channel, self.wire = self.server.connect(hello=False)

    def test_interfaces(self) -> None:
        """The channel is a reader to the queue, and the double an output to the controller."""
        verifyObject(IReader, self.channel)
        verifyObject(ISegmentOutput, self.server.output)

    def test_welcome(self) -> None:
        """HELLO is answered with all that a client must know of the multicast side."""
        self.channel.dataReceived(pack_tagged(Type.HELLO, 5, encode(Hello(VERSION, "a"))))
        welcomed, (key, at, secret) = self.wire.packets()
        kind, (tag, body) = welcomed[0], parse_tagged(welcomed[2])
        epoch = self.server.factory.keys.epoch
        self.assertEqual((key, Key.parse(at, secret)), (Type.KEY, Key(epoch.number, epoch.secret)))
        self.assertEqual((kind, tag), (Type.WELCOME, 5))
        welcome = decode(Welcome, body)
        self.assertEqual((welcome.group, welcome.segment), ("239.5.5.0", SEGMENT))
        self.assertEqual(self.channel.name, "a")

    def test_expelled(self) -> None:
        """Of who breaks the protocol the others get new keys; not of who never said HELLO."""
        _, wire = self.server.connect()
        begun = self.server.factory.keys.epoch
        self.send(bytes(range(9)))
        self.assertTrue(self.wire.ended)
        self.server.clock.advance(5)
        self.assertIs(self.server.factory.keys.epoch, begun)
        welcomed, gone = self.server.connect()
        welcomed.dataReceived(bytes(range(9)))
        self.server.clock.advance(5)
        epoch = self.server.factory.keys.epoch
        ((kind, at, body),) = wire.packets()
        self.assertEqual((kind, Key.parse(at, body)), (Type.KEY, Key(1, epoch.secret)))
        self.assertNotEqual(epoch.secret, begun.secret)
        self.assertEqual(gone.packets(), [])

    def test_other_version(self) -> None:
        """A client of another version is told so, and the connection ends."""
        answers = self.send(pack_tagged(Type.HELLO, 5, encode(Hello(VERSION + 1, "a"))))
        ((kind, tag, body),) = answers
        self.assertEqual((kind, tag), (Type.ERROR, 5))
        self.assertEqual(decode(Failure, body).errno, "EPROTONOSUPPORT")
        self.assertTrue(self.wire.ended)

    def test_other_version_again(self) -> None:
        """What such a client sends after that is not looked at."""
        other = pack_tagged(Type.HELLO, 5, encode(Hello(VERSION + 1, "a")))
        self.send(other)
        self.assertEqual(self.send(other, other, HELLO), [])

    def test_anything_before(self) -> None:
        """Any packet before HELLO ends the connection."""
        read = Read(1, 1, 0, 4096, Priority.BLOCKED).encode()
        for packet in [
            read,
            Repair(1, 1, 1, 1).encode(),
            pack(Type.CLOSE, encode(Close(1))),
            *(pack_tagged(kind, 1, encode(At(b""))) for kind in Type if kind != Type.HELLO),
        ]:
            self.channel, self.wire = self.server.connect(hello=False)
            self.assert_closes(packet)

    def test_malformed(self) -> None:
        """A HELLO that is none ends the connection."""
        for body in (b"", b"\0\0\0", b"\0\0\0\0", b"\0\0\0\0\x80", bytes(4) + encode("hello")):
            self.channel, self.wire = self.server.connect(hello=False)
            self.assert_closes(pack(Type.HELLO, body))

    def test_twice(self) -> None:
        """A second HELLO ends the connection."""
        self.send(HELLO)
        self.assert_closes(HELLO)

    def test_never(self) -> None:
        """A connection on which no more than a part of it comes ends after a while."""
        self.send(HELLO[:2])
        for _ in range(int(HELLO_TIMEOUT) - 1):
            self.server.clock.advance(0.98)
            self.assertEqual(self.send(b""), [])
        self.assertFalse(self.wire.ended)
        self.server.clock.advance(1.5)
        self.assertTrue(self.wire.ended)

    def test_in_time(self) -> None:
        """A client that was welcomed, and shows signs of life, may do nothing else for ever."""
        self.send(HELLO)
        for _ in range(100):
            self.server.clock.advance(SILENCE - 1)
            self.send(pack_tagged(Type.PING, 1, b""))
        self.assertFalse(self.wire.ended)

    def test_lost_before(self) -> None:
        """A connection that ends before HELLO leaves no timer behind."""
        self.channel.connectionLost(Error(ConnectionLost()))
        self.assertEqual(self.server.clock.getDelayedCalls(), [])
        self.assertEqual(self.server.factory.channels, set())


class FramingTests(ServerChannelTestCase):
    """Bytes that are no packets, or only in the end."""

    def test_garbage(self) -> None:
        """Bytes of another protocol end the connection."""
        self.assert_closes(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")

    def test_oversized(self) -> None:
        """A header that tells of more than a packet may have ends the connection at once."""
        for kind in (Type.GETATTR, Type.READ, 0, 255):
            self.channel, self.wire = self.server.connect()
            self.assert_closes(HEADER.pack(kind, 0, MAX_DATA + 1))

    def test_unknown_types(self) -> None:
        """A type that is not a client's ends the connection."""
        clients = {
            Type.GETATTR,
            Type.READDIR,
            Type.READLINK,
            Type.OPEN,
            Type.CLOSE,
            Type.STATFS,
            Type.READ,
            Type.REPAIR,
            Type.PING,
        }
        for kind in set(range(256)) - clients:
            self.channel, self.wire = self.server.connect()
            self.assert_closes(pack(kind, bytes(4)))

    def test_truncated(self) -> None:
        """A packet is waited for as long as bytes of it lack, and then answered."""
        packet = pack_tagged(Type.PING, 9, b"")
        for end in range(len(packet)):
            self.assertEqual(self.send(packet[end : end + 1]), [(Type.PONG, 9, b"")][: end - 11])

    def test_any_cut(self) -> None:
        """Wherever the network cuts the bytes, the answers are the same."""
        packets = b"".join(pack_tagged(Type.PING, tag, b"") for tag in range(5))
        expected = [(Type.PONG, tag, b"") for tag in range(5)]
        for step in range(1, len(packets)):
            answers = []
            for start in range(0, len(packets), step):
                answers += self.send(packets[start : start + step])
            self.assertEqual(answers, expected)

    def test_held_bytes(self) -> None:
        """No more is kept than one packet, whatever a client announces and sends."""
        self.send(HEADER.pack(Type.GETATTR, 0, MAX_DATA))
        for _ in range(MAX_DATA // 1000):
            self.send(bytes(1000))
        self.assertLessEqual(len(self.channel._framer._buffer), HEADER.size + MAX_DATA)

    def test_after_the_end(self) -> None:
        """What comes when the connection is ending is neither looked at nor kept."""
        self.assert_closes(HEADER.pack(Type.PING, 0, MAX_DATA + 1))
        for _ in range(100):
            self.assertEqual(self.send(pack_tagged(Type.PING, 1, bytes(60_000))), [])
        self.assertLessEqual(len(self.channel._framer._buffer), HEADER.size + MAX_DATA)

    def test_empty_packets(self) -> None:
        """A packet without data is no request of any type."""
        for kind in (
            Type.GETATTR,
            Type.READDIR,
            Type.READLINK,
            Type.OPEN,
            Type.CLOSE,
            Type.STATFS,
            Type.READ,
            Type.REPAIR,
            Type.PING,
        ):
            self.channel, self.wire = self.server.connect()
            self.assert_closes(pack(kind))


class ReportTests(ServerChannelTestCase):
    """What a client tells of itself."""

    def ping(self, body: bytes) -> list[tuple[int, int, bytes]]:
        """What is answered to a PING with this in it."""
        return self.send(pack_tagged(Type.PING, 1, body))

    def test_kept(self) -> None:
        """The last report is kept, and a PING without one changes nothing."""
        self.assertIs(self.channel.report, None)
        for report in (Report(9, 5, 20, True, "working"), Report(0, 0, 0, False, "<b>&'")):
            self.assertEqual(self.ping(encode(report)), [(Type.PONG, 1, b"")])
            self.assertEqual(self.channel.report, report)
        self.assertEqual(self.ping(b""), [(Type.PONG, 1, b"")])
        self.assertEqual(self.channel.report, report)

    def test_malformed(self) -> None:
        """What is no report ends the connection, and is not kept."""
        report = {"reads": 9, "hits": 5, "lag": 20, "works": True, "multicast": "working"}
        wrong: list[object] = [
            [],
            5,
            {},
            {**report, "hits": 10},
            {**report, "lag": -1},
            {**report, "lag": 1 << 32},
            {**report, "reads": 9.5},
            {**report, "multicast": "n" * 256},
            {**report, "multicast": b"b"},
            {**report, "works": 1},
            *({**report, "multicast": text} for text in ("a\nb", "end\n", "\x1b[2J", "\u2028")),
        ]
        for each in wrong:
            self.channel, self.wire = self.server.connect()
            self.assert_closes(pack_tagged(Type.PING, 1, encode(each)))
            self.assertIs(self.channel.report, None)

    def test_demand(self) -> None:
        """What it opens, asks for and closes counts for the image, also when it goes at once."""
        handles = [self.open().handle for _ in range(3)]
        ((image, _),) = self.server.factory.demand
        self.assertEqual((image.path, image.opens), (b"disk.img", 3))
        self.say(Read(7, handles[0], 0, 2 * BLOCK, Priority.BLOCKED).encode())
        self.assertEqual((image.requests, image.bytes_requested), (1, 2 * BLOCK))
        self.assertIs(self.channel.reading, image)
        for _ in range(2):
            self.say(pack(Type.CLOSE, encode(Close(handles[0]))))
            self.assertEqual((image.opens, self.channel.images_open), (2, 2))
        self.channel.connectionLost(Error(ConnectionLost()))
        self.assertEqual(image.opens, 0)

    def test_refused(self) -> None:
        """A READ that is refused, and an OPEN that fails, count for nothing."""
        handle = self.open().handle
        self.say(Read(7, handle, 5, BLOCK, Priority.BLOCKED).encode())
        self.say(Read(7, handle + 1, 0, BLOCK, Priority.BLOCKED).encode())
        self.say(pack_tagged(Type.OPEN, 2, encode(At(b"none"))))
        self.assertEqual(
            [(i.path, i.requests) for i, _ in self.server.factory.demand], [(b"disk.img", 0)]
        )


class MetadataTests(ServerChannelTestCase):
    """Requests about names and attributes."""

    def test_answers(self) -> None:
        """Each request is answered by what belongs to it, with its tag."""
        answers = self.send(
            pack_tagged(Type.GETATTR, 1, encode(At(b"disk.img"))),
            pack_tagged(Type.READDIR, 2, encode(At(b""))),
            pack_tagged(Type.STATFS, 3, encode(At(b""))),
        )
        self.assertEqual(
            [(kind, tag) for kind, tag, _ in answers], [(Type.REPLY, n + 1) for n in range(3)]
        )
        self.assertEqual(decode(Attributes, answers[0][2]).size, SIZE)
        self.assertEqual(decode(Names, answers[1][2]).entries[0][0], b"disk.img")
        self.assertEqual(decode(Statistics, answers[2][2]).namemax, 255)

    def test_errors(self) -> None:
        """What the library cannot answer is answered with its errno."""
        self.assert_error(self.send(pack_tagged(Type.GETATTR, 4, encode(At(b"none")))), 4, "ENOENT")
        self.assert_error(
            self.send(pack_tagged(Type.READLINK, 4, encode(At(b"disk.img")))), 4, "EINVAL"
        )

    def test_malformed(self) -> None:
        """A path that is none ends the connection."""
        for body in (
            b"",
            b"\xc1",
            encode(7),
            encode(At(b"x")) + b"y",
            encode({"path": 5}),
            encode(At(b"x" * 65537)),
        ):
            self.channel, self.wire = self.server.connect()
            self.assert_closes(pack_tagged(Type.GETATTR, 1, body))

    def test_long_directory(self) -> None:
        """A directory of many long names comes in parts, each of them a packet."""
        for number in range(3000):
            self.server.library.put(b"%05d" % number + b"x" * 250, b"")
        answers = self.send(pack_tagged(Type.READDIR, 1, encode(At(b""))))
        self.assertEqual({kind for kind, _, _ in answers[:-1]}, {Type.MORE})
        self.assertEqual(answers[-1][0], Type.REPLY)
        self.assertEqual(sum(len(decode(Names, body).entries) for _, _, body in answers), 3001)

    def test_directory_of_other_file_systems(self) -> None:
        """The same for names as long as a client takes them."""
        for number in range(600):
            self.server.library.put(b"%04d" % number + b"x" * 1020, b"")
        answers = self.send(pack_tagged(Type.READDIR, 1, encode(At(b""))))
        self.assertEqual(answers[-1][0], Type.REPLY)
        self.assertEqual(sum(len(decode(Names, body).entries) for _, _, body in answers), 601)

    def test_fault_of_the_server(self) -> None:
        """A fault of the library itself is logged, and answered with EIO."""
        library: Any = self.server.library
        library.statfs = None
        self.assert_error(self.send(pack_tagged(Type.STATFS, 6, encode(At(b"")))), 6, "EIO")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_gone_before_the_answer(self) -> None:
        """An answer that comes when the client has gone is written nowhere."""
        self.server.at_once = False
        self.send(pack_tagged(Type.OPEN, 1, encode(At(b"disk.img"))))
        self.channel.connectionLost(Error(ConnectionLost()))
        self.channel.connected = 0
        self.server.answer()
        self.assertEqual(self.wire.packets(), [])


class HandleTests(ServerChannelTestCase):
    """OPEN and CLOSE."""

    def test_opened(self) -> None:
        """OPEN hands over a handle, what the image is, and its key."""
        first, second = self.open(), self.open()
        self.assertNotEqual(first.handle, second.handle)
        self.assertEqual(first.key, second.key)
        self.assertEqual(first.attributes.size, SIZE)

    def test_closed(self) -> None:
        """A handle that was closed is no handle."""
        handle = self.open().handle
        self.send(pack(Type.CLOSE, encode(Close(handle))))
        read = Read(3, handle, 0, 4096, Priority.BLOCKED)
        self.assert_error(self.send(read.encode()), 3, "EBADF")

    def test_close_of_none(self) -> None:
        """Closing what is not open changes nothing."""
        self.assertEqual(self.send(pack(Type.CLOSE, encode(Close(4711)))), [])
        self.assertFalse(self.wire.ended)

    def test_close_malformed(self) -> None:
        """A CLOSE that is none ends the connection."""
        self.assert_closes(pack(Type.CLOSE, encode(Close(1)) + b"x"))

    def test_handle_of_another(self) -> None:
        """A handle is of use on its own connection alone."""
        handle = self.open().handle
        self.channel, self.wire = self.server.connect()
        read = Read(3, handle, 0, 4096, Priority.BLOCKED)
        self.assert_error(self.send(read.encode()), 3, "EBADF")

    def test_too_many(self) -> None:
        """A client may have so many handles and no more."""
        packet = pack_tagged(Type.OPEN, 1, encode(At(b"disk.img")))
        for _ in range(MAX_HANDLES):
            self.send(packet)
        self.assert_error(self.send(packet), 1, "EMFILE")

    def test_too_many_at_once(self) -> None:
        """The same for a client that asks for them all before the first is there."""
        self.server.at_once = False
        packet = pack_tagged(Type.OPEN, 1, encode(At(b"disk.img")))
        self.channel.dataReceived(packet * (MAX_HANDLES + 100))
        while self.server.asked:
            self.server.answer()
        self.assertLessEqual(len(self.channel._handles), MAX_HANDLES)

    def test_given_back(self) -> None:
        """The handles of a client that goes are closed."""
        self.open()
        self.channel.connectionLost(Error(ConnectionLost()))
        self.assertEqual(self.channel._handles, {})


class ReadTests(ServerChannelTestCase):
    """READ."""

    def test_multicast(self) -> None:
        """A READ is answered with a transfer to the group and the word that it was sent."""
        sent = self.transfer()
        self.assertEqual((sent.tag, sent.offset, sent.length), (7, 0, BLOCK))
        self.assertEqual(sent.occasion, Occasion.NOW)

    def test_over_tcp(self) -> None:
        """A READ that wants TCP is answered on the connection alone."""
        handle = self.open().handle
        read = Read(7, handle, 0, SIZE, Priority.BLOCKED, True)
        packets = self.say(read.encode())
        self.assertEqual({kind for kind, _, _ in packets}, {Type.DATA})
        self.assertEqual(self.channel.bytes_over_tcp, SIZE)
        self.assertEqual(self.server.output.segments, 0)

    def test_unknown_handle(self) -> None:
        """A READ of a handle that does not exist is answered with EBADF."""
        for handle in (0, 1, 0xFFFFFFFF):
            read = Read(3, handle, 0, 4096, Priority.BLOCKED)
            self.assert_error(self.send(read.encode()), 3, "EBADF")

    def test_past_the_end(self) -> None:
        """A READ that ends behind the image is answered with EINVAL, however far behind."""
        handle = self.open().handle
        last = (1 << 64) - 1
        for offset, length in [
            (0, SIZE + 1),
            (SIZE, 1),
            (SIZE - 1, 2),
            (last, 1),
            (last, MAX_READ),
            (1 << 32, 4096),
        ]:
            for over_tcp in (False, True):
                read = Read(3, handle, offset, length, Priority.AHEAD, over_tcp)
                self.assert_error(self.send(read.encode()), 3, "EINVAL")
        self.assertEqual(len(self.server.queue), 0)

    def test_lengths(self) -> None:
        """A READ of nothing, or of more than a READ may ask for, ends the connection."""
        for length in (0, MAX_READ + 1, 0xFFFFFFFF):
            self.channel, self.wire = self.server.connect()
            handle = self.open().handle
            self.assert_closes(Read(3, handle, 0, length, Priority.BLOCKED).encode())

    def test_flags(self) -> None:
        """A READ with flags that mean nothing ends the connection."""
        packet = Read(3, 1, 0, 4096, Priority.BLOCKED).encode()
        for flags in (3, 0x7F, 0x83, 0xFF):
            self.channel, self.wire = self.server.connect()
            self.assert_closes(packet[:-1] + bytes([flags]))

    def test_wrong_size(self) -> None:
        """A READ that is too short or too long ends the connection."""
        packet = Read(3, 1, 0, 4096, Priority.BLOCKED).encode()[HEADER.size :]
        for body in (packet[:-1], packet + b"\0"):
            self.channel, self.wire = self.server.connect()
            self.assert_closes(pack(Type.READ, body))

    def test_unaligned(self) -> None:
        """A READ that begins or ends within a page is answered with EINVAL, but at the end."""
        handle = self.open().handle
        for offset, length in [(1, PAGE), (0, PAGE - 1), (5000, 10), (0, SIZE - 1)]:
            read = Read(3, handle, offset, length, Priority.BLOCKED)
            self.assert_error(self.send(read.encode()), 3, "EINVAL")
        last = SIZE - SIZE % PAGE
        ((kind, _, _),) = self.say(Read(3, handle, last, SIZE % PAGE, Priority.AHEAD).encode())
        self.assertEqual(kind, Type.SENT)

    def test_stale(self) -> None:
        """READs of an image that was replaced are answered with ESTALE, each once."""
        handle = self.open().handle
        self.server.library.put(b"disk.img", bytes(SIZE))
        for over_tcp in (False, True):
            read = Read(8, handle, 0, BLOCK, Priority.BLOCKED, over_tcp)
            self.assert_error(self.send(read.encode()), 8, "ESTALE")

    def test_fault_of_the_image(self) -> None:
        """A fault in reading that is no error of the system is answered with EIO, and logged."""
        handle = self.open().handle
        image: Any = self.server.library.images[b"disk.img"]
        image.read = None
        for over_tcp in (False, True):
            for block in range(2):
                read = Read(8, handle, block * BLOCK, BLOCK, Priority.BLOCKED, over_tcp)
                self.assert_error(self.send(read.encode()), 8, "EIO")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 4)

    def test_forgotten(self) -> None:
        """What a client waited for that has gone is not sent."""
        server = self.server
        handle = self.open().handle
        server.controller._idle = False
        self.send(Read(8, handle, 0, BLOCK, Priority.BLOCKED).encode())
        self.channel.connectionLost(Error(ConnectionLost()))
        server.controller._idle = True
        server.controller._wake()
        server.clock.advance(1)
        self.assertEqual(server.output.segments, 0)
        self.assertEqual(len(server.queue), 0)


class RepairTests(ServerChannelTestCase):
    """REPAIR."""

    def test_multicast(self) -> None:
        """The first attempt sends the segments that lack to the group, and says so."""
        sent = self.transfer()
        ((_, offset, body),) = self.say(Repair(7, sent.transfer, 1, 0b1010).encode())
        self.assertEqual(Sent.parse(offset, body).occasion, Occasion.REPAIR)
        self.assertEqual(self.server.output.segments, 2)

    def test_over_tcp(self) -> None:
        """The second attempt sends them on the connection, between announcement and completion."""
        sent = self.transfer()
        packets = self.send(Repair(7, sent.transfer, 2, 0b1010).encode())
        self.assertEqual([kind for kind, _, _ in packets], [Type.SEGMENTS] * 3 + [Type.SENT])
        (announcement,) = parse(packets[0][2])
        self.assertEqual(announcement[0], ANNOUNCEMENT)
        self.assertEqual(self.server.output.segments, 0)

    def test_unknown_transfer(self) -> None:
        """A REPAIR of a transfer that is not held is answered with GONE."""
        for number in (0, 999, (1 << 64) - 1):
            for attempt in (1, 2):
                ((kind, offset, body),) = self.say(Repair(5, number, attempt, 1).encode())
                self.assertEqual(kind, Type.GONE)
                self.assertEqual(Gone.parse(offset, body), Gone(5, number))

    def test_not_opened(self) -> None:
        """Who has not opened an image gets no segments of it, and causes none to be sent."""
        sent = self.transfer()
        self.channel, self.wire = self.server.connect()
        for tag, attempt in ((0, 1), (5, 1), (5, 2)):
            ((kind, offset, body),) = self.say(Repair(tag, sent.transfer, attempt, 3).encode())
            self.assertEqual(kind, Type.GONE)
            self.assertEqual(Gone.parse(offset, body), Gone(tag, sent.transfer))
        self.assertEqual(self.server.output.segments, 0)
        handle = self.open().handle
        self.say(pack(Type.CLOSE, encode(Close(handle))))
        packets = self.send(Repair(5, sent.transfer, 2, 3).encode())
        self.assertEqual(packets[0][0], Type.SEGMENTS)

    def test_absurd_bitmap(self) -> None:
        """Bits of segments that the transfer does not have count for nothing."""
        sent = self.transfer()
        absurd = (1 << 8 * (MAX_DATA // 64)) - 1
        self.say(Repair(7, sent.transfer, 1, absurd).encode())
        self.assertEqual(self.server.output.segments, segment_count(BLOCK, SEGMENT))
        self.say(Repair(7, sent.transfer, 1, absurd - (1 << 200) + 1).encode())
        self.assertEqual(self.server.output.segments, 0)
        packets = self.send(Repair(7, sent.transfer, 2, absurd).encode())
        size = sum(len(body) for _, _, body in packets)
        self.assertLess(size, BLOCK + 94 * 12 + 400)

    def test_empty_bitmap(self) -> None:
        """A REPAIR of nothing sends no segment, and ends nothing."""
        sent = self.transfer()
        for attempt in (1, 2):
            self.say(Repair(7, sent.transfer, attempt, 0).encode())
        self.assertEqual(self.server.output.segments, 0)
        self.assertFalse(self.wire.ended)

    def test_attempts(self) -> None:
        """An attempt that is neither the first nor the second ends the connection."""
        sent = self.transfer()
        for attempt in (0, 3, 255):
            self.channel, self.wire = self.server.connect()
            self.assert_closes(Repair(7, sent.transfer, attempt, 1).encode())

    def test_oversized_bitmap(self) -> None:
        """A bitmap that no transfer can have ends the connection."""
        self.assert_closes(Repair(7, 1, 1, 1 << 8 * (MAX_DATA // 64)).encode())

    def test_too_short(self) -> None:
        """A REPAIR without all of its fields ends the connection."""
        self.assert_closes(pack(Type.REPAIR, bytes(12)))


class UnreadAnswersTests(ServerChannelTestCase):
    """A client that asks, and does not take the answers."""

    def setUp(self) -> None:
        """A client that has an image open, and whose connection is full."""
        super().setUp()
        self.sent = self.transfer()
        self.handle = 1
        self.connection_is(full=True)

    def connection_is(self, full: bool) -> None:
        """The connection's buffer is full, or has room."""
        producer = self.wire.producer
        assert producer is not None
        if full:
            producer.pauseProducing()
        else:
            producer.resumeProducing()

    def written(self) -> int:
        """Bytes that the server holds for the client."""
        return len(self.wire.value())

    def test_reads_over_tcp(self) -> None:
        """Reads over TCP wait until the client takes what it asked for."""
        for block in range(3):
            read = Read(9, self.handle, block * BLOCK, BLOCK, Priority.BLOCKED, True)
            self.channel.dataReceived(read.encode())
        self.assertLessEqual(self.written(), BLOCK)
        self.connection_is(full=False)
        self.assertGreater(self.written(), 3 * BLOCK)

    def test_repairs_over_tcp(self) -> None:
        """Repairs over TCP do not heap up: no small packet makes the server hold 128 KiB more."""
        for _ in range(200):
            self.channel.dataReceived(Repair(7, self.sent.transfer, 2, (1 << 94) - 1).encode())
        self.assertLessEqual(self.written(), 2 * BLOCK)

    def test_requests(self) -> None:
        """No more requests are taken in from a client that does not take the answers."""
        self.assertEqual(self.wire.producerState, "paused")
        self.connection_is(full=False)
        self.assertEqual(self.wire.producerState, "producing")

    def test_requests_in_flight(self) -> None:
        """No more requests are taken in than can be answered in some time."""
        server = Server(at_once=False)
        channel, wire = server.connect()
        for tag in range(20_000):
            if wire.producerState == "paused":
                break
            channel.dataReceived(pack_tagged(Type.GETATTR, tag, encode(At(b"disk.img"))))
        self.assertEqual(wire.producerState, "paused")
        while server.asked:
            server.answer()
        self.assertEqual(wire.producerState, "producing")

    def test_same_read_again_and_again(self) -> None:
        """Reads of the same range, ever again, cost the server no more than each its tag."""
        self.server.controller._idle = False
        packets = b"".join(
            Read(tag, self.handle, BLOCK, BLOCK, Priority.BLOCKED).encode()
            for tag in range(1, 20_001)
        )
        began = process_time()
        self.channel.dataReceived(packets)
        self.assertLess(process_time() - began, 1.5)
        self.assertEqual(len(self.server.queue), 1)


class AnySequenceTests(SynchronousTestCase):
    """Whatever a client sends."""

    @examples(150)
    @given(packets=st.lists(FROM_CLIENTS, max_size=30), hello=st.booleans())
    def test_any_packets(self, packets: list[bytes], hello: bool) -> None:
        """Nothing is raised or logged, all that is written is packets, and others are served."""
        server = Server()
        channel, wire = server.connect(hello)
        other, its_wire = server.connect()
        for packet in packets:
            if wire.ended:
                break
            channel.dataReceived(packet)
            server.clock.advance(0.001)
            for kind, _, data in wire.packets():
                self.assertGreaterEqual(kind, 128)
                parse_tagged(data)
        channel.connectionLost(Error(ConnectionLost()))
        server.clock.advance(1)
        other.dataReceived(pack_tagged(Type.OPEN, 1, encode(At(b"disk.img"))))
        other.dataReceived(Read(2, 1, 0, SIZE, Priority.BLOCKED).encode())
        server.clock.advance(1)
        told = [Sent.parse(o, data) for kind, o, data in its_wire.packets() if kind == Type.SENT]
        self.assertGreaterEqual(sum(sent.length for sent in told), SIZE)
        self.assertEqual(len(server.queue), 0)
        self.assertEqual(self.flushLoggedErrors(), [])

    @examples(50)
    @given(data=st.binary(max_size=400), step=st.integers(1, 50))
    def test_any_bytes(self, data: bytes, step: int) -> None:
        """The same for bytes that are not even packets, however they are cut."""
        server = Server()
        channel, wire = server.connect()
        for start in range(0, len(data), step):
            if not wire.ended:
                channel.dataReceived(data[start : start + step])
        channel.connectionLost(Error(ConnectionLost()))
        self.assertEqual(server.factory.channels, set())
        self.assertEqual(self.flushLoggedErrors(), [])
