"""
The grid that cache, queue and wire share: pages of 4 KiB within aligned blocks of 128 KiB.

A set of pages of one block is an C{int} of 32 bits, bit 0 for the first page; so joining,
cutting and comparing ranges of a block are single operations.
"""

from collections.abc import Iterator

PAGE = 4096
BLOCK = 128 * 1024
PAGES = BLOCK // PAGE

ALL_PAGES = (1 << PAGES) - 1
"""The bitmap of all pages of a block."""

ImageKey = tuple[int, int]
"""Image and generation, each a number of 64 bits."""


def mask_of(start: int, end: int) -> int:
    """The pages that bytes C{start} to C{end} (end excluded) of one block touch."""
    first = start // PAGE
    return (1 << -(-end // PAGE)) - (1 << first)


def split_into_blocks(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """
    Split a byte range of an image at block boundaries.

    @return: pairs of block number and the pages of it that the range touches.
    """
    end = offset + length
    while offset < end:
        block, start = divmod(offset, BLOCK)
        stop = min(BLOCK, start + end - offset)
        yield block, mask_of(start, stop)
        offset += stop - start


def runs(mask: int) -> Iterator[tuple[int, int]]:
    """The contiguous runs of pages in C{mask}: pairs of first page and number of pages."""
    first = 0
    while mask:
        skip = (mask & -mask).bit_length() - 1
        first += skip
        mask >>= skip
        count = (~mask & (mask + 1)).bit_length() - 1
        yield first, count
        first += count
        mask >>= count


def byte_range(block: int, first: int, count: int, size: int) -> tuple[int, int]:
    """
    Where a run of pages of a block lies in an image of C{size} bytes: offset and length
    in bytes, cut at the end of the image.
    """
    offset = block * BLOCK + first * PAGE
    return offset, max(0, min(count * PAGE, size - offset))
