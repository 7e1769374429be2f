"""The image library: a real directory, read beneath its root only."""

import errno
import gc
import os
import shutil
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mufs.filesystem.server import library
from mufs.filesystem.server.library import ROOT_INTERVAL, ExportedDirectory
from mufs.interfaces import IImage
from mufs.test.support.properties import examples

INSIDE = b"what lies inside"
OUTSIDE = b"what lies outside!"


class LibraryTestCase(SynchronousTestCase):
    """Has a directory to share, and a file outside of it."""

    def setUp(self) -> None:
        """Make both."""
        top = Path(self.mktemp()).absolute()
        self.root, self.outside = top / "root", top / "outside"
        self.outside.mkdir(parents=True)
        (self.outside / "file").write_bytes(OUTSIDE)
        (self.outside / "secret").mkdir()
        (self.root / "sub").mkdir(parents=True)
        (self.root / "file").write_bytes(INSIDE)
        (self.root / "sub" / "file").write_bytes(INSIDE)
        self.library = ExportedDirectory(str(self.root))

    def assert_errno(self, codes: int | set[int], call: Callable[..., Any], *args: Any) -> None:
        """The call fails with an C{OSError} of this number, or of one of these."""
        error = self.assertRaises(OSError, call, *args)
        self.assertIn(error.errno, codes if isinstance(codes, set) else {codes})

    def all_of(self, image: IImage) -> bytes:
        """All bytes of an image."""
        return bytes(image.read(0, image.attributes.size))


def descriptors_open() -> int:
    """How many file descriptors this process has, without those of tests that have ended."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class TreeTests(LibraryTestCase):
    """What the tree tells of itself."""

    def test_attributes(self) -> None:
        """Attributes are those of stat, times in nanoseconds."""
        path = self.root / "sub" / "file"
        os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_000_000_001))
        path.chmod(0o4711)
        found, expected = self.library.getattr(b"sub/file"), path.stat()
        self.assertEqual(found.atime, 1_234_567_890_123_456_789)
        self.assertEqual(found.mtime, 987_654_321_000_000_001)
        self.assertEqual(
            (found.mode, found.ino, found.nlink, found.uid, found.gid, found.size, found.blocks),
            (
                *(expected.st_mode, expected.st_ino, expected.st_nlink, expected.st_uid),
                *(expected.st_gid, len(INSIDE), expected.st_blocks),
            ),
        )
        self.assertEqual(self.library.getattr(b"").ino, self.root.stat().st_ino)

    def test_listing(self) -> None:
        """A listing has every name once, with its attributes, also those of no encoding."""
        names = [b"\xff\xfe.img", b"n" * 255, "disk \N{SNOWMAN}\n.img".encode(), b"..."]
        for name in names:
            (self.root / "sub" / os.fsdecode(name)).write_bytes(name)
        os.symlink("nowhere", self.root / "sub" / "link")
        found = dict(self.library.readdir(b"sub"))
        self.assertEqual(sorted(found), sorted([*names, b"file", b"link"]))
        for name in [*names, b"link"]:
            self.assertEqual(found[name], self.library.getattr(b"sub/" + name))
        for name in names:
            self.assertEqual(self.all_of(self.library.open(b"sub/" + name)), name)
        self.assertEqual({name for name, _ in self.library.readdir(b"")}, {b"file", b"sub"})

    def test_links(self) -> None:
        """A symbolic link shows its own attributes and its target as it is, wherever it leads."""
        for target in (b"../outside/file", b"/etc/passwd", b"sub/\xff"):
            os.symlink(target, os.fsencode(self.root / "link"))
            self.assertEqual(self.library.readlink(b"link"), target)
            found = self.library.getattr(b"link")
            self.assertEqual((found.mode & 0o170000, found.size), (0o120000, len(target)))
            (self.root / "link").unlink()
        self.assert_errno(errno.EINVAL, self.library.readlink, b"file")
        self.assert_errno(errno.EINVAL, self.library.readlink, b"sub")

    def test_missing(self) -> None:
        """What is not there is ENOENT, and what lies below a file is ENOTDIR."""
        for call in (self.library.getattr, self.library.open, self.library.readdir):
            self.assert_errno(errno.ENOENT, call, b"no")
            self.assert_errno(errno.ENOENT, call, b"sub/no/file")
            self.assert_errno(errno.ENOTDIR, call, b"file/below")
        self.assert_errno(errno.ENOTDIR, self.library.readdir, b"file")

    def test_overlong(self) -> None:
        """A name that is too long is ENAMETOOLONG; a path may be longer than the system's limit."""
        self.assert_errno(errno.ENAMETOOLONG, self.library.getattr, b"n" * 256)
        top = self.root / ("d" * 200)
        self.addCleanup(shutil.rmtree, top)
        top.mkdir()
        here = os.open(top, os.O_RDONLY)
        for _ in range(24):
            os.mkdir("d" * 200, dir_fd=here)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        with open("file", "wb", opener=lambda name, _: os.open(name, 0o101, dir_fd=here)) as file:
            file.write(INSIDE)
        os.close(here)
        path = b"/".join([b"d" * 200] * 25)
        self.assertGreater(len(path), 4096)
        self.assertEqual(self.all_of(self.library.open(path + b"/file")), INSIDE)
        self.assertEqual([name for name, _ in self.library.readdir(path)], [b"file"])

    def test_statfs(self) -> None:
        """The figures are those of the file system that the root lies on."""
        found, expected = self.library.statfs(), os.statvfs(self.root)
        self.assertEqual(
            (found.bsize, found.frsize, found.blocks, found.namemax),
            (expected.f_bsize, expected.f_frsize, expected.f_blocks, expected.f_namemax),
        )

    def test_no_directory(self) -> None:
        """What is missing or no directory cannot be shared."""
        self.assert_errno(errno.ENOENT, ExportedDirectory, str(self.root / "no"))
        self.assert_errno(errno.ENOTDIR, ExportedDirectory, str(self.root / "file"))


