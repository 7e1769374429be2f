"""
Packets of the request channel (TCP): table I of the paper, and the fixed structs in it.

Every packet is a type (1 byte), an offset (4 bytes), a size (4 bytes), then C{size} bytes of
data, 128 KiB at most; network byte order. docs/protocol.md section 2 states each type.
"""

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Any

from attrs import Factory, field, frozen

from mufs.wire import packing
from mufs.wire.pages import BLOCK, EXTENT, PAGE

HEADER = Struct("!BII")
MAX_DATA = 128 * 1024


class Type(IntEnum):
    """The types of packets: below 128 from client to server, the others from server to client."""

    HELLO = 1
    GETATTR = 2
    READDIR = 3
    READLINK = 4
    OPEN = 5
    CLOSE = 6
    STATFS = 7
    READ = 8
    REPAIR = 9
    PING = 10
    PULLED = 11
    MAP = 12
    WELCOME = 129
    REPLY = 130
    MORE = 131
    ERROR = 132
    SENT = 133
    DATA = 134
    SEGMENTS = 135
    GONE = 136
    PONG = 137
    KEY = 138
    PULL = 139


class Priority(IntEnum):
    """How urgent a read is: a reader waits for it, will soon wait for it, or does not wait."""

    BLOCKED = 0
    AHEAD = 1
    BACKGROUND = 2


class ProtocolError(Exception):
    """The peer broke the protocol; the text says how."""


def pack(kind: int, data: bytes = b"", offset: int = 0) -> bytes:
    """
    One packet as bytes.

    @param offset: a byte offset; its low 32 bits go into the header.
    """
    if len(data) > MAX_DATA:
        raise ValueError(f"{len(data)} bytes of data in one packet")
    return HEADER.pack(kind, offset & 0xFFFFFFFF, len(data)) + data


