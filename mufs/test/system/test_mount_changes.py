"""Files that change on the server, as the mount shows them."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.loopback import (
    LIBFUSE2,
    shared_loopback,
    start_libfuse2,
    why_unavailable,
)
from mufs.test.support.trees import MIB

CHANGE_TIMEOUT = 2.0
"""Seconds after which changes must be visible: the kernel caches attributes for one."""


class ChangeTestCase(SynchronousTestCase):
    """Has its own directory: `source` on the server, and `mount`."""

    skip = why_unavailable()
    client = "here"

    def setUp(self) -> None:
        """Make a directory on the shared server."""
        loopback = shared_loopback()
        if self.client == LIBFUSE2:
            start_libfuse2()
        self.addCleanup(loopback.guard().cancel)
        self.source = loopback.images / ".".join(self.id().split(".")[-2:])
        self.source.mkdir()
        self.mount = loopback.mount_point(self.client) / self.source.name

    def write(self, name: str, letter: bytes, size: int = MIB) -> None:
        """Replace a file by a new one that consists of one letter."""
        (self.source / "new").write_bytes(letter * size)
        os.replace(self.source / "new", self.source / name)

    def open(self, name: str) -> int:
        """Open a file on the mount, and return a descriptor that is closed after the test."""
        descriptor = os.open(self.mount / name, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        return descriptor

    def assert_old_or_stale(self, descriptor: int, letter: bytes, size: int = MIB) -> None:
        """Assert that reads of an open file give the old bytes or ESTALE."""
        for offset in (0, size // 2, size - 100, size // 4 + 1, size - 5000):
            try:
                data = os.pread(descriptor, 100, offset)
            except OSError as error:
                self.assertEqual(error.errno, errno.ESTALE)
            else:
                self.assertEqual(data, letter * 100, offset)

    def assert_new(self, name: str, letter: bytes, size: int) -> int:
        """Open a file, assert that it has these bytes, and return its descriptor."""
        descriptor = self.open(name)
        self.assertEqual(os.fstat(descriptor).st_size, size)
        self.assertEqual(os.lseek(descriptor, 0, os.SEEK_END), size)
        self.assertEqual(os.pread(descriptor, size + 100, 0) == letter * size, True)
        return descriptor

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds, for at most L{CHANGE_TIMEOUT}."""
        deadline = time.monotonic() + CHANGE_TIMEOUT
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)


