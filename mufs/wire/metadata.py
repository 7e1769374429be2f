"""
Values encoded in the data of TCP packets: the first exchange, attributes, names, errors.

The encoding is MessagePack. Decoding checks each value against the types and bounds of its class.
Times are nanoseconds since 1970; names and paths are bytes, as in the server's file system.
"""

import errno
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import msgspec
from attrs import frozen
from msgspec import Meta

from mufs.wire.channel import ProtocolError
from mufs.wire.pages import BLOCK, EXTENT

VERSION = 7

MAX_PATH_BYTES = 65536
"""Bytes of a path in a request."""

MAX_RUNS = 1024
"""Runs of data in a L{DataMap}."""

U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
U64 = Annotated[int, Meta(ge=0)]  # the encoding has no larger numbers than 2**64 - 1
Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]  # the largest file that a kernel can have
Name = Annotated[bytes, Meta(min_length=1, max_length=1024)]
Path = Annotated[bytes, Meta(max_length=MAX_PATH_BYTES)]
Target = Annotated[bytes, Meta(min_length=1, max_length=4095)]  # no link on Linux is longer
# One line, so that text from another host cannot forge lines of the log.
Text = Annotated[str, Meta(max_length=255, pattern="^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\\Z")]


@frozen
class Hello:
    """
    The client's first packet.

    @ivar max_transfer: bytes of the largest transfer that its receive buffer has room for.
    """

    version: int
    name: Text
    max_transfer: Annotated[int, Meta(ge=BLOCK, le=EXTENT)] = BLOCK


@frozen
class Welcome:
    """
    The server's answer: the parameters of multicast.

    @ivar group: address of the multicast group, or empty if this client gets none.
    @ivar port: UDP port of the group.
    @ivar source: address and port that datagrams come from; others are dropped.
    @ivar segment: maximum number of data bytes in a segment.
    """

    version: int
    group: Text
    port: Annotated[int, Meta(ge=0, lt=65536)]
    source: tuple[Text, Annotated[int, Meta(ge=0, lt=65536)]]
    segment: Annotated[int, Meta(ge=64, le=1400)]


@frozen
class Attributes:
    """
    The result of stat(2); C{blocks} have 512 bytes.

    @ivar generation: the number of the content of a regular file; 0 for other files.
    """

    mode: U32
    ino: U64
    nlink: U64
    uid: U32
    gid: U32
    rdev: U64
    size: Size
    blocks: U64
    atime: int
    mtime: int
    ctime: int
    generation: U64


@frozen
class Caller:
    """The credentials of the process on whose behalf a client asks, according to its host."""

    uid: U32
    gid: U32
    groups: Annotated[list[U32], Meta(max_length=256)]


NOBODY = Caller(65534, 65534, [])

ROOT = Caller(0, 0, [0])


@frozen
class At:
    """A request about the file at C{path}: names joined by slashes, empty for the root."""

    path: Path
    caller: Caller = NOBODY


@frozen
class Link:
    """The target of a symbolic link."""

    target: Target

    def __attrs_post_init__(self) -> None:
        """@raise ValueError: when the target has a byte 0."""
        if b"\0" in self.target:
            raise ValueError("a link's target with a byte 0")


@frozen
class Names:
    """A part of a directory's listing, with the attributes of each file."""

    entries: list[tuple[Name, Attributes]]

    def __attrs_post_init__(self) -> None:
        """@raise ValueError: when a name is not valid in a directory."""
        for name, _ in self.entries:
            if name in (b".", b"..") or b"/" in name or b"\0" in name:
                raise ValueError(f"{name[:64]!r} is no name")


@frozen
class DataMap:
    """
    Where a part of an image has data. The rest of the part is holes, whose bytes are 0.

    @ivar start: where the part begins, in bytes.
    @ivar end: where it ends.
    @ivar bounds: where each run of data begins and where it ends, in turns.
    """

    start: Size
    end: Size
    bounds: Annotated[tuple[Size, ...], Meta(max_length=2 * MAX_RUNS)]

    def __attrs_post_init__(self) -> None:
        """@raise ValueError: when the runs are not in the part, in their order, and apart."""
        bounds = self.bounds
        if self.start > self.end:
            raise ValueError(f"a map from {self.start} to {self.end}")
        if len(bounds) % 2 or any(one >= next for one, next in pairwise(bounds)):
            raise ValueError("a map whose runs are not in order")
        if bounds and (bounds[0] < self.start or bounds[-1] > self.end):
            raise ValueError("a map with a run beyond its end")


