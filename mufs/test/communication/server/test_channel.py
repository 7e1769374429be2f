"""The server's end of the request channel, and clients that break the protocol."""

from __future__ import annotations

from time import process_time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure as Error
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mufs.communication.server.clients import IClient
from mufs.communication.server.limits import HELLO_TIMEOUT, IDLE_TIMEOUT
from mufs.test.support.channels import HELLO, SIZE, Server, ServerChannelTestCase
from mufs.test.support.peers import FROM_CLIENTS
from mufs.test.support.properties import examples
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
    Close,
    Failure,
    Hello,
    Report,
    Welcome,
    decode,
    encode,
)
from mufs.wire.pages import BLOCK, EXTENT, PAGE
from mufs.wire.segments import ANNOUNCEMENT, SEGMENT, parse, segment_count

REQUEST_TYPES = (
    Type.GETATTR,
    Type.READDIR,
    Type.READLINK,
    Type.OPEN,
    Type.CLOSE,
    Type.STATFS,
    Type.READ,
    Type.REPAIR,
    Type.PING,
)


class HelloTests(ServerChannelTestCase):
    """The first exchange."""

    def setUp(self) -> None:
        """A server and a client that has said nothing yet."""
        self.server = Server()
        self.channel, self.wire = self.server.connect(hello=False)

    def test_interfaces(self) -> None:
        """The channel is a client, which the queue takes for a reader and a push for its target."""
        self.send(HELLO)
        verifyObject(IClient, self.channel)

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

    def test_max_transfer(self) -> None:
        """A client says what its receive buffer takes, which counts in whole blocks."""
        for said, counts in ((EXTENT, EXTENT), (3 * BLOCK - 1, 2 * BLOCK), (BLOCK, BLOCK)):
            channel, _ = self.server.connect(hello=False)
            self.assertEqual(channel.max_transfer, BLOCK)
            channel.dataReceived(pack_tagged(Type.HELLO, 5, encode(Hello(VERSION, "a", said))))
            self.assertEqual(channel.max_transfer, counts)

    def test_moved(self) -> None:
        """A client is told once where the group's datagrams come from now, if it was welcomed."""
        self.channel.tell_welcome(Welcome(VERSION, "239.5.5.0", 7041, ("10.0.0.2", 1), SEGMENT))
        self.assertEqual(self.wire.packets(), [])
        self.send(HELLO)
        moved = Welcome(VERSION, "239.5.5.0", 7041, ("10.0.0.3", 40000), SEGMENT)
        for _ in range(2):
            self.channel.tell_welcome(moved)
        ((kind, tag, body),) = self.wire.tagged()
        self.assertEqual((kind, tag, decode(Welcome, body)), (Type.WELCOME, 0, moved))

    def test_expelled(self) -> None:
        """When a client is cut off, the others get new keys; not when it never said HELLO."""
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
        """What such a client sends after that is ignored."""
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
        """A malformed HELLO ends the connection."""
        for body in (b"", b"\0\0\0", b"\0\0\0\0", b"\0\0\0\0\x80", bytes(4) + encode("hello")):
            self.channel, self.wire = self.server.connect(hello=False)
            self.assert_closes(pack(Type.HELLO, body))

    def test_twice(self) -> None:
        """A second HELLO ends the connection."""
        self.send(HELLO)
        self.assert_closes(HELLO)

    def test_never(self) -> None:
        """A connection on which HELLO does not come whole ends after a while."""
        self.send(HELLO[:2])
        for _ in range(int(HELLO_TIMEOUT) - 1):
            self.server.clock.advance(0.98)
            self.assertEqual(self.send(b""), [])
        self.assertFalse(self.wire.ended)
        self.server.clock.advance(1.5)
        self.assertTrue(self.wire.ended)

    def test_in_time(self) -> None:
        """A client that was welcomed may be idle for ever, as long as it sends PING."""
        self.send(HELLO)
        for _ in range(100):
            self.server.clock.advance(IDLE_TIMEOUT - 1)
            self.send(pack_tagged(Type.PING, 1, b""))
        self.assertFalse(self.wire.ended)

    def test_lost_before(self) -> None:
        """A connection that ends before HELLO leaves no timer behind."""
        self.channel.connectionLost(Error(ConnectionLost()))
        self.assertEqual(self.server.clock.getDelayedCalls(), [])
        self.assertEqual(self.server.factory.channels, set())


