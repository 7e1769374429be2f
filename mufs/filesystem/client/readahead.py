"""Read-ahead of one open image: what to ask for before it is read."""

from mufs.wire.pages import BLOCK

FIRST = 2 * BLOCK
"""Bytes to be ahead of the first reads in sequence; doubled each time, up to the most allowed."""

SLACK = 4 * BLOCK
"""Bytes by which reads in sequence may come out of order, as several threads make them."""


class ReadAhead:
    """Finds whether an image is read in sequence, and keeps the path to the server full."""

    def __init__(self, size: int, most: int) -> None:
        """
        @param size: of the image, in bytes.
        @param most: how far to be ahead, in bytes, at the most.
        """
        self._size = size
        self._most = most
        self._position = 0
        self._asked = 0
        self._window = 0

    def advance(self, offset: int, length: int) -> tuple[int, int] | None:
        """
        A read is made.

        @return: the range to be asked for now: offset and length in bytes.
        """
        end = offset + length
        if not self._position - SLACK <= offset <= self._position + SLACK:
            self._position, self._asked, self._window = end, end, 0
            return None
        self._position = max(self._position, end)
        self._asked = max(self._asked, self._position)
        if self._asked - self._position > self._window // 2:
            return None
        self._window = min(self._most, max(FIRST, self._window * 2))
        start = self._asked
        target = -(-(self._position + self._window) // BLOCK) * BLOCK
        self._asked = max(start, min(self._size, target))
        return (start, self._asked - start) if self._asked > start else None
