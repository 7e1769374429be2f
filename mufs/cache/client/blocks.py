"""The blocks of images that this host holds (paper, section 5.4, without its linear search)."""

import mmap
import os
from collections import OrderedDict

from twisted.logger import Logger

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

    Where the system has no memory for all of its size, it does with what it got.

    @ivar held: bytes of pages held now.
    @ivar evictions: blocks that had to go.
    """

    _log = Logger()

    def __init__(self, size: int) -> None:
        """
        @param size: bytes, at least one block; a rest that fills no block is not used.
        @raise OSError: when the system lets nobody have so much memory.
        """
        slots = max(1, size // BLOCK)
        self._file = open(  # noqa: SIM115 # as long as this object
            os.memfd_create("mufs-cache"), "wb", buffering=0
        )
        self._file.truncate(slots * BLOCK)
        memory = mmap.mmap(self._file.fileno(), slots * BLOCK, prot=mmap.PROT_READ)
        self._memory = memoryview(memory)
        self._free = list(range(slots - 1, -1, -1))
        self._short = False
        self._blocks: OrderedDict[tuple[ImageKey, int], _Block] = OrderedDict()
        self.held = 0
        self.evictions = 0

    @property
    def has_room(self) -> bool:
        """Whether a block more can be held without another one having to go."""
        return bool(self._free)

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
        Keep whole pages of one block, if there is memory for them; only the last page of an image
        may be short.

        @param offset: of the first page, in bytes.
        """
        number, start = divmod(offset, BLOCK)
        stop = start + len(data)
        if start % PAGE or stop > BLOCK:
            raise ValueError(f"{len(data)} bytes at offset {offset} are not pages of one block")
        pages = mask_of(start, stop)
        key = (image, number)
        block = self._block(key)
        kept = self._write(block, start, data)
        if not kept and not block.pages:
            # Its place was never used: take that of the block that was least recently used.
            self._free.append(self._blocks.pop(key).slot)
            if self._blocks:
                self._evict()
                block = self._block(key)
                kept = self._write(block, start, data)
        if kept:
            self.held += PAGE * (pages & ~block.pages).bit_count()
            block.pages |= pages

    def _write(self, block: _Block, start: int, data: bytes) -> bool:
        """Put bytes into their place; whether there was memory for them."""
        # A page that is mapped first would be cleared first: this takes half the time.
        try:
            written = os.pwrite(self._file.fileno(), data, block.slot * BLOCK + start)
            reason = ""
        except OSError as error:
            written, reason = 0, f" ({error.strerror})"
        if written < len(data) and not self._short:
            self._short = True
            self._log.warn(
                "no memory for more than {held} MiB of the cache{reason}: going on with these",
                held=self.held >> 20, reason=reason,
            )
        return written == len(data)

    def _block(self, key: tuple[ImageKey, int]) -> _Block:
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
            return block
        if not self._free:
            self._evict()
        block = self._blocks[key] = _Block(self._free.pop())
        return block

    def _evict(self) -> None:
        """Let the least recently used block go; its place is the next to be used."""
        _, oldest = self._blocks.popitem(last=False)
        self.held -= PAGE * oldest.pages.bit_count()
        self._free.append(oldest.slot)
        self.evictions += 1
