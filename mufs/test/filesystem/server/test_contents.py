"""Which changes of a file count as changes of its content; with a real kernel."""

import ctypes
import mmap
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mufs.filesystem.server import contents
from mufs.filesystem.server.contents import Contents, may_have_writer

PAGE = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def write(file: Path) -> None:
    """As C{dd conv=notrunc} does."""
    with open(file, "r+b") as opened:
        opened.write(b"new")


def copy_range(file: Path) -> None:
    """As C{cp} may do."""
    source = os.open(file.parent / "source", os.O_RDWR | os.O_CREAT)
    target = os.open(file, os.O_RDWR)
    try:
        os.pwrite(source, b"new", 0)
        os.copy_file_range(source, target, 3, 0, 0)
    finally:
        os.close(source)
        os.close(target)


def punch(file: Path) -> None:
    """As C{fallocate --punch-hole} does."""
    fd = os.open(file, os.O_RDWR)
    try:
        offset = ctypes.c_int64(0), ctypes.c_int64(PAGE)
        if _libc.fallocate(fd, 3, *offset):
            raise SkipTest("this file system has no holes")
    finally:
        os.close(fd)


def store(file: Path) -> None:
    """Write through a mapping."""
    with open(file, "r+b") as opened, mmap.mmap(opened.fileno(), PAGE) as mapped:
        mapped[0] ^= 1


def aio(file: Path) -> None:
    """Write with io_submit(2), which reports nothing to inotify."""
    setup, destroy, getevents, submit = 206, 207, 208, 209  # of x86-64
    if os.uname().machine != "x86_64":
        raise SkipTest("the numbers of system calls differ")
    context, data = ctypes.c_ulong(0), ctypes.create_string_buffer(b"new")
    if _libc.syscall(setup, 1, ctypes.byref(context)):
        raise SkipTest("no AIO here")
    with open(file, "r+b") as opened:
        address, size = ctypes.addressof(data), 3
        block = struct.pack(
            "=QIIHhIQQqQII", 0, 0, 0, 1, 0, opened.fileno(), address, size, 0, 0, 0, 0
        )
        control = ctypes.create_string_buffer(block)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(control))
        assert _libc.syscall(submit, context, ctypes.c_long(1), pointers) == 1
        done, one = ctypes.create_string_buffer(64), ctypes.c_long(1)
        _libc.syscall(getevents, context, one, one, done, None)
    _libc.syscall(destroy, context)


def touch(*options: str) -> Callable[[Path], None]:
    """As touch(1) does."""

    def run(file: Path) -> None:
        subprocess.run(["touch", *options, str(file)], check=True)

    return run


def link(file: Path) -> None:
    """Add a hard link, rename it, and remove it."""
    os.link(file, f"{file}.link")
    os.rename(f"{file}.link", f"{file}.other")
    os.unlink(f"{file}.other")


def move(file: Path) -> None:
    """Rename the file, and back."""
    os.rename(file, f"{file}.moved")
    os.rename(f"{file}.moved", file)


WRITERS: dict[str, Callable[[Path], None]] = {
    "write": write,
    "truncate": lambda file: os.truncate(file, PAGE),
    "copy_file_range": copy_range,
    "hole": punch,
    "mapping": store,
    "AIO": aio,
}

HARMLESS: dict[str, Callable[[Path], None]] = {
    "chmod": lambda file: file.chmod(0o600),
    "link": link,
    "move": move,
    "touch": touch(),
    "touch -h": touch("-h"),
    "touch -a": touch("-a"),
    "touch -d": touch("-d", "2001-01-01"),
    "open for writing": lambda file: open(file, "r+b").close(),
}


class ContentTestCase(SynchronousTestCase):
    """Has a file that is open and watched."""

    def setUp(self) -> None:
        """Make it, of two pages."""
        self.file = Path(self.mktemp()).absolute()
        self.contents = Contents()
        self.begin()

    def begin(self) -> None:
        """Watch a new file."""
        self.file.unlink(missing_ok=True)
        self.file.write_bytes(bytes(2 * PAGE))
        self.fd = os.open(self.file, os.O_RDONLY)
        self.addCleanup(os.close, self.fd)
        number = os.fstat(self.fd).st_ino
        self.content = self.contents.watch(self.fd, number, watchable=True)
        if self.content.watch < 0:
            raise SkipTest("no watches are left for this user")
        self.generation = self.content.generation

    def is_changed(self) -> bool:
        """Whether the content has changed since it was opened."""
        if not self.content.is_current(os.fstat(self.fd)):
            self.content.settle(self.fd)
        return self.content.generation != self.generation

    def put_back(self, change: Callable[[Path], None]) -> None:
        """Change the file, and put its mtime back afterwards."""
        before = self.file.stat()
        change(self.file)
        os.utime(self.file, ns=(before.st_atime_ns, before.st_mtime_ns))


