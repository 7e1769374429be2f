"""The most recent transfers, kept as they were sent, for repairs and late requests."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attrs import define, field
from zope.interface import Attribute, Interface

from mufs.wire.channel import Occasion
from mufs.wire.pages import EXTENT, mask_of
from mufs.wire.parity import MAX_PARITY
from mufs.wire.segments import (
    COMPLETION,
    REPAIRED,
    Descriptor,
    cut_parity,
    group_count,
    segment_count,
)

if TYPE_CHECKING:
    import numpy

ExtentKey = tuple[int, int, int]
"""Image, generation, and number of the extent."""

MAX_BYTES_AWAITED = 16 * 1024 * 1024
"""
Bytes that a host may wait for at a time; one that waits for more is greedy, and only its requests
that others share keep their priority. Twice what a client reads ahead of one sequence.
"""

INITIAL_REPAIR_CREDIT = 1024 * 1024
"""Bytes that may be repaired for a host before it has requested any."""

MAX_REPAIR_CREDIT = MAX_BYTES_AWAITED
"""Bytes that may be repaired for a host at most, however much was sent to it."""


TRANSFER_OVERHEAD = 1024
"""Bytes of memory that a transfer in the window takes besides its sealed bytes."""


@define(eq=False)
class Share:
    """
    The account of a host, for all of its connections: how much multicast it used and waits for.

    @ivar served: bytes sent for it, each divided among the hosts that waited for them.
    @ivar waiting: bytes that it requested and that were not sent yet.
    @ivar repair_credit: bytes that may be repaired for it at the priority of a read.
    """

    served: float = 0.0
    waiting: int = 0
    repair_credit: int = INITIAL_REPAIR_CREDIT

    @property
    def is_greedy(self) -> bool:
        """Whether it waits for more than any reader can use."""
        return self.waiting > MAX_BYTES_AWAITED

    def charge_repair(self, size: int) -> bool:
        """Charge a repair of C{size} bytes; C{False}, and no charge, when the credit is short."""
        if size > self.repair_credit:
            return False
        self.repair_credit -= size
        return True


class IReader(Interface):
    """A client, as the server's queue and controller see it: somebody to be notified."""

    share: Share = Attribute("the account of its host")
    max_transfer: int = Attribute("bytes of the largest transfer that it can take in, in blocks")

    def sent(tag: int, transfer: "SentTransfer", occasion: Occasion) -> None:
        """A transfer carried some or all of what the read of C{tag} asked for."""

    def failed(tag: int, error: OSError) -> None:
        """The read of C{tag} cannot be answered."""


@define(eq=False)
class SentTransfer:
    """
    A transfer as it goes out.

    @ivar sealed: the bytes that its segments carry.
    @ivar segment: bytes of data in a segment.
    @ivar key: the key of its epoch for the MACs of its control packets.
    @ivar parity: how many parity segments of each group were made, and thus sent, so far.
    @ivar repaired_at: when it was last repaired, in seconds of the server's clock.
    @ivar audience: the clients that waited for it when it was sent.
    @ivar interval: the interval of sending that reports of its loss count for (see C{Pace}).
    @ivar count: how many segments it has.
    @ivar extent: the extent whose pages it carries, C{pages} which ones.
    """

    descriptor: Descriptor
    sealed: bytes | memoryview = field(repr=False)
    segment: int
    key: bytes = field(default=b"", repr=False)
    parity: int = 0
    repaired_at: float = float("-inf")
    audience: set[IReader] = field(factory=set, repr=False)
    interval: Any = field(default=None, repr=False)
    count: int = field(init=False)
    extent: ExtentKey = field(init=False)
    pages: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        d = self.descriptor
        self.count = segment_count(d.total, self.segment)
        number, start = divmod(d.offset, EXTENT)
        self.extent = d.image, d.generation, number
        self.pages = mask_of(start, start + d.length)

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes."""
        return self.descriptor.total + TRANSFER_OVERHEAD

    def bytes_in(self, segments: int) -> int:
        """About how many of its bytes the segments in this bitmap carry."""
        return self.descriptor.total * segments.bit_count() // self.count

    @property
    def parity_left(self) -> int:
        """How many more parity segments can be made of each group."""
        return MAX_PARITY - self.parity

    def control(self, phase: int) -> bytes:
        """Its announcement or completion."""
        return self.descriptor.encode(phase, self.segment, self.key)

    def completion(self, segments: int) -> bytes:
        """The control packet after the segments in this bitmap: all of them, or a repair."""
        whole = segments.bit_count() == self.count
        return self.control(COMPLETION if whole else REPAIRED)

    @property
    def groups(self) -> int:
        """How many groups its segments are in."""
        return group_count(self.count)

    def make_parity(self, count: int) -> "numpy.ndarray[Any, Any]":
        """The next C{count} parity segments of each group, ready to send."""
        groups = self.groups
        made = cut_parity(
            self.descriptor.first, self.sealed, self.parity * groups, count * groups, self.segment
        )
        self.parity += count
        return made


class SentWindow:
    """The last transfers, by number and by extent, up to a limit in bytes: the oldest go first."""

    def __init__(self, limit: int = 64 * 1024 * 1024) -> None:
        """@param limit: bytes of memory of all of them."""
        self._limit = limit
        self._bytes = 0
        self._transfers: OrderedDict[int, SentTransfer] = OrderedDict()
        self._extents: dict[ExtentKey, list[SentTransfer]] = {}

    def add(self, transfer: SentTransfer) -> None:
        """Keep a transfer that was just sent."""
        self._transfers[transfer.descriptor.transfer] = transfer
        self._extents.setdefault(transfer.extent, []).append(transfer)
        self._bytes += transfer.memory
        while self._bytes > self._limit:
            _, oldest = self._transfers.popitem(last=False)
            self._bytes -= oldest.memory
            same = self._extents[oldest.extent]
            same.remove(oldest)
            if not same:
                del self._extents[oldest.extent]

    def forget(self, reader: IReader) -> None:
        """A client has disconnected: keep nothing of it."""
        for transfer in self._transfers.values():
            transfer.audience.discard(reader)

    def clear(self) -> None:
        """Drop all transfers: their keys were replaced."""
        self._bytes = 0
        self._transfers.clear()
        self._extents.clear()

    def get(self, number: int) -> SentTransfer | None:
        """The transfer with this number, or C{None} when it is no longer held."""
        return self._transfers.get(number)

    def of_extent(self, extent: ExtentKey) -> Iterator[SentTransfer]:
        """The transfers held that carry pages of an extent, the newest first."""
        return reversed(self._extents.get(extent, ()))
