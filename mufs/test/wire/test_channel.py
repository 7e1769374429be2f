"""Packets of the request channel: table I to the byte."""

import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.properties import OFFSETS, U32, U64, examples
from mufs.wire.channel import (
    DATA_OVERHEAD,
    HEADER,
    MAX_DATA,
    MAX_READ,
    Data,
    Framer,
    Gone,
    Key,
    Occasion,
    Priority,
    ProtocolError,
    Read,
    Repair,
    Sent,
    Type,
    pack,
    pack_tagged,
    parse_tagged,
)
from mufs.wire.pages import BLOCK, PAGE

Packet = tuple[int, int, bytes]

VECTORS: "list[tuple[Type, Any, str]]" = [
    (
        Type.READ,
        Read(0x01020304, 0x11121314, 0x2122232425262728, 0x31323334 & 0xFFFFFF, Priority.AHEAD),
        "08 25262728 00000011 01020304 11121314 21222324 00323334 01",
    ),
    (
        Type.READ,
        Read(1, 2, 4096, 131072, Priority.BLOCKED, over_tcp=True),
        "08 00001000 00000011 00000001 00000002 00000000 00020000 80",
    ),
    (
        Type.REPAIR,
        Repair(0x01020304, 0x1112131415161718, 2, 0b1_00000000_10000001),
        "09 00000000 00000010 01020304 1112131415161718 02 810001",
    ),
    (
        Type.SENT,
        Sent(
            0x01020304, 0x1112131415161718, 0xFFFFFFFE, 0x2122232425262728, 4097, Occasion.TCP, 4096
        ),
        "85 25262728 0000001d 01020304 21222324 1112131415161718 fffffffe 00001001 00001000 03",
    ),
    (
        Type.DATA,
        Data(0x3132333435363738, 0x4142434445464748, 0x2122232425262000, b"bytes"),
        "86 25262000 0000001e 21222324 3132333435363738 4142434445464748 00000005 00 6279746573",
    ),
    (
        Type.GONE,
        Gone(0x01020304, 0x1112131415161718),
        "88 00000000 0000000c 01020304 1112131415161718",
    ),
    (
        Type.KEY,
        Key(0x01020304, bytes(range(32))),
        "8a 00000000 00000024 01020304 "
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    ),
]
PARSERS: "dict[Type, Callable[[int, bytes], Any]]" = {
    Type.READ: Read.parse,
    Type.REPAIR: Repair.parse,
    Type.SENT: Sent.parse,
    Type.DATA: Data.parse,
    Type.GONE: Gone.parse,
    Type.KEY: Key.parse,
}


def framed(packet: bytes) -> Packet:
    """The one packet that these bytes are."""
    (found,) = Framer().feed(packet)
    return found


SENT = "00000001 00000000 0000000000000001 00000000"
"""The first fields of a SENT."""


def data_of(length: int, encoding: int, packed: bytes) -> bytes:
    """The data of a DATA packet, of the first bytes of an image."""
    return bytes(20) + length.to_bytes(4, "big") + bytes([encoding]) + packed


class VectorTests(SynchronousTestCase):
    """Packets as bytes."""

    def test_types(self) -> None:
        """Every type has the number that it has on the wire."""
        expected = {
            "HELLO": 1,
            "GETATTR": 2,
            "READDIR": 3,
            "READLINK": 4,
            "OPEN": 5,
            "CLOSE": 6,
            "STATFS": 7,
            "READ": 8,
            "REPAIR": 9,
            "PING": 10,
            "WELCOME": 129,
            "REPLY": 130,
            "MORE": 131,
            "ERROR": 132,
            "SENT": 133,
            "DATA": 134,
            "SEGMENTS": 135,
            "GONE": 136,
            "PONG": 137,
            "KEY": 138,
            "PULLED": 11,
            "MAP": 12,
            "PULL": 139,
        }
        self.assertEqual({kind.name: kind.value for kind in Type}, expected)

    def test_header(self) -> None:
        """A packet is type, low 32 bits of the offset, size of the data, and the data."""
        self.assertEqual(
            pack(Type.PONG, b"data", 0x1122334455667788),
            bytes.fromhex("89 55667788 00000004") + b"data",
        )
        self.assertEqual(pack(255), bytes.fromhex("ff 00000000 00000000"))

    def test_tagged(self) -> None:
        """A metadata packet of any type has its tag at the head of its data."""
        for kind in Type:
            packet = bytes([kind]) + bytes.fromhex("00000000 00000008 01020304") + b"body"
            self.assertEqual(pack_tagged(kind, 0x01020304, b"body"), packet)
            self.assertEqual(parse_tagged(framed(packet)[2]), (0x01020304, b"body"))

    def test_structs(self) -> None:
        """READ, REPAIR, SENT, DATA and GONE are these bytes, and are read back from them."""
        for kind, value, text in VECTORS:
            packet = bytes.fromhex(text)
            self.assertEqual(value.encode(), packet)
            found, offset, data = framed(packet)
            self.assertEqual((found, PARSERS[kind](offset, data)), (kind, value))

    def test_most(self) -> None:
        """A packet has up to 128 KiB of data, and is not made with more."""
        self.assertEqual(len(pack(Type.SEGMENTS, bytes(128 * 1024))), 9 + 128 * 1024)
        self.assertRaises(ValueError, pack, Type.DATA, bytes(MAX_DATA + 1))


