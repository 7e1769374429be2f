"""C{mufs cache}: the images in a cache directory."""

import io
import sys
from typing import Any

from mufs.cache.client.layout import summaries
from mufs.commands.cache import add_parser
from mufs.commands.parser import Parser
from mufs.test.cache.client.test_blocks import IMAGES, SIZE
from mufs.test.cache.client.test_directory import DirectoryTestCase
from mufs.units import format_bytes
from mufs.wire.pages import BLOCK, BLOCK_PAGES


class CacheTests(DirectoryTestCase):
    """A directory with a block of each image, last used in 1970."""

    def setUp(self) -> None:
        """Make the directory."""
        super().setUp()
        cache = self.open()
        for number, image in enumerate(IMAGES):
            if number != 2:
                cache.blocks.opened(image, b"%d\n.img" % number, SIZE)
            cache.store(image, 0)
        cache.close()

    def run_command(self, *arguments: str) -> tuple[object, str]:
        """The exit status and the output of a command line."""
        parser = Parser()
        commands: Any = parser.add_subparsers()
        add_parser(commands)
        given = parser.parse_args(["cache", *arguments])
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        try:
            given.run(given)
        except SystemExit as ended:
            return ended.code, out.getvalue()
        return 0, out.getvalue()

    def test_ls(self) -> None:
        """A line for each image has its size, what is held, its last use, and its name."""
        status, out = self.run_command("ls", str(self.path))
        lines = out.splitlines()
        self.assertEqual((status, len(lines)), (0, 4))
        by_name = {line.split("  ")[-1]: line.split()[:5] for line in lines[1:]}
        unnamed = "{:016x}-{:016x}".format(*IMAGES[2])
        self.assertEqual(by_name.keys(), {"0\\n.img", "1\\n.img", unnamed})
        percent = f"{100 * BLOCK // SIZE}%"
        self.assertEqual(
            by_name["0\\n.img"], ["128.0", "KiB", *format_bytes(SIZE).split(), percent]
        )

    def test_rm(self) -> None:
        """Named images are removed; an unknown name removes nothing."""
        status, _ = self.run_command("rm", str(self.path), "0\\n.img", "other.img")
        self.assertIn("no image other.img", str(status))
        self.assertEqual(len(summaries(str(self.path))), 3)
        status, out = self.run_command("rm", str(self.path), "0\\n.img")
        self.assertEqual((status, out), (0, "1 images removed, 128.0 KiB\n"))
        self.assertEqual({each.key for each in summaries(str(self.path))}, set(IMAGES[1:]))

    def test_unused(self) -> None:
        """Images unused for so many days are removed."""
        _, out = self.run_command("rm", str(self.path), "--unused", "40000")
        self.assertEqual(out, "0 images removed, 0 B\n")
        _, out = self.run_command("rm", str(self.path), "--unused", "1")
        self.assertEqual(out, "3 images removed, 384.0 KiB\n")

    def test_verify(self) -> None:
        """Damaged pages make the exit status 1, once."""
        pages = len(IMAGES) * BLOCK_PAGES
        data = self.path / "{:016x}-{:016x}".format(*IMAGES[1])
        content = bytearray(data.read_bytes())
        content[5000] ^= 1
        data.write_bytes(content)
        first, second = (self.run_command("verify", str(self.path)) for _ in range(2))
        self.assertEqual(first, (1, f"{pages} pages checked, 1 of them damaged and removed\n"))
        self.assertEqual(second, (0, f"{pages - 1} pages checked, 0 of them damaged and removed\n"))

    def test_in_use(self) -> None:
        """A directory that a client uses is listed, but not changed."""
        self.open()
        self.assertEqual(self.run_command("ls", str(self.path))[0], 0)
        status, _ = self.run_command("rm", str(self.path), "--all")
        self.assertIn(f"mufs cache: {self.path}: a client uses it", str(status))
