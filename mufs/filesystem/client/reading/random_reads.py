"""What a read at random brings from the server beside its own pages."""

from mufs.cache.client.blocks import BlockCache
from mufs.wire.pages import (
    ALL_PAGES,
    BLOCK_PAGES,
    EXTENT,
    EXTENT_PAGES,
    PAGE,
    ImageKey,
    mask_of,
)

WHOLE_BLOCK_MAX_SECONDS = 0.005
"""Seconds that a whole block may take to arrive for a read at random to ask for it."""

WHOLE_BLOCK_WARMUP_READS = 32
"""First reads at random, which ask for whole blocks in any case."""

GAP_FILL_MAX_PAGES = 16
"""A read at random also asks for a gap of fewer pages between it and pages in the cache."""

PROBE_EVERY_READS = 64
"""After the warm-up, one of this many reads asks for its whole block to measure the path again."""


class RandomReads:
    """
    Decides how much a read at random asks for: whole blocks where these arrive fast enough, else
    its own pages and narrow gaps beside it.
    """

    def __init__(self, cache: BlockCache) -> None:
        self._cache = cache
        self._reads = 0
        self._block_seconds = 0.0

    def wants_block(self) -> bool:
        """Count a read at random; whether it asks for its whole block."""
        self._reads += 1
        probe = self._reads <= WHOLE_BLOCK_WARMUP_READS or self._reads % PROBE_EVERY_READS == 0
        return probe or self._is_fast

    @property
    def wants_surroundings(self) -> bool:
        """Whether a read that asked for its whole block also asks for blocks around it."""
        return self._reads > WHOLE_BLOCK_WARMUP_READS and self._is_fast

    def block_arrived(self, seconds: float) -> None:
        """A whole block took C{seconds} to arrive while nothing else was on its way."""
        # A single late one, however late, must not outweigh several that were fast.
        seconds = min(seconds, 2 * WHOLE_BLOCK_MAX_SECONDS)
        self._block_seconds += (seconds - self._block_seconds) / 8

    def gaps(self, key: ImageKey, offset: int, length: int) -> list[tuple[int, int]]:
        """
        The narrow gaps between a read and the nearest cached pages before and behind it: where
        both sides are read, what lies between is mostly read, too.

        @return: offsets and lengths in bytes.
        """
        first, last = offset // PAGE, (offset + length - 1) // PAGE
        before = (
            self._held(key, first // BLOCK_PAGES - 1) & (1 << BLOCK_PAGES + first % BLOCK_PAGES) - 1
        )
        behind = self._held(key, last // BLOCK_PAGES) >> last % BLOCK_PAGES + 1
        gaps = []
        if before:
            begin = (first // BLOCK_PAGES - 1) * BLOCK_PAGES + before.bit_length()
            if 0 < first - begin < GAP_FILL_MAX_PAGES:
                gaps.append((begin * PAGE, (first - begin) * PAGE))
        if behind:
            count = (behind & -behind).bit_length() - 1
            if 0 < count < GAP_FILL_MAX_PAGES:
                gaps.append(((last + 1) * PAGE, count * PAGE))
        return gaps

    @property
    def _is_fast(self) -> bool:
        return self._block_seconds < WHOLE_BLOCK_MAX_SECONDS

    def _held(self, key: ImageKey, block: int) -> int:
        """The cached pages of a block and of the next one."""
        missing = self._cache.missing(key, block, ALL_PAGES)
        missing |= self._cache.missing(key, block + 1, ALL_PAGES) << BLOCK_PAGES
        return ~missing & (1 << 2 * BLOCK_PAGES) - 1


def whole_blocks(pages: dict[int, int], size: int) -> dict[int, int]:
    """
    All pages of the blocks that these pages are in, by extent.

    @param size: of the image, in bytes.
    """
    whole = {}
    for extent, wanted in pages.items():
        blocks = 0
        for first in range(0, EXTENT_PAGES, BLOCK_PAGES):
            block = ALL_PAGES << first
            if wanted & block:
                blocks |= block
        whole[extent] = blocks & mask_of(0, min(EXTENT, size - extent * EXTENT))
    return whole