class ChangeTests(ContentTestCase):
    """One change of a file."""

    def test_harmless(self) -> None:
        """A change of metadata keeps the generation, also when it happens again and again."""
        for name, change in HARMLESS.items():
            self.begin()
            for _ in range(3):
                change(self.file)
                self.assertFalse(self.is_changed(), name)
            self.assertTrue(self.content.is_current(os.fstat(self.fd)), name)

    def test_owner(self) -> None:
        """A change of the owner, or of extended attributes, keeps the generation."""
        if os.geteuid():
            raise SkipTest("needs root")
        os.chown(self.file, 1, 1)
        self.assertFalse(self.is_changed())
        os.setxattr(self.file, b"user.name", b"value")
        self.assertFalse(self.is_changed())

    def test_written(self) -> None:
        """A file that is written to has another generation, in whatever way it is written."""
        for name, change in WRITERS.items():
            self.begin()
            change(self.file)
            self.assertTrue(self.is_changed(), name)

    def test_written_and_touched(self) -> None:
        """So has one that was touched before anybody looked, or whose mtime was put back."""
        for name, change in WRITERS.items():
            for after in (touch(), lambda file: file.chmod(0o600), link):
                self.begin()
                change(self.file)
                after(self.file)
                self.assertTrue(self.is_changed(), name)
            self.begin()
            self.put_back(change)
            self.assertTrue(self.is_changed(), name)

    def test_touched_and_written(self) -> None:
        """So has one that was touched or chmod-ed shortly before it was written to."""
        for name, change in WRITERS.items():
            for before in HARMLESS.values():
                self.begin()
                before(self.file)
                change(self.file)
                self.assertTrue(self.is_changed(), name)

    def test_writer_remains(self) -> None:
        """While a file is mapped for writing, a new mtime counts even if it is touched as well."""
        with open(self.file, "r+b") as opened:
            mapped = mmap.mmap(opened.fileno(), PAGE)
        self.addCleanup(mapped.close)
        self.assertFalse(self.is_changed())
        mapped[0] = 1
        touch()(self.file)
        self.assertTrue(self.is_changed())

    def test_open_ones_stay(self) -> None:
        """A file of which an image is open is watched however many were opened since."""
        self.patch(contents, "MAX_WATCHED", 1)
        first, image = self.content, object()
        first.image = lambda: image
        for _ in range(3):
            self.file = Path(self.mktemp()).absolute()
            self.begin()
        self.assertGreaterEqual(first.watch, 0)
        self.assertIs(self.contents.get(first.number), first)

    def test_deleted(self) -> None:
        """A file that is deleted has another generation, one of whose links is deleted has not."""
        os.link(self.file, f"{self.file}.other")
        self.file.unlink()
        self.assertFalse(self.is_changed())
        os.unlink(f"{self.file}.other")
        self.assertTrue(self.is_changed())

    def test_generations(self) -> None:
        """Two contents with the same size and mtime have different generations."""
        seen = {self.generation}
        for _ in range(3):
            self.put_back(write)
            self.assertTrue(self.is_changed())
            self.assertNotIn(self.content.generation, seen)
            seen.add(self.content.generation)

    def test_unwatched(self) -> None:
        """Where nothing can be watched, each change counts, and goes into the first generation."""
        number = os.fstat(self.fd).st_ino + 1
        content = self.contents.watch(self.fd, number, watchable=False)
        generation = content.generation
        self.assertTrue(content.is_current(os.fstat(self.fd)))
        self.file.chmod(0o600)
        content.settle(self.fd)
        self.assertNotEqual(content.generation, generation)
        again = self.contents.watch(self.fd, number, watchable=False)
        self.assertNotEqual(again.generation, generation)

    def test_no_right(self) -> None:
        """Who is not told whether there is a writer takes a touched file for changed."""
        self.patch(contents, "may_have_writer", lambda _: True)
        self.file.chmod(0o600)
        self.assertFalse(self.is_changed())
        touch()(self.file)
        self.assertTrue(self.is_changed())


