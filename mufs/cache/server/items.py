"""What the multicast queue holds: ranges to be sent, and transfers to be repaired."""

from attrs import define, field

from mufs.cache.server.sent import ExtentKey, IReader, SentTransfer, Share
from mufs.interfaces import IImage
from mufs.wire.channel import Priority
from mufs.wire.pages import EXTENT, PAGE, byte_range
from mufs.wire.segments import HEADER

Readers = dict[IReader, dict[int, int]]
"""
Clients, each with the tags of its requests in order of arrival, and with what each of them waits
for: a bitmap of the pages of an extent, or of the segments of a transfer.
"""

ITEM_COST = 16 * 1024
"""Fixed cost per item sent, in bytes."""

SCAVENGER = len(Priority)
"""
The service class below all priorities (RFC 3662): items that only greedy hosts wait for, and
repairs beyond a host's repair credit.
"""

SERVICE_CLASSES: tuple[int, ...] = (*Priority, SCAVENGER)
"""All service classes, the most urgent first."""


@define(eq=False)
class Entry:
    """
    A run of pages of one extent to be read, sealed and sent.

    @ivar queued_in: the service class that it is queued in, C{None} once it was taken.
    @ivar readers: who waits for it, and for which of its pages.
    @ivar service_class: the service class that it was taken from, or a more urgent one that it was
        raised to since.
    @ivar place: the host in whose queue it is, and its number there.
    """

    image: IImage
    extent: int
    first: int
    count: int
    queued_in: int | None
    readers: Readers = field(factory=dict)
    service_class: int = SCAVENGER
    place: tuple[Share, int] = field(init=False)

    @property
    def end(self) -> int:
        """The number of the page after its last one."""
        return self.first + self.count

    @property
    def size(self) -> int:
        """Its pages, in bytes."""
        return self.count * PAGE

    @property
    def cost(self) -> int:
        """What it costs the server and its link, in bytes."""
        return ITEM_COST + self.size

    @property
    def pages(self) -> int:
        """The run as a set of pages."""
        return ((1 << self.count) - 1) << self.first

    @property
    def byte_range(self) -> tuple[int, int]:
        """Its offset and length in the image, in bytes."""
        return byte_range(self.extent * EXTENT, self.first, self.count, self.image.attributes.size)

    @property
    def key(self) -> ExtentKey:
        """The extent that it is a part of."""
        return self.image.image, self.image.generation, self.extent

    def bytes_in(self, pages: int) -> int:
        """How many bytes a request for some of its pages waits for."""
        return pages.bit_count() * PAGE


@define(eq=False)
class Resend:
    """
    A transfer to be repaired, either by the missing segments or by parity. As many parity
    segments as the reader with the most losses needs are enough for all readers.

    @ivar missing: bitmap of the segments that at least one reader misses.
    @ivar max_missing: how many parity segments of each group the reader with the most losses needs.
    @ivar parity: how many parity segments of each group to send; 0 to send the missing segments.
    @ivar is_repeat: whether nothing was lost: all who wait came too late, or kept nothing of it.
    """

    transfer: SentTransfer
    queued_in: int | None
    missing: int = 0
    max_missing: int = 0
    parity: int = 0
    readers: Readers = field(factory=dict)
    service_class: int = SCAVENGER
    is_repeat: bool = True
    place: tuple[Share, int] = field(init=False)

    @property
    def segments(self) -> int:
        """How many segments will be sent."""
        return self.parity * self.transfer.groups or self.missing.bit_count()

    @property
    def cost(self) -> int:
        """What it costs the server and its link, in bytes."""
        return ITEM_COST + self.segments * (HEADER.size + self.transfer.segment)

    def bytes_in(self, segments: int) -> int:
        """How many bytes a request that misses some of its segments waits for."""
        return self.transfer.bytes_in(segments)
