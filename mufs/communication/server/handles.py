"""The images that one client has open, by the handles that it knows them by."""

import errno
from collections.abc import Iterator
from typing import NamedTuple

from mufs.communication.server.access_statistics import AccessStatistics, ImageAccess
from mufs.communication.server.limits import Limits
from mufs.interfaces import IImage


class OpenHandle(NamedTuple):
    """An open image, and the statistics of the path that it was opened at."""

    image: IImage
    access: ImageAccess


class Handles:
    """
    The handles of one client.

    @ivar get: the L{OpenHandle} of a handle, or C{None}.
    @ivar generations: image and generation of all whose keys the client was given: it keeps a
        key when it closes the handle.
    @ivar last_access: the image that it opened or read last.
    """

    def __init__(self, limits: Limits, statistics: AccessStatistics) -> None:
        self._limits = limits
        self._statistics = statistics
        self._open: dict[int, OpenHandle] = {}
        self._next = 1
        self.get = self._open.get  # called for each READ
        self.generations: set[tuple[int, int]] = set()
        self.last_access: ImageAccess | None = None

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def paths(self) -> Iterator[bytes]:
        """The paths of the open images, each once."""
        return iter(dict.fromkeys(opened.access.path for opened in self._open.values()))

    def add(self, path: bytes, image: IImage) -> int:
        """
        Give out a handle for an image, and with it the key of its generation.

        @raise OSError: EMFILE, when the client has as many handles as it may have.
        """
        if len(self._open) >= self._limits.max_handles:
            raise OSError(errno.EMFILE, "too many open images")
        handle, self._next = self._next, self._next + 1
        self.last_access = self._statistics.opened(path)
        self.last_access.size = image.attributes.size
        self._open[handle] = OpenHandle(image, self.last_access)
        self.generations.add((image.image, image.generation))
        return handle

    def image(self, handle: int) -> IImage:
        """
        The image of a handle.

        @raise OSError: EBADF, when there is no such handle.
        """
        opened = self._open.get(handle)
        if opened is None:
            raise OSError(errno.EBADF, "no such handle")
        return opened.image

    def note_read(self, access: ImageAccess, length: int) -> None:
        """The client asked for this many bytes of an image that it has open."""
        self.last_access = access
        self._statistics.note_read(access, length)

    def close(self, handle: int) -> None:
        """Close a handle, if there is such a one."""
        closed = self._open.pop(handle, None)
        if closed is not None:
            closed.access.opens -= 1

    def close_all(self) -> None:
        """Close all handles: the client is gone."""
        for handle in list(self._open):
            self.close(handle)
