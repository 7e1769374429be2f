"""Sparse images through real mounts, and the programs that look for holes."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from random import Random
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.loopback import make_loopback, why_unavailable
from mufs.test.support.processes import wait_until
from mufs.test.system.test_control import mufs
from mufs.wire.metadata import MAX_RUNS

MIB = 1 << 20
SIZE = 64 * MIB + 5000
RUNS = [(0, 70_000), (3 * MIB + 4096, 2 * MIB), (40 * MIB, 4096), (SIZE - 6000, 6000)]
"""Offset and length of the data of a sparse image."""

FRAGMENTS = 5 * MAX_RUNS


def write_sparse(path: Path) -> None:
    """Write an image with holes."""
    with open(path, "wb") as image:
        image.truncate(SIZE)
        for offset, length in RUNS:
            os.pwrite(image.fileno(), Random(offset).randbytes(length), offset)


def write_fragmented(path: Path) -> None:
    """Write an image in whose every second page is data."""
    with open(path, "wb") as image:
        for number in range(FRAGMENTS):
            os.pwrite(image.fileno(), b"%d" % number, 8192 * number)
        image.truncate(8192 * FRAGMENTS)


def extents(path: Path) -> list[tuple[int, int]]:
    """Where each run of data begins and ends, as lseek(2) says."""
    found: list[tuple[int, int]] = []
    at = 0
    with open(path, "rb", buffering=0) as image:
        while True:
            try:
                begin = image.seek(at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return found
                raise
            at = image.seek(begin, os.SEEK_HOLE)
            found.append((begin, at))


def run(*command: object) -> str:
    return subprocess.run(
        [str(each) for each in command], check=True, capture_output=True, text=True, timeout=120
    ).stdout


class HolesTestCase(SynchronousTestCase):
    """Has a server and a client."""

    skip = why_unavailable()
    options: tuple[str, ...] = ()

    def setUp(self) -> None:
        """Export images with holes."""
        self.loopback = make_loopback(self)
        self.source = self.loopback.images / "sparse.img"
        write_sparse(self.source)
        write_fragmented(self.loopback.images / "fragmented.img")
        self.copies = self.loopback.directory / "copies"
        self.copies.mkdir()
        self.server = self.loopback.start_server()
        self.client = self.loopback.start_client("here", "--cache-size", "16M", *self.options)
        self.mount = self.loopback.mount_point("here")
        self.image = self.mount / "sparse.img"

    def bytes_requested(self) -> int:
        """The bytes that the client has asked the server for."""
        requested: int = self.client.status()["bytes_requested"]
        return requested


class ProgramTests(HolesTestCase):
    """Programs see an image as it is on the server's file system."""

    def test_lseek(self) -> None:
        """Data and holes are found where they are on the server, also in the middle of either."""
        for name in ("sparse.img", "fragmented.img"):
            self.assertEqual(extents(self.mount / name), extents(self.loopback.images / name))
        random = Random(1)
        with open(self.source, "rb") as here, open(self.image, "rb") as there:
            for _ in range(200):
                offset = random.choice([*RUNS, (0, SIZE)])[0] + random.randrange(-3, 3 * MIB)
                for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                    found = []
                    for image in (here, there):
                        try:
                            found.append(os.lseek(image.fileno(), offset, whence))
                        except OSError as error:
                            found.append(-(error.errno or 0))
                    self.assertEqual(found[0], found[1], (offset, whence))

    def test_blocks(self) -> None:
        """An image takes as many blocks as on the server."""
        self.assertEqual(os.stat(self.image).st_blocks, os.stat(self.source).st_blocks)

    def check_copy(self, copy: Path, of: Path) -> None:
        """A copy has the same bytes, and the same holes as a copy of the original."""
        self.assertTrue(copy.read_bytes() == of.read_bytes())
        # qemu-img fills the last sector of 512 bytes.
        self.assertTrue(copy.read_bytes()[:SIZE] == self.source.read_bytes())
        self.assertEqual(extents(copy), extents(of))

    def test_cp(self) -> None:
        """cp finds the holes by itself, and asks for data alone."""
        here, there = self.copies / "here", self.copies / "there"
        run("cp", "--sparse=auto", self.source, here)
        run("cp", "--sparse=auto", self.image, there)
        self.check_copy(there, here)
        self.assertLess(self.bytes_requested(), 4 * MIB)

    def test_tar(self) -> None:
        """So does GNU tar."""
        archives = []
        for image in (self.source, self.image):
            archive = self.copies / f"{image.parent.name}.tar"
            run("tar", "-S", "-C", image.parent, "-cf", archive, image.name)
            archives.append(archive.stat().st_size)
        self.assertEqual(archives[0], archives[1])
        self.assertLess(archives[0], 4 * MIB)

    def test_rsync(self) -> None:
        """So does rsync."""
        if shutil.which("rsync") is None:
            raise SkipTest("needs rsync")
        run("rsync", "-S", self.source, self.copies / "here")
        run("rsync", "-S", self.image, self.copies / "there")
        self.check_copy(self.copies / "there", self.copies / "here")

    def test_qemu(self) -> None:
        """So does qemu-img."""
        if shutil.which("qemu-img") is None:
            raise SkipTest("needs qemu-img")
        maps = [
            run("qemu-img", "map", "-f", "raw", "--output=json", image)
            for image in (self.source, self.image)
        ]
        self.assertEqual(maps[0], maps[1])
        self.assertGreater(maps[0].count("\n"), len(RUNS))
        for image, name in ((self.source, "here"), (self.image, "there")):
            run("qemu-img", "convert", "-f", "raw", "-O", "raw", image, self.copies / name)
        self.check_copy(self.copies / "there", self.copies / "here")
        self.assertLess(self.bytes_requested(), 4 * MIB)

    def test_read(self) -> None:
        """Reading all of it asks for data alone, and needs room for no more."""
        self.assertTrue(self.image.read_bytes() == self.source.read_bytes())
        self.assertLess(self.bytes_requested(), 4 * MIB)
        self.assertEqual(self.client.status()["evictions"], 0)

    def test_pull(self) -> None:
        """An image is pulled whose data fit into the cache."""
        pulled = mufs(self.loopback.directory / "run", "pull", str(self.image))
        self.assertEqual((pulled.returncode, pulled.stderr), (0, ""))
        self.assertIn("64.0 MiB", pulled.stdout)
        self.assertLess(self.bytes_requested(), 4 * MIB)


