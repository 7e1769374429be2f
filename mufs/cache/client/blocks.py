"""The blocks of images that this host holds (paper, section 5.4, without its linear search)."""

import mmap
import os
from collections import OrderedDict

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
        self._file = open(  # noqa: SIM115 # as long as this object
            os.memfd_create("mufs-cache"), "wb", buffering=0
        )
        self._file.truncate(self._slots * BLOCK)
        memory = mmap.mmap(self._file.fileno(), self._slots * BLOCK, prot=mmap.PROT_READ)
        self._memory = memoryview(memory)
        self._blocks: OrderedDict[tuple[ImageKey, int], _Block] = OrderedDict()
        self.held = 0
        self.evictions = 0

    @property
    def has_room(self) -> bool:
        """Whether a block more can be held without another one having to go."""
        return len(self._blocks) < self._slots

    def missing(self, image: ImageKey, block: int, pages: int) -> int:
        """Which of C{pages} of a block are not held."""
        held = self._blocks.get((image, block))
        return pages if held is None else pages & ~held.pages

    def read(self, image: ImageKey, offset: int, target: memoryview) -> bool:
        """
        Copy the bytes at C{offset}, as many as C{target} has room for.

        @return: whether all of them are held; else C{target} has anything in it.
        """
        done, length = 0, len(target)
        while done < length:
            number, start = divmod(offset + done, BLOCK)
            stop = min(BLOCK, start + length - done)
            key = (image, number)
            block = self._blocks.get(key)
            if block is None or mask_of(start, stop) & ~block.pages:
                return False
            base = block.slot * BLOCK
            target[done : done + stop - start] = self._memory[base + start : base + stop]
            try:
                self._blocks.move_to_end(key)
            except KeyError:
                return False
            if self._blocks.get(key) is not block:
                return False
            done += stop - start
        return True

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
        base = block.slot * BLOCK
        # A page that is mapped first would be cleared first: this takes half the time.
        if os.pwrite(self._file.fileno(), data, base + start) < len(data):
            raise MemoryError("no room for a block of the cache")
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
