"""Packets of the multicast group: table II to the byte."""

import contextlib
import tracemalloc
from itertools import accumulate
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.properties import descriptors, examples, near_wrap, packets_of
from mufs.wire.packing import Encoding
from mufs.wire.pages import BLOCK, EXTENT, PAGE
from mufs.wire.parity import MAX_COVERED
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    CONTROL_SIZE,
    HEADER,
    SEGMENT,
    TRANSMISSION,
    Descriptor,
    MalformedSegment,
    Packet,
    cut,
    group_count,
    max_in_group,
    not_restored,
    number_count,
    parse,
    parse_datagrams,
    segment_count,
)

DESCRIPTOR = Descriptor(
    transfer=0x0102030405060708,
    first=0xFFFFFFFE,
    image=0x1112131415161718,
    generation=0x2122232425262728,
    offset=0x0000000500020000,
    total=2801,
    length=4096,
    encoding=Encoding.ZSTD,
    tag=bytes(range(0xA0, 0xB0)),
)
ENCODED = bytes.fromhex(
    "0102030405060708"  # transfer
    "fffffffe"  # number of the first segment
    "1112131415161718"  # image
    "2122232425262728"  # generation
    "0000000500020000"  # offset in the image, in bytes
    "00001000"  # bytes of the image
    "02"  # encoding
    "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"  # authentication tag
)
KEY = bytes(range(32))
MACS = [
    bytes.fromhex("1f217ec9bb1e51e966930f8b217acdbb"),
    bytes.fromhex("e0e90afd730dc6fc3f5917c16d9b71b3"),
]
ANNOUNCED = bytes.fromhex("00000001 00000af1 00000003") + ENCODED + MACS[0]
COMPLETED = bytes.fromhex("00000003 00000af1 00000003") + ENCODED + MACS[1]


def packed_again(packet: Any) -> bytes:
    """What C{parse} found, as the bytes it must have found it in."""
    if len(packet) == 2:
        phase, descriptor = packet
        encoded = descriptor.encode(phase, SEGMENT)
        return bytes(encoded[: -len(descriptor.mac)] + descriptor.mac)
    first, length, rows = packet
    return b"".join(
        HEADER.pack(TRANSMISSION, length, (first + index) & 0xFFFFFFFF) + row.tobytes()
        for index, row in enumerate(rows)
    )


