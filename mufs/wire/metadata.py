"""
What travels encoded in the data of TCP packets: the first exchange, attributes, names, errors.

The encoding is MessagePack; each value is decoded into the class that belongs there, and
checked against its types and bounds before anybody sees it. Times are nanoseconds since the
epoch, names and paths are bytes as the server's file system has them.
"""

import errno
from typing import Annotated, Any, TypeVar

import msgspec
from attrs import frozen
from msgspec import Meta

from mufs.wire.channel import ProtocolError

VERSION = 4

U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
U64 = Annotated[int, Meta(ge=0)]  # the encoding itself ends at 2**64
Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]  # the largest file that a kernel can have
Name = Annotated[bytes, Meta(min_length=1, max_length=1024)]
Path = Annotated[bytes, Meta(max_length=65536)]
Target = Annotated[bytes, Meta(min_length=1, max_length=4095)]  # no link on Linux is longer
# One line, so that what another host says cannot look like lines of one's own log.
Text = Annotated[str, Meta(max_length=255, pattern="^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\\Z")]


@frozen
class Hello:
    """The client's first packet."""

    version: int
    name: Text


@frozen
class Welcome:
    """
    The server's answer: all that a client must know of the multicast side.

    @ivar group: address of the multicast group, or empty when this client gets none.
    @ivar port: UDP port that the group's datagrams go to.
    @ivar source: address and port that they come from; others are dropped.
    @ivar segment: the most data bytes in one segment.
    """

    version: int
    group: Text
    port: Annotated[int, Meta(ge=0, lt=65536)]
    source: tuple[Text, Annotated[int, Meta(ge=0, lt=65536)]]
    segment: Annotated[int, Meta(ge=64, le=1400)]


@frozen
class Attributes:
    """What stat(2) tells of a file; C{blocks} of 512 bytes."""

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


@frozen
class Caller:
    """On whose behalf a client asks, as its host says: what Unix calls credentials."""

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
    """Where a symbolic link points."""

    target: Target

    def __attrs_post_init__(self) -> None:
        """@raise ValueError: for what cannot be a target."""
        if b"\0" in self.target:
            raise ValueError("a link's target with a byte 0")


@frozen
class Names:
    """A part of a directory's listing, with the attributes of each file."""

    entries: list[tuple[Name, Attributes]]

    def __attrs_post_init__(self) -> None:
        """@raise ValueError: for what cannot be the name of a file in a directory."""
        for name, _ in self.entries:
            if name in (b".", b"..") or b"/" in name or b"\0" in name:
                raise ValueError(f"{name[:64]!r} is no name")


@frozen
class Opened:
    """
    An open image.

    @ivar handle: what READ and CLOSE name it by, on this connection.
    @ivar image: which file it is; the same for all generations of it.
    @ivar generation: which content: device, inode, size, mtime and ctime as one number.
    @ivar key: opens the transfers of this generation, with the secret of their epoch.
    """

    handle: U32
    image: U64
    generation: U64
    key: Annotated[bytes, Meta(min_length=16, max_length=16)]
    attributes: Attributes


@frozen
class Close:
    """The client no longer needs a handle."""

    handle: U32


@frozen
class Report:
    """
    How a client fares, for the operator of the server.

    @ivar reads: that reached it since it started; C{hits}: those that its cache answered.
    @ivar lag: milliseconds that a read had to wait at the most, since the last report.
    @ivar works: whether nothing is known to be wrong with multicast there; C{multicast} says it
        for people.
    """

    reads: U64
    hits: U64
    lag: U32
    works: bool
    multicast: Text

    def __attrs_post_init__(self) -> None:
        if self.hits > self.reads:
            raise ValueError(f"{self.hits} hits in {self.reads} reads")


@frozen
class Pull:
    """
    The server asks that an image be brought into the cache.

    @ivar number: what L{Pulled} names it by, on this connection.
    @ivar path: of the image; empty if the pull of that number is to be given up.
    """

    number: U32
    path: Path


@frozen
class Pulled:
    """
    How far a client is with a L{Pull}.

    @ivar held: bytes that it has of C{size}; this is 0 until it knows the image.
    @ivar ended: nothing more will come of it; C{error} says why if that is too early.
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
    """What statvfs(2) tells of the file system that the images lie on."""

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
        """What C{error} tells of itself, without the paths of this host."""
        number = error.errno or errno.EIO
        return cls(errno.errorcode.get(number, "EIO"), (error.strerror or str(error))[:255])

    def error(self) -> OSError:
        """The C{OSError} that it stands for here; EIO where this system has no such errno."""
        number = getattr(errno, self.errno, None) if self.errno in _ERRNO_NAMES else None
        return OSError(number or errno.EIO, self.text or self.errno)


_ERRNO_NAMES = frozenset(errno.errorcode.values())

T = TypeVar("T")
_decoders: dict[Any, "msgspec.msgpack.Decoder[Any]"] = {}
_encoder = msgspec.msgpack.Encoder()


def encode(value: object) -> bytes:
    """One of the classes above as bytes."""
    return _encoder.encode(value)


def decode(kind: type[T], data: bytes) -> T:
    """
    The reverse of L{encode}.

    @raise ProtocolError: when the bytes are not a C{kind}.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        value: T = decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not a {kind.__name__}: {error}") from None
    return value
