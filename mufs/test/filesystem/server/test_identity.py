"""The numbers by which files and file systems are known."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.server import identity
from mufs.filesystem.server.identity import FileSystems, file_handle, number


class NumberTests(SynchronousTestCase):
    """Hashes."""

    def test_lasting(self) -> None:
        """A number is the same in every run, and of 64 bits."""
        self.assertEqual(number(b"a", 1, -2), 0x981E63729008C933)
        self.assertNotEqual(number(1, 23), number(12, 3))


class HandleTests(SynchronousTestCase):
    """File handles."""

    def setUp(self) -> None:
        """Make a directory with a file."""
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        (self.directory / "file").touch()
        self.fd = os.open(self.directory, os.O_PATH)
        self.addCleanup(os.close, self.fd)

    def test_by_name(self) -> None:
        """A file has the same handle by its name in a directory, by a link, and by itself."""
        os.link(self.directory / "file", self.directory / "link")
        file = os.open(self.directory / "file", os.O_PATH)
        self.addCleanup(os.close, file)
        handle = file_handle(file)
        self.assertEqual(handle, file_handle(self.fd, b"file"))
        self.assertEqual(handle, file_handle(self.fd, b"link"))
        self.assertNotEqual(handle, file_handle(self.fd))

    def test_none(self) -> None:
        """Where files have no handles it is empty; a file that is not there is ENOENT."""
        proc = os.open("/proc/self/status", os.O_PATH)
        self.addCleanup(os.close, proc)
        self.assertEqual(file_handle(proc), b"")
        self.assertRaises(FileNotFoundError, file_handle, self.fd, b"nothing")


class FileSystemTests(SynchronousTestCase):
    """File systems."""

    def setUp(self) -> None:
        """Have files on two of them."""
        self.here, self.proc = (os.open(path, os.O_PATH) for path in (".", "/proc/self"))
        self.addCleanup(os.close, self.here)
        self.addCleanup(os.close, self.proc)

    def of(self, systems: FileSystems, fd: int) -> identity.FileSystem:
        """The file system of a file."""
        return systems.of(fd, os.fstat(fd).st_dev)

    def test_two(self) -> None:
        """Each has its own identity, the same each time."""
        systems = FileSystems()
        here, proc = self.of(systems, self.here), self.of(systems, self.proc)
        self.assertNotEqual(here.identity, proc.identity)
        self.assertFalse(proc.is_local)
        self.assertIs(self.of(systems, self.here), here)
        self.assertEqual(self.of(FileSystems(), self.here), here)

    def test_given(self) -> None:
        """The identity that the operator gives is that of the first one, the root's."""
        systems = FileSystems(b"disk 1")
        self.assertEqual(self.of(systems, self.here).identity, b"disk 1")
        self.assertNotEqual(self.of(systems, self.proc).identity, b"disk 1")

    def test_asked_for_at_once(self) -> None:
        """Threads that ask for a file system at the same time get the same identity."""
        self.patch(identity, "LASTING_ID", frozenset())

        def uuid(fd: int) -> bytes:
            both.wait(0.2)
            return b"the same"

        both = Event()
        self.patch(identity, "_uuid", uuid)
        systems = FileSystems()
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda _: self.of(systems, self.here), range(2)))
        self.assertEqual([each.identity for each in found], [b"the same"] * 2)

    def test_copies(self) -> None:
        """Of two file systems with the same UUID the later one is known by its device as well."""
        self.patch(identity, "LASTING_ID", frozenset())
        self.patch(identity, "_uuid", lambda fd: b"the same")
        systems = FileSystems()
        here, proc = self.of(systems, self.here), self.of(systems, self.proc)
        self.assertEqual(here.identity, b"the same")
        self.assertNotEqual(proc.identity, here.identity)
