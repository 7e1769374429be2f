"""The client's end of the request channel, with a server that violates the protocol."""

from __future__ import annotations

import errno
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure as Error
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.channel import (
    ANSWER_TIMEOUT,
    ChannelLost,
    ClientChannel,
    IChannelUser,
    Refused,
)
from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.pull import PROGRESS_INTERVAL, Pulls
from mufs.filesystem.client.remote import RemoteFileSystem
from mufs.filesystem.client.server_pulls import KEY_DELAY, MAX_SERVER_PULLS, ServerPulls
from mufs.test.support.doubles import FakeTransport
from mufs.test.support.memory import MemoryImage
from mufs.test.support.peers import from_servers, opened
from mufs.test.support.properties import examples
from mufs.test.support.virtual import VirtualTime
from mufs.wire.channel import (
    HEADER,
    MAX_DATA,
    Data,
    Gone,
    Occasion,
    Priority,
    Read,
    Sent,
    Type,
    pack,
    pack_tagged,
)
from mufs.wire.metadata import (
    VERSION,
    At,
    Attributes,
    Failure,
    Hello,
    Link,
    Names,
    Pull,
    Pulled,
    Welcome,
    decode,
    encode,
)
from mufs.wire.pages import BLOCK, EXTENT, PAGE
from mufs.wire.segments import SEGMENT

WELCOME = encode(Welcome(VERSION, "239.5.5.0", 7041, ("10.0.0.1", 40000), SEGMENT))
IMAGE = MemoryImage(5, 6, bytes(3 * BLOCK) + b"the end")
ANSWERS = [
    Type.WELCOME,
    Type.REPLY,
    Type.MORE,
    Type.ERROR,
    Type.SENT,
    Type.DATA,
    Type.SEGMENTS,
    Type.GONE,
    Type.PONG,
    Type.PULL,
]


class Client:
    """A client without sockets, mount and threads."""

    def __init__(self) -> None:
        self.clock = VirtualTime()
        self.welcomes = 0
        self.refused: list[Refused] = []
        self.cache = BlockCache(4 * BLOCK)
        self.remote = RemoteFileSystem(
            self.clock,
            self.cache,
            BLOCK,
            on_welcome=self.welcomed,
            on_moved=lambda welcome: self.remote.receiver.follow(welcome.source),
            on_refused=self.refused.append,
        )
        self.pulls = Pulls(self.remote, self.cache, self.clock)
        self.remote.server_pulls = ServerPulls(self.pulls, self.clock, self.remote.send)
        self.connect()

    def connect(self) -> None:
        """Connect or reconnect."""
        self.channel, self.wire = ClientChannel(self.remote, self.clock, "host"), FakeTransport()
        self.channel.makeConnection(self.wire)

    def welcomed(self, channel: ClientChannel, welcome: Welcome) -> None:
        """Handle WELCOME as L{mufs.client.ClientMount} does."""
        self.welcomes += 1
        self.remote.receiver.listen_to(welcome.source, welcome.segment)
        self.remote.multicast_health.available()

    def lose(self) -> None:
        """End the connection."""
        self.channel.connected = 0
        self.channel.connectionLost(Error(ConnectionLost()))


