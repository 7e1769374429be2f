"""The interfaces between parts of mUFS that have more than one implementation."""

from collections.abc import Iterable
from typing import Any

from zope.interface import Attribute, Interface

from mufs.wire.metadata import Attributes, Caller, Statistics


class IImage(Interface):
    """One generation of a file of the library, open for reading."""

    image: int = Attribute("which file it is: 64 bits, the same for all its generations")
    generation: int = Attribute("which content it has: 64 bits")
    attributes: Attributes = Attribute("from stat, when it was opened")

    def read(offset: int, length: int) -> bytes:
        """
        The bytes at C{offset}, fewer than C{length} only at the end. May block.

        @raise OSError: ESTALE when the file no longer has the content it was opened with.
        """

    def read_at_once(offset: int, length: int) -> bytes | None:
        """The same if that is known not to block and to be right, else C{None}."""


class IImageLibrary(Interface):
    """
    The tree of files that a server shares. Paths are names joined by slashes, from its root.

    Every method may block, and raises C{OSError} with an errno; none follows a symbolic link.
    C{caller} is who asks: EACCES where the mode bits forbid it; C{None} skips that check.
    """

    def getattr(path: bytes, caller: Caller | None = None) -> Attributes:
        """The attributes of the file itself, also of a symbolic link."""

    def readdir(path: bytes, caller: Caller | None = None) -> list[tuple[bytes, Attributes]]:
        """The names in a directory, without C{.} and C{..}, each with its attributes."""

    def readlink(path: bytes, caller: Caller | None = None) -> bytes:
        """Where a symbolic link points."""

    def open(path: bytes, caller: Caller | None = None) -> IImage:
        """The present generation of a regular file; the same object while anybody holds it."""

    def statfs() -> Statistics:
        """The figures of the file system that the root lies on."""


class IBlockStorage(Interface):
    """
    Where a client's cache keeps the bytes of its blocks. C{image} is an image and its generation.

    The thread that changes the cache calls every method but C{work}, and none of them waits for a
    disk, except C{read} and C{warm}, which may, and which any thread may call.
    """

    cost: int = Attribute("bytes that one block takes")

    def begin(blocks: int) -> Iterable[tuple[tuple[int, int], int, int, Any]]:
        """
        Make room for C{blocks} blocks.

        @return: what is there from before, at most as many, least recently used first: image,
            number of the block, pages of it, place.
        """

    def paths() -> Iterable[tuple[tuple[int, int], bytes]]:
        """The images that are there from before, and where they were opened last."""

    def opened(image: tuple[int, int], path: bytes, size: int) -> None:
        """An image of C{size} bytes was opened at a path."""

    def place(image: tuple[int, int], number: int) -> Any:
        """An empty place for a block. Never more are held than L{begin} made room for."""

    def free(place: Any) -> None:
        """The block at this place is no longer held."""

    def overdue() -> tuple[tuple[int, int], int] | None:
        """A block to be dropped because writing falls behind; C{None} if there is none."""

    def is_behind() -> bool:
        """Whether so much waits to be written that pulls should pause."""

    def write(place: Any, start: int, data: bytes) -> bool:
        """
        Put whole pages at an offset within a block; they can be read from now on.

        @return: whether there was room for them.
        """

    def read(place: Any, start: int, target: memoryview) -> bool:
        """Fill C{target} from an offset within a block; C{False} if it cannot be read back."""

    def warm(place: Any, pages: int) -> None:
        """Load these pages into memory now; the calling thread will read them next."""

    def work() -> None:
        """Do the disk accesses that may block, in a thread of its own, until L{stop}."""

    def stop() -> None:
        """Make L{work} return once what is queued is done."""