class Libfuse2Tests(HolesTestCase):
    """With libfuse 2 the kernel says itself what it takes for data."""

    options = ("--fuse", "2")

    def test_lseek(self) -> None:
        """All is data; reading it asks for no more than there is."""
        self.assertEqual(extents(self.image), [(0, SIZE)])
        self.assertTrue(self.image.read_bytes() == self.source.read_bytes())
        self.assertLess(self.bytes_requested(), 4 * MIB)


class AwayTests(HolesTestCase):
    """The server is away."""

    def test_known(self) -> None:
        """What is known of an open image is answered."""
        expected = extents(self.source)
        with open(self.image, "rb", buffering=0) as image:
            self.server.signal(signal.SIGSTOP)
            self.addCleanup(self.server.signal, signal.SIGCONT)
            self.assertEqual(os.pread(image.fileno(), MIB, 10 * MIB), bytes(MIB))
            self.assertEqual(os.lseek(image.fileno(), 0, os.SEEK_HOLE), expected[0][1])
            self.assertEqual(os.lseek(image.fileno(), 5 * MIB + 4096, os.SEEK_DATA), 40 * MIB)

    def test_restarted(self) -> None:
        """A server that was started anew goes on answering."""
        with open(self.mount / "fragmented.img", "rb", buffering=0) as image:
            self.server.kill()
            wait_until(lambda: not self.client.status()["connected"], 20, "the client notices")
            self.loopback.start_server("server again")
            last = 8192 * (FRAGMENTS - 1)
            self.assertEqual(os.lseek(image.fileno(), last - 1, os.SEEK_DATA), last)
            self.assertEqual(os.pread(image.fileno(), 4, last), b"%d" % (FRAGMENTS - 1))


