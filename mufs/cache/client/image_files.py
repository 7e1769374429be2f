"""The files of images in a cache directory: their bytes, and where they were opened."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mufs.cache.client.index import CachedImage
from mufs.cache.client.layout import PATH, punch, write_file
from mufs.wire.pages import BLOCK


class ImageFiles:
    """The data and path files of an open cache directory."""

    def __init__(self, directory_fd: int) -> None:
        self._directory_fd = directory_fd

    @contextmanager
    def open(self, image: CachedImage, flags: int = os.O_RDONLY) -> Iterator[int]:
        """A descriptor of an image's data file."""
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(image.name, flags, 0o600, dir_fd=self._directory_fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def describe(self, image: CachedImage) -> None:
        """Give the data file the image's size, and write the path of the image."""
        with self.open(image, os.O_WRONLY | os.O_CREAT) as fd:
            if image.size and os.fstat(fd).st_size != image.size:
                os.ftruncate(fd, image.size)
        if image.path is not None:
            write_file(self._directory_fd, image.name + PATH, image.path)
        image.described = True

    def punch_block(self, image: CachedImage, number: int) -> None:
        """Give the space of a block back to the file system, if the file reaches that far."""
        with suppress(FileNotFoundError), self.open(image, os.O_WRONLY) as fd:
            if number * BLOCK < os.fstat(fd).st_size:
                punch(fd, number * BLOCK, BLOCK)

    def remove(self, image: CachedImage) -> None:
        """Remove the files of an image."""
        image.described = False
        for name in (image.name, image.name + PATH):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory_fd)
