"""What this host last knew of the server's files, for the time when the server is away."""

import errno
import os
import stat
from collections import OrderedDict
from typing import TypeVar

from attrs import define, field

from mufs.filesystem.client.attributes import AttributeCache
from mufs.filesystem.client.images import same_content
from mufs.wire.metadata import Attributes, Caller, Opened, Statistics

T = TypeVar("T")

MAX_PATHS = 1000
"""Links that are kept, and images that were opened."""

MAX_CALLERS = 100
"""Callers that are kept of one image."""


@define
class _Image:
    """An image as it was opened last, and who opened it."""

    opened: Opened
    callers: set[tuple[object, ...]] = field(factory=set)


class LastKnown:
    """
    Attributes, listings, links and images as the server told them last, as far as memory goes;
    it forgets first what was told first. Attributes and listings are those of L{AttributeCache}.

    @ivar statistics: of the server's file system.
    """

    def __init__(self, attributes: AttributeCache) -> None:
        self._attributes = attributes
        self._links: OrderedDict[bytes, bytes] = OrderedDict()
        self._images: OrderedDict[bytes, _Image] = OrderedDict()
        self.statistics: Statistics | None = None

    def attributes(self, path: bytes) -> Attributes | None:
        """
        The attributes of the file at a path.

        @raise FileNotFoundError: when its directory was listed without it.
        """
        known = self._attributes.last(path)
        directory, _, _ = path.rpartition(b"/")
        if known is None and self._attributes.listing(directory) is not None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return known

    def listing(self, path: bytes) -> list[tuple[bytes, Attributes]] | None:
        """The names in a directory."""
        names = self._attributes.listing(path)
        return None if names is None else list(names.items())

    def link(self, path: bytes) -> bytes | None:
        """The target of a link."""
        return self._links.get(path)

    def image(self, path: bytes, caller: Caller) -> Opened | None:
        """
        The image at a path, unless it has changed since it was opened.

        The kernel checks modes. What else the server would check is unknown here, so the image is
        only for those who have opened it before, unless everybody may read it.
        """
        known = self._images.get(path)
        if known is None:
            return None
        attributes = self._attributes.last(path) or known.opened.attributes
        if not same_content(attributes, known.opened.attributes):
            return None
        everybody = attributes.mode & stat.S_IROTH
        return known.opened if everybody or _identity(caller) in known.callers else None

    def note_link(self, path: bytes, target: bytes) -> None:
        """The server has told where a link points."""
        _put(self._links, path, target)

    def note_image(self, path: bytes, opened: Opened, caller: Caller) -> None:
        """The server has opened an image for a caller."""
        known = self._images.get(path)
        image = _Image(opened) if known is None else _Image(opened, known.callers)
        if len(image.callers) >= MAX_CALLERS:
            image.callers.clear()
        image.callers.add(_identity(caller))
        _put(self._images, path, image)

    def forget(self, path: bytes) -> None:
        """There is nothing at a path any more."""
        self._attributes.remove(path)
        self._links.pop(path, None)
        self._images.pop(path, None)


def _identity(caller: Caller) -> tuple[object, ...]:
    return caller.uid, caller.gid, tuple(caller.groups)


def _put(table: OrderedDict[bytes, T], path: bytes, value: T) -> None:
    table[path] = value
    table.move_to_end(path)
    if len(table) > MAX_PATHS:
        table.popitem(last=False)
