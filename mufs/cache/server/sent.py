"""The transfers sent last, kept as they were sent, for repair and for those who ask late."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy
from attrs import define, field
from zope.interface import Attribute, Interface

from mufs.wire.channel import Occasion
from mufs.wire.pages import BLOCK, mask_of
from mufs.wire.segments import (
    COMPLETION,
    HEADER,
    REPAIRED,
    Descriptor,
    cut_parity,
    number_count,
)

BlockKey = tuple[int, int, int]
"""Image, generation, and number of the block."""

GREEDY = 16 * 1024 * 1024
"""
Bytes that a host may wait for at a time before it waits behind the others: three times what a
client reads ahead at the most.
"""

UNASKED = 1024 * 1024
"""Bytes that may be sent again for a host before it has asked for any."""


@define(eq=False)
class Share:
    """
    What a host, by all of its connections, has of the multicast: what it may have is weighed
    against this.

    @ivar served: bytes sent for it, each divided among the hosts that waited for them.
    @ivar waiting: bytes that it asked for, and that still have to be sent.
    @ivar mendable: bytes that may be sent again for it as if it read them.
    """

    served: float = 0.0
    waiting: int = 0
    mendable: int = UNASKED

    @property
    def is_greedy(self) -> bool:
        """Whether it asks for more at a time than a reader has use for."""
        return self.waiting > GREEDY

    def may_mend(self, size: int) -> bool:
        """Whether so many bytes may be sent again for it; if so, they count."""
        if size > self.mendable:
            return False
        self.mendable -= size
        return True


class IReader(Interface):
    """A client, as the server's queue and controller see it: somebody to be told."""

    share: Share = Attribute("what counts for it, and for all others of its host")

    def sent(tag: int, transfer: "SentTransfer", occasion: Occasion) -> None:
        """A transfer carried what the read of C{tag} asked for, or a part of it."""

    def failed(tag: int, error: OSError) -> None:
        """The read of C{tag} cannot be answered."""


@define(eq=False)
class SentTransfer:
    """
    A transfer as it goes out.

    @ivar rows: its segments, one a row, the last one padded (see C{segments.cut}).
    @ivar key: of its epoch, for the MACs of its control packets.
    @ivar parity: how many parity segments of it were made, and so sent, so far.
    @ivar mended: when segments or parity of it were sent again last, in seconds.
    @ivar audience: the clients that waited for it when it was sent.
    @ivar interval: what reports of its loss are booked on, whatever that is to the sender.
    """

    descriptor: Descriptor
    rows: "numpy.ndarray[Any, Any]" = field(repr=False)
    key: bytes = field(default=b"", repr=False)
    parity: int = 0
    mended: float = float("-inf")
    audience: set[IReader] = field(factory=set, repr=False)
    interval: Any = field(default=None, repr=False)

    @property
    def block(self) -> BlockKey:
        """The block that it carries a part of."""
        d = self.descriptor
        return d.image, d.generation, d.offset // BLOCK

    @property
    def pages(self) -> int:
        """The pages that it carries."""
        start = self.descriptor.offset % BLOCK
        return mask_of(start, start + self.descriptor.total)

    def bytes_in(self, segments: int) -> int:
        """About how many of its bytes these segments carry, given as a bitmap."""
        return self.descriptor.total * segments.bit_count() // len(self.rows)

    @property
    def parity_left(self) -> int:
        """How many parity segments may still be made of it."""
        return number_count(len(self.rows)) - len(self.rows) - self.parity

    def control(self, phase: int) -> bytes:
        """Its announcement or completion."""
        return self.descriptor.encode(phase, self.rows.shape[1] - HEADER.size, self.key)

    def completion(self, segments: int) -> bytes:
        """What ends a sending of these segments, given as a bitmap: all, or a part to repair it."""
        whole = segments.bit_count() == len(self.rows)
        return self.control(COMPLETION if whole else REPAIRED)

    def make_parity(self, count: int) -> "numpy.ndarray[Any, Any]":
        """The next parity segments, ready to send."""
        made = cut_parity(self.descriptor.first, self.rows, self.parity, count)
        self.parity += count
        return made


class SentWindow:
    """The last transfers, by number and by block, bounded in bytes: the oldest go."""

    def __init__(self, limit: int = 64 * 1024 * 1024) -> None:
        self._limit = limit
        self._bytes = 0
        self._transfers: OrderedDict[int, SentTransfer] = OrderedDict()
        self._blocks: dict[BlockKey, list[SentTransfer]] = {}

    def add(self, transfer: SentTransfer) -> None:
        """Keep a transfer that was just sent."""
        self._transfers[transfer.descriptor.transfer] = transfer
        self._blocks.setdefault(transfer.block, []).append(transfer)
        self._bytes += transfer.rows.nbytes
        while self._bytes > self._limit:
            _, oldest = self._transfers.popitem(last=False)
            self._bytes -= oldest.rows.nbytes
            same = self._blocks[oldest.block]
            same.remove(oldest)
            if not same:
                del self._blocks[oldest.block]

    def clear(self) -> None:
        """Keep none of them any longer: their keys were replaced."""
        self._bytes = 0
        self._transfers.clear()
        self._blocks.clear()

    def get(self, number: int) -> SentTransfer | None:
        """The transfer of that number, or C{None} when it is no longer held."""
        return self._transfers.get(number)

    def of_block(self, block: BlockKey) -> Iterator[SentTransfer]:
        """The transfers held that carried something of a block, the newest first."""
        return reversed(self._blocks.get(block, ()))
