"""What of the images is known to be zero: it takes no room in the cache, and is never asked for."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from mufs.wire.pages import BLOCK_PAGES, PAGE, ImageKey

MAX_IMAGES = 256
"""Images of which it is remembered; that which was learnt of first is forgotten first."""

MAX_MARKED = 1 << 23
"""Blocks of an image that can be marked, from its beginning on: 1 TiB, in 1 MiB of memory."""


class Zeros:
    """
    The holes of images, as the server knows them, and the blocks that turned out to be zero.

    One thread adds to it, any thread may ask: what is zero stays so, and each set is replaced as a
    whole or a bit at a time.
    """

    def __init__(self) -> None:
        self._holes: dict[ImageKey, array[int]] = {}
        self._marked: dict[ImageKey, bytearray] = {}

    def add_holes(self, image: ImageKey, ranges: Iterable[tuple[int, int]]) -> None:
        """
        Note ranges without data.

        @param ranges: where each begins and ends, in bytes; what is no whole page of them is left
            out.
        """
        holes = array("Q", self._holes.pop(image, ()))
        for offset, end in ranges:
            first, last = -(-offset // PAGE), end // PAGE
            if first < last:
                _join(holes, first, last)
        self._holes[image] = holes
        if len(self._holes) > MAX_IMAGES:
            del self._holes[next(iter(self._holes))]

    def mark(self, image: ImageKey, block: int) -> bool:
        """Note that a block is zero as far as it lies in the image; whether there is room to."""
        if block >= MAX_MARKED:
            return False
        marked = self._marked.get(image)
        if marked is None:
            if len(self._marked) >= MAX_IMAGES:
                del self._marked[next(iter(self._marked))]
            marked = self._marked[image] = bytearray()
        byte, bit = divmod(block, 8)
        marked.extend(bytes(max(0, byte + 1 - len(marked))))
        marked[byte] |= 1 << bit
        return True

    def of_block(self, image: ImageKey, block: int) -> int:
        """The pages of a block that are zero."""
        marked = self._marked.get(image)
        byte, bit = divmod(block, 8)
        if marked is not None and byte < len(marked) and marked[byte] >> bit & 1:
            return (1 << BLOCK_PAGES) - 1
        holes = self._holes.get(image)
        return 0 if holes is None else _pages_between(holes, block * BLOCK_PAGES, BLOCK_PAGES)

    def forget(self, image: ImageKey) -> None:
        """An image has another generation now."""
        self._holes.pop(image, None)
        self._marked.pop(image, None)


def _join(bounds: "array[int]", first: int, last: int) -> None:
    """Add a range to sorted ranges: C{bounds} has where each begins and where it ends."""
    low, high = bisect_left(bounds, first), bisect_right(bounds, last)
    bounds[low:high] = array("Q", [first] * (low % 2 == 0) + [last] * (high % 2 == 0))


def _pages_between(bounds: "array[int]", first: int, count: int) -> int:
    """Which of C{count} pages from C{first} on lie in one of the ranges, as a bitmap."""
    place = bisect_right(bounds, first)
    pages, begin = 0, 0
    for bound in bounds[place : place + count + 1]:
        end = min(bound - first, count)
        if place % 2:
            pages |= (1 << end) - (1 << begin)
        if end == count:
            return pages
        place, begin = place + 1, end
    return pages
