"""
The grid that cache, queue and wire share: pages of 4 KiB within aligned blocks of 128 KiB, in which
the cache counts, and within aligned extents of 1 MiB, in which requests and transfers count.

A set of pages of one block or extent is an C{int}, bit 0 for the first page; so joining, cutting
and comparing ranges are single operations.
"""

from collections.abc import Iterator

PAGE = 4096
BLOCK = 128 * 1024
EXTENT = 1024 * 1024
BLOCK_PAGES = BLOCK // PAGE
EXTENT_PAGES = EXTENT // PAGE

ALL_PAGES = (1 << BLOCK_PAGES) - 1
"""The bitmap of all pages of a block."""

ImageKey = tuple[int, int]
"""Image and generation, each a number of 64 bits."""


def mask_of(start: int, end: int) -> int:
    """The pages that bytes C{start} to C{end} (end excluded) of one block or extent touch."""
    first = start // PAGE
    return (1 << -(-end // PAGE)) - (1 << first)


def split_into_blocks(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """
    Split a byte range of an image at block boundaries.

    @return: pairs of block number and the pages of it that the range touches.
    """
    return _split(offset, length, BLOCK)


def split_into_extents(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The same at extent boundaries."""
    return _split(offset, length, EXTENT)


def _split(offset: int, length: int, unit: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    while offset < end:
        number, start = divmod(offset, unit)
        stop = min(unit, start + end - offset)
        yield number, mask_of(start, stop)
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


def byte_range(start: int, first: int, count: int, size: int) -> tuple[int, int]:
    """
    Where a run of pages of a block or extent lies in an image of C{size} bytes.

    @param start: where the block or extent begins in the image, in bytes.
    @return: offset and length in bytes, cut at the end of the image.
    """
    offset = start + first * PAGE
    return offset, max(0, min(count * PAGE, size - offset))