class FramerTests(SynchronousTestCase):
    """The bytes of a connection cut into packets."""

    def feed(self, *pieces: bytes) -> list[Packet]:
        """What a new framer finds in bytes that come in these pieces."""
        framer = Framer()
        return [packet for piece in pieces for packet in framer.feed(piece)]

    def test_every_cut(self) -> None:
        """Packets are found wherever the stream is cut, once or everywhere."""
        packets = [(1, 7, b""), (200, 0xFFFFFFFF, b"some data"), (0, 0, b"\0" * 20)]
        stream = b"".join(pack(kind, data, offset) for kind, offset, data in packets)
        for cut in range(len(stream) + 1):
            self.assertEqual(self.feed(stream[:cut], stream[cut:]), packets)
        self.assertEqual(self.feed(*(bytes([byte]) for byte in stream)), packets)
        self.assertEqual(self.feed(stream), packets)

    @examples(100)
    @given(
        st.lists(st.tuples(st.integers(0, 255), U32, st.binary(max_size=50)), max_size=8),
        st.lists(st.integers(0, 480)),
    )
    def test_any_cuts(self, packets: list[Packet], cuts: list[int]) -> None:
        """Packets of any type, known or not, are found however the stream is cut."""
        stream = b"".join(pack(kind, data, offset) for kind, offset, data in packets)
        places = [0, *sorted(cuts), len(stream)]
        pieces = [stream[a:b] for a, b in pairwise(places)]
        self.assertEqual(self.feed(*pieces), packets)

    def test_as_soon_as_complete(self) -> None:
        """A packet is told with its last byte, not with the beginning of the next."""
        framer = Framer()
        packet = pack(3, b"data")
        self.assertEqual(list(framer.feed(packet[:-1])), [])
        self.assertEqual(list(framer.feed(packet[-1:] + packet[:5])), [(3, 0, b"data")])
        self.assertEqual(list(framer.feed(packet[5:])), [(3, 0, b"data")])

    def test_oversized(self) -> None:
        """A size above 128 KiB is an error as soon as the header is there, and stays one."""
        for size in (MAX_DATA + 1, 1 << 31, 0xFFFFFFFF):
            framer = Framer()
            header = HEADER.pack(1, 0, size)
            found = framer.feed(pack(2, b"before") + header)
            self.assertEqual(next(found), (2, 0, b"before"))
            self.assertRaises(ProtocolError, next, found)
            self.assertRaises(ProtocolError, list, framer.feed(b"more"))
        self.assertRaises(ProtocolError, self.feed, *(bytes([byte]) for byte in header))

    def test_memory(self) -> None:
        """Nothing is allocated for a packet before its bytes come, nor kept after it went."""
        framer = Framer()
        self.addCleanup(tracemalloc.stop)
        tracemalloc.start()
        self.assertEqual(list(framer.feed(HEADER.pack(1, 0, MAX_DATA))), [])
        self.assertRaises(ProtocolError, self.feed, HEADER.pack(1, 0, 0xFFFFFFFF))
        self.assertLess(tracemalloc.get_traced_memory()[1], 20_000)
        stream = pack(1, bytes(MAX_DATA)) * 4
        list(framer.feed(bytes(MAX_DATA)))
        before = tracemalloc.get_traced_memory()[0]
        for start in range(0, len(stream), 1000):
            list(framer.feed(stream[start : start + 1000]))
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, 20_000)
        self.assertLess(tracemalloc.get_traced_memory()[1] - before, 4 * MAX_DATA)

    def test_abandoned(self) -> None:
        """A packet that was taken is not told again when the rest was not waited for."""
        framer = Framer()
        for packet in framer.feed(pack(1) + pack(2)):
            self.assertEqual(packet[0], 1)
            break
        self.assertEqual([kind for kind, _, _ in framer.feed(pack(3))], [2, 3])


