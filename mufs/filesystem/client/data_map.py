"""What a host knows of where an image has data."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from attrs import frozen

from mufs.wire.metadata import DataMap

MAX_RUNS_OF_IMAGE = 65_536
"""
Runs of data of an image that are remembered, in 1 MiB of memory; it is a map more at most. What
lies behind them is asked for whenever it is wanted.
"""


def holes(found: DataMap) -> Iterator[tuple[int, int]]:
    """Where each hole of a part begins and where it ends."""
    bounds = found.start, *found.bounds, found.end
    return (
        (begin, end) for begin, end in zip(bounds[::2], bounds[1::2], strict=True) if begin < end
    )


@frozen
class _Part:
    """A L{DataMap} in less memory."""

    start: int
    end: int
    bounds: "array[int]"

    def find(self, offset: int, data: bool) -> int:
        """Where data or a hole is at C{offset} or after it; C{end} if not in this part."""
        bounds = self.bounds
        place = bisect_right(bounds, offset)
        if place % 2 == data:
            return offset
        return bounds[place] if place < len(bounds) else self.end


class KnownMap:
    """
    The map of an image from its beginning on, as far as it is known, and one part beyond that.

    One thread adds to it, any thread may look up: parts do not change.

    @ivar size: of the image, in bytes.
    @ivar end: how far it is known, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.end = 0
        self._starts: list[int] = []
        self._parts: list[_Part] = []
        self._runs = 0
        self._bytes_of_data = 0
        self._beyond = _Part(0, 0, array("Q"))

    @property
    def wants_more(self) -> bool:
        """Whether the image has further parts, and there is room for them."""
        return self.end < self.size and self._runs < MAX_RUNS_OF_IMAGE

    def add(self, found: DataMap) -> None:
        """Add a part."""
        part = _Part(found.start, found.end, array("Q", found.bounds))
        if part.start == self.end < part.end and self.wants_more:
            self._parts.append(part)
            self._starts.append(part.start)
            self._runs += len(part.bounds) // 2
            self._bytes_of_data += sum(part.bounds[1::2]) - sum(part.bounds[::2])
            self.end = part.end
        elif part.start >= self.end:
            self._beyond = part

    def find(self, offset: int, *, data: bool) -> tuple[int, bool]:
        """
        Where data, or else a hole, is at C{offset} or after it; a hole also where the image ends.

        @return: the offset, and true; or from where on it is not known whether there is any, and
            false.
        """
        while offset < self.size:
            part = self._part(offset)
            if part is None:
                return offset, False
            found = part.find(offset, data)
            if found < part.end:
                return found, True
            offset = part.end
        return self.size, True

    @property
    def bytes_of_holes(self) -> int:
        """Bytes without data, as far as the map is known."""
        return self.end - self._bytes_of_data

    def _part(self, offset: int) -> _Part | None:
        place = bisect_right(self._starts, offset)
        parts = [self._parts[place - 1]] if place else []
        for part in [*parts, self._beyond]:
            if part.start <= offset < part.end:
                return part
        return None
