"""The blocks of images that this host holds (paper, section 5.4, without its linear search)."""

import mmap
import os
from collections import OrderedDict
from weakref import finalize

from mufs.wire.pages import BLOCK, PAGE, mask_of

ImageKey = tuple[int, int]
"""Image and generation."""


class _Block:
    __slots__ = ("pages", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.pages = 0


class BlockCache:
    """
    A bounded cache of pages of 4 KiB in blocks of 128 KiB; the least recently used block goes.

    One thread alone may call L{store}; any thread may call L{read} and L{missing}, without a
    lock: a block's bytes are in place before its pages are marked, a block leaves the index
    before its slot is used again, and a reader looks whether it is still there after copying.

    @ivar held: bytes of pages held now.
    @ivar evictions: blocks that had to go.
    """

    def __init__(self, size: int) -> None:
        """@param size: bytes, at least one block; a rest that fills no block is not used."""
        self._slots = max(1, size // BLOCK)
        self._file = os.memfd_create("mufs-cache")
        finalize(self, os.close, self._file)
        os.ftruncate(self._file, self._slots * BLOCK)
        self._memory = mmap.mmap(self._file, self._slots * BLOCK)
        self._blocks: OrderedDict[tuple[ImageKey, int], _Block] = OrderedDict()
        self.held = 0
        self.evictions = 0

    def missing(self, image: ImageKey, block: int, pages: int) -> int:
        """Which of C{pages} of a block are not held."""
        held = self._blocks.get((image, block))
        return pages if held is None else pages & ~held.pages

    def read(self, image: ImageKey, offset: int, length: int) -> bytes | None:
        """The bytes at C{offset}, or C{None} when not all of them are held."""
        parts = []
        end = offset + length
        while offset < end:
            number, start = divmod(offset, BLOCK)
            stop = min(BLOCK, start + end - offset)
            key = (image, number)
            block = self._blocks.get(key)
            if block is None or mask_of(start, stop) & ~block.pages:
                return None
            base = block.slot * BLOCK
            parts.append(self._memory[base + start : base + stop])
            try:
                self._blocks.move_to_end(key)
            except KeyError:
                return None
            if self._blocks.get(key) is not block:
                return None
            offset += stop - start
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def store(self, image: ImageKey, offset: int, data: bytes) -> None:
        """
        Keep whole pages of one block; only the last page of an image may be short.

        @param offset: of the first page, in bytes.
        """
        number, start = divmod(offset, BLOCK)
        stop = start + len(data)
        if start % PAGE or stop > BLOCK:
            raise ValueError(f"{len(data)} bytes at offset {offset} are not pages of one block")
        pages = mask_of(start, stop)
        block = self._block((image, number))
        # Into the mapping it would take twice as long where the memory is new, and hold the GIL.
        os.pwrite(self._file, data, block.slot * BLOCK + start)
        self.held += PAGE * (pages & ~block.pages).bit_count()
        block.pages |= pages

    def _block(self, key: tuple[ImageKey, int]) -> _Block:
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
            return block
        if len(self._blocks) < self._slots:
            slot = len(self._blocks)
        else:
            _, oldest = self._blocks.popitem(last=False)
            self.held -= PAGE * oldest.pages.bit_count()
            self.evictions += 1
            slot = oldest.slot
        block = self._blocks[key] = _Block(slot)
        return block