class VectorTests(SynchronousTestCase):
    """Packets as bytes."""

    def test_announcement(self) -> None:
        """An announcement has phase 1, total bytes, total segments, then the descriptor, MAC."""
        self.assertEqual(DESCRIPTOR.encode(ANNOUNCEMENT, SEGMENT, KEY), ANNOUNCED)
        self.assertEqual(list(parse(ANNOUNCED)), [(ANNOUNCEMENT, DESCRIPTOR)])

    def test_completion(self) -> None:
        """A completion differs from its announcement by its phase, 3, and so by its MAC."""
        self.assertEqual(DESCRIPTOR.encode(COMPLETION, SEGMENT, KEY), COMPLETED)
        self.assertEqual(list(parse(COMPLETED)), [(COMPLETION, DESCRIPTOR)])
        self.assertEqual(len(COMPLETED), CONTROL_SIZE)

    def test_authentic(self) -> None:
        """A control packet counts as it is, and under its key: not as one of the other phase."""
        for packet in (ANNOUNCED, COMPLETED):
            for bit in range(8 * len(packet)):
                wrong = bytearray(packet)
                wrong[bit // 8] ^= 1 << bit % 8
                with contextlib.suppress(MalformedSegment):
                    for found in parse(bytes(wrong)):
                        self.assertEqual(len(found), 2)
                        self.assertFalse(self.is_authentic(found, KEY))
            ((phase, descriptor),) = parse(packet)  # type: ignore[misc]
            self.assertTrue(self.is_authentic((phase, descriptor), KEY))
            self.assertFalse(self.is_authentic((4 - phase, descriptor), KEY))
            self.assertFalse(self.is_authentic((phase, descriptor), KEY[::-1]))

    def is_authentic(self, control: Any, key: bytes) -> bool:
        """Whether what was parsed is taken for the server's."""
        phase, descriptor = control
        authentic: bool = descriptor.is_authentic(phase, SEGMENT, key)
        return authentic

    def test_segments(self) -> None:
        """A segment has phase 2, its own bytes and its number, which starts anew at 2**32."""
        data = bytes(range(64)) + b"end"
        expected = [
            bytes.fromhex("00000002 00000040 ffffffff") + data[:64],
            bytes.fromhex("00000002 00000003 00000000") + b"end",
        ]
        self.assertEqual(packets_of(cut(0xFFFFFFFF, data, 64)), expected)
        (first, last) = parse(b"".join(expected), 64)
        assert len(first) == 3 and len(last) == 3
        self.assertEqual((*first[:2], first[2].tobytes()), (0xFFFFFFFF, 64, data[:64]))
        self.assertEqual((*last[:2], last[2].tobytes()), (0, 3, b"end"))

    def test_sizes(self) -> None:
        """A whole block is 94 segments of 1400 bytes, the last of them of 872."""
        sizes = [len(packet) for packet in cut(0, bytes(BLOCK))]
        self.assertEqual(sizes, [12 + 1400] * 93 + [12 + 872])

    def test_bound(self) -> None:
        """What the seal binds is transfer, first number, image, generation, offset, total."""
        self.assertEqual(DESCRIPTOR.bound(), ENCODED[:-16] + bytes.fromhex("00000af1"))


class RoundTripTests(SynchronousTestCase):
    """What is cut and sent is what is parsed."""

    @examples(60)
    @given(
        total=st.one_of(st.integers(1, BLOCK), st.sampled_from([1, 1399, 1400, 1401, BLOCK])),
        size=st.sampled_from([64, 65, 1000, 1400]),
        first=near_wrap(2048),
        split=st.integers(1, 60),
        random=st.randoms(use_true_random=False),
    )
    def test_cut_and_parse(
        self, total: int, size: int, first: int, split: int, random: Any
    ) -> None:
        """Segments of a transfer in trains of any length give its bytes, under its numbers."""
        data = random.randbytes(total)
        packets = packets_of(cut(first, data, size))
        self.assertEqual(len(packets), segment_count(total, size))
        found = b""
        for start in range(0, len(packets), split):
            for packet in parse(b"".join(packets[start : start + split]), size):
                assert len(packet) == 3
                number, length, rows = packet
                self.assertEqual(number, (first + len(found) // size) & 0xFFFFFFFF)
                self.assertEqual(rows.shape[1], length)
                found += rows.tobytes()
        self.assertEqual(found, data)

    @examples(100)
    @given(
        st.lists(
            st.one_of(descriptors(), st.tuples(near_wrap(9), st.binary(min_size=1, max_size=400)))
        )
    )
    def test_trains(self, transfers: list[Any]) -> None:
        """Packets of all phases and sizes, back to back in any order, are all found."""
        packets: list[bytes] = []
        for each in transfers:
            if isinstance(each, Descriptor):
                packets += [each.encode(phase, 64) for phase in (ANNOUNCEMENT, COMPLETION)]
            else:
                first, data = each
                packets += packets_of(cut(first, data, 64))
        found = []
        for packet in parse(b"".join(packets), 64):
            if len(packet) == 2:
                found.append(packet[1].encode(packet[0], 64))
            else:
                found.append(packed_again(packet))
        self.assertEqual(b"".join(found), b"".join(packets))

    def test_one_run(self) -> None:
        """Whole segments with consecutive numbers come as one run, others each on their own."""
        packets = packets_of(cut(0xFFFFFFFE, bytes(4 * 64), 64))
        runs = list(parse(b"".join([*packets, packets[0], packets[2]]), 64))
        self.assertEqual(
            [(run[0], len(run[2])) for run in runs if len(run) == 3],
            [(0xFFFFFFFE, 4), (0xFFFFFFFE, 1), (0, 1)],
        )

    def test_short_alone(self) -> None:
        """Segments shorter than whole ones come each on its own, also when they are numbered on."""
        packets = b"".join(HEADER.pack(TRANSMISSION, 4, number) + b"data" for number in range(3))
        runs = [(run[0], len(run[2])) for run in parse(packets) if len(run) == 3]
        self.assertEqual(runs, [(0, 1), (1, 1), (2, 1)])


class DatagramsTests(SynchronousTestCase):
    """Many datagrams at once."""

    @examples(200)
    @given(st.integers(0, (1 << 32) - 1), st.randoms(use_true_random=False))
    def test_any(self, first: int, random: Random) -> None:
        """
        They give what each of them gives alone; but segments with consecutive numbers come together
        where datagrams have nothing else.
        """
        descriptor = Descriptor(1, first, 5, 6, PAGE, 1000)
        packets = packets_of(cut(first, bytes(range(250)) * 4, 64))
        controls = [descriptor.encode(phase, 64) for phase in (ANNOUNCEMENT, COMPLETION)]
        datagrams = []
        for _ in range(random.randrange(12)):
            begin = random.randrange(len(packets))
            train = packets[begin : begin + random.randrange(1, 9)]
            if random.random() < 0.4:
                train.insert(random.randrange(len(train) + 1), random.choice(controls))
            datagram = b"".join(train)
            if random.random() < 0.2:
                place = random.randrange(len(datagram))
                datagram = datagram[:place] + bytes([random.randrange(4)]) + datagram[place + 1 :]
            if random.random() < 0.2:
                datagram = datagram[: random.randrange(len(datagram))]
            datagrams.append(datagram)
        alone: list[object] = []
        for datagram in datagrams:
            try:
                for packet in parse(datagram, 64):
                    alone += rows_of(packet)
            except MalformedSegment as error:
                alone.append(str(error))
        together: list[object] = []
        buffer, ends = memoryview(b"".join(datagrams)), list(accumulate(map(len, datagrams)))
        for found in parse_datagrams(buffer, ends, 64):
            together += [str(found)] if isinstance(found, MalformedSegment) else rows_of(found)
        self.assertEqual(together, alone)

    def test_together(self) -> None:
        """Whole segments with consecutive numbers are one run, however they came."""
        packets = packets_of(cut(0xFFFFFFFE, bytes(10 * 64 + 1), 64))
        trains = [b"".join(packets[:4]), b"".join(packets[4:7]), *packets[7:]]
        buffer, ends = memoryview(b"".join(trains)), list(accumulate(map(len, trains)))
        found = [
            (each[0], each[1], len(each[2]))
            for each in parse_datagrams(buffer, ends, 64)
            if not isinstance(each, MalformedSegment) and len(each) == 3
        ]
        self.assertEqual(found, [(0xFFFFFFFE, 64, 10), (8, 1, 1)])


def rows_of(packet: Packet) -> list[object]:
    """The segments of a run one by one, or a control packet."""
    if len(packet) == 2:
        return [packet]
    number, length, rows = packet
    return [((number + i) & 0xFFFFFFFF, length, bytes(row)) for i, row in enumerate(rows)]


class GroupTests(SynchronousTestCase):
    """The groups that parity segments restore."""

    def test_sizes(self) -> None:
        """A transfer has as few groups as its segments need, each with parity of its own."""
        counts = [1, MAX_COVERED, MAX_COVERED + 1, 749]
        self.assertEqual([group_count(count) for count in counts], [1, 1, 2, 4])
        self.assertEqual([number_count(count) - count for count in counts], [32, 32, 64, 128])

    def test_most(self) -> None:
        """The group that lost most says how much parity each group needs."""
        missing = 1 << 0 | 1 << 4 | 1 << 8 | 1 << 1
        self.assertEqual(max_in_group(missing, 749), 3)
        self.assertEqual(max_in_group(missing, 9), 4)
        self.assertEqual(max_in_group(0, 749), 0)

    def test_not_restored(self) -> None:
        """Parity restores losses of its own group alone."""
        missing = 1 << 0 | 1 << 4 | 1 << 8 | 1 << 1
        self.assertEqual(not_restored(missing, 749, {0: 2, 2: 5}), 1 << 0 | 1 << 1)
        self.assertEqual(not_restored(missing, 749, {0: 3, 1: 1}), 0)
        self.assertEqual(not_restored(0b1011, 4, {0: 1}), 0b0011)


class MalformedTests(SynchronousTestCase):
    """What is not of the protocol."""

    def assert_malformed(self, datagram: bytes) -> None:
        """Parsing ends with L{MalformedSegment}."""
        self.assertRaises(MalformedSegment, list, parse(datagram))

    def test_truncated(self) -> None:
        """A packet that ends early is malformed, wherever it ends."""
        for packet in (ANNOUNCED, COMPLETED, packets_of(cut(7, b"some bytes"))[0]):
            for end in range(1, len(packet)):
                self.assert_malformed(packet[:end])
                self.assert_malformed(packet + packet[:end])

    def test_fields(self) -> None:
        """Phases, sizes and counts that cannot be are malformed."""
        for header, rest in [
            ("00000000 00000001 00000001", b"x"),  # no such phase
            ("00000004 00000001 00000001", b"x"),
            ("00000002 00000000 00000001", b""),  # a segment of nothing
            ("00000002 00000579 00000001", bytes(1401)),  # larger than segments are
            ("00000002 ffffffff 00000001", bytes(1400)),
            ("00000001 00000000 00000000", ENCODED + bytes(16)),  # a transfer of nothing
            ("00000001 000e0001 00000290", ENCODED + bytes(16)),  # beyond its extent
            ("00000001 ffffffff 002ecf93", ENCODED + bytes(16)),
            ("00000001 00000af1 00000002", ENCODED + bytes(16)),  # another number of segments
            ("00000003 00000af1 ffffffff", ENCODED + bytes(16)),
            ("00000001 00000af1 00000003", ENCODED),  # no MAC
        ]:
            self.assert_malformed(bytes.fromhex(header) + rest)

    def test_across_extents(self) -> None:
        """A transfer that would reach into the next extent is malformed."""
        packet = bytearray(COMPLETED)
        packet[12 + 28 : 12 + 36] = (5 * EXTENT - PAGE).to_bytes(8, "big")
        self.assertEqual(len(list(parse(bytes(packet)))), 1)
        packet[12 + 36 : 12 + 40] = (PAGE + 1).to_bytes(4, "big")
        self.assert_malformed(bytes(packet))

    def test_encodings(self) -> None:
        """
        A transfer as it is has as many bytes as the range; a packed one has fewer; there is no
        other encoding.
        """
        sizes = [(0xAF1, 0xAF1, True, False), (0xAF1, 0xAF2, False, True), (0xAF1, 0xAF0, 0, 0)]
        for total, length, as_it_is, packed in sizes:
            for encoding, right in [(0, as_it_is), (1, packed), (2, packed), (3, False)]:
                packet = bytearray(COMPLETED)
                packet[4:8] = total.to_bytes(4, "big")
                packet[12 + 36 : 12 + 41] = length.to_bytes(4, "big") + bytes([encoding])
                if right:
                    self.assertEqual(len(list(parse(bytes(packet)))), 1)
                else:
                    self.assert_malformed(bytes(packet))

    def test_within_page(self) -> None:
        """A transfer that does not begin with a page is malformed."""
        packet = bytearray(ANNOUNCED)
        packet[12 + 35] = 1
        self.assert_malformed(bytes(packet))

    def test_beginning_counts(self) -> None:
        """What came before the first malformed byte is still found."""
        found = parse(ANNOUNCED + b"rubbish")
        self.assertEqual(next(found), (ANNOUNCEMENT, DESCRIPTOR))
        self.assertRaises(MalformedSegment, next, found)

    @examples(300)
    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=80),
                st.sampled_from([ANNOUNCED, COMPLETED, HEADER.pack(TRANSMISSION, 4, 9) + b"data"]),
                st.tuples(st.integers(0, 4), st.integers(0, 80), st.integers(0, 2)).map(
                    lambda fields: HEADER.pack(*fields)
                ),
            ),
            max_size=6,
        ).map(b"".join)
    )
    def test_any_bytes(self, datagram: bytes) -> None:
        """Any bytes give the packets that they begin with, and then at most that error."""
        found = b""
        try:
            for packet in parse(datagram):
                found += packed_again(packet)
        except MalformedSegment:
            self.assertNotEqual(found, datagram)
            self.assertTrue(datagram.startswith(found))
        else:
            self.assertEqual(found, datagram)

    def test_memory(self) -> None:
        """The sizes told in a header make nobody allocate memory."""
        datagrams = [
            HEADER.pack(phase, size, size) + bytes(68)
            for phase in (ANNOUNCEMENT, TRANSMISSION, COMPLETION)
            for size in (1 << 20, 1 << 31, (1 << 32) - 1)
        ]
        self.addCleanup(tracemalloc.stop)
        tracemalloc.start()
        for datagram in datagrams:
            self.assert_malformed(datagram)
        self.assertLess(tracemalloc.get_traced_memory()[1], 100_000)
