"""A persistent cache on a full disk."""

import os
import subprocess

from twisted.logger import capturedLogs

from mufs.cache.client import writer
from mufs.test.cache.client.test_blocks import IMAGES
from mufs.test.cache.client.test_directory import DirectoryTestCase
from mufs.wire.pages import BLOCK_PAGES


class FullDiskTests(DirectoryTestCase):
    """A cache directory on a small tmpfs."""

    def test_no_space(self) -> None:
        """On a full disk the cache gives up blocks, with one line, and later keeps them again."""
        if os.geteuid() != 0:
            raise self.skipTest("needs root")
        self.path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=640k", "none", self.path], check=True)
        self.addCleanup(lambda: subprocess.run(["umount", "-l", self.path], check=True))
        self.patch(writer, "RETRY_INTERVAL", 0.0)
        self.path.chmod(0o700)
        filler = self.path / "lost+found"
        cache = self.open()
        cache.store(IMAGES[0], 0)
        cache.write_all()
        filler.write_bytes(bytes(300_000))
        for block in range(1, 5):
            cache.store(IMAGES[0], block)
        with capturedLogs() as logged:
            cache.write_all()
            cache.write_all()
        (line,) = logged
        self.assertIn("is filling up", line["log_format"])
        cache.blocks.look_for_room()
        self.assertLess(cache.held(IMAGES[0]), set(range(4 * BLOCK_PAGES + 6)))
        filler.unlink()
        cache.store(IMAGES[0], 3)
        cache.write_all()
        self.assertLessEqual(
            set(range(3 * BLOCK_PAGES, 4 * BLOCK_PAGES)), self.restart(cache).held(IMAGES[0])
        )