class RootTests(LibraryTestCase):
    """What becomes of the path of the exported directory."""

    def setUp(self) -> None:
        """Keep what is logged."""
        super().setUp()
        self.now = 0.0
        self.patch(library, "monotonic", lambda: self.now)
        self.library = ExportedDirectory(str(self.root))
        self.lines: list[str] = []
        observer: Any = lambda event: self.lines.append(str(formatEvent(event)))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def names(self) -> set[bytes]:
        """The names at the root, when it is time to look at its path again."""
        self.now += ROOT_INTERVAL
        return {name for name, _ in self.library.readdir(b"")}

    def test_swapped(self) -> None:
        """Another directory at the path is shared soon, with one line in the log."""
        self.root.rename(self.outside / "former")
        self.root.mkdir()
        (self.root / "new").touch()
        self.assertEqual({name for name, _ in self.library.readdir(b"")}, {b"file", b"sub"})
        for _ in range(2):
            self.assertEqual(self.names(), {b"new"})
        (line,) = self.lines
        self.assertIn(f"at {self.root} now", line)

    def test_link(self) -> None:
        """A symbolic link at the path may be changed to lead to another directory."""
        link = self.outside / "current"
        link.symlink_to(self.root)
        self.library = ExportedDirectory(str(link))
        link.unlink()
        link.symlink_to(self.outside)
        self.assertIn(b"secret", self.names())

    def test_removed(self) -> None:
        """While nothing is at the path, what was there is shared, with one line in the log."""
        former = self.outside / "former"
        self.root.rename(former)
        for _ in range(2):
            self.assertEqual(self.names(), {b"file", b"sub"})
        (line,) = self.lines
        self.assertIn(f"{self.root} is gone (No such file or directory)", line)
        former.rename(self.root)
        self.assertEqual(self.names(), {b"file", b"sub"})
        self.assertEqual(len(self.lines), 1)

    def test_images(self) -> None:
        """An image that is open stays readable when another directory is shared."""
        image = self.library.open(b"file")
        self.root.rename(self.outside / "former")
        self.root.mkdir()
        self.assertEqual(self.names(), set())
        self.assertEqual(self.all_of(image), INSIDE)


