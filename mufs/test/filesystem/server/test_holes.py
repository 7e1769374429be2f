"""Where files have data, as their file systems tell."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
from pathlib import Path
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.server import holes
from mufs.filesystem.server.holes import await_tick, find_data
from mufs.filesystem.server.library import ExportedDirectory
from mufs.wire.metadata import MAX_RUNS, DataMap

MIB = 1 << 20
SIZE = 4 * MIB + 5000
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]


def all_data(fd: int, size: int) -> DataMap:
    """All parts of a file's map as one."""
    bounds: list[int] = []
    at = 0
    while at < size:
        part = find_data(fd, at, size)
        assert part.start == at < part.end <= size
        assert len(part.bounds) <= 2 * MAX_RUNS
        if bounds and part.bounds and bounds[-1] == part.bounds[0]:
            bounds[-1:] = part.bounds[1:]
        else:
            bounds += part.bounds
        at = part.end
    return DataMap(0, size, tuple(bounds))


class DiskTests(SynchronousTestCase):
    """Files on the file system of the tests."""

    def make_directory(self) -> Path:
        """A directory for the test."""
        path = Path(self.mktemp())
        path.mkdir()
        return path

    def setUp(self) -> None:
        """An empty file."""
        self.directory = self.make_directory()
        self.fd = os.open(self.directory / "image", os.O_RDWR | os.O_CREAT)
        self.addCleanup(os.close, self.fd)

    def test_empty(self) -> None:
        """An empty file has neither data nor holes."""
        self.assertEqual(find_data(self.fd, 0, 0), DataMap(0, 0, ()))

    def test_all_hole(self) -> None:
        """A file without data is one hole."""
        os.truncate(self.fd, SIZE)
        self.assertEqual(find_data(self.fd, 0, SIZE), DataMap(0, SIZE, ()))
        self.assertEqual(find_data(self.fd, 5, SIZE), DataMap(5, SIZE, ()))

    def test_runs(self) -> None:
        """Data that were written are found, and holes before, between and after them."""
        os.truncate(self.fd, SIZE)
        for offset in (MIB, 3 * MIB):
            os.pwrite(self.fd, b"x" * 8192, offset)
        bounds = MIB, MIB + 8192, 3 * MIB, 3 * MIB + 8192
        self.assertEqual(find_data(self.fd, 0, SIZE), DataMap(0, SIZE, bounds))
        part = find_data(self.fd, MIB + 4096, SIZE)
        self.assertEqual(part, DataMap(MIB + 4096, SIZE, (MIB + 4096, *bounds[1:])))
        # Of a file that has grown or shrunk nothing is told beyond the size it had.
        self.assertEqual(find_data(self.fd, 0, MIB + 5), DataMap(0, MIB + 5, (MIB, MIB + 5)))
        os.truncate(self.fd, MIB)
        self.assertEqual(find_data(self.fd, 0, SIZE), DataMap(0, SIZE, ()))

    def test_never_lost(self) -> None:
        """Whatever was done to a file, synced or not, what is not zero is data."""
        for seed in range(25):
            random = Random(seed)
            os.truncate(self.fd, 0)
            os.truncate(self.fd, SIZE)
            with mmap.mmap(self.fd, SIZE) as mapped:
                for _ in range(random.randrange(1, 12)):
                    offset = random.randrange(SIZE - 1)
                    length = min(random.choice([1, 5000, MIB]), SIZE - offset)
                    match random.randrange(7):
                        case 0 | 1:
                            os.pwrite(self.fd, random.randbytes(length), offset)
                        case 2 | 3:
                            mapped[offset : offset + length] = random.randbytes(length)
                        case 4:
                            _libc.fallocate(self.fd, 0, offset, length)
                        case 5:
                            how = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
                            _libc.fallocate(self.fd, how, offset, length)
                        case 6:
                            os.fsync(self.fd)
                    found = all_data(self.fd, SIZE)
                    bounds = 0, *found.bounds, SIZE
                    for begin, end in zip(bounds[::2], bounds[1::2], strict=True):
                        self.assertEqual(mapped[begin:end].count(0), end - begin, (seed, begin))

    def test_parts(self) -> None:
        """The map of a file with many runs comes in parts."""
        count = 10 * MAX_RUNS
        for number in range(count):
            os.pwrite(self.fd, b"x", 8192 * number)
        size = 8192 * count
        os.truncate(self.fd, size)
        first = find_data(self.fd, 0, size)
        self.assertLessEqual(first.end, 8192 * MAX_RUNS)
        expected = [at for number in range(count) for at in (8192 * number, 8192 * number + 4096)]
        self.assertEqual(list(all_data(self.fd, size).bounds), expected)

    def test_slow(self) -> None:
        """Where looking takes long each part has one run at least."""
        self.patch(holes, "MAX_WALK_SECONDS", -1.0)
        os.truncate(self.fd, SIZE)
        for offset in (MIB, 3 * MIB):
            os.pwrite(self.fd, b"x" * 4096, offset)
        bounds = MIB, MIB + 4096, 3 * MIB, 3 * MIB + 4096
        self.assertEqual(find_data(self.fd, 0, SIZE), DataMap(0, 3 * MIB, bounds[:2]))
        self.assertEqual(all_data(self.fd, SIZE), DataMap(0, SIZE, bounds))

    def test_tick(self) -> None:
        """After the wait each change of a file has another time."""
        os.truncate(self.fd, SIZE)
        for number in range(10):
            with mmap.mmap(self.fd, SIZE) as mapped:
                os.pwrite(self.fd, b"x", number * 8192)
                await_tick(self.fd)
                before = os.fstat(self.fd).st_ctime_ns
                mapped[4096 + number * 8192] = 1
                self.assertGreater(os.fstat(self.fd).st_ctime_ns, before)

    def test_image(self) -> None:
        """An image tells its map while it has the content that it was opened with."""
        os.truncate(self.fd, SIZE)
        os.pwrite(self.fd, b"x" * 4096, MIB)
        library = ExportedDirectory(str(self.directory))
        image = library.open(b"image")
        expected = DataMap(0, SIZE, (MIB, MIB + 4096))
        self.assertEqual(image.find_data(0), expected)
        self.assertEqual(image.find_data(2 * MIB), DataMap(2 * MIB, SIZE, ()))
        os.pwrite(self.fd, b"y", 2 * MIB)
        error = self.assertRaises(OSError, image.find_data, 0)
        self.assertEqual(error.errno, errno.ESTALE)
        later = library.open(b"image").find_data(0)
        self.assertEqual(later, DataMap(0, SIZE, (MIB, MIB + 4096, 2 * MIB, 2 * MIB + 4096)))