UNKNOWN = DataMap(0, 0, ())
"""The map of an image of which nothing is known."""


@frozen
class MapRequest:
    """Where does an open image have data from C{offset} on, in bytes?"""

    handle: U32
    offset: Size


@frozen
class Opened:
    """
    An open image.

    @ivar handle: its number in READ and CLOSE, on this connection.
    @ivar image: the number of the file, the same for all its generations.
    @ivar generation: the number of the content.
    @ivar key: decrypts the transfers of this generation, with the secret of their epoch.
    @ivar data: where it has data, from its beginning on, as far as that is known.
    """

    handle: U32
    image: U64
    generation: U64
    key: Annotated[bytes, Meta(min_length=16, max_length=16)]
    attributes: Attributes
    data: DataMap = UNKNOWN

    def __attrs_post_init__(self) -> None:
        """@raise ValueError: when the map is not that of the beginning."""
        if self.data.start or self.data.end > self.attributes.size:
            raise ValueError("a map that is not of the image's beginning")


@frozen
class Close:
    """The client no longer needs a handle."""

    handle: U32


@frozen
class Report:
    """
    The state of a client, for the operator of the server.

    @ivar reads: number of reads since it started.
    @ivar hits: number of reads answered from its cache.
    @ivar lag: the longest wait of a read since the last report, in milliseconds.
    @ivar delivered: bytes that readers were given since the last report.
    @ivar works: whether no fault of multicast is known.
    @ivar multicast: the same as text.
    """

    reads: U64
    hits: U64
    lag: U32
    delivered: U64
    works: bool
    multicast: Text

    def __attrs_post_init__(self) -> None:
        if self.hits > self.reads:
            raise ValueError(f"{self.hits} hits in {self.reads} reads")


@frozen
class Pull:
    """
    The server asks a client to fill its cache with an image.

    @ivar number: its number in L{Pulled}, on this connection.
    @ivar path: of the image; empty to stop the pull with this number.
    """

    number: U32
    path: Path


@frozen
class Pulled:
    """
    The progress of a L{Pull}.

    @ivar held: bytes of the image that the client has.
    @ivar size: of the image, in bytes; 0 until it is known.
    @ivar ended: whether the pull is over; C{error} says why, if it failed.
    """

    number: U32
    held: U64
    size: U64
    ended: bool
    error: Text = ""

    def __attrs_post_init__(self) -> None:
        if self.held > self.size:
            raise ValueError(f"{self.held} bytes of {self.size}")


@frozen
class Statistics:
    """The result of statvfs(2) for the file system of the export."""

    bsize: U64
    frsize: U64
    blocks: U64
    bfree: U64
    bavail: U64
    files: U64
    ffree: U64
    favail: U64
    namemax: U64


@frozen
class Failure:
    """Why a request failed: the name of an errno, and a text for a person."""

    errno: Text
    text: Text = ""

    @classmethod
    def of(cls, error: OSError) -> "Failure":
        """The failure for C{error}, without the paths of this host."""
        number = error.errno or errno.EIO
        return cls(errno.errorcode.get(number, "EIO"), (error.strerror or str(error))[:255])

    def error(self) -> OSError:
        """The C{OSError}; with EIO if this system has no such errno."""
        number = getattr(errno, self.errno, None) if self.errno in _ERRNO_NAMES else None
        return OSError(number or errno.EIO, self.text or self.errno)


_ERRNO_NAMES = frozenset(errno.errorcode.values())

T = TypeVar("T")
_decoders: dict[Any, "msgspec.msgpack.Decoder[Any]"] = {}
_encoder = msgspec.msgpack.Encoder()


def encode(value: object) -> bytes:
    """Encode an instance of one of the classes above."""
    return _encoder.encode(value)


def decode(kind: type[T], data: bytes) -> T:
    """
    Decode an instance of C{kind}.

    @raise ProtocolError: when the bytes are not a valid one.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        value: T = decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not a {kind.__name__}: {error}") from None
    return value
