"""Read-ahead: which reads are in sequence, and what to request before it is read."""

from attrs import define

from mufs.wire.pages import BLOCK, EXTENT

MIN_SEQUENTIAL_BYTES = 4 * BLOCK
"""Bytes read in sequence before anything is read ahead: most sequences are shorter."""

READ_PER_AHEAD = 4
"""
Bytes read in sequence for each byte read ahead, up to the window: what is requested beyond the
end of a sequence is wasted.
"""

MIN_EXTENTS_AHEAD = 4 * EXTENT
"""Bytes read ahead from which on whole extents are requested."""

MAX_SEQUENCES = 4
"""Sequences of reads that are followed in an image at a time."""

MAX_REORDERED_READS = 4
"""
Reads by whose length, or blocks if these are longer, reads in sequence may be out of order when
several threads make them.
"""

READS_PER_DOUBLING = 16
"""Reads at random in a row after which each brings twice as much around it."""

MAX_AROUND = 16 * BLOCK
"""Bytes at most that a read at random brings around it."""


@define(eq=False)
class _Sequence:
    """
    Reads in sequence; offsets and lengths in bytes.

    @ivar position: the end of the last one.
    @ivar requested: the end of what was read ahead.
    @ivar read: bytes read.
    """

    position: int
    requested: int
    read: int = 0


class SequenceDetector:
    """Detects sequences among the reads of an image, and what to read ahead of each."""

    def __init__(self, size: int) -> None:
        """@param size: of the image, in bytes."""
        self._size = size
        self._sequences = [_Sequence(0, 0)]
        self._jumps = 0

    def around(self, offset: int) -> tuple[int, int]:
        """The range that a read at random brings with it: offset and length in bytes."""
        size = min(MAX_AROUND, BLOCK << self._jumps // READS_PER_DOUBLING)
        start = offset // size * size
        return start, min(size, self._size - start)

    def advance(self, offset: int, length: int, window: int) -> tuple[int, int] | None:
        """
        Take note of a read.

        @param window: bytes that may be read ahead.
        @return: the range to read ahead now, offset and length in bytes; C{None} for nothing.
        """
        this = self._sequences[0]
        if this.position != offset:
            continued = self._continued(offset, length)
            if continued is None:
                return None
            this = continued
        this.read += length
        this.position = max(this.position, offset + length)
        this.requested = max(this.requested, this.position)
        ahead = min(window, this.read // READ_PER_AHEAD)
        if this.read < MIN_SEQUENTIAL_BYTES or this.requested - this.position > ahead * 3 // 4:
            return None
        self._jumps = 0
        start, target = this.requested, this.position + ahead
        if target >= self._size:
            target = self._size
        elif ahead >= MIN_EXTENTS_AHEAD:
            target -= target % EXTENT
        else:
            target = min(self._size, -(-target // BLOCK) * BLOCK)
        this.requested = max(start, target)
        return (start, this.requested - start) if this.requested > start else None

    def _continued(self, offset: int, length: int) -> _Sequence | None:
        """The sequence that a read continues; if there is none, a new one begins."""
        reordering = MAX_REORDERED_READS * max(length, BLOCK)
        # A new list each time: other threads may be iterating over the old one.
        sequences = self._sequences
        nearest, distance = None, reordering + 1
        for each in sequences:
            apart = abs(each.position - offset)
            if apart < distance:
                nearest, distance = each, apart
        if nearest is None:
            end = offset + length
            self._sequences = [_Sequence(end, end, length), *sequences[: MAX_SEQUENCES - 1]]
            self._jumps += 1
        elif nearest is not sequences[0]:
            self._sequences = [nearest, *(each for each in sequences if each is not nearest)]
        return nearest
