"""An image library in memory, whose images tests can replace and break."""

import errno

from zope.interface import implementer

from mufs.interfaces import IImage, IImageLibrary
from mufs.wire.metadata import MAX_RUNS, Attributes, Caller, DataMap, Statistics


@implementer(IImage)
class MemoryImage:
    """
    A generation of an image in memory.

    @ivar error: the errno of all reads, or C{None}.
    @ivar bad: the byte offsets that cannot be read.
    @ivar at_once: whether L{read_at_once} returns data.
    @ivar runs: where each run of its data begins and ends; all of it by default.
    @ivar max_runs: how many of them L{find_data} returns.
    """

    def __init__(self, image: int, generation: int, content: bytes) -> None:
        self.image = image
        self.generation = generation
        self.content = content
        self.error: int | None = None
        self.bad = range(0)
        self.at_once = False
        self.runs = [(0, len(content))] if content else []
        self.max_runs = MAX_RUNS
        self.attributes = Attributes(
            0o100444,
            image,
            1,
            0,
            0,
            0,
            len(content),
            -(-len(content) // 512),
            generation,
            generation,
            generation,
            generation,
        )

    def read(self, offset: int, length: int) -> bytes:
        """See L{IImage.read}."""
        if self.error is not None:
            raise OSError(self.error, "set by the test")
        if max(offset, self.bad.start) < min(offset + length, self.bad.stop):
            raise OSError(errno.EIO, "a bad sector")
        return self.content[offset : offset + length]

    def read_at_once(self, offset: int, length: int) -> bytes | None:
        """See L{IImage.read_at_once}."""
        return self.read(offset, length) if self.at_once else None

    def find_data(self, offset: int) -> DataMap:
        """See L{IImage.find_data}."""
        if self.error is not None:
            raise OSError(self.error, "set by the test")
        runs = [(max(begin, offset), end) for begin, end in self.runs if end > offset]
        bounds = tuple(bound for run in runs[: self.max_runs] for bound in run)
        left = runs[self.max_runs :]
        return DataMap(offset, left[0][0] if left else max(offset, len(self.content)), bounds)


@implementer(IImageLibrary)
class MemoryLibrary:
    """A library in memory without subdirectories, whose images tests can replace and break."""

    def __init__(self) -> None:
        self.images: dict[bytes, MemoryImage] = {}
        self.generations: dict[tuple[int, int], bytes] = {}

    def put(self, path: bytes, content: bytes) -> MemoryImage:
        """Add an image, or replace one, whose reads then fail with ESTALE."""
        old = self.images.get(path)
        if old is not None:
            old.error = errno.ESTALE
        number = len(self.images) + 1 if old is None else old.image
        image = MemoryImage(number, 1 if old is None else old.generation + 1, content)
        self.images[path] = image
        self.generations[image.image, image.generation] = content
        return image

    def getattr(self, path: bytes, caller: Caller | None = None) -> Attributes:
        """See L{IImageLibrary.getattr}."""
        return self.open(path).attributes

    def readdir(self, path: bytes, caller: Caller | None = None) -> list[tuple[bytes, Attributes]]:
        """See L{IImageLibrary.readdir}."""
        return [(name, image.attributes) for name, image in self.images.items()]

    def readlink(self, path: bytes, caller: Caller | None = None) -> bytes:
        """See L{IImageLibrary.readlink}."""
        raise OSError(errno.EINVAL, "not a symbolic link")

    def open(self, path: bytes, caller: Caller | None = None) -> MemoryImage:
        """See L{IImageLibrary.open}."""
        if path not in self.images:
            raise OSError(errno.ENOENT, "no such image")
        return self.images[path]

    def statfs(self) -> Statistics:
        """See L{IImageLibrary.statfs}."""
        return Statistics(4096, 4096, 0, 0, 0, 0, 0, 0, 255)