class TmpfsTests(DiskTests):
    """Files in memory."""

    def make_directory(self) -> Path:
        """A directory on a tmpfs."""
        if not os.path.ismount("/dev/shm"):
            self.skipTest("needs /dev/shm")
        directory = tempfile.TemporaryDirectory(dir="/dev/shm", prefix="mufs-test-")
        self.addCleanup(directory.cleanup)
        return Path(directory.name)


class UnsupportedTests(SynchronousTestCase):
    """File systems that cannot tell, or that answer what cannot be."""

    def answer(self, data: int, hole: int) -> None:
        """Have lseek answer that, or fail with that errno below 0."""

        def lseek(fd: int, offset: int, whence: int) -> int:
            found = {os.SEEK_DATA: data, os.SEEK_HOLE: hole}[whence]
            if found < 0:
                raise OSError(-found, "no")
            return found

        self.patch(os, "lseek", lseek)

    def test_unsupported(self) -> None:
        """All is data."""
        for number in (errno.EINVAL, errno.EOPNOTSUPP):
            self.answer(-number, -number)
            self.assertEqual(find_data(0, 10, SIZE), DataMap(10, SIZE, (10, SIZE)))
            self.answer(4096, -number)
            self.assertEqual(find_data(0, 10, SIZE), DataMap(10, SIZE, (4096, SIZE)))

    def test_failed(self) -> None:
        """Other errors are passed on."""
        self.answer(-errno.EIO, 0)
        self.assertEqual(self.assertRaises(OSError, find_data, 0, 0, SIZE).errno, errno.EIO)

    def test_odd(self) -> None:
        """A file that changes meanwhile is looked at to its end, and what is doubtful is data."""
        self.answer(0, 0)
        self.assertEqual(find_data(0, 5, 8), DataMap(5, 8, (5, 8)))
        places = iter([5, 6, 6, 8, 8, 9])
        self.patch(os, "lseek", lambda fd, offset, whence: next(places))
        self.assertEqual(find_data(0, 5, 9), DataMap(5, 9, (5, 9)))
