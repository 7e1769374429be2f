"""
The index of a cache directory: which block has which slot, and the checksums of its pages.

A slot is the number of a record in the file C{index} (L{mufs.cache.client.layout}).
"""

import os
from collections.abc import Iterator
from hashlib import blake2b
from struct import Struct

from attrs import Factory, define, frozen
from xxhash import xxh3_64_intdigest

from mufs.cache.client.layout import (
    HEAD,
    INDEX,
    RECORD,
    SUMS,
    blocks_of,
    found_images,
    pwrite,
    read_records,
)
from mufs.wire.pages import BLOCK, BLOCK_PAGES, PAGE, ImageKey

MAX_KNOWN_IMAGES = 20_000
"""Images without any block whose paths and sizes are remembered."""


@frozen(eq=False)
class PendingWrite:
    """
    Whole pages that are not on disk yet.

    @ivar start: where they begin within their block, in bytes.
    """

    start: int
    data: memoryview


@define(eq=False)
class CachedImage:
    """
    An image of which the cache has blocks, or which was opened.

    @ivar seed: makes the checksums of its pages differ from those of all other images.
    @ivar blocks: the numbers of the blocks that have a slot.
    @ivar described: whether its files on disk have its path and size.
    """

    key: ImageKey
    seed: int
    path: bytes | None = None
    size: int = 0
    blocks: set[int] = Factory(set)
    described: bool = False

    @property
    def name(self) -> str:
        """The name of its data file."""
        return "{:016x}-{:016x}".format(*self.key)


@define(eq=False, weakref_slot=False)
class Place:
    """
    A block and its slot in the index. There may be a million of them.

    @ivar unwritten: what is not on disk yet; C{None} before the first write.
    @ivar recorded: whether the index on disk says that this block has the slot.
    @ivar stamped: whether the index has the time of its first use in this run.
    """

    image: CachedImage
    number: int
    slot: int
    unwritten: list[PendingWrite] | None = None
    recorded: bool = False
    stamped: bool = False


def checksums(place: Place, first: int, data: "bytes | memoryview") -> tuple[int, ...]:
    """The checksum of each page in C{data}, which begins with page C{first} of a block."""
    seed = place.image.seed + place.number * BLOCK_PAGES + first
    return tuple(
        xxh3_64_intdigest(data[begin : begin + PAGE], seed + page & 0xFFFFFFFFFFFFFFFF) or 1
        for page, begin in enumerate(range(0, len(data), PAGE))
    )


class CacheIndex:
    """
    The images and slots of an open cache directory, and the file that lists them.

    L{load}, L{image}, L{place} and L{free} belong to the thread that changes the cache. The
    methods that write the file belong to the writer's thread. Any thread may call L{sums}.
    """

    def __init__(self, directory_fd: int, server: str) -> None:
        """Open the index, or create it. Raises C{OSError}."""
        self._directory_fd = directory_fd
        self._server = server
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(INDEX, flags, 0o600, dir_fd=directory_fd)
        self.images: dict[ImageKey, CachedImage] = {}
        self._free: list[int] = []
        self._slots = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def load(self, max_blocks: int) -> tuple[list[tuple[Place, int]], list[int]]:
        """
        Read the index.

        @return: the places of the most recently used blocks, at most C{max_blocks}, least
            recently used first, each with a mask of its pages; and the slots of the other blocks,
            which are to be cleared.
        """
        self.images = {image.key: image for image in self._found_images()}
        records = read_records(self._fd)
        self._slots = len(records)
        slots: dict[tuple[ImageKey, int], tuple[int, int]] = {}
        for slot, key, number, pages in blocks_of(records):
            image = self.images.get(key)
            if image is not None and number * BLOCK < image.size:
                block = image.key, number
                slots.pop(block, None)  # of two records for a block the later one counts
                slots[block] = slot, pages
        excess = [slots.pop(block)[0] for block in list(slots)[: max(0, len(slots) - max_blocks)]]
        taken = {slot for slot, _ in slots.values()}
        self._free = [slot for slot in range(self._slots - 1, -1, -1) if slot not in taken]
        found = []
        # Up to a million blocks: each entry goes as its place comes.
        while slots:
            (key, number), (slot, pages) = slots.popitem()
            place = Place(self.images[key], number, slot, recorded=True)
            place.image.blocks.add(number)
            found.append((place, pages))
        found.reverse()
        return found, excess

    def _found_images(self) -> Iterator[CachedImage]:
        for key, path, size in found_images(self._directory_fd):
            yield CachedImage(key, self._seed(key), path, size, described=path is not None)

    def _seed(self, key: ImageKey) -> int:
        text = f"{self._server}\n{key[0]},{key[1]}".encode("utf-8", "surrogateescape")
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")

    def image(self, key: ImageKey) -> CachedImage:
        """The image with this key, new if it is not known."""
        image = self.images.get(key)
        if image is None:
            if len(self.images) >= MAX_KNOWN_IMAGES:
                self.images = {k: i for k, i in self.images.items() if i.blocks}
            image = self.images[key] = CachedImage(key, self._seed(key))
        return image

    def place(self, key: ImageKey, number: int) -> Place:
        """Give a block a slot."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._slots
            self._slots += 1
        place = Place(self.image(key), number, slot)
        place.image.blocks.add(number)
        return place

    def free(self, place: Place) -> None:
        """Take its slot from a block. Its record stays until the slot's next block is written."""
        self._free.append(place.slot)
        place.image.blocks.discard(place.number)

    def sums(self, place: Place) -> tuple[int, ...]:
        """
        The checksums of a block's pages, 0 for each page that is not there.

        @raise OSError: when the index cannot be read.
        @raise struct.error: when it ends before this record.
        """
        return SUMS.unpack(os.pread(self._fd, SUMS.size, place.slot * RECORD + HEAD.size))

    def head(self, slot: int) -> tuple[ImageKey, int] | None:
        """The image and block number of a slot's record on disk; C{None} if it has none."""
        head = os.pread(self._fd, HEAD.size, slot * RECORD)
        if len(head) < HEAD.size or not any(head):
            return None
        image, generation, number, _ = HEAD.unpack(head)
        return (image, generation), number

    def record(self, place: Place, first: int, *, sums: tuple[int, ...], now: int) -> None:
        """
        Write the checksums of a block's pages from page C{first} on.

        @param now: seconds since 1970, for a record that is new.
        """
        at = place.slot * RECORD
        if place.recorded:
            pwrite(self._fd, Struct(f"<{len(sums)}Q").pack(*sums), at + HEAD.size + 8 * first)
            return
        head = HEAD.pack(*place.image.key, place.number, now)
        after = (0,) * (BLOCK_PAGES - first - len(sums))
        pwrite(self._fd, head + SUMS.pack(*(0,) * first, *sums, *after), at)
        place.recorded = place.stamped = True

    def stamp(self, place: Place, now: int) -> None:
        """Write that a block was used at C{now}, if it still has its slot."""
        if self.head(place.slot) == (place.image.key, place.number):
            pwrite(self._fd, now.to_bytes(8, "little"), place.slot * RECORD + HEAD.size - 8)

    def erase_page(self, place: Place, page: int) -> None:
        """Write that a page is not there."""
        pwrite(self._fd, bytes(8), place.slot * RECORD + HEAD.size + 8 * page)

    def erase(self, slot: int) -> None:
        """Write that a slot has no block."""
        pwrite(self._fd, bytes(RECORD), slot * RECORD)