class HostileServerTestCase(SynchronousTestCase):
    """Has a client that has received WELCOME."""

    def setUp(self) -> None:
        """Connect a client, and answer its HELLO."""
        self.client = Client()
        self.greet()

    def tearDown(self) -> None:
        """Check that no failure was logged."""
        self.assertEqual(self.flushLoggedErrors(), [])

    def greet(self) -> None:
        """Answer HELLO with a valid WELCOME."""
        self.say(pack_tagged(Type.WELCOME, 0, WELCOME))

    def say(self, *packets: bytes) -> list[tuple[int, int, bytes]]:
        """Send packets to the client, and return its answers: type, tag, body."""
        self.client.channel.dataReceived(b"".join(packets))
        self.client.clock.advance(0)
        return self.client.wire.tagged()

    def assert_closes(self, *packets: bytes) -> None:
        """Assert that these packets end the connection."""
        self.say(*packets)
        self.assertTrue(self.client.wire.ended)

    def ask(self, kind: Type, answer: type[Any]) -> tuple[Deferred[Any], int]:
        """Make a request, and return its result and its tag."""
        self.client.wire.packets()
        request: Deferred[Any] = self.client.channel.ask(kind, At(b"x"), answer)
        ((_, tag, _),) = self.client.wire.tagged()
        return request, tag

    def open(self) -> OpenImage:
        """Open the image."""
        self.client.wire.packets()
        opening = self.client.remote.open(b"disk.img")
        ((kind, tag, _),) = self.client.wire.tagged()
        self.assertEqual(kind, Type.OPEN)
        self.say(pack_tagged(Type.REPLY, tag, encode(opened(1, IMAGE))))
        return self.client.remote.opened(self.successResultOf(opening)[0])

    def read(self, offset: int = 0, length: int = PAGE) -> tuple[Deferred[bytes], int]:
        """Read from the image, and return the result and the tag of the READ."""
        image = self.open()
        target = bytearray(length)
        done = self.client.remote.reader.read(image, offset, memoryview(target))
        reading = done.addCallback(lambda length: bytes(target[:length]))
        ((_, at, body),) = [p for p in self.client.wire.packets() if p[0] == Type.READ]
        return reading, Read.parse(at, body).tag


class GreetingTests(HostileServerTestCase):
    """The first exchange."""

    def setUp(self) -> None:
        """Connect a client, without answering its HELLO."""
        self.client = Client()

    def test_hello(self) -> None:
        """The client speaks first, and gives its version and name."""
        verifyObject(IChannelUser, self.client.remote)
        ((kind, _, body),) = self.client.wire.tagged()
        self.assertEqual(kind, Type.HELLO)
        self.assertEqual(decode(Hello, body), Hello(VERSION, "host"))

    def test_welcome(self) -> None:
        """The client is connected from WELCOME until the connection ends."""
        self.assertFalse(self.client.remote.is_connected)
        self.greet()
        self.assertTrue(self.client.remote.is_connected)
        self.client.lose()
        self.assertFalse(self.client.remote.is_connected)

    def test_refused(self) -> None:
        """An ERROR instead of WELCOME is reported with its text, and ends the connection."""
        self.assert_closes(
            pack_tagged(Type.ERROR, 0, encode(Failure("EPROTONOSUPPORT", "speaks version 9")))
        )
        self.assertEqual([str(reason) for reason in self.client.refused], ["speaks version 9"])
        self.client.lose()
        self.assertEqual(self.client.welcomes, 0)

    def test_malformed(self) -> None:
        """A malformed WELCOME ends the connection, and is not reported."""
        for body in (
            b"",
            b"\xc1",
            WELCOME[:-1],
            WELCOME + b"x",
            encode({"version": 1}),
            *(encode(Welcome(VERSION, "g", 1, ("s", 1), segment)) for segment in (0, 63, 1401)),
            encode(Welcome(VERSION, "g", 65536, ("s", 1), SEGMENT)),
        ):
            self.client = Client()
            self.assert_closes(pack_tagged(Type.WELCOME, 0, body))
            self.assertEqual(self.client.welcomes, 0)

    def test_anything_before(self) -> None:
        """Any other packet before WELCOME is ignored, and ends the connection."""
        for packet in [
            Sent(1, 1, 0, 0, BLOCK).encode(),
            Data(5, 6, 0, bytes(PAGE)).encode(),
            Gone(1, 1).encode(),
            *(
                pack_tagged(kind, 1, b"")
                for kind in ANSWERS
                if kind not in (Type.WELCOME, Type.ERROR, Type.SENT, Type.DATA, Type.GONE)
            ),
        ]:
            self.client = Client()
            self.assert_closes(packet)
            self.assertEqual(self.client.remote.reads.bytes_over_tcp, 0)

    def test_never(self) -> None:
        """The client closes a connection without WELCOME after ANSWER_TIMEOUT."""
        self.client.clock.advance(ANSWER_TIMEOUT - 0.1)
        self.assertFalse(self.client.wire.ended)
        self.client.clock.advance(ANSWER_TIMEOUT)
        self.assertTrue(self.client.wire.disconnected)
        self.client.lose()
        self.assertEqual(self.client.clock.getDelayedCalls(), [])


