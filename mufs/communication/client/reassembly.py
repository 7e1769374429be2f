"""Reassembles transfers from segments in any order (paper, section 5.3)."""

from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict, deque
from typing import Any

import numpy

from mufs.communication.client import buffers
from mufs.wire.pages import BLOCK, EXTENT
from mufs.wire.parity import restore, words
from mufs.wire.segments import (
    TAG_SIZE,
    Descriptor,
    Run,
    group_count,
    not_restored,
    number_count,
    segment_count,
)

MAX_PARTIAL = 128
"""Incomplete transfers that are kept."""

MAX_PARTIAL_BYTES = MAX_PARTIAL * (BLOCK + TAG_SIZE)
"""Bytes that they have at most, with their tags: about 16 MiB."""

MAX_KNOWN = 2048
"""Transfers remembered, so that late and duplicate segments are recognized."""

MAX_ORPHANS = 1024
"""Segments kept although their announcement has not come: the completion may describe them."""


class _Transfer:
    """
    One transfer.

    @ivar buffer: its bytes and tag, and perhaps more; C{None} when its segments are not needed
        (any more).
    @ivar have: bitmap of the segments that came.
    @ivar parity: parity segments, by index.
    """

    __slots__ = (
        "asked",
        "buffer",
        "completed",
        "count",
        "descriptor",
        "first",
        "have",
        "numbers",
        "parity",
        "size",
        "wanted",
    )

    def __init__(self, descriptor: Descriptor, first: int, size: int, wanted: bool) -> None:
        self.descriptor = descriptor
        self.first = first
        self.size = size
        self.wanted = wanted
        self.have = 0
        self.asked = self.completed = False
        self.count = segment_count(descriptor.total, size)
        self.numbers = number_count(self.count)
        self.parity: dict[int, numpy.ndarray[Any, Any]] = {}
        self.buffer: bytearray | None = None
        if wanted:
            sealed = descriptor.total + TAG_SIZE
            is_large = descriptor.total > EXTENT // 2
            self.buffer = buffers.take() if is_large else bytearray(sealed)
            self.buffer[descriptor.total : sealed] = descriptor.tag

    @property
    def missing(self) -> int:
        """Bitmap of the segments to ask for: as many of the missing ones as complete it."""
        lacking = ((1 << self.count) - 1) & ~self.have
        if not self.parity:
            return lacking
        groups = group_count(self.count)
        return not_restored(lacking, self.count, Counter(i % groups for i in self.parity))

    def put(self, index: int, length: int, rows: "numpy.ndarray[Any, Any]") -> bool:
        """
        Take in segments, or parity segments, from C{index} on.

        @return: whether this completed it.
        """
        if index >= self.count:
            if self.buffer is None or length < self.size:
                return False
            self.parity.update(enumerate(rows.copy(), index - self.count))
            return not self.missing and self._restore()
        start = index * self.size
        stop = start + (len(rows) - 1) * self.size + length
        if stop > self.descriptor.total:
            # The last segment is shorter.
            rows, stop = rows[:-1], stop - length
        if not len(rows) or (length < self.size and stop < self.descriptor.total):
            return False
        self.have |= ((1 << len(rows)) - 1) << index
        if self.buffer is None:
            return False
        place = numpy.frombuffer(self.buffer, numpy.uint8, stop - start, start)
        place.reshape(rows.shape)[:] = rows
        return not self.missing and self._restore()

    def _restore(self) -> bool:
        """Restore what is missing from parity segments."""
        whole = (1 << self.count) - 1
        if self.have != whole:
            assert self.buffer is not None
            lost = [i for i in range(self.count) if not self.have >> i & 1]
            total = self.descriptor.total
            filled = numpy.zeros((self.count, self.size), numpy.uint8)
            content = numpy.frombuffer(self.buffer, numpy.uint8)[:total]
            filled.reshape(-1)[:total] = content
            filled[lost] = 0
            groups = group_count(self.count)
            for group in {i % groups for i in lost}:
                segments = words(filled[group::groups])
                of_group = [i // groups for i in lost if i % groups == group]
                parities = {
                    i // groups: words(row[None])[0]
                    for i, row in self.parity.items()
                    if i % groups == group
                }
                restore(segments, of_group, parities)
                restored = segments[of_group].view(numpy.uint8)[:, : self.size]
                filled[group::groups][of_group] = restored
            content[:] = filled.reshape(-1)[:total]
            self.have = whole
        return True


class Reassembly:
    """
    The transfers being received, by their own numbers and by those of their segments.

    Known transfers, incomplete transfers and segments of unknown transfers are all bounded; the
    oldest are dropped.

    Descriptors must be authentic. Segments may be forged: nothing is concluded from their
    numbers, and a forged one can spoil only the transfer that it claims to belong to.
    """

    def __init__(self, size: int) -> None:
        """@param size: data bytes of a whole segment."""
        self._size = size
        self._transfers: dict[int, _Transfer] = {}
        self._partial: dict[int, _Transfer] = {}
        self._partial_bytes = 0
        self._in_order: list[_Transfer] = []
        self._newest: int | None = None
        self._passed = 0
        self._orphans: deque[Run] = deque()
        self._orphan_count = 0
        self._expected: OrderedDict[int, None] = OrderedDict()

    def describe(self, descriptor: Descriptor, wanted: bool) -> list[tuple[Descriptor, bytearray]]:
        """
        Learn what a transfer carries, from its announcement or its completion. One older than
        those remembered is ignored unless it is expected: it may be a replay.

        @param wanted: whether its bytes are needed here; if not, its segments are ignored.
        @return: as L{segments}: segments that came earlier may complete it.
        """
        number = descriptor.transfer
        old = number <= self._passed and number not in self._expected
        known = self._transfers.get(number)
        if old or (known is not None and (known.wanted or not wanted)):
            return []
        # What was ignored may be needed when it comes again.
        self.forget(number)
        first = self._unwrap(descriptor.first)
        self._newest = first if self._newest is None else max(self._newest, first)
        transfer = _Transfer(descriptor, first, self._size, wanted)
        self._transfers[descriptor.transfer] = transfer
        self._in_order.insert(self._place(first), transfer)
        if wanted:
            self._partial[descriptor.transfer] = transfer
            self._partial_bytes += len(transfer.buffer or b"")
            while len(self._partial) > MAX_PARTIAL or self._partial_bytes > MAX_PARTIAL_BYTES:
                self._drop(next(iter(self._partial)))
        if len(self._transfers) > MAX_KNOWN:
            oldest_known = next(iter(self._transfers))
            self._passed = max(self._passed, oldest_known)
            self.forget(oldest_known)
        return self._adopt(transfer)

    def restart(self, descriptor: Descriptor) -> None:
        """
        What was received of a transfer is not what was sent. It is received anew if it is sent
        again for others or for a reader; it is not repaired for being overheard.
        """
        self.forget(descriptor.transfer)
        self.describe(descriptor, True)
        if descriptor.transfer in self._partial:
            self._partial[descriptor.transfer].asked = True

    def segments(self, run: Run) -> list[tuple[Descriptor, bytearray]]:
        """
        Take segments in.

        @return: the transfers that these segments completed, each with memory that begins with its
            sealed bytes and tag, to be given back (L{buffers.give_back}).
        """
        number, length, rows = run
        done = []
        while len(rows):
            first = self._unwrap(number)
            place = self._place(first) - 1
            transfer = self._in_order[place] if place >= 0 else None
            index = first - transfer.first if transfer is not None else 0
            if transfer is None or index >= transfer.numbers:
                after = self._in_order[place + 1 : place + 2]
                here = rows[: after[0].first - first] if after else rows
                # A view would keep the whole datagram in memory.
                self._keep((number, length, here.copy()))
                rows = rows[len(here) :]
                number = (number + len(here)) & 0xFFFFFFFF
                continue
            end = transfer.count if index < transfer.count else transfer.numbers
            here = rows[: end - index]
            if transfer.put(index, length, here) and transfer.buffer is not None:
                done.append((transfer.descriptor, self._end(transfer)))
            rows = rows[len(here) :]
            number = (number + len(here)) & 0xFFFFFFFF
        return done

    def missing(self, number: int, first: int, total: int) -> int:
        """
        Bitmap of the segments to ask for to complete a transfer: all of them if it is done with.
        If it is unknown, at least one: the announcement comes with it.

        @param first: number of its first segment.
        @param total: its bytes.
        """
        transfer = self._partial.get(number)
        if transfer is not None:
            return transfer.missing
        count = segment_count(total, self._size)
        lacking = (1 << count) - 1
        if number not in self._transfers:
            for start, _, rows in self._orphans:
                index = _difference(start, first)
                # The number may be forged: a bit far away would take much memory.
                if -len(rows) < index < count:
                    came = (1 << len(rows)) - 1
                    lacking &= ~(came << index if index >= 0 else came >> -index)
        return lacking or 1

    def lost(self, number: int) -> int:
        """How many segments of a transfer are missing, needed or not; 0 if it is unknown."""
        transfer = self._transfers.get(number)
        return 0 if transfer is None else transfer.missing.bit_count()

    def is_complete(self, number: int) -> bool:
        """Whether all of a transfer came."""
        transfer = self._transfers.get(number)
        return transfer is not None and not transfer.missing

    def claim_missing(self, number: int) -> int:
        """Bitmap of the segments that a transfer lacks; 0 from the second call on."""
        transfer = self._partial.get(number)
        if transfer is None or transfer.asked or number in self._expected:
            return 0
        transfer.asked = True
        return transfer.missing

    def has_passed(self, number: int) -> bool:
        """Whether some of a transfer with higher segment numbers than this came already."""
        return self._newest is not None and _difference(number, self._newest) < 0

    def expect(self, number: int) -> None:
        """Segments of a transfer were asked for: it will be completed (again)."""
        self._expected[number] = None
        if len(self._expected) > MAX_KNOWN:
            self._expected.popitem(last=False)

    def completed(self, number: int) -> bool:
        """A completion came; whether it is the first of a known transfer."""
        self._expected.pop(number, None)
        transfer = self._transfers.get(number)
        if transfer is None or transfer.completed:
            return False
        transfer.completed = True
        return True

    def is_expected(self, number: int) -> bool:
        """Whether the completion that L{expect} announced has not come yet."""
        return number in self._expected

    def is_known(self, number: int) -> bool:
        """Whether a transfer was described, and is still remembered."""
        return number in self._transfers

    def is_partial(self, number: int) -> bool:
        """Whether a transfer is being received and lacks segments."""
        return number in self._partial

    def forget(self, number: int) -> None:
        """Forget a transfer, so that it can be received anew."""
        transfer = self._transfers.pop(number, None)
        if transfer is None:
            return
        self._drop(number)
        place = bisect_left(self._in_order, transfer.first, key=lambda each: each.first)
        while self._in_order[place] is not transfer:
            place += 1
        del self._in_order[place]

    def _end(self, transfer: _Transfer) -> bytearray:
        """Take in no more of an incomplete transfer; its memory."""
        buffer = transfer.buffer
        assert buffer is not None
        del self._partial[transfer.descriptor.transfer]
        self._partial_bytes -= len(buffer)
        transfer.buffer, transfer.parity = None, {}
        return buffer

    def _drop(self, number: int) -> None:
        """Take in no more of a transfer, if it is incomplete."""
        if number in self._partial:
            buffers.give_back(self._end(self._partial[number]))

    def _adopt(self, transfer: _Transfer) -> list[tuple[Descriptor, bytearray]]:
        """Give a transfer the segments that came before it was described."""
        done, orphans = [], self._orphans
        self._orphans, self._orphan_count = deque(), 0
        for run in orphans:
            index = self._unwrap(run[0]) - transfer.first
            if -len(run[2]) < index < transfer.numbers:
                done += self.segments(run)
            else:
                self._keep(run)
        return done

    def _keep(self, run: Run) -> None:
        self._orphans.append(run)
        self._orphan_count += len(run[2])
        while self._orphan_count > MAX_ORPHANS:
            self._orphan_count -= len(self._orphans.popleft()[2])

    def _place(self, first: int) -> int:
        """How many transfers begin at or before this segment number: usually all."""
        if not self._in_order or self._in_order[-1].first <= first:
            return len(self._in_order)
        return bisect_right(self._in_order, first, key=lambda each: each.first)

    def _unwrap(self, number: int) -> int:
        """A segment number that does not wrap at 2**32 (serial number arithmetic, RFC 1982)."""
        newest = (1 << 32) + number if self._newest is None else self._newest
        return newest + _difference(number, newest)


def _difference(number: int, other: int) -> int:
    """How far a segment number is behind another one (serial number arithmetic, RFC 1982)."""
    return (number - other + (1 << 31)) % (1 << 32) - (1 << 31)
