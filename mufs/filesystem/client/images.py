"""The images that are open on this host, and which of their pages the kernel may keep."""

import errno
from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum

from attrs import Factory, define, field

from mufs.filesystem.client.data_map import KnownMap
from mufs.filesystem.client.reading.sequences import SequenceDetector
from mufs.wire.metadata import NOBODY, Attributes, Caller
from mufs.wire.pages import ImageKey

MAX_RECENT_IMAGES = 64
"""Images remembered by name after they were opened."""

MAX_PAGE_CACHE_PATHS = 20_000
"""Paths for which it is known which generation the kernel's page cache holds."""


class PageCache(Enum):
    """
    What the kernel does with its pages of a path when a file is opened: it keeps them, drops
    them and starts afresh, or reads past its page cache.
    """

    KEEP = 1
    RENEW = 2
    BYPASS = 3


def stale() -> OSError:
    """The error of reading an image whose file on the server has changed since it was opened."""
    return OSError(errno.ESTALE, "the image was changed on the server")


@define(eq=False)
class OpenImage:
    """
    An image as one C{open} on this host got it.

    @ivar key: image and generation.
    @ivar server_handle: the server's handle, C{None} while there is no connection.
    @ivar stale: the file on the server is no longer this generation.
    @ivar was_read: somebody has read from it.
    @ivar caller: who opened it.
    @ivar data_map: where it has data; the same for all who have it open.
    """

    path: bytes
    key: ImageKey
    attributes: Attributes
    sequence_detector: SequenceDetector
    server_handle: int | None = None
    stale: bool = False
    was_read: bool = False
    caller: Caller = NOBODY
    data_map: KnownMap = field(
        default=Factory(lambda self: KnownMap(self.attributes.size), takes_self=True)
    )

    @property
    def size(self) -> int:
        """Bytes."""
        return self.attributes.size


class OpenImages:
    """
    The open images, by this host's handle and by path.

    Any thread may look a handle up; the rest belongs to the reactor's thread.

    @ivar recent: the images opened last, by image and generation, including closed ones.
    @ivar next_handle: the handle that the next image gets.
    """

    def __init__(self) -> None:
        self._by_handle: dict[int, OpenImage] = {}
        self._handles: dict[bytes, set[int]] = {}
        self._in_page_cache: dict[bytes, OpenImage] = {}
        self.recent: OrderedDict[ImageKey, OpenImage] = OrderedDict()
        self.next_handle = 1

    def __getitem__(self, handle: int) -> OpenImage:
        """The image of a handle. @raise KeyError: when the handle is not in use."""
        return self._by_handle[handle]

    def __contains__(self, handle: object) -> bool:
        """Whether a handle is in use."""
        return handle in self._by_handle

    def __iter__(self) -> Iterator[OpenImage]:
        """Each image that is open now, whatever is opened or closed during the iteration."""
        return iter(list(self._by_handle.values()))

    def add(self, opened: OpenImage) -> tuple[int, PageCache]:
        """
        Give an image a handle. Other generations open at the same path are stale from now on.

        @return: the handle, and what the kernel may do with its page cache.
        """
        known = self.recent.get(opened.key)
        if known is not None:
            opened.data_map = known.data_map
        handles = self._handles.setdefault(opened.path, set())
        others = [self[each] for each in handles if self[each].key != opened.key]
        for other in others:
            other.stale = True
        handle = self.next_handle
        self.next_handle += 1
        self._by_handle[handle] = opened
        handles.add(handle)
        self.recent[opened.key] = opened
        self.recent.move_to_end(opened.key)
        if len(self.recent) > MAX_RECENT_IMAGES:
            self.recent.popitem(last=False)
        return handle, self._page_cache(opened, bool(others))

    def remove(self, handle: int) -> OpenImage:
        """
        Free a handle.

        @return: the image it stood for.
        """
        opened = self._by_handle.pop(handle)
        handles = self._handles[opened.path]
        handles.discard(handle)
        if not handles:
            del self._handles[opened.path]
        return opened

    def mark_stale(self, path: bytes, attributes: Attributes, before: int) -> None:
        """
        Compare the images open at a path with attributes from the server.

        @param before: the handle that was to come next when the server was asked: images with
            that handle or a later one may be newer than the attributes.
        """
        for handle in self._handles.get(path, ()):
            opened = self._by_handle[handle]
            if handle < before and not same_content(opened.attributes, attributes):
                opened.stale = True

    def _page_cache(self, opened: OpenImage, mixed: bool) -> PageCache:
        """
        Decide what the kernel may do with its pages of a path that is being opened.

        They belong to the image for which it last started afresh, unless another generation was
        opened since. Whether it really started afresh is only certain once somebody has read
        through that handle.

        @param mixed: other generations are open at the path.
        """
        held = self._in_page_cache.pop(opened.path, None)
        if mixed:
            return PageCache.BYPASS
        if len(self._in_page_cache) >= MAX_PAGE_CACHE_PATHS:
            self._in_page_cache.clear()
        if held is not None and held.key == opened.key and held.was_read:
            self._in_page_cache[opened.path] = held
            return PageCache.KEEP
        self._in_page_cache[opened.path] = opened
        return PageCache.RENEW


def same_content(one: Attributes, other: Attributes) -> bool:
    """Whether two attributes of a path are those of the same content."""
    return one.generation == other.generation
