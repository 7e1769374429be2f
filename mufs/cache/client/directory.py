"""
A persistent cache: its bytes are files in a directory (L{mufs.cache.client.layout}).

A page is held if its checksum is right. One that was half written when the power failed, or
damaged since, is not held. So writes need no order, and no fsync.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from struct import error as StructError

from zope.interface import implementer

from mufs.cache.client.image_files import ImageFiles
from mufs.cache.client.index import CachedImage, CacheIndex, PendingWrite, Place, checksums
from mufs.cache.client.layout import (
    RECORD,
    UnusableDirectory,
    claim,
    lock,
    make_directory,
    open_directory,
    pwritev,
    server_of,
)
from mufs.cache.client.space import FULL, FreeSpace
from mufs.cache.client.writer import Part, Writer
from mufs.interfaces import IBlockStorage
from mufs.wire.pages import BLOCK, PAGE, ImageKey, mask_of, runs

MAX_FILE_SIZE = (1 << 63) - 1
"""Bytes that a file of Linux can have."""


@implementer(IBlockStorage)
class CacheDirectory:
    """
    A directory that only this object uses.

    The reactor's thread calls what L{IBlockStorage} says. While another thread is in
    L{run_writer}, only that one changes files. Readers in any thread may find a file in any state:
    they compare checksums.

    @ivar path: the directory.
    @ivar fd: a descriptor of it, which holds its lock.
    @ivar server: the server whose images it has.
    @ivar index: which block has which slot.
    @ivar files: the bytes of the images.
    @ivar space: what is free on the disk.
    """

    cost = BLOCK + RECORD

    def __init__(
        self,
        path: str,
        server: str | None = None,
        clock: Callable[[], float] = time.time,
        *,
        reserve: int | None = None,
    ) -> None:
        """
        @param server: the endpoint string of the server whose images these are; C{None} for that
            which the directory already belongs to.
        @param clock: seconds since 1970, recorded as the time of a block's last use.
        @param reserve: bytes to leave free on the disk; C{None} for the default.
        @raise UnusableDirectory: when another client uses it, or it is something else.
        """
        self.path = path
        self._clock = clock
        if server is not None:
            make_directory(path)
        self.fd = open_directory(path)
        try:
            lock(self.fd)
            self.server = claim(self.fd, None if server is None else server_of(server))
            self.index = CacheIndex(self.fd, self.server)
            self.space = FreeSpace(self.fd, path, reserve)
        except OSError as error:
            os.close(self.fd)
            raise UnusableDirectory(error.strerror) from None
        except BaseException:
            os.close(self.fd)
            raise
        self.files = ImageFiles(self.fd)
        self._writer = Writer(path, self._write)
        self._closed = False

    def close(self) -> None:
        """Let others use the directory. Closing it again does nothing."""
        if not self._closed:
            self._closed = True
            self.index.close()
            os.close(self.fd)

    def begin(self, blocks: int) -> list[tuple[ImageKey, int, int, Place]]:
        """
        See L{IBlockStorage.begin}.

        @raise UnusableDirectory: when it cannot be read.
        """
        try:
            found, excess = self.index.load(blocks)
            for slot in excess:
                self._clear(slot)
            images = self.index.images
            for image in [image for image in images.values() if not image.blocks]:
                self.files.remove(image)
                del images[image.key]
        except OSError as error:
            raise UnusableDirectory(error.strerror) from None
        return [(place.image.key, place.number, pages, place) for place, pages in found]

    def paths(self) -> list[tuple[ImageKey, bytes]]:
        """See L{IBlockStorage.paths}."""
        return [(i.key, i.path) for i in self.index.images.values() if i.path is not None]

    # Nothing from here to `stop` waits for the disk.

    def opened(self, image: ImageKey, path: bytes, size: int) -> None:
        """See L{IBlockStorage.opened}."""
        known, size = self.index.image(image), min(size, MAX_FILE_SIZE)
        if (known.path, known.size) != (path, size):
            known.path, known.size, known.described = path, size, False
            if known.blocks:
                self._writer.call(self.files.describe, known)

    def place(self, image: ImageKey, number: int) -> Place:
        """See L{IBlockStorage.place}."""
        place = self.index.place(image, number)
        self.space.given_back.pop(place.slot, None)  # its first write clears it
        return place

    def free(self, place: Place, *, give_back: bool = False) -> None:
        """See L{IBlockStorage.free}. The space is given back when the slot's next block comes."""
        if place.unwritten:
            place.unwritten.clear()
        self.index.free(place)
        if not place.image.blocks:
            self._writer.call(self.files.remove, place.image)
        if give_back:
            self.space.given_back[place.slot] = None
            if len(self.space.given_back) == 1:
                self._writer.call(self._give_back)

    def take_lack(self) -> int:
        """See L{IBlockStorage.take_lack}."""
        return self.space.take_lack()

    def look(self) -> None:
        """See L{IBlockStorage.look}."""
        self._writer.call(self._give_back)  # the queue may have dropped this
        self._writer.call(self.space.look)

    def is_behind(self) -> bool:
        """See L{IBlockStorage.is_behind}."""
        return self._writer.is_behind()

    def pop_overflow(self) -> tuple[ImageKey, int] | None:
        """See L{IBlockStorage.pop_overflow}."""
        return self._writer.pop_overflow()

    def write(self, places: Sequence[Place], start: int, data: memoryview) -> int:
        """See L{IBlockStorage.write}."""
        rest = memoryview(bytes(data))
        parts = []
        for place in places:
            if place.number * BLOCK > MAX_FILE_SIZE - BLOCK:
                break
            pending = PendingWrite(start, rest[: BLOCK - start])
            start, rest = 0, rest[BLOCK - start :]
            if place.unwritten is None:
                place.unwritten = []
            place.unwritten.append(pending)
            parts.append((place, pending))
        if parts:
            self._writer.write(parts)
        return len(parts)

    def stop(self) -> None:
        """See L{IBlockStorage.stop}."""
        self._writer.stop()

    # Any thread may read, and waits for the disk.

    def read(self, place: Place, start: int, target: memoryview) -> bool:
        """See L{IBlockStorage.read}."""
        if not place.unwritten:
            return self.read_written(place, start, target)
        stop = start + len(target)
        lacking = mask_of(start, stop)
        for pending in tuple(place.unwritten):
            begin, end = pending.start, pending.start + len(pending.data)
            first, last = max(start, begin), min(stop, end)
            if first < last:
                target[first - start : last - start] = pending.data[first - begin : last - begin]
            lacking &= ~mask_of(begin, end)
        for first_page, count in runs(lacking):
            first, last = max(start, first_page * PAGE), min(stop, (first_page + count) * PAGE)
            if not self.read_written(place, first, target[first - start : last - start]):
                return False
        return True

    def read_together(self, places: Sequence[Place], start: int, target: memoryview) -> bool:
        """See L{IBlockStorage.read_together}."""
        for place in places:
            if not self.read(place, start, target[: BLOCK - start]):
                return False
            start, target = 0, target[BLOCK - start :]
        return True

    def preload(self, place: Place, pages: int) -> None:
        """See L{IBlockStorage.preload}."""
        for first, count in runs(pages):
            self.read(place, first * PAGE, memoryview(bytearray(count * PAGE)))

    def read_written(self, place: Place, start: int, target: memoryview) -> bool:
        """Fill C{target} with what is on disk; whether its checksums are right."""
        first, last = start // PAGE, -(-(start + len(target)) // PAGE)
        size = (last - first) * PAGE
        pages = target if len(target) == size else memoryview(bytearray(size))
        try:
            with self.files.open(place.image) as fd:
                got = os.preadv(fd, [pages], place.number * BLOCK + first * PAGE)
            sums = self.index.sums(place)
        except (OSError, StructError):
            return False
        if got < start + len(target) - first * PAGE:
            return False
        if checksums(place, first, pages[:got]) != sums[first:last]:
            return False
        if pages is not target:
            target[:] = pages[start - first * PAGE :][: len(target)]
        if not place.stamped:
            place.stamped = True
            self._writer.call(self._stamp, place)
        return True

    # The writer's thread changes the files.

    def run_writer(self) -> None:
        """See L{IBlockStorage.run_writer}."""
        self._writer.run()

    def _write(self, parts: list[Part]) -> None:
        """Write pages of blocks and their checksums, but for the blocks that were freed since."""
        parts = [(place, each) for place, each in parts if each in (place.unwritten or ())]
        if not parts:
            return
        try:
            self._store(parts)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.space.failed()
            for place, _ in parts:
                self._writer.give_up(place)
        else:
            for place, pending in parts:
                with suppress(ValueError):
                    (place.unwritten or []).remove(pending)

    def _store(self, parts: list[Part]) -> None:
        image = parts[0][0].image
        unrecorded = [place for place, _ in parts if not place.recorded]
        for place in unrecorded:
            self._clear(place.slot)
        if unrecorded:
            self.space.look()
            if self.space.is_full:
                raise OSError(errno.ENOSPC, "less is free than should be")
        if not image.described:
            self.files.describe(image)
        with self.files.open(image, os.O_WRONLY | os.O_CREAT) as fd:
            for offset, data in _adjacent(parts):
                pwritev(fd, data, offset)
        now = int(self._clock())
        for place, pending in parts:
            first = pending.start // PAGE
            self.index.record(place, first, sums=checksums(place, first, pending.data), now=now)

    def _give_back(self) -> None:
        while self.space.given_back:
            for slot in list(self.space.given_back):
                if slot in self.space.given_back:  # not used again since
                    self._clear(slot)
                    self.space.given_back.pop(slot, None)

    def _stamp(self, place: Place) -> None:
        self.index.stamp(place, int(self._clock()))

    def _clear(self, slot: int) -> None:
        """Remove a slot's former block from the disk."""
        former = self.index.head(slot)
        if former is None:
            return
        key, number = former
        image = self.index.images.get(key) or CachedImage(key, 0)
        # A block that has another slot by now keeps its data at the same offset.
        if number not in image.blocks:
            self.files.punch_block(image, number)
        self.index.erase(slot)


def _adjacent(parts: list[Part]) -> Iterator[tuple[int, list[memoryview]]]:
    """What to write where in the file of an image, with as few writes as possible."""
    data: list[memoryview] = []
    offset = end = -1
    for place, pending in parts:
        begin = place.number * BLOCK + pending.start
        if begin != end and data:
            yield offset, data
            data = []
        if not data:
            offset = begin
        data.append(pending.data)
        end = begin + len(pending.data)
    yield offset, data