class FramingTests(ServerChannelTestCase):
    """Bytes that are not packets, and packets that come in parts."""

    def test_garbage(self) -> None:
        """Bytes of another protocol end the connection."""
        self.assert_closes(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")

    def test_oversized(self) -> None:
        """A header with more data than a packet may have ends the connection at once."""
        for kind in (Type.GETATTR, Type.READ, 0, 255):
            self.channel, self.wire = self.server.connect()
            self.assert_closes(HEADER.pack(kind, 0, MAX_DATA + 1))

    def test_unknown_types(self) -> None:
        """A packet of a type that clients do not send ends the connection."""
        for kind in set(range(256)).difference(REQUEST_TYPES):
            self.channel, self.wire = self.server.connect()
            self.assert_closes(pack(kind, bytes(4)))

    def test_truncated(self) -> None:
        """A packet that comes byte by byte is answered when it is complete."""
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
        """No more than one packet is buffered, whatever a client announces and sends."""
        self.send(HEADER.pack(Type.GETATTR, 0, MAX_DATA))
        for _ in range(MAX_DATA // 1000):
            self.send(bytes(1000))
        self.assertLessEqual(len(self.channel._framer._buffer), HEADER.size + MAX_DATA)

    def test_after_the_end(self) -> None:
        """What comes while the connection is closing is neither handled nor buffered."""
        self.assert_closes(HEADER.pack(Type.PING, 0, MAX_DATA + 1))
        for _ in range(100):
            self.assertEqual(self.send(pack_tagged(Type.PING, 1, bytes(60_000))), [])
        self.assertLessEqual(len(self.channel._framer._buffer), HEADER.size + MAX_DATA)

    def test_empty_packets(self) -> None:
        """A packet without data is malformed, whatever its type."""
        for kind in REQUEST_TYPES:
            self.channel, self.wire = self.server.connect()
            self.assert_closes(pack(kind))


class ReportTests(ServerChannelTestCase):
    """What a client reports of itself."""

    def ping(self, body: bytes) -> list[tuple[int, int, bytes]]:
        """What is answered to a PING with this report."""
        return self.send(pack_tagged(Type.PING, 1, body))

    def test_kept(self) -> None:
        """The last report is kept, and a PING without one changes nothing."""
        self.assertIs(self.channel.report, None)
        for report in (Report(9, 5, 20, 700, True, "working"), Report(0, 0, 0, 0, False, "<b>&'")):
            self.assertEqual(self.ping(encode(report)), [(Type.PONG, 1, b"")])
            self.assertEqual(self.channel.report, report)
        self.assertEqual(self.ping(b""), [(Type.PONG, 1, b"")])
        self.assertEqual(self.channel.report, report)

    def test_delivered(self) -> None:
        """What readers were given is added up, for the client and for all together."""
        for delivered in (700, 0, 50):
            self.ping(encode(Report(9, 5, 20, delivered, True, "working")))
        self.assertEqual(self.channel.bytes_delivered, 750)
        self.channel, self.wire = self.server.connect()
        self.ping(encode(Report(9, 5, 20, 20, True, "working")))
        self.assertEqual(self.channel.bytes_delivered, 20)
        self.assertEqual(self.server.factory.bytes_delivered, 770)

    def test_malformed(self) -> None:
        """A malformed report ends the connection, and is not kept."""
        report = {
            "reads": 9, "hits": 5, "lag": 20, "delivered": 7, "works": True, "multicast": "working",
        }  # fmt: skip
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


class ReadTests(ServerChannelTestCase):
    """READ."""

    def test_multicast(self) -> None:
        """A READ is answered with a transfer to the group, and with SENT."""
        sent = self.transfer()
        self.assertEqual((sent.tag, sent.offset, sent.length), (7, 0, BLOCK))
        self.assertEqual(sent.occasion, Occasion.NOW)

    def test_over_tcp(self) -> None:
        """A READ over TCP is answered only on the connection."""
        handle = self.open().handle
        read = Read(7, handle, 0, SIZE, Priority.BLOCKED, True)
        packets = self.say(read.encode())
        self.assertEqual({kind for kind, _, _ in packets}, {Type.DATA})
        self.assertEqual(self.channel.bytes_over_tcp, SIZE)
        self.assertEqual(self.server.output.take_segments(), 0)

    def test_unknown_handle(self) -> None:
        """A READ of a handle that does not exist is answered with EBADF."""
        for handle in (0, 1, 0xFFFFFFFF):
            read = Read(3, handle, 0, 4096, Priority.BLOCKED)
            self.assert_error(self.send(read.encode()), 3, "EBADF")

    def test_past_the_end(self) -> None:
        """A READ that ends beyond the image is answered with EINVAL, however far beyond."""
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
        """A READ with undefined flags ends the connection."""
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
        """A READ that is not of whole pages is answered with EINVAL, except at the image's end."""
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
        """A fault in reading that is not an OSError is answered with EIO, and logged."""
        handle = self.open().handle
        image: Any = self.server.library.images[b"disk.img"]
        image.read = None
        for over_tcp in (False, True):
            for block in range(2):
                read = Read(8, handle, block * BLOCK, BLOCK, Priority.BLOCKED, over_tcp)
                self.assert_error(self.send(read.encode()), 8, "EIO")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 4)

    def test_forgotten(self) -> None:
        """What only a client waited for that has gone is not sent."""
        server = self.server
        handle = self.open().handle
        server.controller._idle = False
        self.send(Read(8, handle, 0, BLOCK, Priority.BLOCKED).encode())
        self.channel.connectionLost(Error(ConnectionLost()))
        server.controller._idle = True
        server.controller._wake()
        server.clock.advance(1)
        self.assertEqual(server.output.take_segments(), 0)
        self.assertEqual(len(server.queue), 0)


class RepairTests(ServerChannelTestCase):
    """REPAIR."""

    def test_multicast(self) -> None:
        """The first attempt sends the missing segments to the group, and is answered with SENT."""
        sent = self.transfer()
        ((_, offset, body),) = self.say(Repair(7, sent.transfer, 1, 0b1010).encode())
        self.assertEqual(Sent.parse(offset, body).occasion, Occasion.REPAIR)
        self.assertEqual(self.server.output.take_segments(), 2)

    def test_over_tcp(self) -> None:
        """The second attempt sends them on the connection, between announcement and completion."""
        sent = self.transfer()
        packets = self.send(Repair(7, sent.transfer, 2, 0b1010).encode())
        self.assertEqual([kind for kind, _, _ in packets], [Type.SEGMENTS] * 3 + [Type.SENT])
        (announcement,) = parse(packets[0][2])
        self.assertEqual(announcement[0], ANNOUNCEMENT)
        self.assertEqual(self.server.output.take_segments(), 0)

    def test_unknown_transfer(self) -> None:
        """A REPAIR of a transfer that is not held is answered with GONE."""
        for number in (0, 999, (1 << 64) - 1):
            for attempt in (1, 2):
                ((kind, offset, body),) = self.say(Repair(5, number, attempt, 1).encode())
                self.assertEqual(kind, Type.GONE)
                self.assertEqual(Gone.parse(offset, body), Gone(5, number))

    def test_not_opened(self) -> None:
        """A client that has not opened an image gets no segments of it, nor has them sent."""
        sent = self.transfer()
        self.channel, self.wire = self.server.connect()
        for tag, attempt in ((0, 1), (5, 1), (5, 2)):
            ((kind, offset, body),) = self.say(Repair(tag, sent.transfer, attempt, 3).encode())
            self.assertEqual(kind, Type.GONE)
            self.assertEqual(Gone.parse(offset, body), Gone(tag, sent.transfer))
        self.assertEqual(self.server.output.take_segments(), 0)
        handle = self.open().handle
        self.say(pack(Type.CLOSE, encode(Close(handle))))
        packets = self.send(Repair(5, sent.transfer, 2, 3).encode())
        self.assertEqual(packets[0][0], Type.SEGMENTS)

    def test_absurd_bitmap(self) -> None:
        """Bits of segments that the transfer does not have are ignored."""
        sent = self.transfer()
        absurd = (1 << 8 * (MAX_DATA // 64)) - 1
        self.say(Repair(7, sent.transfer, 1, absurd).encode())
        self.assertEqual(self.server.output.take_segments(), segment_count(BLOCK, SEGMENT))
        self.say(Repair(7, sent.transfer, 1, absurd - (1 << 200) + 1).encode())
        self.assertEqual(self.server.output.take_segments(), 0)
        packets = self.send(Repair(7, sent.transfer, 2, absurd).encode())
        size = sum(len(body) for _, _, body in packets)
        self.assertLess(size, BLOCK + 94 * 12 + 400)

    def test_empty_bitmap(self) -> None:
        """A REPAIR of nothing sends no segment, and does not end the connection."""
        sent = self.transfer()
        for attempt in (1, 2):
            self.say(Repair(7, sent.transfer, attempt, 0).encode())
        self.assertEqual(self.server.output.take_segments(), 0)
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
    """A client that sends requests, and does not read the answers."""

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
        """READs over TCP wait until the client reads what it asked for."""
        for block in range(3):
            read = Read(9, self.handle, block * BLOCK, BLOCK, Priority.BLOCKED, True)
            self.channel.dataReceived(read.encode())
        self.assertLessEqual(self.written(), BLOCK)
        self.connection_is(full=False)
        self.assertGreater(self.written(), 3 * BLOCK)

    def test_repairs_over_tcp(self) -> None:
        """Repairs over TCP do not pile up: a small packet does not make the server hold 128 KiB."""
        for _ in range(200):
            self.channel.dataReceived(Repair(7, self.sent.transfer, 2, (1 << 94) - 1).encode())
        self.assertLessEqual(self.written(), 2 * BLOCK)

    def test_requests(self) -> None:
        """No more requests are read from a client that does not read the answers."""
        self.assertEqual(self.wire.producerState, "paused")
        self.connection_is(full=False)
        self.assertEqual(self.wire.producerState, "producing")

    def test_same_read_again_and_again(self) -> None:
        """Repeated READs of the same range cost the server little more than their tags."""
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
        """Nothing is raised or logged, only packets are written, and other clients are served."""
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
        """The same for any bytes, however they are cut."""
        server = Server()
        channel, wire = server.connect()
        for start in range(0, len(data), step):
            if not wire.ended:
                channel.dataReceived(data[start : start + step])
        channel.connectionLost(Error(ConnectionLost()))
        self.assertEqual(server.factory.channels, set())
        self.assertEqual(self.flushLoggedErrors(), [])
