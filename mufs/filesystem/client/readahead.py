"""Read-ahead: what to ask for before it is read."""

from twisted.internet.interfaces import IReactorTime

from mufs.wire.pages import BLOCK

FIRST = 2 * BLOCK
"""Bytes to be ahead of the first reads in sequence; doubled each time, up to the most allowed."""

SLACK = 4 * BLOCK
"""Bytes by which reads in sequence may come out of order, as several threads make them."""

MANY = 16
"""Reads at random in a row after which each brings twice as much of what lies around it."""

MOST_AROUND = 16 * BLOCK
"""Bytes that it brings at the most."""

ENOUGH = 2 * 1024 * 1024
"""Bytes ahead that keep any path without much delay full."""

MEASURED = 0.05
"""Seconds at least over which the bandwidth is measured."""


class Window:
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
        self.size = min(bound, ENOUGH)

    def answered(self, delay: float) -> None:
        """After C{delay} seconds something came of what was asked for while nothing else was."""
        self._delay += (delay - self._delay) / 4 if self._delay else delay
        self._begin()

    def came(self, length: int) -> None:
        """So many bytes came while more was to come."""
        self._bytes += length
        elapsed = self._clock.seconds() - self._since
        if elapsed >= max(MEASURED, self._delay):
            held = self._bytes / elapsed * self._delay
            self.size = min(self.bound, max(ENOUGH, int(2 * held)))
            self._begin()

    def _begin(self) -> None:
        self._since = self._clock.seconds()
        self._bytes = 0


class ReadAhead:
    """Finds whether an image is read in sequence, and keeps the path to the server full."""

    def __init__(self, size: int, most: Window) -> None:
        """
        @param size: of the image, in bytes.
        @param most: how far to be ahead at the most.
        """
        self._size = size
        self._most = most
        self._position = 0
        self._asked = 0
        self._window = 0
        self._jumps = 0

    def around(self, offset: int) -> tuple[int, int]:
        """What a read at random shall bring with it: offset and length in bytes."""
        size = min(MOST_AROUND, BLOCK << self._jumps // MANY)
        start = offset // size * size
        return start, min(size, self._size - start)

    def advance(self, offset: int, length: int) -> tuple[int, int] | None:
        """
        A read is made.

        @return: the range to be asked for now: offset and length in bytes.
        """
        end = offset + length
        if not self._position - SLACK <= offset <= self._position + SLACK:
            self._position, self._asked, self._window = end, end, 0
            self._jumps += 1
            return None
        self._position = max(self._position, end)
        self._asked = max(self._asked, self._position)
        if self._asked - self._position > self._window * 3 // 4:
            return None
        self._jumps = 0
        self._window = min(self._most.size, max(FIRST, self._window * 2))
        start = self._asked
        target = -(-(self._position + self._window) // BLOCK) * BLOCK
        self._asked = max(start, min(self._size, target))
        return (start, self._asked - start) if self._asked > start else None
