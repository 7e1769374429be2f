"""Transfers on their way out: sealed, cut into segments, paced, written to the group."""

from typing import Any

import numpy
from attrs import evolve
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from mufs.cache.server.items import Entry
from mufs.cache.server.sent import SentTransfer
from mufs.communication.server.output import MAX_TRAIN, ISegmentOutput
from mufs.communication.server.pacing import Pace
from mufs.communication.server.transfer_size import TransferSize
from mufs.wire.sealing import Keys, seal
from mufs.wire.segments import (
    ANNOUNCEMENT,
    HEADER,
    Descriptor,
    cut,
    number_count,
    segment_count,
)


class Sender:
    """
    Makes transfers and writes them to the group at the pace, one at a time.

    @ivar segment: bytes of data in a segment.
    @ivar output: where datagrams go; while C{None}, they are dropped.
    @ivar size: how large a transfer may be.
    @ivar bytes_multicast: bytes of all datagrams so far.
    """

    def __init__(self, keys: Keys, pace: Pace, clock: IReactorTime, *, segment: int) -> None:
        self._keys = keys
        self._pace = pace
        self._clock = clock
        self._next_segment = 0
        self.size = TransferSize(clock)
        self.segment = segment
        self.output: ISegmentOutput | None = None
        self.bytes_multicast = 0

    def seal(self, entry: Entry, data: bytes | memoryview) -> SentTransfer:
        """Make the next transfer, of an entry that was read, with the keys now in use."""
        image, (offset, length) = entry.image, entry.byte_range
        number = self._keys.next_transfer(length)
        first = self._next_segment
        descriptor = Descriptor(number, first, image.image, image.generation, offset, length)
        count = number_count(segment_count(length, self.segment))
        self._next_segment = (first + count) & 0xFFFFFFFF
        return seal_transfer(self._keys, descriptor, data, segment=self.segment)

    async def write(self, transfer: SentTransfer, segments: int, parity: int) -> None:
        """
        Write segments of a transfer between its announcement and its completion.

        @param segments: bitmap of the segments.
        @param parity: how many new parity segments of each group to add.
        """
        pieces: list[bytes | memoryview] = [transfer.control(ANNOUNCEMENT)]
        if segments:
            pieces += trains(transfer, segments)
        if parity:
            pieces += _split(transfer.make_parity(parity))
        completion = transfer.completion(segments)
        # The last segment is usually short: the completion fits into its datagram then.
        last = len(pieces[-1]) % (HEADER.size + self.segment)
        if len(pieces) > 1 and 0 < last <= self.segment + HEADER.size - len(completion):
            pieces[-1] = b"".join((pieces[-1], completion))
        else:
            pieces.append(completion)
        began, size, held_back = self._clock.seconds(), 0, False
        for piece in pieces:
            size += len(piece)
            delay = self._pace.delay(len(piece))
            if delay > 0:
                held_back = True
                await deferLater(self._clock, delay)
            while self.output is not None:
                piece = piece[self.output.write(piece) :]
                if not piece:
                    break
                held_back = True
                self._pace.blocked()
                await self.output.writable()
        self.bytes_multicast += size
        self.size.written(size, began, held_back=held_back)


def seal_transfer(
    keys: Keys, descriptor: Descriptor, data: bytes | memoryview, *, segment: int
) -> SentTransfer:
    """
    Make a transfer that can be sent.

    @param descriptor: without the authentication tag.
    @param data: bytes of the image, as many as the descriptor says.
    @param segment: bytes of data in a segment.
    """
    d = descriptor
    sealed, tag = seal(keys.cipher(d.image, d.generation), d, data)
    return SentTransfer(evolve(d, tag=tag), cut(d.first, sealed, segment), keys.epoch.control)


def trains(transfer: SentTransfer, segments: int, most: int = MAX_TRAIN) -> list[memoryview]:
    """
    The packets of some segments of a transfer, back to back, in trains.

    @param segments: bitmap of the segments.
    @param most: how many packets a train has at most.
    """
    rows = transfer.rows
    count = len(rows)
    padding = (rows.shape[1] - HEADER.size) * count - transfer.descriptor.total
    if segments != (1 << count) - 1:
        rows = rows[[i for i in range(count) if segments >> i & 1]]
    packets = _split(rows, most)
    if padding and segments >> (count - 1):
        packets[-1] = packets[-1][:-padding]
    return packets


def _split(rows: "numpy.ndarray[Any, Any]", most: int = MAX_TRAIN) -> list[memoryview]:
    """Packets, one per row, in trains of C{most} packets."""
    packets = rows.data.cast("B")
    size = most * rows.shape[1]
    return [packets[i : i + size] for i in range(0, len(packets), size)]
