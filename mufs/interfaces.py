"""What the parts of mUFS ask of one another where more than one implementation makes sense."""

from zope.interface import Attribute, Interface

from mufs.wire.metadata import Attributes, Caller, Statistics


class IImage(Interface):
    """One generation of a file of the library, open for reading."""

    image: int = Attribute("which file it is: 64 bits, the same for all its generations")
    generation: int = Attribute("which content it has: 64 bits")
    attributes: Attributes = Attribute("what stat told when it was opened")

    def read(offset: int, length: int) -> bytes:
        """
        The bytes at C{offset}, fewer than C{length} only at the end. May block.

        @raise OSError: ESTALE when the file no longer has the content it was opened with.
        """


class IImageLibrary(Interface):
    """
    The tree of files that a server shares. Paths are names joined by slashes, from its root.

    Every method may block, and raises C{OSError} with an errno; none follows a symbolic link.
    C{caller} is who asks: EACCES where the mode bits do not let him; C{None} is not asked.
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
