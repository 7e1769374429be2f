"""The files of images in a cache directory."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client.image_files import ImageFiles
from mufs.cache.client.index import CachedImage
from mufs.wire.pages import BLOCK


class ImageFilesTests(SynchronousTestCase):
    """One image of three blocks."""

    def setUp(self) -> None:
        """An empty directory."""
        self.path = Path(self.mktemp())
        self.path.mkdir()
        fd = os.open(self.path, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        self.files = ImageFiles(fd)
        self.image = CachedImage((0xA, 0xB), 0, b"disk.img", 3 * BLOCK)
        self.data = self.path / "000000000000000a-000000000000000b"

    def test_describe(self) -> None:
        """The data file gets the image's size, and another one its path."""
        self.files.describe(self.image)
        self.assertTrue(self.image.described)
        self.assertEqual(self.data.stat().st_size, 3 * BLOCK)
        self.assertEqual(self.data.with_name(self.data.name + ".path").read_bytes(), b"disk.img")

    def test_open(self) -> None:
        """What is written through a descriptor is read through another; both are closed."""
        with self.files.open(self.image, os.O_WRONLY | os.O_CREAT) as written:
            os.write(written, b"data")
        self.assertRaises(OSError, os.fstat, written)
        with self.files.open(self.image) as read:
            self.assertEqual(os.read(read, 10), b"data")
        self.assertEqual(self.data.stat().st_mode & 0o777, 0o600)

    def test_symbolic_link(self) -> None:
        """A symbolic link in place of the data file is not followed."""
        target = self.path / "target"
        target.touch()
        self.data.symlink_to(target)
        with self.assertRaises(OSError), self.files.open(self.image):
            pass

    def test_punch(self) -> None:
        """A block's space is given back; its neighbours and the size of the file stay."""
        self.data.write_bytes(b"x" * 3 * BLOCK)
        before = self.data.stat().st_blocks
        self.files.punch_block(self.image, 1)
        self.assertEqual(self.data.read_bytes(), b"x" * BLOCK + bytes(BLOCK) + b"x" * BLOCK)
        self.assertLess(self.data.stat().st_blocks, before)

    def test_punch_nothing(self) -> None:
        """A block past the end of the file, or of a file that is missing, is no error."""
        self.files.punch_block(self.image, 1)
        self.data.write_bytes(b"x")
        self.files.punch_block(self.image, 1)
        self.assertEqual(self.data.read_bytes(), b"x")

    def test_remove(self) -> None:
        """Both files are removed; removing them again is no error."""
        self.files.describe(self.image)
        self.files.remove(self.image)
        self.assertEqual((os.listdir(self.path), self.image.described), ([], False))
        self.files.remove(self.image)