class ChangeTests(HolesTestCase):
    """A hole is filled on the server while its image is open."""

    def check_changed(self, offset: int, expected: bytes) -> None:
        """The open image is stale; who opens it then finds what was written."""
        at = offset // 4096 * 4096
        wait_until(lambda: self.is_stale(at), 20, "the image is stale")
        with open(self.image, "rb", buffering=0) as again:
            self.assertEqual(os.pread(again.fileno(), len(expected), offset), expected)
            self.assertEqual(os.lseek(again.fileno(), at, os.SEEK_DATA), at)

    def is_stale(self, offset: int) -> bool:
        """Whether lseek and read of the open image say so."""
        os.stat(self.image)  # attributes of the path tell its generation
        results = []
        for function in (
            lambda: os.lseek(self.opened.fileno(), offset, os.SEEK_HOLE),
            lambda: os.preadv(self.opened.fileno(), [mmap.mmap(-1, 4096)], offset),
        ):
            try:
                function()
            except OSError as error:
                results.append(error.errno)
        return results == [errno.ESTALE] * 2

    def open(self) -> None:
        """Open an image, and look at a hole of it, past the kernel's pages."""
        descriptor = os.open(self.image, os.O_RDONLY | os.O_DIRECT)
        self.opened = os.fdopen(descriptor, "rb", buffering=0)
        self.addCleanup(self.opened.close)
        self.assertEqual(os.lseek(descriptor, 20 * MIB, os.SEEK_HOLE), 20 * MIB)

    def test_written(self) -> None:
        """By write(2)."""
        self.open()
        with open(self.source, "r+b") as source:
            os.pwrite(source.fileno(), b"written", 20 * MIB + 5)
        self.check_changed(20 * MIB + 5, b"written")

    def test_mapped(self) -> None:
        """By a mapping, also if that stays."""
        self.open()
        with open(self.source, "r+b") as source, mmap.mmap(source.fileno(), SIZE) as mapped:
            mapped[20 * MIB + 5 : 20 * MIB + 11] = b"mapped"
            self.check_changed(20 * MIB + 5, b"mapped")

    def test_allocated(self) -> None:
        """By fallocate(2), which leaves zeros, and is a change all the same."""
        self.open()
        with open(self.source, "r+b") as source:
            os.posix_fallocate(source.fileno(), 20 * MIB, MIB)
            os.pwrite(source.fileno(), b"then", 20 * MIB)
        self.check_changed(20 * MIB, b"then")

    def test_just_written(self) -> None:
        """What was written a moment before an image is opened is no hole, synced or not."""
        path = self.loopback.images / "new.img"
        for number in range(30):
            data = b"%05d" % number
            offset = 4096 * (1 + number)
            with open(path, "wb") as image:
                image.truncate(SIZE)
                if number % 3 == 0:
                    os.pwrite(image.fileno(), data, offset)
            if number % 3:
                with open(path, "r+b") as source, mmap.mmap(source.fileno(), SIZE) as mapped:
                    mapped[offset : offset + 5] = data
                    if number % 3 == 1:
                        mapped.flush()
            with open(self.mount / "new.img", "rb", buffering=0) as opened:
                self.assertEqual(os.pread(opened.fileno(), 5, offset), data)


class TmpfsTests(ChangeTests):
    """The same with images on tmpfs."""

    def setUp(self) -> None:
        """Export a tmpfs."""
        super().setUp()
        beneath = self.loopback.images / "tmpfs"
        beneath.mkdir()
        run("mount", "-t", "tmpfs", "none", beneath)
        self.addCleanup(run, "umount", "-l", beneath)
        self.source = beneath / "sparse.img"
        write_sparse(self.source)
        time.sleep(1.1)  # until what was known of the directory expires
        self.image = self.mount / "tmpfs" / "sparse.img"