class OpenFileTests(ChangeTestCase):
    """Files that change while they are open."""

    def change(self, change: Callable[[bytes, int], None], sizes: list[int]) -> None:
        """Change an open file repeatedly, and check what all of its descriptors read."""
        self.write("image", b"A")
        opened = [(self.assert_new("image", b"A", MIB), b"A", MIB)]
        for number, size in enumerate(sizes):
            letter = b"BCDEFGH"[number : number + 1]
            change(letter, size)
            for old in opened:
                self.assert_old_or_stale(*old)
            opened.append((self.assert_new("image", letter, size), letter, size))
            for old in opened[:-1]:
                self.assert_old_or_stale(*old)
            self.assert_new("image", letter, size)
        for old in opened:
            self.assert_old_or_stale(*old)

    def test_replaced(self) -> None:
        """Old descriptors of a replaced file give old bytes or ESTALE, new ones new bytes."""
        sizes = [MIB, 3 * MIB + 17, 10_000, 2 * MIB, 2 * MIB]
        self.change(lambda letter, size: self.write("image", letter, size), sizes)

    def test_rewritten(self) -> None:
        """Old descriptors of a rewritten file give old bytes or ESTALE, new ones new bytes."""

        def rewrite(letter: bytes, size: int) -> None:
            with open(self.source / "image", "r+b") as image:
                image.write(letter * size)

        self.change(rewrite, [MIB, MIB, 2 * MIB + 5])

    def test_truncated(self) -> None:
        """Old descriptors of a truncated file never end early, and new ones have the new size."""
        self.write("image", b"A", 4 * MIB)
        old = self.open("image")
        os.pread(old, 100, 0)
        for size in (3 * MIB, 5000, 0):
            os.truncate(self.source / "image", size)
            self.assert_old_or_stale(old, b"A", 4 * MIB)
            self.assert_new("image", b"A", size)
            self.assert_old_or_stale(old, b"A", 4 * MIB)

    def test_mapped(self) -> None:
        """An open file does not show bytes of a newer one that is mapped into memory."""
        self.write("image", b"A")
        old = self.open("image")
        self.assertEqual(os.pread(old, 4, 0), b"AAAA")
        self.write("image", b"B")
        new = self.open("image")
        with mmap.mmap(new, MIB, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapped:
            self.assertEqual(mapped[MIB // 2 : MIB // 2 + 4], b"BBBB")
            self.assert_old_or_stale(old, b"A")

    test_mapped.todo = (  # type: ignore[attr-defined]
        "the kernel keeps one page cache for all that was ever open under a path"
    )

    def test_read_meanwhile(self) -> None:
        """A file that is replaced all the time gives the bytes of one generation, or ESTALE."""
        seed = Random().randrange(1 << 32)
        random = Random(seed)
        self.write("image", b"A")
        ending = time.monotonic() + 2
        torn: list[object] = []
        whole = 0

        def read() -> None:
            nonlocal whole
            while time.monotonic() < ending:
                try:
                    with open(self.mount / "image", "rb", buffering=0) as image:
                        size = os.fstat(image.fileno()).st_size
                        data = image.read()
                except OSError as error:
                    if error.errno != errno.ESTALE:
                        torn.append(error)
                else:
                    whole += 1
                    if len(set(data)) > 1 or len(data) < min(size, MIB):
                        torn.append((size, len(data), set(data)))

        threads = [Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        while time.monotonic() < ending:
            self.write("image", random.choice([b"A", b"B", b"C"]), random.randrange(MIB, 2 * MIB))
            time.sleep(random.random() / 10)
        for thread in threads:
            thread.join(30)
        self.assertEqual(torn, [], f"seed {seed}")
        self.assertGreater(whole, 0)

    def test_reopened(self) -> None:
        """When the old file is closed everywhere, the new one is cached and can be mapped."""
        self.write("image", b"A")
        old = os.open(self.mount / "image", os.O_RDONLY)
        self.write("image", b"B")
        os.close(self.assert_and_keep("image", b"B"))
        os.close(old)
        time.sleep(0.2)
        with mmap.mmap(
            self.open("image"), MIB, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ
        ) as mapped:
            self.assertEqual(mapped[:100], b"B" * 100)

    def assert_and_keep(self, name: str, letter: bytes) -> int:
        """Open a file with these bytes, and return a descriptor that the test closes."""
        descriptor = os.open(self.mount / name, os.O_RDONLY)
        self.assertEqual(os.read(descriptor, 100), letter * 100)
        return descriptor


class DirectoryTests(ChangeTestCase):
    """Files that are made, removed and moved."""

    def test_removed(self) -> None:
        """Removed files soon disappear, and new ones appear."""
        self.write("image", b"A", 10)
        self.assertEqual((self.mount / "image").read_bytes(), b"A" * 10)
        self.assertFalse((self.mount / "other").exists())
        os.rename(self.source / "image", self.source / "other")
        self.assertRaises(FileNotFoundError, open, self.mount / "image")
        self.wait(lambda: (self.mount / "other").exists())
        self.wait(lambda: not (self.mount / "image").exists())
        self.wait(lambda: os.listdir(self.mount) == ["other"])

    def test_attributes(self) -> None:
        """Changes of the attributes of a closed file soon show."""
        self.write("image", b"A", 10)
        path = self.mount / "image"
        self.assertEqual(path.stat().st_size, 10)
        os.truncate(self.source / "image", 77)
        os.chmod(self.source / "image", 0o123)
        os.chown(self.source / "image", 5, 6)
        os.utime(self.source / "image", ns=(1, 2))

        def shows() -> bool:
            found = path.stat()
            return (
                found.st_size,
                found.st_mode & 0o777,
                found.st_uid,
                found.st_gid,
                found.st_mtime_ns,
            ) == (77, 0o123, 5, 6, 2)

        self.wait(shows)

    def test_kind_changes(self) -> None:
        """A file replaced by a directory, and the reverse, soon show."""
        self.write("thing", b"A", 10)
        self.assertTrue((self.mount / "thing").is_file())
        os.unlink(self.source / "thing")
        (self.source / "thing").mkdir()
        (self.source / "thing" / "below").touch()
        self.wait(lambda: (self.mount / "thing" / "below").exists())
        os.unlink(self.source / "thing" / "below")
        os.rmdir(self.source / "thing")
        self.write("thing", b"B", 20)
        self.wait(lambda: (self.mount / "thing").is_file())
        self.assertEqual((self.mount / "thing").read_bytes(), b"B" * 20)

    def test_moved_directories(self) -> None:
        """Files in directories that are exchanged are soon found at their new paths."""
        for name in ("one", "two"):
            (self.source / name).mkdir()
            self.write(f"{name}/file", name[0].encode(), 100)
            self.assertEqual((self.mount / name / "file").read_bytes()[:1], name[0].encode())
        old = self.open("one/file")
        for source, target in (("one", "three"), ("two", "one"), ("three", "two")):
            os.rename(self.source / source, self.source / target)

        def first(path: Path) -> bytes:
            return path.read_bytes()[:1]

        self.wait(lambda: first(self.mount / "one" / "file") == b"t")
        self.wait(lambda: first(self.mount / "two" / "file") == b"o")
        self.assert_old_or_stale(old, b"o", 6000)


class PageCacheTests(ChangeTestCase):
    """The kernel's page cache of closed files."""

    def setUp(self) -> None:
        """Use the shared client, whose figures count reads."""
        super().setUp()
        self.service = shared_loopback().services[self.client]

    def read(self, letter: bytes) -> int:
        """Read the whole file, and return the number of reads that reached the mount."""
        before = self.service.status()["reads"]
        data = (self.mount / "image").read_bytes()
        self.assertEqual(data == letter * len(data) and len(data) == MIB, True)
        reads: int = self.service.status()["reads"] - before
        return reads

    def test_kept(self) -> None:
        """An unchanged file that is reopened is read from the page cache."""
        self.write("image", b"A")
        self.assertGreater(self.read(b"A"), 0)
        self.assertEqual([self.read(b"A") for _ in range(3)], [0, 0, 0])
        self.open("image")
        self.assertEqual(self.read(b"A"), 0)

    def test_read_anew(self) -> None:
        """A replaced file is read again, and then cached."""
        self.write("image", b"A")
        self.read(b"A")
        for letter in (b"B", b"C"):
            self.write("image", letter)
            self.assertGreater(self.read(letter), 0)
            self.assertEqual(self.read(letter), 0)

    def test_changed_and_changed_back(self) -> None:
        """A file that was replaced temporarily shows its own bytes, even if it stayed open."""
        self.write("image", b"A")
        os.link(self.source / "image", self.source / "first")
        self.read(b"A")
        old = self.open("image")
        self.assertEqual(os.pread(old, 1, 0), b"A")
        self.write("image", b"B")
        self.read(b"B")
        os.replace(self.source / "first", self.source / "image")
        self.read(b"A")
        self.assert_old_or_stale(old, b"A")
        self.read(b"A")

    def test_open_meanwhile(self) -> None:
        """A new file is not kept in the page cache until the old one is closed."""
        self.write("image", b"A")
        self.read(b"A")
        old = os.open(self.mount / "image", os.O_RDONLY)
        self.write("image", b"B")
        self.assertEqual([self.read(b"B") > 0 for _ in range(3)], [True] * 3)
        self.assert_old_or_stale(old, b"A")
        os.close(old)
        time.sleep(0.2)
        self.assertGreater(self.read(b"B"), 0)
        self.assertEqual(self.read(b"B"), 0)

    def test_opened_unread(self) -> None:
        """A file that was opened but not read does not revalidate older cached pages."""
        self.write("image", b"A")
        self.read(b"A")
        self.write("image", b"B")
        self.open("image")
        self.assertGreater(self.read(b"B"), 0)
        self.assertEqual(self.read(b"B"), 0)


class Libfuse2OpenFileTests(OpenFileTests):
    """The same with libfuse 2."""

    client = LIBFUSE2


class Libfuse2PageCacheTests(PageCacheTests):
    """The same with libfuse 2."""

    client = LIBFUSE2
