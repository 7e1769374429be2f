"""The blocks of images that this host holds (paper, section 5.4, without its linear search)."""

from collections import OrderedDict
from typing import Any

from mufs.cache.client.memory import Memory
from mufs.interfaces import IBlockStorage
from mufs.wire.pages import BLOCK, PAGE, mask_of

ImageKey = tuple[int, int]
"""Image and generation."""

MOST_PATHS = 20_000
"""Paths of which it is known what was opened there last."""


class _Block:
    __slots__ = ("pages", "place")

    def __init__(self, place: Any, pages: int = 0) -> None:
        self.place = place
        self.pages = pages


class BlockCache:
    """
    A bounded cache of pages of 4 KiB in blocks of 128 KiB; the least recently used block goes.
    Here is decided what is held; the storage has the bytes.

    One thread alone may call the methods that change what is held; any thread may call L{read},
    L{missing} and L{held_blocks}, without a lock: a block's bytes are in place before its pages
    are marked, a block leaves the index before its place is used again, and a reader looks
    whether it is still there after copying.

    Where the system has no memory for all of its size, it does with what it got.

    @ivar held: bytes of pages held now.
    @ivar evictions: blocks that had to go.
    @ivar damaged: blocks that were found to be others than those that were stored.
    """

    def __init__(self, size: int, storage: IBlockStorage | None = None) -> None:
        """
        @param size: bytes, at least one block; a rest that fills no block is not used.
        @param storage: where the bytes are, with those that it has from before; or memory.
        @raise OSError: when the system lets nobody have so much memory.
        """
        self._storage: IBlockStorage = Memory() if storage is None else storage
        self._read = self._storage.read
        self._slots = max(1, size // self._storage.cost)
        self._blocks: OrderedDict[tuple[ImageKey, int], _Block] = OrderedDict()
        self._paths: dict[bytes, ImageKey] = {}
        self.held = 0
        self.evictions = 0
        self.damaged = 0
        for image, number, pages, place in self._storage.begin(self._slots):
            self._blocks[image, number] = _Block(place, pages)
            self.held += PAGE * pages.bit_count()
        for image, path in self._storage.paths():
            self._paths[path] = image

    @property
    def has_room(self) -> bool:
        """Whether a block more can be held without another one having to go."""
        return len(self._blocks) < self._slots

    @property
    def capacity(self) -> int:
        """Bytes of whole blocks that can be held."""
        return self._slots * BLOCK

    @property
    def is_behind(self) -> bool:
        """Whether its disk cannot keep up: who can wait asks for no more."""
        return self._storage.is_behind()

    def renew(self, image: ImageKey) -> None:
        """Take what is held of an image for used just now: others go before it."""
        for number in self.held_blocks(image):
            self._blocks.move_to_end((image, number))

    def held_blocks(self, image: ImageKey) -> dict[int, int]:
        """The pages that are held of each block of an image of which any are."""
        # The copy is made at once: readers in other threads change the order all the time.
        blocks = list(self._blocks.items())
        return {number: block.pages for (key, number), block in blocks if key == image}

    def missing(self, image: ImageKey, block: int, pages: int) -> int:
        """Which of C{pages} of a block are not held."""
        held = self._blocks.get((image, block))
        return pages if held is None else pages & ~held.pages

    def read(self, image: ImageKey, offset: int, target: memoryview) -> bool:
        """
        Copy the bytes at C{offset}, as many as C{target} has room for.

        @return: whether all of them are held; else C{target} has anything in it. If they are not
            L{missing} all the same, then a block is damaged: L{discard} it.
        """
        done, length, whole = 0, len(target), True
        while done < length:
            number, start = divmod(offset + done, BLOCK)
            stop = min(BLOCK, start + length - done)
            key = (image, number)
            block = self._blocks.get(key)
            if block is None or mask_of(start, stop) & ~block.pages:
                if block is not None:
                    self._storage.warm(block.place, mask_of(start, stop) & block.pages)
                whole = False
            else:
                here = stop - start
                part = target if here == length else target[done : done + here]
                if not self._read(block.place, start, part):
                    return False
                try:
                    self._blocks.move_to_end(key)
                except KeyError:
                    return False
                if self._blocks.get(key) is not block:
                    return False
            done += stop - start
        return whole

    def work(self) -> None:
        """Do what waits for a disk, in a thread of its own, until L{stop}."""
        self._storage.work()

    def stop(self) -> None:
        """Let L{work} end when nothing waits any longer."""
        self._storage.stop()

    def opened(self, image: ImageKey, path: bytes, size: int) -> None:
        """
        An image was opened at a path, so what was opened there before is there no longer.

        @param size: of the image, in bytes.
        """
        before = self._paths.pop(path, image)
        if before != image:
            for number in self.held_blocks(before):
                self.forget(before, number)
        if len(self._paths) >= MOST_PATHS:
            self._paths.clear()
        self._paths[path] = image
        self._storage.opened(image, path, size)

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
        late = self._storage.overdue()
        if late is not None:
            self.forget(*late)
        pages, key = mask_of(start, stop), (image, number)
        block = self._block(key)
        kept = self._storage.write(block.place, start, data)
        if not kept and not block.pages:
            # Its place was never used: take that of the block that was least recently used.
            self.forget(*key)
            if self._blocks:
                self._evict()
                block = self._block(key)
                kept = self._storage.write(block.place, start, data)
        if kept:
            self.held += PAGE * (pages & ~block.pages).bit_count()
            block.pages |= pages

    def forget(self, image: ImageKey, number: int) -> None:
        """Hold a block no longer, if it is held."""
        block = self._blocks.pop((image, number), None)
        if block is not None:
            self._free(block)

    def discard(self, image: ImageKey, number: int) -> None:
        """L{forget} a block that is damaged."""
        if (image, number) in self._blocks:
            self.damaged += 1
        self.forget(image, number)

    def _block(self, key: tuple[ImageKey, int]) -> _Block:
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
            return block
        if not self.has_room:
            self._evict()
        block = self._blocks[key] = _Block(self._storage.place(*key))
        return block

    def _evict(self) -> None:
        """Let the least recently used block go; its place is the next to be used."""
        _, oldest = self._blocks.popitem(last=False)
        self._free(oldest)
        self.evictions += 1

    def _free(self, block: _Block) -> None:
        self.held -= PAGE * block.pages.bit_count()
        self._storage.free(block.place)
