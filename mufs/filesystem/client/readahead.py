"""Read-ahead: what to request before it is read."""

from attrs import define
from twisted.internet.interfaces import IReactorTime

from mufs.wire.pages import BLOCK

MIN_SEQUENTIAL_BYTES = 4 * BLOCK
"""Bytes read in sequence before anything is read ahead: most sequences are shorter."""

READ_PER_AHEAD = 4
"""
Bytes read in sequence for each byte read ahead, up to the window: what is requested beyond the
end of a sequence is wasted.
"""

MAX_SEQUENCES = 4
"""Sequences of reads that are followed in an image at a time."""

MAX_REORDERING = 4 * BLOCK
"""Bytes by which reads in sequence may be out of order when several threads make them."""

READS_PER_DOUBLING = 16
"""Reads at random in a row after which each brings twice as much around it."""

MAX_AROUND = 16 * BLOCK
"""Bytes at most that a read at random brings around it."""

MIN_WINDOW = 6 * 1024 * 1024
"""Bytes that keep any path of little delay full although both ends pause at times."""

MIN_MEASURE_SECONDS = 0.05
"""Seconds that the shortest measurement of the bandwidth takes."""


class ReadAheadWindow:
    """
    How far to read ahead: twice the bandwidth-delay product of the path.

    The delay is measured on requests made while nothing else was on its way, so it contains no
    queueing. Any thread may read C{size}; the rest belongs to the reactor's thread.

    @ivar size: bytes.
    @ivar bound: bytes that C{size} never exceeds.
    """

    def __init__(self, clock: IReactorTime, bound: int) -> None:
        self._clock = clock
        self._delay = 0.0
        self._since = 0.0
        self._bytes = 0
        self._begin()
        self.limit(bound)

    def limit(self, bound: int) -> None:
        """Set the bound."""
        self.bound = bound
        self.size = min(bound, MIN_WINDOW)

    def on_answer(self, delay: float) -> None:
        """The first bytes came C{delay} seconds after the only request on its way."""
        self._delay += (delay - self._delay) / 4 if self._delay else delay
        self._begin()

    def on_bytes(self, length: int) -> None:
        """C{length} bytes came of what is on its way."""
        self._bytes += length
        elapsed = self._clock.seconds() - self._since
        if elapsed >= max(MIN_MEASURE_SECONDS, self._delay):
            held = self._bytes / elapsed * self._delay
            self.size = min(self.bound, max(MIN_WINDOW, int(2 * held)))
            self._begin()

    def _begin(self) -> None:
        self._since = self._clock.seconds()
        self._bytes = 0


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

    def __init__(self, size: int, window: ReadAheadWindow) -> None:
        """
        @param size: of the image, in bytes.
        @param window: how far to read ahead at most.
        """
        self._size = size
        self._window = window
        self._sequences = [_Sequence(0, 0)]
        self._jumps = 0

    def around(self, offset: int) -> tuple[int, int]:
        """The range that a read at random brings with it: offset and length in bytes."""
        size = min(MAX_AROUND, BLOCK << self._jumps // READS_PER_DOUBLING)
        start = offset // size * size
        return start, min(size, self._size - start)

    def advance(self, offset: int, length: int) -> tuple[int, int] | None:
        """
        Take note of a read.

        @return: the range to read ahead now, offset and length in bytes; C{None} for nothing.
        """
        end = offset + length
        # A new list each time: other threads may be iterating over the old one.
        found = [each for each in self._sequences if abs(each.position - offset) <= MAX_REORDERING]
        if not found:
            self._sequences = [
                _Sequence(end, end, read=length),
                *self._sequences[: MAX_SEQUENCES - 1],
            ]
            self._jumps += 1
            return None
        this = min(found, key=lambda each: abs(each.position - offset))
        if this is not self._sequences[0]:
            self._sequences = [this, *(each for each in self._sequences if each is not this)]
        this.read += length
        this.position = max(this.position, end)
        this.requested = max(this.requested, this.position)
        window = min(self._window.size, this.read // READ_PER_AHEAD)
        if this.read < MIN_SEQUENTIAL_BYTES or this.requested - this.position > window * 3 // 4:
            return None
        self._jumps = 0
        start = this.requested
        target = -(-(this.position + window) // BLOCK) * BLOCK
        this.requested = max(start, min(self._size, target))
        return (start, this.requested - start) if this.requested > start else None
