"""Which libfuse is used, and how it calls the operations."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from types import SimpleNamespace
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client import libfuse
from mufs.filesystem.client.libfuse import Libfuse, Mount, NoLibfuse, load
from mufs.test.support.doubles import make_attributes, make_libfuse
from mufs.wire.metadata import Attributes


def make_status() -> Any:
    """Make an empty struct stat."""
    times = {f"st_{each}timespec": SimpleNamespace() for each in "amc"}
    return SimpleNamespace(**times)


class LoadTests(SynchronousTestCase):
    """The choice."""

    def setUp(self) -> None:
        """Have both, for root."""
        self.there = {"fuse3": "libfuse3.so.3", "fuse": "libfuse.so.2"}
        self.patch(libfuse, "find_library", lambda name: self.there.get(name))
        self.patch(os, "environ", {})
        self.patch(os, "geteuid", lambda: 0)
        for major in (2, 3):
            self.patch(libfuse, f"_load_{major}", lambda major=major: make_libfuse(major=major))

    def test_preferred(self) -> None:
        """Libfuse 3 is used where it is there, else libfuse 2."""
        self.assertEqual(load().major, 3)
        del self.there["fuse3"]
        self.assertEqual(load().major, 2)

    def test_forced(self) -> None:
        """One that is asked for is used, or it is said that it is missing."""
        self.assertEqual([load(2).major, load(3).major], [2, 3])
        del self.there["fuse3"]
        self.assertIn("libfuse 3 is missing", str(self.assertRaises(NoLibfuse, load, 3)))

    def test_none(self) -> None:
        """Without either both are named, in one line."""
        self.there.clear()
        said = str(self.assertRaises(NoLibfuse, load))
        self.assertRegex(said, r"\Alibfuse 3 is missing .*; libfuse 2 is missing .*\Z")

    def test_program(self) -> None:
        """Users other than root need the program that mounts for them."""
        programs = ["fusermount"]
        self.patch(os, "geteuid", lambda: 1000)
        which = lambda name: name if name in programs else None  # noqa: E731
        self.patch(shutil, "which", which)
        self.assertEqual(load().major, 2)
        self.assertIn("fusermount3 is missing", str(self.assertRaises(NoLibfuse, load, 3)))
        programs.append("fusermount3")
        self.assertEqual(load().major, 3)

    def test_environment(self) -> None:
        """A file that the environment names counts as what it is."""
        self.patch(ctypes, "CDLL", lambda path: SimpleNamespace(fuse_version=lambda: 29))
        os.environ["FUSE_LIBRARY_PATH"] = "/opt/libfuse.so"
        self.assertEqual(load().major, 2)
        self.assertRaises(NoLibfuse, load, 3)

    def test_unusable(self) -> None:
        """
        Without a library that can be loaded, or the package that binds it, the other one is used;
        if neither can be, one line names what is wrong.
        """
        for error, text in [
            (OSError("wrong ELF class"), "libfuse 3 cannot be loaded: wrong ELF class"),
            (ModuleNotFoundError("No module named 'mfusepy'"), "libfuse 3 needs mfusepy, "),
        ]:

            def fail(error: Exception = error) -> Libfuse:
                raise error

            self.patch(libfuse, "_load_3", fail)
            self.assertEqual(load().major, 2)
            self.assertIn(text, str(self.assertRaises(NoLibfuse, load, 3)))
            del self.there["fuse"]
            said = str(self.assertRaises(NoLibfuse, load))
            self.assertRegex(said, rf"\A{text}.*; libfuse 2 is missing .*\Z")
            self.there["fuse"] = "libfuse.so.2"


class VersionTests(SynchronousTestCase):
    """What is there."""

    def test_version(self) -> None:
        """The version of libfuse is a number with a point, and it tells who asks."""
        try:
            found = load()
        except NoLibfuse as error:
            self.skipTest(str(error))
        self.assertRegex(found.version, rf"^{found.major}\.\d+$")
        self.assertEqual(make_libfuse((1, 2, 3)).asking_thread(), 3)


class MountTests(SynchronousTestCase):
    """Calls of libfuse."""

    def call(self, result: Any = None, error: BaseException | None = None) -> Any:
        """The answer to a call of an operation that ends like this."""

        def operation(argument: int) -> Any:
            self.assertEqual(argument, 5)
            if error is not None:
                raise error
            return result

        return Mount()._wrapper(operation, 5)

    def test_results(self) -> None:
        """A number is the answer, and nothing is 0."""
        self.assertEqual([self.call(7), self.call()], [7, 0])

    def test_errors(self) -> None:
        """An error of the system is the caller's."""
        for number in (errno.ENOENT, errno.ESTALE, errno.EIO):
            self.assertEqual(self.call(error=OSError(number, "")), -number)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_other_errors(self) -> None:
        """Anything else becomes EIO, and is logged."""
        for error in (OSError("no number"), KeyError(1), SystemExit(1), KeyboardInterrupt()):
            self.assertEqual(self.call(error=error), -errno.EIO)
            self.assertEqual(len(self.flushLoggedErrors(type(error))), 1, error)

    def test_attributes(self) -> None:
        """A file's attributes fill a struct stat; an open one is asked for by its handle."""
        asked = []

        def getattr(path: str, info: Any) -> Attributes:
            asked.append((path, info))
            return evolve(make_attributes(5), mtime=-1)

        mounted = Mount()
        mounted.operations = SimpleNamespace(getattr=getattr)
        status = make_status()
        mounted.fgetattr(b"/\xff", SimpleNamespace(contents=status), None)
        mounted.fgetattr(b"/\xff", SimpleNamespace(contents=status), SimpleNamespace(contents=8))
        self.assertEqual(asked, [("/\xff", None), ("/\xff", 8)])
        self.assertEqual((status.st_size, status.st_ino, status.st_nlink), (5, 7, 1))
        self.assertEqual(vars(status.st_mtimespec), {"tv_sec": -1, "tv_nsec": 999_999_999})

    def test_listing(self) -> None:
        """All names are listed with their attributes, as far as there is room; then the rest."""
        names = [(b"a", make_attributes(1)), (b"\xff \n", make_attributes(2))]
        expected = [(b".", None, 1), (b"..", None, 2), (b"a", 1, 3), (b"\xff \n", 2, 4)]
        asked, filled = [], []

        def readdir(*request: Any) -> Any:
            asked.append(request)
            return names

        def fill(name: bytes, status: Any, number: int) -> int:
            filled.append((name, status and status.st_size, number))
            return len(filled) >= room

        mounted = Mount()
        mounted.operations = SimpleNamespace(readdir=readdir)
        mounted.status = make_status
        info = SimpleNamespace(contents=SimpleNamespace(fh=8))
        for room, offset in ((9, 0), (3, 0), (1, 1), (9, 3), (9, 4), (9, 7)):
            filled.clear()
            mounted.list_directory(b"/", offset, info, fill)
            self.assertEqual(filled, expected[offset:][:room])
            self.assertEqual(asked.pop(), ("/", 8, offset))

    def test_read(self) -> None:
        """A read fills the buffer of libfuse, and goes no further than its size."""
        buffer = (ctypes.c_byte * 10)()
        mounted = Mount()
        asked = []

        def read(handle: int, offset: int, target: memoryview) -> int:
            asked.append((handle, offset))
            target[:] = b"nte"
            return 3

        mounted.operations = SimpleNamespace(read=read)
        info = SimpleNamespace(contents=SimpleNamespace(fh=8))
        pointer = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_byte))
        self.assertEqual(mounted.read(b"/a", pointer, 3, 2, info), 3)
        self.assertEqual(bytes(buffer), b"nte" + bytes(7))
        self.assertEqual(asked, [(8, 2)])
