"""What an operator does to a cache directory that no client uses."""

import os
from collections.abc import Iterable

from mufs.cache.client.directory import CacheDirectory
from mufs.cache.client.index import CachedImage, Place
from mufs.cache.client.layout import INDEX, SERVER, summaries_of
from mufs.wire.pages import BLOCK, PAGE, ImageKey, runs


def verify(directory: CacheDirectory) -> tuple[int, int]:
    """
    Check the checksums of all pages, and remove the pages that are damaged.

    @return: the number of pages checked, and of damaged ones.
    """
    checked = damaged = 0
    for _, _, held, place in directory.begin(1 << 62):
        for page in (first + n for first, count in runs(held) for n in range(count)):
            checked += 1
            if not _is_right(directory, place, page):
                damaged += 1
                directory.index.erase_page(place, page)
    return checked, damaged


def _is_right(directory: CacheDirectory, place: Place, page: int) -> bool:
    length = min(PAGE, place.image.size - place.number * BLOCK - page * PAGE)
    if length <= 0:
        return False
    return directory.read_written(place, page * PAGE, memoryview(bytearray(length)))


def remove(directory: CacheDirectory, keys: Iterable[ImageKey]) -> None:
    """Remove the files of images. The next L{CacheDirectory.begin} ignores their records."""
    for key in keys:
        directory.files.remove(CachedImage(key, 0))


def remove_all(directory: CacheDirectory) -> None:
    """Remove all files of the cache, so that the directory may be used for any server."""
    remove(directory, [summary.key for summary in summaries_of(directory.fd)])
    for name in (INDEX, SERVER):
        os.unlink(name, dir_fd=directory.fd)
