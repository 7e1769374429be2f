"""Transfers on their way out: sealed, cut into segments, paced, written to the group."""

from collections.abc import Iterator

from attrs import evolve
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from mufs.cache.server.items import Entry
from mufs.cache.server.sent import SentTransfer
from mufs.communication.server.output import MAX_TRAIN, ISegmentOutput
from mufs.communication.server.pacing import Pace
from mufs.communication.server.transfer_size import TransferSize
from mufs.wire.packing import Packed
from mufs.wire.sealing import Keys, seal
from mufs.wire.segments import (
    ANNOUNCEMENT,
    HEADER,
    Descriptor,
    cut,
    number_count,
    segment_count,
)

MAX_RUN = 4
"""Trains that are written together at most: they stay in the processor's cache until they are."""


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

    def seal(self, entry: Entry, packed: Packed) -> SentTransfer:
        """Make the next transfer, of an entry that was read, with the keys now in use."""
        image, (offset, length) = entry.image, entry.byte_range
        encoding, data = packed
        number = self._keys.next_transfer(len(data))
        first = self._next_segment
        descriptor = Descriptor(
            number, first, image.image, image.generation, offset, len(data), length, encoding
        )
        count = number_count(segment_count(len(data), self.segment))
        self._next_segment = (first + count) & 0xFFFFFFFF
        return seal_transfer(self._keys, descriptor, data, segment=self.segment)

    async def write(self, transfer: SentTransfer, segments: int, parity: int) -> None:
        """
        Write segments of a transfer between its announcement and its completion.

        @param segments: bitmap of the segments.
        @param parity: how many new parity segments of each group to add.
        """
        began, size, held_back = self._clock.seconds(), 0, False
        for packets in self._packets(transfer, segments, parity):
            size += len(packets)
            delay = self._pace.delay(len(packets))
            if delay > 0:
                held_back = True
                await deferLater(self._clock, delay)
            while self.output is not None:
                taken = self.output.write(packets)
                if taken == len(packets):
                    break
                packets = packets[taken:]
                held_back = True
                self._pace.blocked()
                await self.output.writable()
        self.bytes_multicast += size
        self.size.written(size, began, held_back=held_back)

    def _packets(
        self, transfer: SentTransfer, segments: int, parity: int
    ) -> Iterator[bytes | memoryview]:
        """What is written, in runs of trains, each in the memory of the one before."""
        whole = HEADER.size + self.segment
        train = MAX_TRAIN * whole
        in_run = max(1, min(MAX_RUN, int(self._pace.run / train)))
        completion = transfer.completion(segments)
        yield transfer.control(ANNOUNCEMENT)
        for run in trains(transfer, segments, in_run * MAX_TRAIN):
            if not parity and 0 < len(run) % whole <= whole - len(completion):
                # The last segment is short, so that the completion fits into its datagram.
                last = (len(run) - 1) // train * train
                if last:
                    yield run[:last]
                yield b"".join((run[last:], completion))
                return
            yield run
        if parity:
            rows = transfer.make_parity(parity).data.cast("B")
            yield from (rows[i : i + train] for i in range(0, len(rows), train))
        yield completion


def seal_transfer(
    keys: Keys, descriptor: Descriptor, data: bytes | memoryview, *, segment: int
) -> SentTransfer:
    """
    Make a transfer that can be sent.

    @param descriptor: without the authentication tag.
    @param data: packed bytes, as many as the descriptor says.
    @param segment: bytes of data in a segment.
    """
    d = descriptor
    sealed, tag = seal(keys.cipher(d.image, d.generation), d, data)
    return SentTransfer(evolve(d, tag=tag), sealed, segment, keys.epoch.control)


def trains(transfer: SentTransfer, segments: int, most: int = MAX_TRAIN) -> Iterator[memoryview]:
    """
    The packets of some segments of a transfer, back to back, in trains (see C{segments.cut}).

    @param segments: bitmap of the segments.
    @param most: how many packets a train has at most.
    """
    return cut(
        transfer.descriptor.first, transfer.sealed, transfer.segment, chosen=segments, most=most
    )
