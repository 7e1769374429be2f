"""What an operator does to a cache directory."""

import os

from mufs.cache.client.directory import CacheDirectory
from mufs.cache.client.layout import RECORD, SUMS, summaries
from mufs.cache.client.maintenance import remove, remove_all, verify
from mufs.test.cache.client.test_blocks import IMAGES, SIZE
from mufs.test.cache.client.test_directory import DirectoryTestCase
from mufs.wire.pages import BLOCK, BLOCK_PAGES, PAGE


class MaintenanceTests(DirectoryTestCase):
    """A directory with two blocks of each image, closed."""

    def setUp(self) -> None:
        """Make the directory."""
        super().setUp()
        cache = self.open()
        for image in IMAGES:
            cache.blocks.opened(image, b"%d-%d.img" % image, SIZE)
            for block in range(2):
                cache.store(image, block)
        cache.close()

    def directory(self) -> CacheDirectory:
        """The directory, open for maintenance."""
        directory = CacheDirectory(str(self.path))
        self.addCleanup(directory.close)
        return directory

    def test_verify(self) -> None:
        """All pages are checked; damaged ones are removed, so that a second check finds none."""
        total = len(IMAGES) * 2 * BLOCK_PAGES
        name = "{:016x}-{:016x}".format(*IMAGES[0])
        with open(self.path / name, "r+b") as file:
            for page in (3, BLOCK_PAGES + 5):
                file.seek(page * PAGE + 17)
                byte = file.read(1)
                file.seek(page * PAGE + 17)
                file.write(bytes([byte[0] ^ 1]))
        directory = self.directory()
        self.assertEqual(verify(directory), (total, 2))
        self.assertEqual(verify(directory), (total - 2, 0))
        directory.close()
        held = self.open().held(IMAGES[0])
        self.assertEqual(held, set(range(2 * BLOCK_PAGES)) - {3, BLOCK_PAGES + 5})

    def test_remove(self) -> None:
        """The files of an image are removed, and no other image is affected."""
        directory = self.directory()
        remove(directory, [IMAGES[1]])
        directory.close()
        self.assertEqual({each.key for each in summaries(str(self.path))}, {IMAGES[0], IMAGES[2]})
        cache = self.open()
        self.assertEqual(
            [len(cache.held(image)) for image in IMAGES], [2 * BLOCK_PAGES, 0, 2 * BLOCK_PAGES]
        )

    def test_remove_all(self) -> None:
        """Nothing remains, and the directory may be used for another server."""
        directory = self.directory()
        remove_all(directory)
        directory.close()
        self.assertEqual(os.listdir(self.path), [])
        self.open(server="tcp:192.0.2.9:7040")

    def test_record_size(self) -> None:
        """A block costs its bytes and its record, whose checksums have eight bytes a page."""
        self.assertEqual((SUMS.size, CacheDirectory.cost), (8 * BLOCK_PAGES, BLOCK + RECORD))
