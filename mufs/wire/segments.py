"""
Packets of the multicast group (UDP): table II of the paper, and the descriptor in them.

Every packet is a phase, a number of bytes and a number (4 bytes each, network byte order),
then data: a descriptor and its MAC in an announcement or completion, file data in a segment.
Each has its own length, so several may follow one another in a datagram, as the kernel returns
datagrams received together (UDP_GRO). docs/protocol.md section 3.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from struct import Struct
from typing import Any

import numpy
from attrs import Factory, field, frozen

from mufs.wire.packing import Encoding
from mufs.wire.pages import EXTENT, PAGE
from mufs.wire.parity import MAX_COVERED, MAX_PARITY, parity, words

HEADER = Struct("!III")
_HEAD = Struct("!II")
SEGMENT = 1400
ANNOUNCEMENT, TRANSMISSION, COMPLETION, REPAIRED = 1, 2, 3, 4
"""Phases. The last one ends a repair, which has only a part of the segments."""
TAG_SIZE = MAC_SIZE = 16
_DESCRIPTOR = Struct(f"!QIQQQIB{TAG_SIZE}s")
_BOUND = Struct("!QIQQQIBI")


class MalformedSegment(Exception):
    """A datagram breaks the protocol; the text says how."""


def segment_count(total: int, size: int) -> int:
    """The number of segments of C{size} bytes in a transfer of C{total} bytes."""
    return -(-total // size)


def group_count(segments: int) -> int:
    """
    How many groups a transfer of C{segments} segments has: as few as the code of the parity
    segments allows. Segment i, and parity segment i, belong to group i modulo their number.
    """
    return -(-segments // MAX_COVERED)


def number_count(segments: int) -> int:
    """How many numbers a transfer of C{segments} segments takes, including its parity segments."""
    return segments + MAX_PARITY * group_count(segments)


@lru_cache(64)
def _groups(segments: int) -> tuple[int, ...]:
    """The segments of each group, as a bitmap."""
    count = group_count(segments)
    every = ((1 << count * MAX_COVERED) - 1) // ((1 << count) - 1)
    return tuple(every << group & (1 << segments) - 1 for group in range(count))


def max_in_group(missing: int, segments: int) -> int:
    """
    How many parity segments of each group restore what is missing of a transfer.

    @param missing: bitmap of its segments.
    @param segments: how many it has.
    """
    if segments <= MAX_COVERED:
        return missing.bit_count()
    return max((missing & group).bit_count() for group in _groups(segments))


def not_restored(missing: int, segments: int, parity: Mapping[int, int]) -> int:
    """
    The segments without which parity segments do not restore what is missing of a transfer.

    @param missing: bitmap of its segments.
    @param segments: how many it has.
    @param parity: how many parity segments there are of each group.
    """
    groups = _groups(segments)
    for group, count in parity.items():
        for _ in range(count):
            missing &= ~(1 << (missing & groups[group]).bit_length() >> 1)
    return missing


@frozen
class Descriptor:
    """
    The content and the numbers of a transfer.

    @ivar transfer: number of the transfer; also the nonce. The high half is the epoch of its keys,
        the low half counts the transfers of that epoch.
    @ivar first: number of its first segment, mod 2**32; parity segments follow the last one.
    @ivar image: the file (see C{Opened}).
    @ivar generation: the content of the file.
    @ivar offset: of its first byte in the image.
    @ivar total: number of bytes that it carries.
    @ivar length: number of bytes of the image that these are, within one extent.
    @ivar encoding: how they are packed.
    @ivar tag: authentication tag of the sealed bytes.
    @ivar mac: of the announcement or completion that had it.
    """

    transfer: int
    first: int
    image: int
    generation: int
    offset: int
    total: int
    length: int = Factory(lambda self: self.total, takes_self=True)
    encoding: Encoding = Encoding.PLAIN
    tag: bytes = b"\0" * TAG_SIZE
    mac: bytes = field(default=b"\0" * MAC_SIZE, eq=False)

    @property
    def epoch(self) -> int:
        """The number of the epoch whose keys sealed it."""
        return self.transfer >> 32

    def bound(self) -> bytes:
        """The associated data: all fields but the tag."""
        return _BOUND.pack(*self._fields(), self.total)

    def _fields(self) -> tuple[int, ...]:
        return (
            self.transfer,
            self.first,
            self.image,
            self.generation,
            self.offset,
            self.length,
            self.encoding,
        )

    def encode(self, phase: int, segment: int, key: bytes = b"") -> bytes:
        """
        The announcement or completion with this descriptor.

        @param key: the epoch's key for the MAC (keyed BLAKE2b of 16 bytes, RFC 7693).
        """
        packet = HEADER.pack(phase, self.total, segment_count(self.total, segment))
        packet += _DESCRIPTOR.pack(*self._fields(), self.tag)
        return packet + blake2b(packet, digest_size=MAC_SIZE, key=key).digest()

    def is_authentic(self, phase: int, segment: int, key: bytes) -> bool:
        """Whether its MAC is that of a packet of this phase, made with this key."""
        return compare_digest(self.mac, self.encode(phase, segment, key)[-MAC_SIZE:])


MAX_ROWS = 16384
"""Segments of a transfer at most; more than a datagram, or the data of a TCP packet, can hold."""

CONTROL_SIZE = HEADER.size + _DESCRIPTOR.size + MAC_SIZE


def cut(
    first: int,
    sealed: bytes | memoryview,
    size: int = SEGMENT,
    *,
    chosen: int | None = None,
    most: int = 1,
) -> Iterator[memoryview]:
    """
    The segments of a transfer, ready to send, in trains: packets back to back.

    @param chosen: bitmap of the segments; by default all.
    @param most: how many segments a train has at most.
    @return: trains, each in the memory of the one before.
    """
    count, whole = segment_count(len(sealed), size), len(sealed) // size
    data = numpy.frombuffer(sealed, numpy.uint8)
    rows, rest = data[: whole * size].reshape(whole, size), data[whole * size :]
    numbers = _UP[:count] + numpy.uint32(first & 0xFFFFFFFF)
    if chosen is not None and chosen != (1 << count) - 1:
        indices = [i for i in range(count) if chosen >> i & 1]
        numbers, rows = numbers[indices], rows[[i for i in indices if i < whole]]
    train = _blank(min(most, count), size)
    fields, contents, packets = _fields(train), train[:, HEADER.size :], train.data.cast("B")
    for begin in range(0, len(numbers), most):
        here, some = numbers[begin : begin + most], rows[begin : begin + most]
        fields[: len(here), 2] = here
        contents[: len(some)] = some
        end = len(some) * train.shape[1]
        if len(some) < len(here):
            fields[len(some), 1] = len(rest)
            contents[len(some), : len(rest)] = rest
            end += HEADER.size + len(rest)
        yield packets[:end]


def cut_parity(
    first: int, sealed: bytes | memoryview, index: int, count: int, size: int = SEGMENT
) -> "numpy.ndarray[Any, Any]":
    """
    Parity segments of a transfer, ready to send, one per row.

    @param index: of the first of C{count} parity segments; each group has L{MAX_PARITY}.
    """
    segments = segment_count(len(sealed), size)
    padded = numpy.zeros(segments * size, numpy.uint8)
    padded[: len(sealed)] = numpy.frombuffer(sealed, numpy.uint8)
    rows = padded.reshape(segments, size)
    made = _blank(count, size)
    _fields(made)[:, 2] = _UP[:count] + numpy.uint32(first + segments + index & 0xFFFFFFFF)
    groups = group_count(segments)
    for start in range(min(groups, count)):
        group = (index + start) % groups
        indices = [each // groups for each in range(index + start, index + count, groups)]
        parities = parity(words(rows[group::groups]), indices)
        made[start::groups, HEADER.size :] = parities.view(numpy.uint8)[:, :size]
    return made


def _blank(count: int, size: int) -> "numpy.ndarray[Any, Any]":
    """Whole segments, one per row, without their numbers and data."""
    rows = numpy.empty((count, HEADER.size + size), numpy.uint8)
    _fields(rows)[:, :2] = TRANSMISSION, size
    return rows


def _fields(rows: "numpy.ndarray[Any, Any]") -> "numpy.ndarray[Any, Any]":
    """The headers of segments: three numbers per row."""
    return rows[:, : HEADER.size].view(">u4")


Run = tuple[int, int, "numpy.ndarray[Any, Any]"]
"""Segments with consecutive numbers: the first number, bytes in each, one row of data each."""


Packet = Run | tuple[int, Descriptor]
"""Segments, or the phase and the descriptor of a control packet, which is not authenticated."""


def parse_datagrams(
    buffer: memoryview, ends: list[int], size: int = SEGMENT
) -> Iterator[Packet | MalformedSegment]:
    """
    The packets of many datagrams. Where those in a row have nothing but whole segments, the headers
    of all of them are looked at together.

    @param buffer: the datagrams, one right after the other.
    @param ends: where each of them ends in C{buffer}.
    @param size: as for L{parse}.
    @return: as L{parse}, and for each datagram that breaks the protocol, in its place, how.
    """
    stride = HEADER.size + size
    start = begin = 0
    group: list[int] = []
    for end in ends:
        group.append(end)
        rest = (end - begin) % stride
        if rest:
            yield from _parse_group(buffer, start, group, end - rest, size)
            start, group = end, []
        begin = end
    if group:
        yield from _parse_group(buffer, start, group, begin, size)


def _parse_group(
    buffer: memoryview, start: int, ends: list[int], stop: int, size: int
) -> Iterator[Packet | MalformedSegment]:
    """
    The packets of some datagrams.

    @param start: where the first of them begins.
    @param ends: where each of them ends.
    @param stop: until where they may have nothing but whole segments.
    """
    count = (stop - start) // (HEADER.size + size)
    if count:
        row, head = _row(size)
        rows = numpy.frombuffer(buffer, row, count, start)
        if not (rows["head"] == head).all():
            for end in ends:
                yield from _parse_one(buffer[start:end], size)
                start = end
            return
        numbers, data = rows["number"].astype(numpy.uint32), rows["data"]
        begin = 0
        for end in (*((numbers[1:] - numbers[:-1]) != 1).nonzero()[0] + 1, count):
            yield int(numbers[begin]), size, data[begin:end]
            begin = end
    if stop < ends[-1]:
        yield from _parse_one(buffer[stop : ends[-1]], size)


@lru_cache(4)
def _row(size: int) -> "tuple[numpy.dtype[Any], numpy.uint64]":
    """A whole segment as numpy reads it; and what its head is, phase and size together."""
    fields = [("head", numpy.uint64), ("number", ">u4"), ("data", numpy.uint8, (size,))]
    head = _HEAD.pack(TRANSMISSION, size)
    return numpy.dtype(fields), numpy.frombuffer(head, numpy.uint64)[0]


def _parse_one(datagram: memoryview, size: int) -> Iterator[Packet | MalformedSegment]:
    try:
        yield from parse(datagram, size)
    except MalformedSegment as error:
        yield error


def parse(datagram: bytes | memoryview, size: int = SEGMENT) -> Iterator[Packet]:
    """
    The packets of a datagram.

    @param size: the segment size of the server, which no segment may exceed.
    @return: for a control packet its phase and descriptor, not authenticated; for segments of one
        size with consecutive numbers a L{Run}, whose data is a view of C{datagram}.
    @raise MalformedSegment: at the first packet that breaks the protocol.
    """
    position, end = 0, len(datagram)
    while position < end:
        if end - position < HEADER.size:
            raise MalformedSegment(f"{end - position} bytes where a header is expected")
        phase, length, number = HEADER.unpack_from(datagram, position)
        if phase == TRANSMISSION:
            stride = HEADER.size + length
            if not 0 < length <= size or end - position < stride:
                raise MalformedSegment(f"segment {number} of {length} bytes")
            # Only whole segments come in trains; the last one of a transfer comes alone.
            rows = (end - position) // stride if length == size else 1
            data = numpy.frombuffer(datagram, numpy.uint8, rows * stride, position)
            train = data.reshape(rows, stride)
            alone = number, length, train[:, HEADER.size :]
            for run in _runs(train) if rows > 1 else (alone,):
                yield run
                position += len(run[2]) * stride
        elif phase in (ANNOUNCEMENT, COMPLETION, REPAIRED):
            if end - position < CONTROL_SIZE:
                raise MalformedSegment(f"{end - position} bytes of a packet of phase {phase}")
            yield phase, _descriptor(datagram, position, length, number, size)
            position += CONTROL_SIZE
        else:
            raise MalformedSegment(f"phase {phase}")


def _runs(train: "numpy.ndarray[Any, Any]") -> Iterator[Run]:
    """The segments at the beginning of a train of packets of one length."""
    fields = train[:, : HEADER.size].copy().view(">u4").astype(numpy.uint32)
    steps = fields[1:] - fields[:-1]
    others = steps[:, 0] | steps[:, 1]
    begin = 0
    for end in (*(others | steps[:, 2] - 1).nonzero()[0] + 1, len(train)):
        yield int(fields[begin, 2]), int(fields[begin, 1]), train[begin:end, HEADER.size :]
        begin = end
        if end < len(train) and others[end - 1]:
            break


_UP = numpy.arange(MAX_ROWS, dtype=numpy.uint32)


def _descriptor(
    datagram: bytes | memoryview, position: int, total: int, count: int, size: int
) -> Descriptor:
    transfer, first, image, generation, offset, length, encoding, tag = _DESCRIPTOR.unpack_from(
        datagram, position + HEADER.size
    )
    within = offset % PAGE == 0 and 0 < length <= EXTENT - offset % EXTENT
    # Packed bytes are fewer.
    fits = 0 < total < length if encoding else total == length
    if not (within and fits and encoding in _ENCODINGS and count == segment_count(total, size)):
        raise MalformedSegment(
            f"{total} bytes in {count} segments for {length} at offset {offset}, packed {encoding}"
        )
    mac = bytes(datagram[position + CONTROL_SIZE - MAC_SIZE : position + CONTROL_SIZE])
    return Descriptor(
        transfer,
        first,
        image,
        generation,
        offset,
        total,
        length,
        Encoding(encoding),
        tag,
        mac,
    )


_ENCODINGS = frozenset(Encoding)
