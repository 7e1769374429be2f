"""
The bytes of a cache that lasts: files in a directory (L{mufs.cache.client.layout}).

A page is there if its checksum is right: what was only half written when the power failed, or was
damaged since, is not there. So no order of writing has to be kept, and nothing has to be waited
for (no fsync).
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from queue import Empty, SimpleQueue
from struct import Struct
from struct import error as StructError
from typing import Any

from attrs import Factory, define
from twisted.logger import Logger
from xxhash import xxh3_64_intdigest
from zope.interface import implementer

from mufs.cache.client.layout import (
    HEAD,
    INDEX,
    PATH,
    RECORD,
    SERVER,
    SUMS,
    ImageKey,
    Summary,
    UnusableDirectory,
    blocks_of,
    claim,
    found_images,
    lock,
    make_directory,
    open_directory,
    punch,
    pwrite,
    read_records,
    server_of,
    summaries_of,
    write_file,
)
from mufs.interfaces import IBlockStorage
from mufs.wire.pages import BLOCK, PAGE, PAGES, mask_of, runs

MOST_WAITING = 512
"""Pieces of blocks, of 128 KiB at the most, that may wait in memory to be written."""

PAUSE = 1.0
"""Seconds after which what could not be written is tried again."""

LARGEST = (1 << 63) - 1
"""Bytes that a file can have at the most."""

MOST_IMAGES = 20_000
"""Images of which something is known though nothing is held."""

Piece = tuple[int, bytes]
"""Offset within a block, and bytes of whole pages."""


@define(eq=False)
class _Image:
    """
    @ivar seed: what all checksums of its pages begin with, so that no other image's are right.
    @ivar blocks: the numbers of those that have a place.
    @ivar named: its files say where it was opened, and its size.
    """

    key: ImageKey
    seed: int
    path: bytes | None = None
    size: int = 0
    blocks: set[int] = Factory(set)
    named: bool = False

    @property
    def name(self) -> str:
        return "{:016x}-{:016x}".format(*self.key)


@define(eq=False, weakref_slot=False)
class _Place:
    """
    There is one for each block, up to a million.

    @ivar slot: of the index.
    @ivar fresh: what is not written yet; C{None} before there was anything.
    @ivar taken: the index says that this block has the slot.
    @ivar used: it says that the block was used in this run.
    """

    image: _Image
    number: int
    slot: int
    fresh: list[Piece] | None = None
    taken: bool = False
    used: bool = False


@implementer(IBlockStorage)
class CacheDirectory:
    """
    A directory that this object alone uses.

    The reactor's thread calls what L{IBlockStorage} says; another one is in L{work}, and it alone
    changes files then. Readers in any thread may find a file in any state: checksums tell.

    @ivar path: the directory.
    """

    _log = Logger()
    cost = BLOCK + RECORD

    def __init__(
        self, path: str, server: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """
        @param server: the endpoint string of the server whose images these are; C{None} for that
            which the directory already belongs to.
        @param clock: seconds since 1970, by which it is known what was used last.
        @raise UnusableDirectory: when another client uses it, or it is something else.
        """
        self.path = path
        self._clock = clock
        if server is not None:
            make_directory(path)
        self._fd = open_directory(path)
        try:
            lock(self._fd)
            self.server = claim(self._fd, None if server is None else server_of(server))
            self._index = os.open(
                INDEX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self._fd
            )
        except OSError as error:
            self.close()
            raise UnusableDirectory(error.strerror) from None
        except BaseException:
            self.close()
            raise
        self._images: dict[ImageKey, _Image] = {}
        self._free: list[int] = []
        self._slots = 0
        self._line: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._trouble = False

    def close(self) -> None:
        """Let others use the directory."""
        for name in ("_fd", "_index"):
            fd = self.__dict__.pop(name, None)
            if fd is not None:
                os.close(fd)

    # What is there from before.

    def begin(self, blocks: int) -> list[tuple[ImageKey, int, int, _Place]]:
        """
        See L{IBlockStorage.begin}.

        @raise UnusableDirectory: when it cannot be read.
        """
        try:
            return self._begin(blocks)
        except OSError as error:
            raise UnusableDirectory(error.strerror) from None

    def _begin(self, blocks: int) -> list[tuple[ImageKey, int, int, _Place]]:
        self._images = {image.key: image for image in self._found_images()}
        records = read_records(self._index)
        self._slots = len(records)
        taken: dict[tuple[ImageKey, int], tuple[int, int]] = {}
        for slot, key, number, pages in blocks_of(records):
            image = self._images.get(key)
            if image is not None and number * BLOCK < image.size:
                block = image.key, number
                taken.pop(block, None)
                taken[block] = slot, pages
        for block in list(taken)[: max(0, len(taken) - blocks)]:
            self._clear(taken.pop(block)[0])
        slots = {slot for slot, _ in taken.values()}
        self._free = [slot for slot in range(self._slots - 1, -1, -1) if slot not in slots]
        found = []
        while taken:
            (key, number), (slot, pages) = taken.popitem()
            place = _Place(self._images[key], number, slot, taken=True)
            place.image.blocks.add(number)
            found.append((key, number, pages, place))
        found.reverse()
        for image in [image for image in self._images.values() if not image.blocks]:
            self._remove(image)
            del self._images[image.key]
        return found

    def paths(self) -> list[tuple[ImageKey, bytes]]:
        """See L{IBlockStorage.paths}."""
        return [(i.key, i.path) for i in self._images.values() if i.path is not None]

    def summaries(self) -> list[Summary]:
        """What the directory has of each image."""
        return summaries_of(self._fd)

    def _found_images(self) -> Iterator[_Image]:
        for key, path, size in found_images(self._fd):
            yield _Image(key, self._seed(key), path, size, named=path is not None)

    def _seed(self, key: ImageKey) -> int:
        text = f"{self.server}\n{key[0]},{key[1]}".encode("utf-8", "surrogateescape")
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")

    # What the cache decides; nothing here waits for the disk.

    def opened(self, image: ImageKey, path: bytes, size: int) -> None:
        """See L{IBlockStorage.opened}."""
        known, size = self._image(image), min(size, LARGEST)
        if (known.path, known.size) != (path, size):
            known.path, known.size, known.named = path, size, False
            if known.blocks:
                self._line.put((self._name, known))

    def place(self, image: ImageKey, number: int) -> _Place:
        """See L{IBlockStorage.place}."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._slots
            self._slots += 1
        place = _Place(self._image(image), number, slot)
        place.image.blocks.add(number)
        return place

    def free(self, place: _Place) -> None:
        """See L{IBlockStorage.free}. The next block at its place makes room for itself."""
        if place.fresh:
            place.fresh.clear()
        self._free.append(place.slot)
        place.image.blocks.discard(place.number)
        if not place.image.blocks:
            self._line.put((self._remove, place.image))

    def is_behind(self) -> bool:
        """See L{IBlockStorage.is_behind}."""
        return self._line.qsize() >= MOST_WAITING // 2

    def overdue(self) -> tuple[ImageKey, int] | None:
        """See L{IBlockStorage.overdue}."""
        while self._line.qsize() >= MOST_WAITING:
            with suppress(Empty):
                job = self._line.get_nowait()
                if job is not None and job[0] == self._write and job[2] in job[1].fresh:
                    return job[1].image.key, job[1].number
        return None

    def write(self, place: _Place, start: int, data: bytes) -> bool:
        """See L{IBlockStorage.write}."""
        if place.number * BLOCK > LARGEST - BLOCK:
            return False
        piece = start, data
        if place.fresh is None:
            place.fresh = []
        place.fresh.append(piece)
        self._line.put((self._write, place, piece))
        return True

    def stop(self) -> None:
        """See L{IBlockStorage.stop}."""
        self._line.put(None)

    def _image(self, key: ImageKey) -> _Image:
        image = self._images.get(key)
        if image is None:
            if len(self._images) >= MOST_IMAGES:
                self._images = {k: i for k, i in self._images.items() if i.blocks}
            image = self._images[key] = _Image(key, self._seed(key))
        return image

    # What readers do.

    def read(self, place: _Place, start: int, target: memoryview) -> bool:
        """See L{IBlockStorage.read}."""
        if not place.fresh:
            return self._read(place, start, target)
        stop = start + len(target)
        lacking = mask_of(start, stop)
        for begin, data in tuple(place.fresh):
            first, last = max(start, begin), min(stop, begin + len(data))
            if first < last:
                part = memoryview(data)[first - begin : last - begin]
                target[first - start : last - start] = part
            lacking &= ~mask_of(begin, begin + len(data))
        for first_page, count in runs(lacking):
            first, last = max(start, first_page * PAGE), min(stop, (first_page + count) * PAGE)
            if not self._read(place, first, target[first - start : last - start]):
                return False
        return True

    def warm(self, place: _Place, pages: int) -> None:
        """See L{IBlockStorage.warm}."""
        for first, count in runs(pages):
            self.read(place, first * PAGE, memoryview(bytearray(count * PAGE)))

    def _read(self, place: _Place, start: int, target: memoryview) -> bool:
        """Fill C{target} with what was written; whether its checksums are right."""
        first, last = start // PAGE, -(-(start + len(target)) // PAGE)
        size = (last - first) * PAGE
        pages = target if len(target) == size else memoryview(bytearray(size))
        try:
            with self._data(place.image) as fd:
                got = os.preadv(fd, [pages], place.number * BLOCK + first * PAGE)
            sums = SUMS.unpack(os.pread(self._index, SUMS.size, place.slot * RECORD + HEAD.size))
        except (OSError, StructError):
            return False
        if got < start + len(target) - first * PAGE:
            return False
        if self._sums(place, first, pages[:got]) != sums[first:last]:
            return False
        if pages is not target:
            target[:] = pages[start - first * PAGE :][: len(target)]
        if not place.used:
            place.used = True
            self._line.put((self._stamp, place))
        return True

    def _sums(self, place: _Place, first: int, data: "bytes | memoryview") -> tuple[int, ...]:
        seed = place.image.seed + place.number * PAGES + first
        return tuple(
            xxh3_64_intdigest(data[begin : begin + PAGE], seed + page & 0xFFFFFFFFFFFFFFFF) or 1
            for page, begin in enumerate(range(0, len(data), PAGE))
        )

    @contextmanager
    def _data(self, image: _Image, flags: int = os.O_RDONLY) -> Iterator[int]:
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(image.name, flags, 0o600, dir_fd=self._fd)
        try:
            yield fd
        finally:
            os.close(fd)

    # What waits for the disk.

    def work(self) -> None:
        """See L{IBlockStorage.work}. What cannot be done is tried again, behind the rest."""
        for function, *arguments in iter(self._line.get, None):
            try:
                function(*arguments)
            except OSError as error:
                if not self._trouble:
                    self._trouble = True
                    self._log.warn(
                        "cannot keep what comes in {path} ({reason}): going on without",
                        path=self.path, reason=error.strerror,
                    )  # fmt: skip
                self._line.put((function, *arguments))
                time.sleep(PAUSE)
            else:
                if self._trouble and function == self._write:
                    self._trouble = False
                    self._log.info("keeping what comes in {path} again", path=self.path)

    def _write(self, place: _Place, piece: Piece) -> None:
        if not place.fresh or piece not in place.fresh:
            return
        start, data = piece
        if not place.taken:
            self._clear(place.slot)
        if not place.image.named:
            self._name(place.image)
        with self._data(place.image, os.O_WRONLY | os.O_CREAT) as fd:
            pwrite(fd, data, place.number * BLOCK + start)
        first, at = start // PAGE, place.slot * RECORD
        sums = self._sums(place, first, data)
        if place.taken:
            pwrite(self._index, Struct(f"<{len(sums)}Q").pack(*sums), at + HEAD.size + 8 * first)
        else:
            head = HEAD.pack(*place.image.key, place.number, int(self._clock()))
            rest = (0,) * (PAGES - first - len(sums))
            pwrite(self._index, head + SUMS.pack(*(0,) * first, *sums, *rest), at)
            place.taken = place.used = True
        with suppress(ValueError):
            place.fresh.remove(piece)

    def _stamp(self, place: _Place) -> None:
        head = os.pread(self._index, HEAD.size, place.slot * RECORD)
        if head[:24] == HEAD.pack(*place.image.key, place.number, 0)[:24]:
            pwrite(self._index, int(self._clock()).to_bytes(8, "little"), place.slot * RECORD + 24)

    def _clear(self, slot: int) -> None:
        """Take what the index says of a slot from the disk."""
        head = os.pread(self._index, HEAD.size, slot * RECORD)
        if len(head) < HEAD.size or not any(head):
            return
        image_id, generation, number, _ = HEAD.unpack(head)
        key = image_id, generation
        image = self._images.get(key) or _Image(key, 0)
        # A block that has another place by now keeps its data at the same offset.
        if number not in image.blocks:
            with suppress(FileNotFoundError), self._data(image, os.O_WRONLY) as fd:
                if number * BLOCK < os.fstat(fd).st_size:
                    punch(fd, number * BLOCK, BLOCK)
        pwrite(self._index, bytes(RECORD), slot * RECORD)

    def _name(self, image: _Image) -> None:
        """Have the files of an image say where it was opened, and its size."""
        with self._data(image, os.O_WRONLY | os.O_CREAT) as fd:
            if image.size and os.fstat(fd).st_size != image.size:
                os.ftruncate(fd, image.size)
        if image.path is not None:
            write_file(self._fd, image.name + PATH, image.path)
        image.named = True

    def _remove(self, image: _Image) -> None:
        """An image has no block any longer."""
        image.named = False
        for name in (image.name, image.name + PATH):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._fd)

    # What an operator does.

    def verify(self) -> tuple[int, int]:
        """Check all pages, and take away wrong ones: how many there were, and how many of them."""
        pages = wrong = 0
        for _, number, held, place in self.begin(1 << 62):
            for page in (first + n for first, count in runs(held) for n in range(count)):
                pages += 1
                if not self._is_right(place, number, page):
                    wrong += 1
                    pwrite(self._index, bytes(8), place.slot * RECORD + HEAD.size + 8 * page)
        return pages, wrong

    def _is_right(self, place: _Place, number: int, page: int) -> bool:
        length = min(PAGE, place.image.size - number * BLOCK - page * PAGE)
        return length > 0 and self._read(place, page * PAGE, memoryview(bytearray(length)))

    def remove(self, keys: Iterable[ImageKey]) -> None:
        """Take images away; at the next start nothing is known of them."""
        for key in keys:
            self._remove(_Image(key, 0))

    def remove_all(self) -> None:
        """Leave an empty directory, for any server."""
        self.remove([summary.key for summary in self.summaries()])
        for name in (INDEX, SERVER):
            os.unlink(name, dir_fd=self._fd)
