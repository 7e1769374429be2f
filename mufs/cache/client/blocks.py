"""The blocks of images that this host holds (paper, section 5.4, with an index of them)."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from mufs.cache.client.memory import Memory
from mufs.cache.client.zeros import Zeros
from mufs.interfaces import IBlockStorage
from mufs.wire.pages import (
    ALL_PAGES,
    BLOCK,
    BLOCK_PAGES,
    EXTENT,
    EXTENT_PAGES,
    PAGE,
    ImageKey,
    mask_of,
    runs,
)

_ZERO = memoryview(bytes(BLOCK))

MAX_PATHS = 20_000
"""Paths whose last opened image is remembered."""


class _Block:
    __slots__ = ("pages", "place")

    def __init__(self, place: Any, pages: int = 0) -> None:
        self.place = place
        self.pages = pages


class BlockCache:
    """
    A bounded cache of pages of 4 KiB in blocks of 128 KiB, which evicts the least recently used
    block. It decides what is held; the storage has the bytes. What is known to be zero counts as
    held, and takes no room.

    Only one thread may call the methods that change what is held. Any thread may call L{read},
    L{missing} and L{held_blocks}, without a lock: a block's bytes are in place before its pages
    are marked, a block that leaves has no pages any more before its place is used again, and a
    reader checks after copying that the block still has them.

    If the system has less memory than its size, it holds less.

    @ivar zeros: what is known to be zero.
    @ivar zero_bytes_read: bytes that reads were given because they are known to be zero.
    @ivar held: bytes of pages held now, without those.
    @ivar evictions: blocks that were evicted.
    @ivar given_up: blocks that were evicted because the disk lacked space.
    @ivar damaged: blocks whose bytes were not those that had been stored.
    """

    def __init__(self, size: int, storage: IBlockStorage | None = None) -> None:
        """
        @param size: bytes, rounded down to whole blocks, but at least one block.
        @param storage: where the bytes are, including those of an earlier run; by default memory.
        @raise OSError: when the system cannot reserve that much memory.
        """
        self._storage: IBlockStorage = Memory() if storage is None else storage
        self._read = self._storage.read
        self._slots = max(1, size // self._storage.cost)
        self._blocks: OrderedDict[tuple[ImageKey, int], _Block] = OrderedDict()
        self._move_to_end = self._blocks.move_to_end
        self._paths: dict[bytes, ImageKey] = {}
        self.zeros = Zeros()
        self.zero_bytes_read = 0
        self.held = 0
        self.evictions = 0
        self.given_up = 0
        self.damaged = 0
        for image, number, pages, place in self._storage.begin(self._slots):
            self._blocks[image, number] = _Block(place, pages)
            self.held += PAGE * pages.bit_count()
        for image, path in self._storage.paths():
            self._paths[path] = image

    @property
    def has_room(self) -> bool:
        """Whether another block can be held without evicting one."""
        return len(self._blocks) < self._slots

    @property
    def capacity(self) -> int:
        """Bytes that can be held, in whole blocks."""
        return self._slots * BLOCK

    @property
    def is_behind(self) -> bool:
        """Whether its disk cannot keep up, so that what is not urgent should not be requested."""
        return self._storage.is_behind()

    def touch(self, image: ImageKey) -> None:
        """Make the blocks of an image the most recently used ones."""
        for number in self.held_blocks(image):
            self._blocks.move_to_end((image, number))

    def held_blocks(self, image: ImageKey) -> dict[int, int]:
        """The numbers of the blocks held of an image, each with a mask of its pages."""
        # list() copies in one step: readers in other threads keep changing the order.
        blocks = list(self._blocks.items())
        return {number: block.pages for (key, number), block in blocks if key == image}

    def missing(self, image: ImageKey, block: int, pages: int) -> int:
        """Those of C{pages} of a block that are not held."""
        held = self._blocks.get((image, block))
        lacking = pages if held is None else pages & ~held.pages
        return lacking and lacking & ~self.zeros.of_block(image, block)

    def missing_of_extent(self, image: ImageKey, extent: int, pages: int) -> int:
        """Those of C{pages} of an extent that are not held."""
        first_block = extent * (EXTENT // BLOCK)
        missing = 0
        for first in range(0, EXTENT_PAGES, BLOCK_PAGES):
            of_block = pages >> first & ALL_PAGES
            if of_block:
                missing |= (
                    self.missing(image, first_block + first // BLOCK_PAGES, of_block) << first
                )
        return missing

    def read(self, image: ImageKey, offset: int, target: memoryview) -> bool:
        """
        Fill C{target} with the bytes from C{offset} on.

        @return: whether all of them are held; if not, the content of C{target} is undefined. If
            nothing is L{missing} although this returns false, a block is damaged: L{discard} it.
        """
        zeros = self._fill(image, offset, target)
        if zeros:
            # No addition is lost: CPython switches threads at calls and loops alone.
            self.zero_bytes_read += zeros
        return zeros is not None

    def _fill(self, image: ImageKey, offset: int, target: memoryview) -> int | None:
        """See L{read}. @return: how many bytes are known to be zero; C{None} for false."""
        start, length = offset % BLOCK, len(target)
        if not 0 < length <= BLOCK - start:
            return self._fill_across(image, offset, target)
        key = image, offset // BLOCK
        block = self._blocks.get(key)
        if block is None or block.pages != ALL_PAGES:
            wanted = mask_of(start, start + length)
            held = 0 if block is None else wanted & block.pages
            if wanted != held:
                if wanted & ~held & ~self.zeros.of_block(*key):
                    if block is not None:
                        self._storage.preload(block.place, held)
                    return None
                zeros = 0
                for _, zero in _parts(target, start, wanted & ~held):
                    zero[:] = _ZERO[: len(zero)]
                    zeros += len(zero)
                rest = _parts(target, start, held)
                found = all(self.read(image, offset + begin, part) for begin, part in rest)
                return zeros if found else None
        assert block is not None
        if not self._read(block.place, start, target):
            return None
        try:
            self._move_to_end(key)
        except KeyError:
            return None
        return 0 if block.pages else None

    def _fill_across(self, image: ImageKey, offset: int, target: memoryview) -> int | None:
        """The same for parts of several blocks."""
        keys = [(image, number) for number in range(offset // BLOCK, _end(offset, target))]
        blocks = [self._blocks.get(key) for key in keys]
        places = [each.place for each in blocks if each is not None and each.pages == ALL_PAGES]
        if 0 < len(places) == len(keys):
            if not self._storage.read_together(places, offset % BLOCK, target):
                return None
            try:
                for key in keys:
                    self._move_to_end(key)
            except KeyError:
                return None
            return 0 if all(each is not None and each.pages for each in blocks) else None
        done, total, whole = 0, 0, True
        while done < len(target):
            part = target[done : done + BLOCK - (offset + done) % BLOCK]
            zeros = self._fill(image, offset + done, part)
            if zeros is None:
                whole = False
            else:
                total += zeros
            done += len(part)
        return total if whole else None

    def run_writer(self) -> None:
        """Write to the disk, in a thread of its own, until L{stop}."""
        self._storage.run_writer()

    def stop(self) -> None:
        """Let L{run_writer} return once everything is written."""
        self._storage.stop()

    def opened(self, image: ImageKey, path: bytes, size: int) -> None:
        """
        Note that an image was opened at a path. Drops what was opened there before.

        @param size: of the image, in bytes.
        """
        before = self._paths.pop(path, image)
        if before != image:
            self.zeros.forget(before)
            for number in self.held_blocks(before):
                self.forget(before, number)
        if len(self._paths) >= MAX_PATHS:
            self._paths.clear()
        self._paths[path] = image
        self._storage.opened(image, path, size)

    def store(self, image: ImageKey, offset: int, data: bytes | memoryview, zeros: int = 0) -> None:
        """
        Keep whole pages, if there is memory for them. Only the last page of an image may be short.

        @param offset: of the first page, in bytes.
        @param zeros: which of the pages are zero, as a bitmap that begins with the first one.
        @raise ValueError: when C{offset} is not that of a page.
        """
        if offset % PAGE:
            raise ValueError(f"offset {offset} is not that of a page")
        self.make_room()
        source, begin = memoryview(data), 0
        for start, end in _zero_blocks(offset, len(source), zeros):
            if self.zeros.mark(image, (offset + start) // BLOCK):
                self._store_run(image, offset + begin, source[begin:start])
                begin = end
        self._store_run(image, offset + begin, source[begin:])

    def _store_run(self, image: ImageKey, offset: int, data: memoryview) -> None:
        if not data:
            return
        numbers, start = range(offset // BLOCK, _end(offset, data)), offset % BLOCK
        kept = 0
        if 1 < len(numbers) <= self._slots:
            kept = self._store_together([(image, number) for number in numbers], start, data)
        for number in numbers[kept:]:
            begin = (number - numbers[0]) * BLOCK - start
            self._store(image, number, max(0, -begin), data[max(0, begin) : begin + BLOCK])

    def _store_together(
        self, keys: list[tuple[ImageKey, int]], start: int, data: memoryview
    ) -> int:
        """Keep pages of adjacent blocks in one go; for how many of the blocks that worked."""
        blocks = [self._block(key) for key in keys]
        if blocks != [self._blocks.get(key) for key in keys]:
            # Readers used others meanwhile, so the first ones made room for the last ones.
            return 0
        kept = self._storage.write([block.place for block in blocks], start, data)
        end = start + len(data)
        for block in blocks[:kept]:
            self._mark(block, mask_of(max(0, start), min(BLOCK, end)))
            start, end = start - BLOCK, end - BLOCK
        return kept

    def _store(self, image: ImageKey, number: int, start: int, data: memoryview) -> None:
        """Keep pages of one block."""
        key = image, number
        block = self._block(key)
        kept = self._storage.write([block.place], start, data)
        if not kept and not block.pages:
            # There is no memory for a place never used before: take the least recently used one.
            self.forget(*key)
            if self._blocks:
                self._evict()
                block = self._block(key)
                kept = self._storage.write([block.place], start, data)
        if kept:
            self._mark(block, mask_of(start, start + len(data)))

    def _mark(self, block: _Block, pages: int) -> None:
        self.held += PAGE * (pages & ~block.pages).bit_count()
        block.pages |= pages

    def make_room(self) -> None:
        """Drop what the storage has no room for."""
        while (overflow := self._storage.pop_overflow()) is not None:
            self.forget(*overflow)
        for _ in range(min(self._storage.take_lack(), len(self._blocks))):
            self._evict(give_back=True)
            self.given_up += 1

    def look_for_room(self) -> None:
        """To be called every few seconds: others may fill the disk while nothing is stored."""
        self.make_room()
        self._storage.look()

    def forget(self, image: ImageKey, number: int) -> None:
        """Drop a block, if it is held."""
        block = self._blocks.pop((image, number), None)
        if block is not None:
            self._free(block)

    def discard(self, image: ImageKey, number: int) -> None:
        """Drop a damaged block, and count it."""
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

    def _evict(self, *, give_back: bool = False) -> None:
        """Drop the least recently used block; its place is the next to be used."""
        _, oldest = self._blocks.popitem(last=False)
        self._free(oldest, give_back=give_back)
        self.evictions += 1

    def _free(self, block: _Block, *, give_back: bool = False) -> None:
        self.held -= PAGE * block.pages.bit_count()
        block.pages = 0
        self._storage.free(block.place, give_back=give_back)


def _end(offset: int, data: memoryview) -> int:
    """The number of the block after those that bytes of an image from C{offset} on touch."""
    return -(-(offset + len(data)) // BLOCK)


def _zero_blocks(offset: int, length: int, zeros: int) -> Iterator[tuple[int, int]]:
    """
    Which blocks are zero of bytes of an image: where each begins and ends among them.

    @param offset: of the bytes in the image; there are C{length} of them.
    @param zeros: which of their pages are zero, as a bitmap that begins with the first one.
    """
    for start in range(-offset % BLOCK, length if zeros else 0, BLOCK):
        end = min(start + BLOCK, length)
        # Only the last page of an image is short: the image has no more of this block.
        is_whole = end - start == BLOCK or length % PAGE
        if is_whole and not ~(zeros >> start // PAGE) & mask_of(0, end - start):
            yield start, end


def _parts(target: memoryview, start: int, pages: int) -> Iterator[tuple[int, memoryview]]:
    """
    Some pages of C{target}, which begins at byte C{start} of a block, each run of them with where
    it begins in it.
    """
    for first, count in runs(pages):
        begin = max(0, first * PAGE - start)
        yield begin, target[begin : (first + count) * PAGE - start]