class FramingTests(HostileServerTestCase):
    """Bytes that are not packets, and packets of unknown types."""

    def test_garbage(self) -> None:
        """Bytes of another protocol end the connection."""
        self.assert_closes(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    def test_oversized(self) -> None:
        """A header with a length beyond the limit ends the connection at once."""
        for kind in (*ANSWERS, 0, 255):
            self.setUp()
            self.assert_closes(HEADER.pack(kind, 0, MAX_DATA + 1))

    def test_unknown_types(self) -> None:
        """A type that no server sends ends the connection, HELLO included."""
        for kind in set(range(256)) - set(ANSWERS):
            self.setUp()
            self.assert_closes(pack_tagged(kind, 1, WELCOME))

    def test_without_tag(self) -> None:
        """A packet without data is malformed, whatever its type."""
        for kind in ANSWERS:
            self.setUp()
            self.assert_closes(pack(kind))

    def test_after_the_end(self) -> None:
        """Data that arrive while the connection is closing are neither parsed nor kept."""
        self.assert_closes(HEADER.pack(Type.PONG, 0, MAX_DATA + 1))
        for _ in range(100):
            self.say(Data(5, 6, 0, bytes(60_000)).encode())
        self.assertEqual(self.client.remote.reads.bytes_over_tcp, 0)
        self.assertLessEqual(len(self.client.channel._framer._buffer), HEADER.size + MAX_DATA)

    def test_held_bytes(self) -> None:
        """At most one packet is buffered, whatever a server announces and sends."""
        self.say(HEADER.pack(Type.PONG, 0, MAX_DATA))
        for _ in range(MAX_DATA // 1000):
            self.say(bytes(1000))
        self.assertLessEqual(len(self.client.channel._framer._buffer), HEADER.size + MAX_DATA)


class AnswerTests(HostileServerTestCase):
    """Answers to requests about metadata."""

    def test_of_another_kind(self) -> None:
        """An answer of the wrong class ends the connection, and fails the request."""
        request, tag = self.ask(Type.GETATTR, Attributes)
        self.assert_closes(pack_tagged(Type.REPLY, tag, encode(Link(b"there"))))
        self.assertNoResult(request)
        self.client.lose()
        self.failureResultOf(request, ChannelLost)

    def test_unknown_tag(self) -> None:
        """Answers to unknown requests are ignored."""
        for kind in (Type.REPLY, Type.MORE):
            self.say(pack_tagged(kind, 4711, encode(Names([]))))
        self.say(pack_tagged(Type.ERROR, 4711, encode(Failure("EIO"))))
        self.assertFalse(self.client.wire.ended)

    def test_twice(self) -> None:
        """The second answer to a request is ignored."""
        request, tag = self.ask(Type.READLINK, Link)
        answer = pack_tagged(Type.REPLY, tag, encode(Link(b"there")))
        self.say(answer, answer, pack_tagged(Type.ERROR, tag, encode(Failure("EIO"))))
        self.assertEqual(self.successResultOf(request), Link(b"there"))
        self.assertFalse(self.client.wire.ended)

    def test_errors(self) -> None:
        """Unknown error names become EIO, known ones the errno of that name."""
        for name, number in [
            ("ENOENT", errno.ENOENT),
            ("EFANCY", errno.EIO),
            ("", errno.EIO),
            ("open", errno.EIO),
        ]:
            request, tag = self.ask(Type.READLINK, Link)
            self.say(pack_tagged(Type.ERROR, tag, encode(Failure(name))))
            self.assertEqual(self.failureResultOf(request, OSError).value.errno, number)

    def test_malformed_error(self) -> None:
        """A malformed error ends the connection."""
        self.assert_closes(pack_tagged(Type.ERROR, 1, b"\xc1"))

    def test_parts(self) -> None:
        """The parts of a listing are joined; malformed parts end the connection."""
        request, tag = self.ask(Type.READDIR, Names)
        entry = (b"name", IMAGE.attributes)
        self.say(pack_tagged(Type.MORE, tag, encode(Names([entry]))))
        self.say(pack_tagged(Type.REPLY, tag, encode(Names([entry]))))
        self.assertEqual(len(self.successResultOf(request).entries), 2)
        _, tag = self.ask(Type.READDIR, Names)
        self.assert_closes(pack_tagged(Type.MORE, tag, encode(Names([(b"", entry[1])]))))

    def test_parts_of_what_has_none(self) -> None:
        """MORE for a request whose answer has no parts ends the connection."""
        _, tag = self.ask(Type.GETATTR, Attributes)
        self.assert_closes(pack_tagged(Type.MORE, tag, encode(Names([]))))

    def test_asked_again(self) -> None:
        """Requests pending at the end of a connection are repeated on the next one."""
        answer = self.client.remote.getattr(b"disk.img")
        self.client.lose()
        self.client.connect()
        self.client.wire.packets()
        ((kind, tag, _),) = self.say(pack_tagged(Type.WELCOME, 0, WELCOME))
        self.assertEqual(kind, Type.GETATTR)
        self.say(pack_tagged(Type.REPLY, tag, encode(IMAGE.attributes)))
        self.assertEqual(self.successResultOf(answer), IMAGE.attributes)


class ReadTests(HostileServerTestCase):
    """Answers to a READ."""

    def test_unknown_tags(self) -> None:
        """Packets about unknown requests change nothing."""
        self.open()
        for occasion in Occasion:
            self.say(Sent(4711, 1, 0, 0, BLOCK, occasion).encode())
        self.say(Gone(4711, 1).encode())
        self.client.clock.advance(1)
        self.assertEqual(self.client.wire.packets(), [])
        self.assertFalse(self.client.wire.ended)

    def test_data(self) -> None:
        """DATA with what was requested ends the read."""
        reading, _ = self.read()
        self.say(Data(5, 6, 0, bytes(PAGE)).encode())
        self.assertEqual(self.successResultOf(reading), bytes(PAGE))

    def test_misaligned_data(self) -> None:
        """DATA that is misaligned, empty or crosses a block boundary ends the connection."""
        for packet in (
            Data(5, 6, 1, bytes(PAGE)),
            Data(5, 6, 0, b""),
            Data(5, 6, BLOCK - PAGE, bytes(2 * PAGE)),
        ):
            self.setUp()
            self.read()
            self.assert_closes(packet.encode())

    def test_part_of_a_page(self) -> None:
        """DATA that ends within a page ends the connection, and is not kept."""
        for length in (1, 100, PAGE - 1, PAGE + 1):
            self.setUp()
            reading, _ = self.read(0, PAGE)
            self.say(Data(5, 6, 0, bytes(length)).encode())
            if reading.called:
                self.assertEqual(len(self.successResultOf(reading)), PAGE)
                self.assertGreaterEqual(length, PAGE)
            self.assertFalse(self.is_held(PAGE))
            self.assertTrue(self.client.wire.ended)

    def is_held(self, offset: int) -> bool:
        """Return whether a page of the image is in the cache."""
        image, target = self.image(), memoryview(bytearray(PAGE))
        reader = self.client.remote.reader
        return reader.read_cached(image, offset, target, cross=lambda *_: None) is not None

    def image(self) -> OpenImage:
        """The open image."""
        (found,) = self.client.remote._open
        return found

    def test_part_of_a_page_repeated(self) -> None:
        """DATA that ends within a page ends the connection even if the page was not requested."""
        reading, _ = self.read(0, PAGE)
        self.say(Data(5, 6, 0, bytes(PAGE)).encode())
        self.successResultOf(reading)
        self.say(Data(5, 6, PAGE, b"short").encode())
        self.assertFalse(self.is_held(PAGE))

    def test_end_of_the_image(self) -> None:
        """DATA may end within a page at the end of the image."""
        reading, _ = self.read(3 * BLOCK, PAGE)
        self.say(Data(5, 6, 3 * BLOCK, b"the end").encode())
        self.assertEqual(self.successResultOf(reading), b"the end")
        self.assertFalse(self.client.wire.ended)

    def test_other_images(self) -> None:
        """DATA of images that are not open evicts nothing."""
        reading, _ = self.read()
        self.say(Data(5, 6, 0, bytes(PAGE)).encode())
        self.successResultOf(reading)
        for block in range(100):
            self.say(Data(77, 1, block * BLOCK, bytes(PAGE)).encode())
        self.assertTrue(self.is_held(0))

    def test_segments(self) -> None:
        """Malformed segments are dropped and counted, or end the connection."""
        self.open()
        for body in (b"\0" * 12, b"\0\0\0\2\xff\xff\xff\xff\0\0\0\0", bytes(1000), b"x"):
            self.say(pack_tagged(Type.SEGMENTS, 1, body))
        dropped = self.client.remote.receiver.datagrams_dropped
        self.assertTrue(dropped == 4 or self.client.wire.ended)

    def test_malformed_words(self) -> None:
        """A malformed SENT or GONE ends the connection."""
        good = Sent(1, 1, 0, 0, BLOCK).encode()
        for packet in (
            Sent(1, 1, 0, 0, 0).encode(),
            Sent(1, 1, 0, 0, EXTENT + 1).encode(),
            good[:-1] + b"\x04",
            pack(Type.SENT, good[HEADER.size :] + b"x"),
            pack(Type.GONE, bytes(11)),
            pack(Type.GONE, bytes(13)),
        ):
            self.setUp()
            self.read()
            self.assert_closes(packet)

    def test_sent_elsewhere(self) -> None:
        """SENT with another range is not an answer, and causes no request."""
        reading, tag = self.read()
        self.say(Sent(tag, 1, 0, (1 << 64) - BLOCK, BLOCK).encode())
        self.say(Sent(tag, 1, 0, 2 * BLOCK, BLOCK, Occasion.TCP).encode())
        self.client.clock.advance(0.05)
        self.assertEqual(self.client.wire.packets(), [])
        self.assertNoResult(reading)

    def test_gone_again_and_again(self) -> None:
        """Each GONE causes one new request."""
        _, tag = self.read()
        for _ in range(50):
            ((_, tag, _),) = self.say(Gone(tag, 1).encode())
        self.assertEqual(len(self.client.remote.reads.in_flight.requests), 1)

    def test_false_sent(self) -> None:
        """Data that never arrive despite SENT are requested as a repair, and then over TCP."""
        reading, tag = self.read()
        kinds = []
        for occasion in (Occasion.NOW, Occasion.REPAIR, Occasion.TCP):
            self.say(Sent(tag, 1, 0, 0, BLOCK, occasion).encode())
            self.client.clock.advance(0.05)
            kinds += [kind for kind, _, _ in self.client.wire.packets()]
        self.assertIn(Type.READ, kinds)
        self.assertLessEqual(len(kinds), 3)
        self.assertNoResult(reading)

    def test_others_over_tcp(self) -> None:
        """A read falls back to TCP even if others have done so for other pages of its block."""
        image, offsets = self.open(), []
        for page in (0, 8):
            target = memoryview(bytearray(PAGE))
            self.client.remote.reader.read(image, page * PAGE, target)
            self.client.clock.advance(1)
        self.client.clock.advance(2.5)
        for kind, offset, body in self.client.wire.packets():
            if kind == Type.READ and Read.parse(offset, body).over_tcp:
                offsets.append(offset)
        self.assertEqual(offsets, [0, 8 * PAGE])

    def test_error_twice(self) -> None:
        """
        After an error a read makes one more request, over TCP and for its own range, and fails
        with the error of that request. Further errors are ignored.
        """
        reading, first = self.read()
        error = encode(Failure("EIO"))
        ((kind, again, rest),) = self.say(*[pack_tagged(Type.ERROR, first, error)] * 2)
        self.assertEqual((kind, rest[-1] & 0x80), (Type.READ, 0x80))
        self.assertNoResult(reading)
        self.assertEqual(self.say(*[pack_tagged(Type.ERROR, again, error)] * 2), [])
        self.assertEqual(self.failureResultOf(reading, OSError).value.errno, errno.EIO)
        self.assertFalse(self.client.wire.ended)


class PullTests(HostileServerTestCase):
    """Pulls requested by a server."""

    def tearDown(self) -> None:
        """Check that the pulls end with the connection."""
        self.client.lose()
        self.client.clock.advance(2 * PROGRESS_INTERVAL)
        self.assertEqual(self.client.remote.server_pulls._running, {})
        self.assertEqual(self.client.pulls._running, [])
        super().tearDown()

    def pull(self, number: int, path: bytes = b"disk.img") -> list[tuple[Type, int]]:
        """Request a pull, and return the types and tags of the client's packets."""
        sent = self.say(pack(Type.PULL, encode(Pull(number, path))))
        return [(Type(kind), tag) for kind, tag, _ in sent]

    def pulled(self) -> list[Pulled]:
        """Return the reports on pulls since the last call."""
        return [
            decode(Pulled, body)
            for kind, _, body in self.client.wire.packets()
            if kind == Type.PULLED
        ]

    def test_pull(self) -> None:
        """The image is opened, then requested in the background, and reported."""
        ((kind, tag),) = self.pull(7)
        self.assertEqual(kind, Type.GETATTR)
        ((opens, tag, _),) = self.say(pack_tagged(Type.REPLY, tag, encode(IMAGE.attributes)))
        self.assertEqual(opens, Type.OPEN)
        self.assertEqual(self.say(pack_tagged(Type.REPLY, tag, encode(opened(1, IMAGE)))), [])
        self.client.clock.advance(KEY_DELAY)
        size, reads = len(IMAGE.content), []
        while packets := [p for p in self.client.wire.packets() if p[0] == Type.READ]:
            for _, at, body in packets:
                read = Read.parse(at, body)
                reads.append((read.offset, read.length, read.priority))
                for start in range(read.offset, read.offset + read.length, BLOCK // 2):
                    data = IMAGE.content[start : start + BLOCK // 2]
                    self.client.channel.dataReceived(Data(5, 6, start, data).encode())
        self.assertEqual(
            reads,
            [
                (start, min(BLOCK, size - start), Priority.BACKGROUND)
                for start in range(0, size, BLOCK)
            ],
        )
        self.client.clock.advance(PROGRESS_INTERVAL)
        self.assertEqual(self.pulled(), [Pulled(7, size, size, True)])

    def test_told(self) -> None:
        """The server gets a report each second."""
        ((_, tag),) = self.pull(7)
        self.client.clock.advance(PROGRESS_INTERVAL)
        self.assertEqual(self.pulled(), [Pulled(7, 0, 0, False)])
        ((_, tag, _),) = self.say(pack_tagged(Type.REPLY, tag, encode(IMAGE.attributes)))
        self.say(pack_tagged(Type.REPLY, tag, encode(opened(1, IMAGE))))
        self.client.clock.advance(PROGRESS_INTERVAL)
        self.assertEqual(self.pulled(), [Pulled(7, 0, len(IMAGE.content), False)])

    def test_too_many(self) -> None:
        """Too many concurrent pulls end the connection."""
        for number in range(MAX_SERVER_PULLS):
            self.pull(number, b"%d" % number)
        self.assertFalse(self.client.wire.ended)
        self.pull(99, b"x")
        self.assertTrue(self.client.wire.ended)

    def test_twice(self) -> None:
        """A pull number in use ends the connection; the same image is not pulled twice."""
        self.pull(1)
        self.assertEqual(self.pull(2), [])
        self.client.clock.advance(PROGRESS_INTERVAL)
        ended = [each for each in self.pulled() if each.ended]
        self.assertEqual(ended, [Pulled(2, 0, 0, True, "it is being pulled already")])
        self.assert_closes(pack(Type.PULL, encode(Pull(1, b"other"))))

    def test_without_end(self) -> None:
        """Pulls that are cancelled or refused immediately cause a bounded number of packets."""
        sent = 0
        for number in range(10 * MAX_SERVER_PULLS):
            path = b"%d" % number
            sent += len(self.pull(number, path)) + len(self.pull(number, b""))
            if self.client.wire.ended:
                break
        self.assertEqual(sent, MAX_SERVER_PULLS)
        self.assertTrue(self.client.wire.ended)

    def test_too_large(self) -> None:
        """An image larger than the cache is not opened."""
        ((_, tag),) = self.pull(1)
        large = evolve(IMAGE.attributes, size=9 * BLOCK, blocks=4 * BLOCK // 512 + 1)
        self.assertEqual(self.say(pack_tagged(Type.REPLY, tag, encode(large))), [])
        self.client.clock.advance(PROGRESS_INTERVAL)
        ended = Pulled(1, 0, 0, True, "the image has 512.5 KiB of data, the cache 512.0 KiB")
        self.assertEqual(self.pulled(), [ended])

    def test_given_up(self) -> None:
        """A cancelled pull ends, even while its image is being opened; another one may follow."""
        self.pull(1)
        self.assertEqual(self.pull(1, b""), [])
        self.client.clock.advance(PROGRESS_INTERVAL)
        self.assertEqual(self.pulled(), [Pulled(1, 0, 0, True, "interrupted")])
        self.assertEqual([kind for kind, _ in self.pull(1)], [Type.GETATTR])
        self.assertEqual(self.pull(9, b""), [])


class SilenceTests(HostileServerTestCase):
    """A server that stops answering."""

    def test_asked_for_life(self) -> None:
        """A silent server is sent PINGs, and disconnected if it does not answer."""
        sent = []
        for _ in range(int(4 * ANSWER_TIMEOUT)):
            self.client.clock.advance(0.5)
            sent += [kind for kind, _, _ in self.client.wire.packets()]
        self.assertTrue(self.client.wire.disconnected)
        self.assertIn(Type.PING, sent)

    def test_alive(self) -> None:
        """The connection to a server that answers PINGs is kept."""
        for _ in range(1000):
            self.client.clock.advance(1)
            for _, tag, _ in self.client.wire.tagged():
                self.say(pack_tagged(Type.PONG, tag, b""))
        self.assertFalse(self.client.wire.ended)


class AnySequenceTests(SynchronousTestCase):
    """Arbitrary packets and bytes."""

    @examples(150)
    @given(
        packets=st.lists(from_servers(IMAGE.image, IMAGE.generation), max_size=30),
        welcomed=st.booleans(),
        pause=st.sampled_from([0.0, 0.02, 1.0]),
    )
    def test_any_packets(self, packets: list[bytes], welcomed: bool, pause: float) -> None:
        """Arbitrary packets cause no failure, and the client sends packets and can reconnect."""
        client = Client()
        reads: list[Deferred[int]] = []
        if welcomed:
            client.channel.dataReceived(pack_tagged(Type.WELCOME, 0, WELCOME))
            opening = client.remote.open(b"disk.img")
            tag = client.wire.tagged()[-1][1]
            client.channel.dataReceived(pack_tagged(Type.REPLY, tag, encode(opened(1, IMAGE))))
            image = client.remote.opened(self.successResultOf(opening)[0])
            for block in range(3):
                target = memoryview(bytearray(BLOCK))
                reads.append(client.remote.reader.read(image, block * BLOCK, target))
                reads[-1].addErrback(lambda failure: failure.trap(OSError))
        for packet in packets:
            if client.wire.ended:
                break
            client.channel.dataReceived(packet)
            client.clock.advance(pause)
            client.wire.packets()
        client.lose()
        client.clock.advance(1)
        client.connect()
        client.channel.dataReceived(pack_tagged(Type.WELCOME, 0, WELCOME))
        self.assertTrue(client.remote.is_connected)
        self.assertLessEqual(client.cache.held, 4 * BLOCK)
        self.assertEqual(self.flushLoggedErrors(), [])

    @examples(50)
    @given(data=st.binary(max_size=400), step=st.integers(1, 50))
    def test_any_bytes(self, data: bytes, step: int) -> None:
        """Arbitrary bytes cause no failure, however they are cut."""
        client = Client()
        client.channel.dataReceived(pack_tagged(Type.WELCOME, 0, WELCOME))
        for start in range(0, len(data), step):
            if not client.wire.ended:
                client.channel.dataReceived(data[start : start + step])
        client.lose()
        self.assertEqual(self.flushLoggedErrors(), [])
