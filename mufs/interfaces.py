"""Interfaces between the parts of mUFS that have more than one implementation."""

from collections.abc import Iterable, Sequence
from typing import Any

from zope.interface import Attribute, Interface

from mufs.wire.metadata import Attributes, Caller, DataMap, Statistics
from mufs.wire.pages import ImageKey


class IImage(Interface):
    """One generation of a file in a library, open for reading."""

    image: int = Attribute("the number of the file, 64 bits, the same for all its generations")
    generation: int = Attribute("the number of its content, 64 bits")
    attributes: Attributes = Attribute("its attributes when it was opened")

    def read(offset: int, length: int) -> bytes | memoryview:
        """
        The bytes at C{offset}, fewer than C{length} only at the end. May block.

        @raise OSError: ESTALE when the file no longer has the content it was opened with.
        """

    def read_at_once(offset: int, length: int) -> bytes | memoryview | None:
        """The same, or C{None} if that might block or the content might have changed."""

    def find_data(offset: int) -> DataMap:
        """
        Where it has data from C{offset} on, without reading it, as far as one map has room for it.
        May block.

        @raise OSError: ESTALE as from L{read}.
        """


class IImageLibrary(Interface):
    """
    The tree of files that a server exports. Paths are names joined by slashes, from its root.

    Every method may block, and raises C{OSError} with an errno; none follows a symbolic link.
    C{caller} is the user on whose behalf the client asks; a method raises EACCES if the mode bits
    deny access to it. C{None} skips that check.
    """

    def getattr(path: bytes, caller: Caller | None = None) -> Attributes:
        """The attributes of the file itself, also of a symbolic link."""

    def readdir(path: bytes, caller: Caller | None = None) -> list[tuple[bytes, Attributes]]:
        """The names in a directory, without C{.} and C{..}, each with its attributes."""

    def readlink(path: bytes, caller: Caller | None = None) -> bytes:
        """Where a symbolic link points."""

    def open(path: bytes, caller: Caller | None = None) -> IImage:
        """The current generation of a regular file; the same object for all who have it open."""

    def statfs() -> Statistics:
        """The figures of the file system that has the root."""


class IBlockStorage(Interface):
    """
    The storage of a client's cache, which has the bytes of its blocks.

    The thread that changes the cache calls all methods but C{run_writer}; none of them waits for
    a disk. Any thread may call C{read} and C{preload}, which may wait.
    """

    cost: int = Attribute("bytes that one block takes")

    def begin(blocks: int) -> Iterable[tuple[ImageKey, int, int, Any]]:
        """
        Reserve room for C{blocks} blocks.

        @return: the blocks of an earlier run, at most C{blocks} of them, least recently used
            first: image, number of the block, mask of its pages, place.
        """

    def paths() -> Iterable[tuple[ImageKey, bytes]]:
        """The images of an earlier run, each with the path where it was last opened."""

    def opened(image: ImageKey, path: bytes, size: int) -> None:
        """Note that an image of C{size} bytes was opened at a path."""

    def place(image: ImageKey, number: int) -> Any:
        """An empty place for a block. No more are in use at a time than C{begin} reserved."""

    def free(place: Any, *, give_back: bool = False) -> None:
        """
        Take back the place of a block that is no longer held.

        @param give_back: give its space back to the system soon, not only to the next block.
        """

    def take_lack() -> int:
        """The number of blocks to drop, because others need the space."""

    def look() -> None:
        """Find out soon what L{take_lack} should return."""

    def pop_overflow() -> tuple[ImageKey, int] | None:
        """A block to drop because more is stored than the disk can write, if there is one."""

    def is_behind() -> bool:
        """Whether so much waits to be written that what is not urgent should not be requested."""

    def write(places: Sequence[Any], start: int, data: memoryview) -> int:
        """
        Store whole pages of adjacent blocks. They can be read at once; C{data} is not kept.

        @param places: of the blocks.
        @param start: where the data begins in the first of them, in bytes.
        @return: for how many of the blocks, from the first on, there was room.
        """

    def read(place: Any, start: int, target: memoryview) -> bool:
        """Fill C{target} from an offset within a block; false if what was written is damaged."""

    def read_together(places: Sequence[Any], start: int, target: memoryview) -> bool:
        """The same from adjacent blocks."""

    def preload(place: Any, pages: int) -> None:
        """Read these pages from the disk in this thread, which will need them next."""

    def run_writer() -> None:
        """Write to the disk, in a thread of its own, until L{stop}."""

    def stop() -> None:
        """Let L{run_writer} return once everything is written."""
