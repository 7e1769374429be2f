"""A cache in memory, which is lost when the process ends."""

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence

from twisted.logger import Logger
from zope.interface import implementer

from mufs.cache.client import anonymous_file
from mufs.interfaces import IBlockStorage
from mufs.wire.pages import BLOCK, ImageKey


@implementer(IBlockStorage)
class Memory:
    """
    Anonymous memory, allocated as it fills up. A place is the number of a block in it.

    Its end moves as places are used for the first time: only what was written can be read.
    """

    _log = Logger()
    cost = BLOCK

    def __init__(self) -> None:
        self._file = open(  # noqa: SIM115 # as long as this object
            anonymous_file.make("mufs-cache"), "wb", buffering=0
        )
        self._free: list[int] = []
        self._short = False

    def begin(self, blocks: int) -> Iterable[tuple[ImageKey, int, int, int]]:
        """See L{IBlockStorage.begin}."""
        # Python maps no more of a file than it has; but a file that grows only as it is written to
        # takes no more memory than that.
        self._file.truncate(blocks * BLOCK)
        memory = mmap.mmap(self._file.fileno(), blocks * BLOCK, prot=mmap.PROT_READ)
        self._file.truncate(0)
        self._memory = memoryview(memory)
        self._free.extend(range(blocks - 1, -1, -1))
        return ()

    def paths(self) -> Iterable[tuple[ImageKey, bytes]]:
        """See L{IBlockStorage.paths}."""
        return ()

    def opened(self, image: ImageKey, path: bytes, size: int) -> None:
        """See L{IBlockStorage.opened}."""

    def place(self, image: ImageKey, number: int) -> int:
        """See L{IBlockStorage.place}."""
        return self._free.pop()

    def free(self, place: int, *, give_back: bool = False) -> None:
        """See L{IBlockStorage.free}."""
        self._free.append(place)

    def take_lack(self) -> int:
        """See L{IBlockStorage.take_lack}."""
        return 0

    def look(self) -> None:
        """See L{IBlockStorage.look}."""

    def is_behind(self) -> bool:
        """See L{IBlockStorage.is_behind}."""
        return False

    def pop_overflow(self) -> tuple[ImageKey, int] | None:
        """See L{IBlockStorage.pop_overflow}."""
        return None

    def write(self, places: Sequence[int], start: int, data: memoryview) -> int:
        """See L{IBlockStorage.write}."""
        kept = 0
        for first, number, part in _runs(places, start, data):
            if not self._write(part, first):
                break
            kept += number
        return kept

    def _write(self, data: memoryview, offset: int) -> bool:
        # Writing through a mapping takes twice as long: the kernel would clear each page first.
        try:
            written = os.pwrite(self._file.fileno(), data, offset)
            reason = ""
        except OSError as error:
            written, reason = 0, f" ({error.strerror})"
        if written < len(data) and not self._short:
            self._short = True
            self._log.warn(
                "no memory for more than {held} MiB of the cache{reason}: continuing with these",
                held=os.fstat(self._file.fileno()).st_blocks >> 11, reason=reason,
            )  # fmt: skip
        return written == len(data)

    def read(self, place: int, start: int, target: memoryview) -> bool:
        """See L{IBlockStorage.read}."""
        base = place * BLOCK + start
        target[:] = self._memory[base : base + len(target)]
        return True

    def read_together(self, places: Sequence[int], start: int, target: memoryview) -> bool:
        """See L{IBlockStorage.read_together}."""
        for first, _, part in _runs(places, start, target):
            part[:] = self._memory[first : first + len(part)]
        return True

    def preload(self, place: int, pages: int) -> None:
        """See L{IBlockStorage.preload}."""

    def run_writer(self) -> None:
        """See L{IBlockStorage.run_writer}."""

    def stop(self) -> None:
        """See L{IBlockStorage.stop}."""


def _runs(
    places: Sequence[int], start: int, data: memoryview
) -> Iterator[tuple[int, int, memoryview]]:
    """
    The parts of adjacent blocks whose places are adjacent, too: where each begins in all of the
    memory, of how many blocks it is, and its bytes.

    @param start: where C{data} begins in the first block.
    """
    begin = done = 0
    for number, place in enumerate(places, 1):
        if number == len(places) or places[number] != place + 1:
            part = data[done : number * BLOCK - start]
            yield places[begin] * BLOCK + (0 if begin else start), number - begin, part
            begin, done = number, done + len(part)