class ConfinementTests(LibraryTestCase):
    """Paths that would lead out of the root."""

    def operations(self) -> list[Callable[[bytes], Any]]:
        """All operations that take a path."""
        return [
            self.library.getattr,
            self.library.readdir,
            self.library.readlink,
            self.library.open,
        ]

    def test_upwards(self) -> None:
        """Absolute paths, dots, empty names and NUL are refused before anything is looked up."""
        absolute = os.fsencode(self.outside / "file")
        for path in [
            b"..",
            b"../outside/file",
            b"sub/../file",
            b"sub/../../outside/file",
            b"sub/..",
            b".",
            b"./file",
            b"sub/.",
            absolute,
            b"/",
            b"//",
            b"/file",
            b"sub//file",
            b"sub/",
            b"\0",
            b"file\0",
            b"sub/\0/file",
            absolute + b"\0",
        ]:
            for operation in self.operations():
                self.assert_errno(errno.EACCES, operation, path)

    def test_through_link(self) -> None:
        """No symbolic link is followed, on the way or at the end, wherever it leads."""
        os.symlink(self.outside, self.root / "out")
        os.symlink("sub", self.root / "in")
        os.symlink(self.outside / "file", self.root / "sub" / "out")
        os.symlink("file", self.root / "sub" / "in")
        os.symlink("/", self.root / "top")
        for path in (b"out/file", b"in/file", b"top/etc/passwd", b"out/secret"):
            for operation in self.operations():
                self.assert_errno({errno.ENOTDIR, errno.ELOOP}, operation, path)
        for path in (b"sub/out", b"sub/in", b"out", b"in"):
            self.assert_errno(errno.ELOOP, self.library.open, path)
            self.assert_errno({errno.ENOTDIR, errno.ELOOP}, self.library.readdir, path)

    def test_link_as_root(self) -> None:
        """The root itself may be given as a symbolic link: the operator says what is shared."""
        os.symlink(self.root, self.outside / "link")
        library = ExportedDirectory(str(self.outside / "link"))
        self.assertEqual(self.all_of(library.open(b"file")), INSIDE)

    def test_special_files(self) -> None:
        """What is neither file nor directory is shown, but never opened."""
        os.mkfifo(self.root / "fifo")
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.open(self.root, os.O_RDONLY)
            self.addCleanup(os.close, here)
            listener.bind(f"/proc/self/fd/{here}/socket")
        for name in (b"fifo", b"socket"):
            self.assertIn(name, dict(self.library.readdir(b"")))
            self.assertEqual(self.library.getattr(name).size, 0)
            self.assert_errno(errno.EACCES, self.library.open, name)
            self.assert_errno(errno.ENOTDIR, self.library.readdir, name)
        self.assert_errno(errno.EISDIR, self.library.open, b"sub")
        self.assert_errno(errno.EISDIR, self.library.open, b"")

    @examples(200)
    @given(st.one_of(st.binary(max_size=40), st.text("./ab\0", max_size=12).map(str.encode)))
    @example(b"a" * 65536)
    @example(b"/".join([b"a"] * 30000))
    def test_any_path(self, path: bytes) -> None:
        """Any path is an C{OSError}, or names something beneath the root."""
        inside = {entry.stat().st_ino for entry in [self.root, *self.root.rglob("*")]}
        for operation in self.operations():
            try:
                operation(path)
            except OSError as error:
                self.assertIn(error.errno, errno.errorcode)
            else:
                self.assertIn(self.library.getattr(path).ino, inside)

    def outcome(self, operation: str, path: bytes) -> object:
        """What a host would see of an operation."""
        try:
            if operation == "open":
                return self.all_of(self.library.open(path))
            if operation == "readdir":
                return sorted(name for name, _ in self.library.readdir(path))
            return self.library.getattr(path).ino
        except OSError:
            return None

    def swap(self) -> None:
        """Have a directory and a file replaced by symbolic links that lead outside."""
        os.rename(self.root / "sub", self.root / "sub.away")
        os.symlink(self.outside, self.root / "sub")
        os.rename(self.root / "file", self.root / "file.away")
        os.symlink(self.outside / "file", self.root / "file")

    def swap_back(self) -> None:
        """Put the directory and the file back."""
        for name in ("sub", "file"):
            os.unlink(self.root / name)
            os.rename(self.root / f"{name}.away", self.root / name)

    def forbidden(self) -> list[object]:
        """What nobody may see of what lies outside."""
        outside = [self.outside, self.outside / "file", self.outside / "secret"]
        return [OUTSIDE, [b"file", b"secret"], *(path.stat().st_ino for path in outside)]

    LOOKUPS = [
        ("open", b"sub/file"), ("open", b"file"), ("readdir", b"sub"), ("getattr", b"sub/file"),
        ("getattr", b"file"), ("getattr", b"sub"),
    ]  # fmt: skip

    def outcome_swapped(self, operation: str, path: bytes, place: int) -> tuple[object, int]:
        """
        What a host sees of an operation when all is swapped just before the system call
        C{place} of it, and how many system calls it made.
        """
        calls = 0

        def counted(real: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
            nonlocal calls
            if calls == place:
                self.swap()
            calls += 1
            return real(*args, **keywords)

        names = ("open", "fstat", "scandir", "preadv", "close")
        patches = [self.patch(os, name, partial(counted, getattr(os, name))) for name in names]
        seen = self.outcome(operation, path)
        for patch in patches:
            patch.restore()
        return seen, calls

    def test_swapped_at_any_call(self) -> None:
        """A file or directory that becomes a link between two system calls leads nowhere."""
        forbidden = self.forbidden()
        for operation, path in self.LOOKUPS:
            for place in range(20):
                seen, calls = self.outcome_swapped(operation, path, place)
                self.assertNotIn(seen, forbidden, f"{operation} of {path!r} at call {place}")
                if calls <= place:
                    break
                self.swap_back()
            self.assertGreater(place, 2)

    def test_swapped_all_the_time(self) -> None:
        """While a thread swaps them with links that lead outside, nothing outside is ever seen."""
        forbidden, ended = self.forbidden(), Event()

        def swap() -> None:
            while not ended.is_set():
                self.swap()
                self.swap_back()

        swapping = Thread(target=swap, daemon=True)
        swapping.start()
        try:
            for _ in range(500):
                for operation, path in self.LOOKUPS:
                    self.assertNotIn(self.outcome(operation, path), forbidden)
        finally:
            ended.set()
            swapping.join()
        self.assertEqual(self.all_of(self.library.open(b"sub/file")), INSIDE)


class ImageTests(LibraryTestCase):
    """Images that are open, and what happens to their files."""

    def setUp(self) -> None:
        """Have one image open."""
        super().setUp()
        self.path = self.root / "file"
        self.image = self.library.open(b"file")

    def wait_for_clock(self) -> None:
        """Return when a change of a file now bears another time than the last one did."""
        probe = self.outside / "probe"
        while True:
            probe.write_bytes(b"")
            if probe.stat().st_ctime_ns > self.path.stat().st_ctime_ns:
                return
            time.sleep(0.001)

    def test_reading(self) -> None:
        """A read gives the bytes that there are at an offset, none at the end."""
        self.assertEqual(self.image.read(5, 4), INSIDE[5:9])
        self.assertEqual(self.image.read(5, 4000), INSIDE[5:])
        self.assertEqual(self.image.read(len(INSIDE), 10), b"")
        self.assertEqual(self.image.attributes.size, len(INSIDE))

    def test_at_once(self) -> None:
        """What lies in the page cache is read at once, where the file system can tell."""
        with open(self.path, "rb") as file:
            try:
                os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
            except OSError as error:
                self.assertIsNone(self.image.read_at_once(0, 4))
                raise SkipTest("this file system cannot tell") from error
        self.assertEqual(self.image.read_at_once(5, 4), INSIDE[5:9])
        self.assertEqual(self.image.read_at_once(5, 4000), INSIDE[5:])
        self.assertEqual(self.image.read_at_once(len(INSIDE), 10), b"")
        self.assertEqual(self.image.read_at_once(10_000, 10), b"")
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.assertIn(self.image.read_at_once(5, 4), (None, INSIDE[5:9]))
        os.truncate(self.path, 4)
        self.assertIsNone(self.image.read_at_once(0, 4))

    def test_cannot_tell(self) -> None:
        """A file system that cannot tell what takes no waiting is asked once."""
        calls = []
        real = os.preadv

        def preadv(*args: Any) -> int:
            if len(args) == 3:
                return real(*args)
            calls.append(args)
            raise OSError(errno.EOPNOTSUPP, "as the test wants it")

        self.patch(os, "preadv", preadv)
        for _ in range(2):
            self.assertIsNone(self.image.read_at_once(0, 4))
        self.assertEqual(len(calls), 1)
        self.assertEqual(self.image.read(0, 4), INSIDE[:4])

    def test_empty_and_far(self) -> None:
        """An empty image can be read, and a sparse one beyond 4 GiB."""
        (self.root / "empty").touch()
        self.assertEqual(self.library.open(b"empty").read(0, 100), b"")
        far = (1 << 32) + 12345
        with open(self.root / "sparse", "wb") as file:
            file.seek(far)
            file.write(INSIDE)
        image = self.library.open(b"sparse")
        self.assertEqual(image.read(far - 2, 100), b"\0\0" + INSIDE)
        self.assertEqual(image.read(100, 3), b"\0\0\0")

    def test_same_object(self) -> None:
        """While anybody holds an image, opening it again gives the same object."""
        self.assertIs(self.library.open(b"file"), self.image)

    def test_hard_link(self) -> None:
        """Hard links to a file are one image, whatever they are called."""
        os.link(self.root / "file", self.root / "sub" / "other")
        image, other = self.library.open(b"file"), self.library.open(b"sub/other")
        self.assertIs(image, other)
        self.assertEqual(image.image, self.image.image)

    def test_other_file(self) -> None:
        """Files of the same content are different images."""
        other = self.library.open(b"sub/file")
        self.assertNotEqual(self.image.image, other.image)
        self.assertNotEqual(self.image.generation, other.generation)

    def test_numbers_last(self) -> None:
        """Another library of the same directory has the same numbers for an image."""
        again = ExportedDirectory(str(self.root)).open(b"file")
        self.assertEqual((again.image, again.generation), (self.image.image, self.image.generation))

    def test_inode_again(self) -> None:
        """A new file is another image, also where it gets inode, size and mtime of a former one."""
        found = self.path.stat()
        former = self.image.image, self.image.generation
        del self.image
        for _ in range(20):
            self.path.unlink()
            self.path.write_bytes(INSIDE[::-1])
            os.utime(self.path, ns=(found.st_atime_ns, found.st_mtime_ns))
            image = self.library.open(b"file")
            self.assertNotEqual((image.image, image.generation), former)
            self.assertEqual(self.all_of(image), INSIDE[::-1])

    def test_attributes_by_path(self) -> None:
        """A listing and a lookup tell the generation of an image, also after a change."""
        for change in (lambda: self.path.chmod(0o600), lambda: self.path.write_bytes(OUTSIDE)):
            change()
            image = self.library.open(b"file")
            self.assertEqual(image.attributes, self.library.getattr(b"file"))
            self.assertEqual(image.attributes.generation, image.generation)
            self.path.chmod(0o640)
            listed = dict(self.library.readdir(b""))[b"file"]
            self.assertEqual((listed.generation, listed.mode & 0o777), (image.generation, 0o640))
        self.assertEqual(self.library.getattr(b"sub").generation, 0)

    def assert_changed(self, content: bytes) -> None:
        """The old image is stale, and a new open has the new content under a new generation."""
        self.assert_errno(errno.ESTALE, self.image.read, 0, 4)
        self.assert_errno(errno.ESTALE, self.image.read, 10_000, 4)
        image = self.library.open(b"file")
        self.assertNotEqual(image.generation, self.image.generation)
        self.assertEqual(self.all_of(image), content)
        self.assert_errno(errno.ESTALE, self.image.read, 0, 4)

    def test_truncated(self) -> None:
        """An image that was truncated is stale, and so is one that was made longer."""
        number = self.image.image
        os.truncate(self.path, 4)
        self.assert_changed(INSIDE[:4])
        self.image = self.library.open(b"file")
        os.truncate(self.path, 6)
        self.assert_changed(INSIDE[:4] + b"\0\0")
        self.assertEqual(self.library.open(b"file").image, number)

    def test_overwritten(self) -> None:
        """An image that was overwritten with as many bytes is stale."""
        self.wait_for_clock()
        with open(self.path, "r+b") as file:
            file.write(INSIDE[::-1])
        self.assert_changed(INSIDE[::-1])

    def test_overwritten_unseen(self) -> None:
        """It is stale also when its size and its mtime were made to look as before."""
        found = self.path.stat()
        self.wait_for_clock()
        with open(self.path, "r+b") as file:
            file.write(INSIDE[::-1])
        os.utime(self.path, ns=(found.st_atime_ns, found.st_mtime_ns))
        self.assert_changed(INSIDE[::-1])

    def test_replaced(self) -> None:
        """An image that another was renamed over gives its old bytes or is stale, never the new."""
        (self.root / "new").write_bytes(INSIDE[::-1])
        os.rename(self.root / "new", self.path)
        try:
            self.assertEqual(self.all_of(self.image), INSIDE)
        except OSError as error:
            self.assertEqual(error.errno, errno.ESTALE)
        image = self.library.open(b"file")
        self.assertNotEqual(image.generation, self.image.generation)
        self.assertEqual(self.all_of(image), INSIDE[::-1])

    def test_changed_while_read(self) -> None:
        """What was overwritten while it was read, before or after the bytes were, is not told."""
        real = os.preadv
        for before in (True, False):
            image = self.library.open(b"file")
            self.wait_for_clock()

            def preadv(*args: Any) -> int:
                if not before:  # noqa: B023
                    got = real(*args)
                self.path.write_bytes(b"changed".ljust(len(INSIDE)))
                return real(*args) if before else got  # noqa: B023

            patch = self.patch(os, "preadv", preadv)
            self.assert_errno(errno.ESTALE, image.read, 0, 4)
            patch.restore()

    def test_closed(self) -> None:
        """A file is closed when nobody holds its image, and not before."""
        before = descriptors_open()
        again, other = self.library.open(b"file"), self.library.open(b"sub/file")
        self.assertEqual(descriptors_open(), before + 1)
        del other
        self.assertEqual(descriptors_open(), before)
        del self.image
        self.assertEqual(self.all_of(again), INSIDE)
        del again
        self.assertEqual(descriptors_open(), before - 1)
        self.assertEqual(self.all_of(self.library.open(b"file")), INSIDE)

    def test_nothing_left_open(self) -> None:
        """No operation leaves a descriptor open, whether it succeeds or not."""
        os.symlink(self.outside, self.root / "link")
        os.mkfifo(self.root / "fifo")
        before = descriptors_open()
        for path in (b"", b"sub", b"file", b"link", b"fifo", b"no", b"link/x", b"sub/x/y", b".."):
            for operation in (
                self.library.getattr,
                self.library.readdir,
                self.library.readlink,
                self.library.open,
                lambda _: self.library.statfs(),
            ):
                try:
                    operation(path)
                except OSError:
                    continue
        self.assertEqual(descriptors_open(), before)

    def test_opened_in_threads(self) -> None:
        """Threads that open and drop the same image get its bytes, and leave nothing open."""
        del self.image
        before, found = descriptors_open(), []

        def read() -> None:
            for _ in range(200):
                found.append(self.all_of(self.library.open(b"file")))

        threads = [Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(found), 800)
        self.assertEqual(set(found), {INSIDE})
        self.assertEqual(descriptors_open(), before)
