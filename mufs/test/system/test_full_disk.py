"""A persistent cache on a full disk."""

import os
import subprocess

from twisted.logger import capturedLogs

from mufs.cache.client import writer
from mufs.test.cache.client.test_blocks import IMAGES
from mufs.test.cache.client.test_directory import DirectoryTestCase
from mufs.wire.pages import PAGES


class FullDiskTests(DirectoryTestCase):
    """A cache directory on a small tmpfs."""

    def test_no_space(self) -> None:
        """On a full disk the cache logs the error once, loses nothing, and later writes again."""
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
        everything = set(range(4 * PAGES + 6))
        with capturedLogs() as logged:
            cache.write_all()
            cache.write_all()
        self.assertEqual([each["reason"] for each in logged], ["No space left on device"])
        self.assertEqual(cache.held(IMAGES[0]), everything)
        filler.unlink()
        with capturedLogs() as logged:
            cache.write_all()
        self.assertIn("again", logged[-1]["log_format"])
        self.assertGreater(len(self.restart(cache).held(IMAGES[0])), 2 * PAGES)
