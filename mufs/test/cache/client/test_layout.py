"""The format of a cache directory."""

import errno
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client import layout
from mufs.cache.client.layout import (
    FORMAT,
    HEAD,
    INDEX,
    RECORD,
    SERVER,
    SUMS,
    Summary,
    UnusableDirectory,
    blocks_of,
    claim,
    found_images,
    make_directory,
    open_directory,
    punch,
    pwrite,
    pwritev,
    read_records,
    server_of,
    summaries,
    write_file,
)
from mufs.wire.pages import BLOCK, BLOCK_PAGES, PAGE


def record(image: int, block: int, used: int, pages: int) -> bytes:
    """A record of the index for a block of generation 9."""
    return HEAD.pack(image, 9, block, used) + SUMS.pack(
        *(pages >> n & 1 for n in range(BLOCK_PAGES))
    )


class LayoutTestCase(SynchronousTestCase):
    """Has an open directory."""

    def setUp(self) -> None:
        """Make the directory."""
        self.path = Path(self.mktemp())
        make_directory(str(self.path))
        self.fd = open_directory(str(self.path))
        self.addCleanup(os.close, self.fd)

    def write_index(self, content: bytes) -> int:
        """Write the index, and open it."""
        (self.path / INDEX).write_bytes(content)
        fd = os.open(self.path / INDEX, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        return fd


class IndexTests(LayoutTestCase):
    """The file C{index}."""

    def test_record_size(self) -> None:
        """A record has 32 bytes of head, and eight for each page."""
        self.assertEqual(RECORD, 32 + 8 * 32)

    def test_blocks(self) -> None:
        """Blocks come least recently used first, with slot, key, number and pages."""
        index = self.write_index(
            record(1, 5, 300, 0b101) + record(2, 0, 100, 1 << 31) + record(1, 7, 200, 0xFFFFFFFF)
        )
        self.assertEqual(
            list(blocks_of(read_records(index))),
            [(1, (2, 9), 0, 1 << 31), (2, (1, 9), 7, 0xFFFFFFFF), (0, (1, 9), 5, 0b101)],
        )

    def test_empty_slots(self) -> None:
        """Slots without pages are left out, and so is an incomplete record at the end."""
        index = self.write_index(bytes(RECORD) + record(1, 2, 3, 1) + record(1, 3, 4, 1)[:-1])
        self.assertEqual(list(blocks_of(read_records(index))), [(1, (1, 9), 2, 1)])

    def test_summaries(self) -> None:
        """What is held of an image is at most its size; the last use is that of any block."""
        (self.path / SERVER).write_text(f"{FORMAT}\ntcp:host:1\n")
        self.write_index(record(1, 0, 50, 0b11) + record(1, 1, 40, 1) + record(3, 0, 99, 1))
        for image, size in ((1, 2 * BLOCK), (2, 5)):
            (self.path / f"{image:016x}-{9:016x}").touch()
            os.truncate(self.path / f"{image:016x}-{9:016x}", size)
        (self.path / f"{1:016x}-{9:016x}.path").write_bytes(b"a/disk.img")
        found = sorted(summaries(str(self.path)), key=lambda each: each.key)
        self.assertEqual(
            found,
            [
                Summary((1, 9), b"a/disk.img", 2 * BLOCK, 3 * PAGE, 50),
                Summary((2, 9), None, 5, 0, 0),
            ],
        )


class ClaimTests(LayoutTestCase):
    """Which server a directory is bound to."""

    def test_claim(self) -> None:
        """An empty directory is bound to the server, and stays so."""
        self.assertEqual(claim(self.fd, "tcp:host:1"), "tcp:host:1")
        self.assertEqual((self.path / SERVER).read_text(), f"{FORMAT}\ntcp:host:1\n")
        self.assertEqual(claim(self.fd, None), "tcp:host:1")
        error = self.assertRaises(UnusableDirectory, claim, self.fd, "tcp:host:2")
        self.assertIn("tcp:host:1", str(error))

    def test_no_cache(self) -> None:
        """An empty directory has no cache for maintenance."""
        self.assertRaises(UnusableDirectory, claim, self.fd, None)
        self.assertRaises(UnusableDirectory, summaries, str(self.path))

    def test_other_format(self) -> None:
        """A directory of another format is refused, with the format that is expected."""
        for text in ("mUFS cache 2\ntcp:host:1\n", f"{FORMAT}\ntcp:host:1"):
            (self.path / SERVER).write_text(text)
            error = self.assertRaises(UnusableDirectory, claim, self.fd, "tcp:host:1")
            self.assertIn(FORMAT, str(error))

    def test_no_holes(self) -> None:
        """A file system that cannot punch holes is refused, and nothing is written."""

        def refuse(fd: int, offset: int, length: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "not supported")

        self.patch(layout, "punch", refuse)
        self.assertRaises(UnusableDirectory, claim, self.fd, "tcp:host:1")
        self.assertEqual(os.listdir(self.path), [])

    def test_server_of(self) -> None:
        """Options of an endpoint string don't identify a server."""
        for text in ("tcp:host:1", "tcp:host:1:timeout=3", "tcp:host:1:a=b:c=d"):
            self.assertEqual(server_of(text), "tcp:host:1")


class FileTests(LayoutTestCase):
    """The files of a directory."""

    def test_images(self) -> None:
        """Images are the files named by their keys; an empty path is none."""
        for name, content in (
            (f"{1:016x}-{2:016x}", b"data"), (f"{1:016x}-{2:016x}.path", b""),
            (f"{1:015x}-{2:016x}", b""), ("server", b""), (f"{1:016X}-{10:016X}", b""),
        ):  # fmt: skip
            (self.path / name).write_bytes(content)
        self.assertEqual(list(found_images(self.fd)), [((1, 2), None, 4)])

    def test_write_file(self) -> None:
        """The content of a file is replaced; nobody else can read it; a link is not followed."""
        write_file(self.fd, "name", b"a longer text")
        write_file(self.fd, "name", b"short", sync=True)
        self.assertEqual((self.path / "name").read_bytes(), b"short")
        self.assertEqual((self.path / "name").stat().st_mode & 0o777, 0o600)
        (self.path / "link").symlink_to("name")
        self.assertRaises(OSError, write_file, self.fd, "link", b"other")
        self.assertEqual((self.path / "name").read_bytes(), b"short")

    def test_short_write(self) -> None:
        """A write of only a part of the data is an error."""
        self.patch(os, "pwritev", lambda fd, parts, offset: sum(map(len, parts)) - 1)
        error = self.assertRaises(OSError, pwrite, self.fd, b"data", 0)
        self.assertEqual(error.errno, errno.ENOSPC)
        error = self.assertRaises(OSError, pwritev, self.fd, [b"da", b"ta"], 0)
        self.assertEqual(error.errno, errno.ENOSPC)

    def test_punch(self) -> None:
        """A punched range reads as zeros; a descriptor that cannot be punched is an error."""
        (self.path / "file").write_bytes(b"x" * 3 * PAGE)
        fd = os.open(self.path / "file", os.O_RDWR)
        self.addCleanup(os.close, fd)
        punch(fd, PAGE, PAGE)
        self.assertEqual(os.pread(fd, 3 * PAGE, 0), b"x" * PAGE + bytes(PAGE) + b"x" * PAGE)
        error = self.assertRaises(OSError, punch, self.fd, 0, PAGE)
        self.assertIn(error.errno, (errno.EBADF, errno.EISDIR))
