"""Read-ahead: what to ask for before it is read."""

from attrs import define
from twisted.internet.interfaces import IReactorTime

from mufs.wire.pages import BLOCK

MIN_SEQUENTIAL_BYTES = 4 * BLOCK
"""Bytes read in sequence before anything is asked for: most sequences end before."""

READ_PER_AHEAD = 4
"""One such part of what was read in sequence is asked for ahead, up to the most allowed: what was
asked for beyond the end of a sequence is read by nobody."""

MAX_SEQUENCES = 4
"""Places of an image that may be read in sequence by turns."""

MAX_REORDERING = 4 * BLOCK
"""Bytes by which reads in sequence may come out of order, as several threads make them."""

READS_PER_DOUBLING = 16
"""Reads at random in a row after which each brings twice as much of what lies around it."""

MAX_AROUND = 16 * BLOCK
"""Bytes that it brings at the most."""

MIN_WINDOW = 6 * 1024 * 1024
"""Bytes ahead that keep any path without much delay full, though both ends stop at times."""

MIN_MEASURE_SECONDS = 0.05
"""Seconds at least over which the bandwidth is measured."""


class ReadAheadWindow:
    """
    How far to read ahead: twice what the path holds, which is its bandwidth times its delay.

    The delay is that of answers to what was asked for while nothing else was: it contains no
    queue. Any thread may look at C{size}; the rest belongs to the reactor's thread.

    @ivar size: bytes.
    @ivar bound: bytes that it never exceeds.
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
        """After C{delay} seconds something came of what was asked for while nothing else was."""
        self._delay += (delay - self._delay) / 4 if self._delay else delay
        self._begin()

    def on_bytes(self, length: int) -> None:
        """So many bytes came while more was to come."""
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
    Reads in sequence.

    @ivar position: where they have come to, and C{asked} what was asked for beyond it.
    @ivar read: bytes that they have read.
    """

    position: int
    asked: int
    read: int = 0


class SequenceDetector:
    """Finds whether an image is read in sequence, and keeps the path to the server full."""

    def __init__(self, size: int, most: ReadAheadWindow) -> None:
        """
        @param size: of the image, in bytes.
        @param most: how far to be ahead at the most.
        """
        self._size = size
        self._most = most
        self._sequences = [_Sequence(0, 0)]
        self._jumps = 0

    def around(self, offset: int) -> tuple[int, int]:
        """What a read at random shall bring with it: offset and length in bytes."""
        size = min(MAX_AROUND, BLOCK << self._jumps // READS_PER_DOUBLING)
        start = offset // size * size
        return start, min(size, self._size - start)

    def advance(self, offset: int, length: int) -> tuple[int, int] | None:
        """
        A read is made.

        @return: the range to be asked for now: offset and length in bytes.
        """
        end = offset + length
        # The list is another one each time: other threads may be looking through the old one.
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
        this.asked = max(this.asked, this.position)
        window = min(self._most.size, this.read // READ_PER_AHEAD)
        if this.read < MIN_SEQUENTIAL_BYTES or this.asked - this.position > window * 3 // 4:
            return None
        self._jumps = 0
        start = this.asked
        target = -(-(this.position + window) // BLOCK) * BLOCK
        this.asked = max(start, min(self._size, target))
        return (start, this.asked - start) if this.asked > start else None