class ContentsTests(ContentTestCase):
    """The contents of all files."""

    def test_closed(self) -> None:
        """A file is watched on when nobody has it open; then it has the same content or not."""
        number = self.content.number
        for name, change, same in (
            ("touch", touch(), True),
            ("chmod", lambda file: file.chmod(0o600), True),
            ("mtime put back", lambda file: self.put_back(write), False),
        ):
            generation = self.content.generation
            change(self.file)
            content = self.contents.watch(self.fd, number, watchable=True)
            self.assertIs(content, self.content)
            self.assertEqual(content.settle(self.fd)[0] == generation, same, name)

    def test_soon(self) -> None:
        """What is read of events soon after they came makes a file current again."""
        image = type("Image", (), {"fileno": lambda _: self.fd})()
        self.content.image = lambda: image
        self.file.chmod(0o600)
        self.assertFalse(self.content.is_current(os.fstat(self.fd)))
        self.contents.doRead()
        self.assertTrue(self.content.is_current(os.fstat(self.fd)))
        write(self.file)
        self.contents.doRead()
        self.assertEqual(self.content.generation, self.generation)
        self.assertTrue(self.is_changed())

    def test_bounded(self) -> None:
        """Only the files opened last are watched; for the others each change counts."""
        self.patch(contents, "MAX_WATCHED", 1)
        first = self.content
        self.file = Path(self.mktemp()).absolute()
        self.begin()
        self.assertLess(first.watch, 0)
        self.assertIsNone(self.contents.get(first.number))
        self.file.chmod(0o600)
        self.assertFalse(self.is_changed())

    def test_deleted(self) -> None:
        """A file that is gone is watched no longer."""
        number = self.content.number
        self.file.unlink()
        os.close(self.fd)
        self.fd = os.open("/", os.O_RDONLY)
        self.contents.doRead()
        self.assertIsNone(self.contents.get(number))

    def test_overflow(self) -> None:
        """When events were lost, a new mtime counts as another content."""
        touch()(self.file)
        self.contents._note(-1, contents._OVERFLOW)
        self.assertTrue(self.is_changed())

    def test_overflow_of_former_time(self) -> None:
        """When events were lost, the same mtime does not show that the content is the same."""
        before = os.stat(self.file)
        write(self.file)
        os.utime(self.file, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.read(self.contents.fileno(), 65536)
        self.contents._note(-1, contents._OVERFLOW)
        self.assertTrue(self.is_changed())

    def test_nothing_to_watch_with(self) -> None:
        """Without inotify, images are read all the same."""
        self.patch(contents._libc, "inotify_init1", lambda _: -1)
        without = Contents()
        self.assertLess(without.fileno(), 0)
        content = without.watch(self.fd, 1, watchable=True)
        self.assertEqual(content.settle(self.fd)[0], content.generation)
        self.flushWarnings()

    def test_many_at_once(self) -> None:
        """While a file is touched all the time, all threads that look find the same content."""
        found: set[int] = set()
        ended: list[bool] = []

        def look() -> None:
            while not ended:
                found.add(self.content.settle(self.fd)[0])

        threads = [Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(30):
            touch()(self.file)
            self.file.chmod(0o600)
        ended.append(True)
        for thread in threads:
            thread.join()
        self.assertEqual(found, {self.generation})


class WriterTests(ContentTestCase):
    """Whether somebody has a file open for writing."""

    def test_writers(self) -> None:
        """Whoever has it open for writing, or mapped, counts; readers do not."""
        self.assertFalse(may_have_writer(self.fd))
        with open(self.file, "r+b") as opened:
            self.assertTrue(may_have_writer(self.fd))
            mapped = mmap.mmap(opened.fileno(), PAGE)
        self.assertTrue(may_have_writer(self.fd))
        mapped.close()
        self.assertFalse(may_have_writer(self.fd))

    def test_writer_does_not_wait(self) -> None:
        """Who opens the file for writing later does not wait for the one that asked."""
        self.assertFalse(may_have_writer(self.fd))
        os.close(os.open(self.file, os.O_WRONLY | os.O_NONBLOCK))