class Framer:
    """
    Cuts the bytes of a connection into packets of any type.

    It buffers at most one packet besides the bytes of the last C{feed}.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes) -> Iterator[tuple[int, int, bytes]]:
        """
        Take bytes received from the connection.

        @return: the packets that are complete: type, offset as in the header, data.
        @raise ProtocolError: when a header announces more than 128 KiB of data.
        """
        buffer = self._buffer
        buffer += received
        position = 0
        try:
            while len(buffer) - position >= HEADER.size:
                kind, offset, size = HEADER.unpack_from(buffer, position)
                if size > MAX_DATA:
                    raise ProtocolError(f"packet of type {kind} with {size} bytes of data")
                start = position + HEADER.size
                if len(buffer) - start < size:
                    break
                position = start + size
                yield kind, offset, bytes(memoryview(buffer)[start:position])
        finally:
            del buffer[:position]


_READ = Struct("!IIIIB")
_SENT = Struct("!IIQIIIB")
_DATA = Struct("!IQQIB")
_REPAIR = Struct("!IQB")
_GONE = Struct("!IQ")
_KEY = Struct("!I32s")
_TAG = Struct("!I")

OVER_TCP = 0x80
"""Flag beside the priority of a READ: answer in DATA packets, not by multicast."""

DATA_OVERHEAD = HEADER.size + _DATA.size
"""Bytes of a DATA packet besides the packed file bytes."""

MAX_READ = 16 * 1024 * 1024
"""Bytes that one READ may request."""


def _unpack(form: Struct, data: bytes, exact: bool = True) -> tuple[Any, ...]:
    if len(data) < form.size or (exact and len(data) > form.size):
        raise ProtocolError(f"{len(data)} bytes where {form.size} are expected")
    return form.unpack_from(data)


@frozen
class Read:
    """A request for C{length} bytes of an open image from C{offset} on."""

    tag: int
    handle: int
    offset: int
    length: int
    priority: Priority
    over_tcp: bool = False

    def encode(self) -> bytes:
        """The packet."""
        flags = self.priority | (OVER_TCP if self.over_tcp else 0)
        data = _READ.pack(self.tag, self.handle, self.offset >> 32, self.length, flags)
        return pack(Type.READ, data, self.offset)

    @classmethod
    def parse(cls, offset: int, data: bytes) -> "Read":
        """@raise ProtocolError: when the fields are not those of a READ."""
        tag, handle, high, length, flags = _unpack(_READ, data)
        if not 0 < length <= MAX_READ:
            raise ProtocolError(f"READ of {length} bytes")
        try:
            priority = Priority(flags & ~OVER_TCP)
        except ValueError:
            raise ProtocolError(f"READ with flags {flags:#x}") from None
        return cls(tag, handle, high << 32 | offset, length, priority, bool(flags & OVER_TCP))


class Occasion(IntEnum):
    """
    Why a SENT is sent: the transfer was sent just now; its repair was; the transfer was sent
    before the request came; its repair was sent over TCP.
    """

    NOW = 0
    REPAIR = 1
    BEFORE = 2
    TCP = 3


@frozen
class Sent:
    """
    The transfer that carries all or part of the range that the READ of C{tag} requested.

    @ivar length: bytes of the image from C{offset} on, which the transfer carries in C{total}.
    """

    tag: int
    transfer: int
    first: int
    offset: int
    length: int
    occasion: Occasion = Occasion.NOW
    total: int = Factory(lambda self: self.length, takes_self=True)

    def encode(self) -> bytes:
        """The packet."""
        data = _SENT.pack(
            self.tag,
            self.offset >> 32,
            self.transfer,
            self.first,
            self.length,
            self.total,
            self.occasion,
        )
        return pack(Type.SENT, data, self.offset)

    @classmethod
    def parse(cls, offset: int, data: bytes) -> "Sent":
        """@raise ProtocolError: when the fields are not those of a SENT."""
        tag, high, transfer, first, length, total, occasion = _unpack(_SENT, data)
        if not 0 < total <= length <= EXTENT or occasion > Occasion.TCP:
            raise ProtocolError(f"SENT of {length} bytes in {total} on occasion {occasion}")
        return cls(tag, transfer, first, high << 32 | offset, length, Occasion(occasion), total)


@frozen
class Data:
    """
    File bytes over TCP: whole pages of one block of a generation of an image. Pages that are zero
    are left out on the way, see L{mufs.wire.packing}.
    """

    image: int
    generation: int
    offset: int
    payload: bytes

    def encode(self) -> bytes:
        """The packet."""
        encoding, packed = packing.pack(self.payload, packing.zero_pages(self.payload))
        length = len(self.payload)
        head = _DATA.pack(self.offset >> 32, self.image, self.generation, length, encoding)
        return pack(Type.DATA, head + packed, self.offset)

    @classmethod
    def parse(cls, offset: int, data: bytes) -> "Data":
        """@raise ProtocolError: when the fields are not those of a DATA."""
        high, image, generation, length, encoding = _unpack(_DATA, data, exact=False)
        offset |= high << 32
        if offset % PAGE or not 0 < length <= BLOCK - offset % BLOCK:
            raise ProtocolError(f"DATA of {length} bytes at offset {offset}")
        try:
            payload = packing.unpack_bytes(encoding, data[_DATA.size :], length)
        except packing.MalformedPacking as error:
            raise ProtocolError(f"DATA with {error}") from None
        return cls(image, generation, offset, payload)


@frozen
class Repair:
    """
    A request for the missing segments of a transfer.

    @ivar tag: of the READ, or 0 if the transfer was overheard.
    @ivar attempt: 1 requests multicast, 2 TCP.
    @ivar missing: one bit for each segment, bit 0 for the first.
    """

    tag: int
    transfer: int
    attempt: int
    missing: int

    def encode(self) -> bytes:
        """The packet."""
        bitmap = self.missing.to_bytes((self.missing.bit_length() + 7) // 8, "little")
        return pack(Type.REPAIR, _REPAIR.pack(self.tag, self.transfer, self.attempt) + bitmap)

    @classmethod
    def parse(cls, offset: int, data: bytes) -> "Repair":
        """@raise ProtocolError: when the fields are not those of a REPAIR."""
        tag, transfer, attempt = _unpack(_REPAIR, data, exact=False)
        bitmap = data[_REPAIR.size :]
        if attempt not in (1, 2) or len(bitmap) > EXTENT // 64 // 8:
            raise ProtocolError(f"REPAIR, attempt {attempt}, bitmap of {len(bitmap)} bytes")
        return cls(tag, transfer, attempt, int.from_bytes(bitmap, "little"))


@frozen
class Gone:
    """The server no longer has the transfer: what is missing must be read again."""

    tag: int
    transfer: int

    def encode(self) -> bytes:
        """The packet."""
        return pack(Type.GONE, _GONE.pack(self.tag, self.transfer))

    @classmethod
    def parse(cls, offset: int, data: bytes) -> "Gone":
        """@raise ProtocolError: when the fields are not those of a GONE."""
        return cls(*_unpack(_GONE, data))


@frozen
class Key:
    """
    The epoch of everything that the server sends to the group from now on.

    @ivar secret: 32 random bytes, from which its keys are derived.
    """

    epoch: int
    secret: bytes = field(repr=False)

    def encode(self) -> bytes:
        """The packet."""
        return pack(Type.KEY, _KEY.pack(self.epoch, self.secret))

    @classmethod
    def parse(cls, offset: int, data: bytes) -> "Key":
        """@raise ProtocolError: when the fields are not those of a KEY."""
        return cls(*_unpack(_KEY, data))


def pack_tagged(kind: int, tag: int, body: bytes) -> bytes:
    """A metadata packet: the tag that matches request and reply, then the encoded body."""
    return pack(kind, _TAG.pack(tag) + body)


def parse_tagged(data: bytes) -> tuple[int, bytes]:
    """@raise ProtocolError: when the data is shorter than a tag."""
    (tag,) = _unpack(_TAG, data, exact=False)
    return tag, data[_TAG.size :]
