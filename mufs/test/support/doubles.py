"""Test doubles used by several test modules."""

import stat
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from mufs.cache.server.sent import IReader, SentTransfer, Share
from mufs.communication.client.receiver import MulticastReceiver
from mufs.communication.interfaces import NetworkInterface
from mufs.communication.server.output import ISegmentOutput
from mufs.filesystem.client.libfuse import Libfuse
from mufs.interfaces import IImage
from mufs.wire.channel import HEADER, MAX_DATA, Occasion, parse_tagged
from mufs.wire.metadata import Attributes, DataMap
from mufs.wire.pages import EXTENT
from mufs.wire.segments import Descriptor, parse


def make_interface(address: str = "192.0.2.1", index: int = 2, **changes: Any) -> NetworkInterface:
    """An Ethernet interface in order; C{changes} are other values of its attributes."""
    usual = NetworkInterface(index, "eth0", address, 1500, True, True, True, False, False)
    return evolve(usual, **changes)


def make_attributes(size: int = 0, generation: int = 1) -> Attributes:
    """Return the attributes of a regular file of C{size} bytes."""
    return Attributes(
        mode=stat.S_IFREG | 0o644,
        ino=7,
        nlink=1,
        uid=0,
        gid=0,
        rdev=0,
        size=size,
        blocks=-(-size // 512),
        atime=0,
        mtime=0,
        ctime=0,
        generation=generation,
    )


def receive(receiver: MulticastReceiver, clock: IReactorTime, *datagrams: bytes) -> None:
    """Have datagrams of the server come to a receiver, all at once."""
    ends = list(accumulate(map(len, datagrams)))
    receiver.received(memoryview(b"".join(datagrams)), ends, clock.seconds())


def make_libfuse(
    context: tuple[int, int, int] = (0, 0, 0), mount: Callable[..., object] = dict, major: int = 3
) -> Libfuse:
    """
    A libfuse that mounts nothing.

    @param context: user, group and thread of each operation.
    @param mount: called instead.
    """
    return Libfuse(major, f"{major}.9", lambda: context, mount)


class FakeTransport(StringTransport):
    """
    A TCP connection in memory that records what is written to it.

    @ivar protocol: its C{connectionLost} is called when the connection is closed here; if C{None},
        the close is only recorded.
    @ivar aborted: whether it was aborted.
    """

    protocol: Any = None
    producer: Any
    aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """See L{ITCPTransport.setTcpNoDelay}."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """See L{ITCPTransport.setTcpKeepAlive}."""

    def loseConnection(self) -> None:
        """See L{ITransport.loseConnection}."""
        if self.protocol is None:
            super().loseConnection()
        elif self.connected:
            self.connected = False
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def abortConnection(self) -> None:
        """See L{ITCPTransport.abortConnection}."""
        self.aborted = True
        super().abortConnection()

    def taken(self) -> bytes:
        """Return what was written since the last call."""
        written: bytes = self.value()
        self.clear()
        return written

    def packets(self) -> list[tuple[int, int, bytes]]:
        """Like L{taken}, parsed as packets of the request channel: type, offset, data."""
        written = self.taken()
        found = []
        while written:
            kind, offset, size = HEADER.unpack_from(written)
            assert size <= MAX_DATA
            assert len(written) >= HEADER.size + size
            found.append((kind, offset, written[HEADER.size : HEADER.size + size]))
            written = written[HEADER.size + size :]
        return found

    def tagged(self) -> list[tuple[int, int, bytes]]:
        """Like L{packets}, for data that begin with a tag: type, tag, the data after the tag."""
        return [(kind, *parse_tagged(data)) for kind, _, data in self.packets()]

    @property
    def ended(self) -> bool:
        """Whether the connection was closed or lost."""
        return bool(self.disconnecting or self.disconnected)


@implementer(IImage)
class ImageInMemory:
    """An image whose content is in memory."""

    def __init__(self, content: bytes, image: int = 1, generation: int = 1) -> None:
        self._content = content
        self.image = image
        self.generation = generation
        self.attributes = make_attributes(len(content), generation)

    def read(self, offset: int, length: int) -> bytes:
        """See L{IImage.read}."""
        return self._content[offset : offset + length]

    def read_at_once(self, offset: int, length: int) -> None:
        """See L{IImage.read_at_once}."""

    def find_data(self, offset: int) -> DataMap:
        """See L{IImage.find_data}: all is data."""
        size = len(self._content)
        return DataMap(offset, max(offset, size), (offset, size) if offset < size else ())


@implementer(IReader)
@define(eq=False)
class RecordingReader:
    """A client that records the transfers and failures reported to it."""

    name: str = ""
    told: list[tuple[int, SentTransfer, Occasion]] = field(factory=list)
    failures: list[tuple[int, OSError]] = field(factory=list)
    share: Share = field(factory=Share)
    max_transfer: int = EXTENT

    def sent(self, tag: int, transfer: SentTransfer, occasion: Occasion) -> None:
        """See L{IReader.sent}."""
        self.told.append((tag, transfer, occasion))

    def failed(self, tag: int, error: OSError) -> None:
        """See L{IReader.failed}."""
        self.failures.append((tag, error))

    def pages_told(self, tag: int) -> dict[int, int]:
        """Return the pages that were sent for a request, as a bit mask by extent."""
        found: dict[int, int] = {}
        for each, transfer, _ in self.told:
            if each == tag:
                extent = transfer.extent[2]
                found[extent] = found.get(extent, 0) | transfer.pages
        return found


def make_sent(
    number: int, image: IImage, offset: int, length: int, first: int = 0, segment: int = 1400
) -> SentTransfer:
    """Make an unsealed transfer of a range of an image."""
    descriptor = Descriptor(number, first, image.image, image.generation, offset, length)
    return SentTransfer(descriptor, image.read(offset, length), segment)


@implementer(ISegmentOutput)
class RecordingOutput:
    """
    A group that records what is sent to it.

    @ivar room: the free bytes of the send buffer, or C{None} for no limit.
    """

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.room: int | None = None
        self._waiting: list[Deferred[None]] = []

    def write(self, packets: bytes | memoryview) -> int:
        """See L{ISegmentOutput.write}."""
        if self.room is not None:
            packets = packets[: self.room]
            self.room -= len(packets)
        if packets:
            self.written.append(bytes(packets))
        return len(packets)

    def writable(self) -> "Deferred[None]":
        """See L{ISegmentOutput.writable}."""
        self._waiting.append(Deferred())
        return self._waiting[-1]

    def take_segments(self) -> int:
        """Return the number of segments sent since the last call."""
        written, self.written = b"".join(self.written), []
        return sum(len(packet[2]) for packet in parse(written) if len(packet) == 3)

    def drain(self, room: int | None = None) -> None:
        """Give the send buffer room for C{room} bytes, and wake up the writers."""
        self.room = room
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)