class ParseTests(SynchronousTestCase):
    """Data that are not what their type says."""

    def test_truncated(self) -> None:
        """Data that end before the fields do are an error."""
        for kind, _, text in VECTORS:
            head = {Type.DATA: 21, Type.REPAIR: 13}.get(kind, len(bytes.fromhex(text)) - 9)
            for end in range(head):
                data = bytes.fromhex(text)[9 : 9 + end]
                self.assertRaises(ProtocolError, PARSERS[kind], 0, data)
        for end in range(4):
            self.assertRaises(ProtocolError, parse_tagged, bytes(end))

    def test_too_long(self) -> None:
        """Data that go on behind the fields are an error where the fields are all there is."""
        for kind, _, text in VECTORS:
            if kind not in (Type.DATA, Type.REPAIR):
                data = bytes.fromhex(text)[9:] + b"\0"
                self.assertRaises(ProtocolError, PARSERS[kind], 0, data)

    def test_bounds(self) -> None:
        """Lengths, priorities, occasions and attempts that cannot be are errors."""
        for kind, data in [
            (Type.READ, "00000001 00000001 00000000 00000000 00"),  # of nothing
            (Type.READ, "00000001 00000001 00000000 01000001 00"),  # of more than 16 MiB
            (Type.READ, "00000001 00000001 00000000 00000001 03"),  # no such priority
            (Type.READ, "00000001 00000001 00000000 00000001 41"),  # no such flag
            (Type.SENT, f"{SENT} 00000000 00000000 00"),
            (Type.SENT, f"{SENT} 00100001 00100001 00"),
            (Type.SENT, f"{SENT} 00000001 00000000 00"),
            (Type.SENT, f"{SENT} 00000001 00000002 00"),  # packed to more bytes
            (Type.SENT, f"{SENT} 00000001 00000001 04"),
            (Type.REPAIR, "00000001 0000000000000001 00 01"),
            (Type.REPAIR, "00000001 0000000000000001 03 01"),
            (Type.REPAIR, "00000001 0000000000000001 01" + "ff" * (MAX_DATA // 64 + 1)),
        ]:
            self.assertRaises(ProtocolError, PARSERS[kind], 0, bytes.fromhex(data))
        for offset, size in [(0, 0), (PAGE - 1, PAGE), (BLOCK - PAGE, PAGE + 1), (BLOCK, 0)]:
            self.assertRaises(ProtocolError, Data.parse, offset, data_of(size, 0, bytes(size)))
        for length, encoding, packed in [
            (PAGE, 0, bytes(PAGE - 1)),
            (PAGE, 1, b"\1" + bytes(PAGE - 1)),
            (PAGE, 1, bytes(2)),
            (PAGE, 3, bytes(1)),
        ]:
            self.assertRaises(ProtocolError, Data.parse, 0, data_of(length, encoding, packed))

    def test_zeros(self) -> None:
        """DATA leaves zeros out, and has them again."""
        payload = b"a" * PAGE + bytes(3 * PAGE + 7)
        packet = Data(1, 2, 0, payload).encode()
        self.assertEqual(len(packet), DATA_OVERHEAD + 1 + PAGE)
        self.assertEqual(Data.parse(*framed(packet)[1:]).payload, payload)

    def test_longest(self) -> None:
        """A READ may ask for 16 MiB."""
        longest = Read(1, 1, 0, MAX_READ, Priority.BACKGROUND)
        self.assertEqual(Read.parse(*framed(longest.encode())[1:]), longest)

    @examples(300)
    @given(
        st.sampled_from(sorted(PARSERS)),
        st.one_of(U32, st.integers(0, 200).map(lambda page: page * PAGE)),
        st.one_of(
            st.binary(max_size=40),
            *(
                st.binary(min_size=len(tail) // 2, max_size=len(tail) // 2 + 1)
                for _, _, text in VECTORS
                for tail in [text.replace(" ", "")[18:]]
            ),
        ),
    )
    def test_any_bytes(self, kind: Type, offset: int, data: bytes) -> None:
        """Any data are an error, or fields that make the same packet again."""
        try:
            value = PARSERS[kind](offset, data)
        except ProtocolError:
            return
        found, again, encoded = framed(value.encode())
        self.assertEqual(found, kind)
        if kind in (Type.READ, Type.SENT, Type.DATA):
            self.assertEqual(again, offset)
        if kind is Type.REPAIR:
            encoded, data = encoded.rstrip(b"\0"), data.rstrip(b"\0")
        self.assertEqual(encoded, data)

    @examples(100)
    @given(
        st.one_of(
            st.builds(
                Read,
                *(U32, U32, U64, st.integers(1, MAX_READ)),
                *(st.sampled_from(Priority), st.booleans()),
            ),
            st.builds(
                Sent,
                *(U32, U64, U32, U64),
                *(st.integers(1, MAX_DATA), st.sampled_from(Occasion), st.just(1)),
            ),
            st.builds(Data, U64, U64, OFFSETS, st.binary(min_size=1, max_size=200)),
            st.builds(Repair, U32, U64, st.sampled_from([1, 2]), st.integers(0, 1 << 2048)),
            st.builds(Gone, U32, U64),
        )
    )
    def test_round_trip(self, value: Any) -> None:
        """All values of all fields come back as they were."""
        kind, offset, data = framed(value.encode())
        self.assertEqual(PARSERS[Type(kind)](offset, data), value)
