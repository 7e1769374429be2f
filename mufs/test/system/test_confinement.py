"""Hosts cannot leave the exported directory, even while files are moved and swapped in it."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.server.library import ExportedDirectory
from mufs.test.filesystem.server.test_library import (
    INSIDE,
    OUTSIDE,
    LibraryTestCase,
    descriptors_open,
)
from mufs.test.support import loopback
from mufs.test.support.channels import Server
from mufs.test.support.doubles import FakeTransport
from mufs.test.support.processes import mounted, wait_until
from mufs.wire.channel import Data, Priority, Read, Type, pack_tagged
from mufs.wire.metadata import At, Failure, Opened, decode, encode
from mufs.wire.pages import PAGE

IN_OPEN = 0x20

SWAP = """
import ctypes, os, sys
a, b = map(os.fsencode, sys.argv[1:])
swap = ctypes.CDLL(None, use_errno=True).renameat2
print("swapping", flush=True)
while True:
    if swap(-100, a, -100, b, 2):
        sys.exit(os.strerror(ctypes.get_errno()))
"""
"""Exchanges two files again and again, atomically (RENAME_EXCHANGE)."""

DEAD = """
import os, sys
from fuse import FUSE, Operations
FUSE(Operations(), sys.argv[1], foreground=True)
"""


class Opens:
    """Reports opens of files (inotify), except those with O_PATH."""

    def __init__(self, *paths: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for path in paths:
            if libc.inotify_add_watch(self._fd, os.fsencode(path), IN_OPEN) < 0:
                raise OSError(ctypes.get_errno(), "inotify")

    def happened(self) -> bool:
        """Return whether one of the files was opened since the last call."""
        found = bool(select.select([self._fd], [], [], 0)[0])
        return found and bool(os.read(self._fd, 65536))

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)


class ConfinementTestCase(LibraryTestCase):
    """Has files inside and outside of the root, and watches opens of files."""

    def swapping(self, a: Path, b: Path) -> subprocess.Popen[str]:
        """Start a process that exchanges two files until the test ends."""
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", SWAP, str(a), str(b)],
            stdout=subprocess.PIPE,
            text=True,
        )

        def end() -> None:
            process.kill()
            process.communicate(timeout=10)

        self.addCleanup(end)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), "swapping\n")
        return process

    def watch(self, *paths: Path) -> Opens:
        """Watch opens of these files."""
        opens = Opens(*paths)
        self.addCleanup(opens.close)
        return opens

    def attempt(self, operation: str, path: bytes) -> object:
        """Make an operation as a host does, and return its result, or C{None} for an error."""
        try:
            if operation == "open":
                return self.all_of(self.library.open(path))
            if operation == "readdir":
                return sorted(name for name, _ in self.library.readdir(path))
            if operation == "readlink":
                return self.library.readlink(path)
            return self.library.getattr(path).ino
        except OSError:
            return None

    def at_every_call(
        self, operation: str, path: bytes, change: Callable[[], object], back: Callable[[], object]
    ) -> list[object]:
        """Return the results of an operation with a change before each of its system calls."""
        seen = []
        for place in range(40):
            calls = 0

            def counted(real: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == place + 1:  # noqa: B023
                    change()
                return real(*args, **keywords)

            patches = [
                self.patch(os, name, partial(counted, getattr(os, name)))
                for name in ("dup", "open", "fstat", "scandir", "readlink", "pread")
            ]
            seen.append(self.attempt(operation, path))
            for patch in patches:
                patch.restore()
            if calls <= place:
                break
            back()
        self.assertGreater(len(seen), 2)
        return seen

    def exchange(self, a: Path, b: Path) -> None:
        """Exchange two files."""
        os.rename(a, f"{a}.away")
        os.rename(b, a)
        os.rename(f"{a}.away", b)


class SpecialFileTests(ConfinementTestCase):
    """FIFOs and devices are listed, and never opened."""

    def setUp(self) -> None:
        """Make a FIFO with a reader and a device, and watch them."""
        super().setUp()
        self.fifo, self.device = self.root / "fifo", self.root / "device"
        os.mkfifo(self.fifo)
        # With a peer, opening the FIFO by mistake does not block the test.
        self.addCleanup(os.close, os.open(self.fifo, os.O_RDWR))
        special = [self.fifo]
        if os.geteuid() == 0:
            os.mknod(self.device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
            special.append(self.device)
        self.special = special
        self.opens = self.watch(*special)

    def test_watch(self) -> None:
        """Watches report opens of FIFOs and devices, except with O_PATH."""
        for path in self.special:
            os.close(os.open(path, os.O_PATH))
            self.assertFalse(self.opens.happened())
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            self.assertTrue(self.opens.happened())

    def test_never_opened(self) -> None:
        """No operation opens special files, neither by name nor by a listing."""
        for path in self.special:
            name = os.fsencode(path.name)
            self.assertEqual(self.attempt("getattr", name), path.stat().st_ino)
            for operation in ("open", "readdir", "readlink"):
                self.assertIsNone(self.attempt(operation, name))
            self.assertIsNone(self.attempt("open", name + b"/below"))
            self.assertIn(name, dict(self.library.readdir(b"")))
        self.assertFalse(self.opens.happened())

    def test_swapped(self) -> None:
        """Special files that replace a file or directory during a look-up are not opened."""
        for special in self.special:
            for operation, name in [("open", "file"), ("readdir", "sub"), ("open", "sub")]:
                swap = partial(self.exchange, self.root / name, special)
                self.at_every_call(operation, name.encode(), swap, swap)
                self.assertFalse(self.opens.happened(), f"{operation} {special}")

    def test_swapped_all_the_time(self) -> None:
        """A FIFO is not opened while another process exchanges it with a file."""
        self.swapping(self.root / "file", self.fifo)
        seen = {self.attempt("open", b"file") for _ in range(3000)}
        self.assertLessEqual(seen, {INSIDE, None})
        self.assertFalse(self.opens.happened())

    def test_devices(self) -> None:
        """Devices cannot be opened even if /dev is exported."""
        self.library = ExportedDirectory("/dev")
        for name in (b"null", b"zero", b"tty", b"fd"):
            self.assertIsNone(self.attempt("open", name))

    def test_links_of_proc(self) -> None:
        """The magic links of /proc are not followed."""
        self.library = ExportedDirectory("/proc")
        here = b"%d" % os.getpid()
        for path in (
            b"self/status",
            here + b"/root/etc/passwd",
            here + b"/cwd",
            here + b"/exe",
            here + b"/fd/0",
            here + b"/root/..",
            here + b"/cwd/..",
        ):
            self.assertIsNone(self.attempt("open", path))
        self.assertIsNone(self.attempt("readdir", here + b"/root"))
        self.assertIsNone(self.attempt("readdir", here + b"/cwd"))
        self.assertEqual(self.attempt("readlink", here + b"/cwd"), os.fsencode(os.getcwd()))


class SwapTests(ConfinementTestCase):
    """Another process exchanges files during look-ups."""

    def setUp(self) -> None:
        """Make links that lead outside of the root."""
        super().setUp()
        os.symlink(self.outside, self.root / "link")
        os.symlink(self.outside / "file", self.root / "link to file")

    def test_directory(self) -> None:
        """A directory that is exchanged with a link never leads outside."""
        self.swapping(self.root / "sub", self.root / "link")
        for _ in range(1500):
            self.assertIn(self.attempt("open", b"sub/file"), (INSIDE, None))
            self.assertIn(self.attempt("readdir", b"sub"), ([b"file"], None))
            self.assertIsNone(self.attempt("open", b"sub/secret"))
            self.assertIn(self.attempt("readlink", b"sub"), (os.fsencode(self.outside), None))

    def test_server(self) -> None:
        """A client on the server's channel never reads outside while files are exchanged."""
        server = Server()
        server.factory.view = lambda _: self.library
        channel, wire = server.connect()
        self.assertEqual(self.read_over_tcp(server, channel, wire), INSIDE)
        self.swapping(self.root / "file", self.root / "link to file")
        results = set()
        for _ in range(500):
            results.add(self.read_over_tcp(server, channel, wire))
        self.assertLessEqual(results, {INSIDE, "ELOOP", "ENOENT", "ESTALE"})

    def read_over_tcp(self, server: Server, channel: Any, wire: FakeTransport) -> object:
        """Read a file as a client, and return its bytes or the name of the errno."""
        channel.dataReceived(pack_tagged(Type.OPEN, 1, encode(At(b"file"))))
        ((kind, _, body),) = wire.tagged()
        if kind == Type.ERROR:
            return decode(Failure, body).errno
        found = decode(Opened, body)
        read = Read(2, found.handle, 0, found.attributes.size, Priority.BLOCKED, over_tcp=True)
        channel.dataReceived(read.encode())
        server.clock.advance(0.1)
        ((kind, offset, body),) = wire.packets()
        return Data.parse(offset, body).payload if kind == Type.DATA else "ESTALE"


class MovedTests(ConfinementTestCase):
    """A directory is moved out of the root during a walk, or while an image is open."""

    def test_during_walk(self) -> None:
        """
        A walk continues in a directory that was moved away, but sees nothing around its new place.
        """
        away = self.outside / "away"
        (self.outside / "away.sibling").write_bytes(OUTSIDE)
        move = partial(os.rename, self.root / "sub", away)
        back = partial(os.rename, away, self.root / "sub")
        seen = self.at_every_call("open", b"sub/file", move, back)
        self.assertLessEqual(set(seen), {INSIDE, None})
        self.assertIn(INSIDE, seen)
        self.assertIn(None, seen)
        listings = self.at_every_call("readdir", b"sub", move, back)
        self.assertTrue(all(seen in ([b"file"], None) for seen in listings))

    def test_open_image(self) -> None:
        """An open image remains readable after its directory was moved away, but not its path."""
        image = self.library.open(b"sub/file")
        os.rename(self.root / "sub", self.outside / "away")
        self.assertEqual(self.all_of(image), INSIDE)
        self.assert_errno(errno.ENOENT, self.library.open, b"sub/file")
        self.assert_errno(errno.ENOENT, self.library.readdir, b"sub")

    def test_root(self) -> None:
        """The root remains the same directory when it is moved and replaced."""
        os.rename(self.root, self.outside / "moved")
        os.mkdir(self.root)
        (self.root / "file").write_bytes(OUTSIDE)
        self.assertEqual(self.attempt("open", b"file"), INSIDE)

    def test_deep(self) -> None:
        """A walk of a thousand directories succeeds, and leaves no descriptor open."""
        self.addCleanup(subprocess.run, ["rm", "-rf", str(self.root)], check=True)
        here = os.open(self.root, os.O_RDONLY)
        for _ in range(1000):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here))
        os.close(here)
        before = descriptors_open()
        path = b"d/" * 1000
        self.assertEqual(self.attempt("readdir", path[:-1]), [b"file"])
        self.assertEqual(self.attempt("open", path + b"file"), b"")
        self.assert_errno(errno.ENOENT, self.library.open, path + b"d/file")
        self.assertEqual(descriptors_open(), before)


class OtherFileSystemTests(SynchronousTestCase):
    """Other file systems beneath the root."""

    def test_times(self) -> None:
        """Times out of range are clamped, and the file is still listed."""
        if not os.path.isdir("/dev/shm"):
            self.skipTest("needs a tmpfs")
        root = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, root)
        path = Path(root, "file")
        path.touch()
        library = ExportedDirectory(root)
        for far in (1 << 70, -(1 << 70)):
            os.utime(path, ns=(far, far))
            self.assertEqual(path.stat().st_mtime_ns // 10**9, far // 10**9)
            found = library.getattr(b"file")
            self.assertEqual(decode(type(found), encode(found)), found)
            self.assertEqual(found.mtime > 0, far > 0)

    def test_dead(self) -> None:
        """A listing omits a dead file system beneath the root, and nothing else."""
        root = Path(self.mktemp()).absolute()
        dead = root / "dead"
        dead.mkdir(parents=True)
        (root / "file").write_bytes(INSIDE)
        self.addCleanup(loopback.unmount, dead)
        process = subprocess.Popen([sys.executable, "-c", DEAD, str(dead)])
        self.addCleanup(process.wait, 10)
        self.addCleanup(process.kill)
        wait_until(lambda: mounted(dead), 10, "mounted")
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        library = ExportedDirectory(str(root))
        self.assertRaises(OSError, library.getattr, b"dead")
        self.assertEqual([name for name, _ in library.readdir(b"")], [b"file"])

    test_dead.skip = loopback.why_unavailable()  # type: ignore[attr-defined]

    def test_mounted(self) -> None:
        """A file system mounted beneath the root is exported, with distinct inodes."""
        top = Path(self.mktemp()).absolute()
        root, other = top / "root", top / "other"
        (root / "mnt").mkdir(parents=True)
        other.mkdir()
        self.addCleanup(loopback.unmount, root / "mnt")
        subprocess.run(["mount", "-t", "tmpfs", "none", str(root / "mnt")], check=True)
        (root / "mnt" / "file").write_bytes(b"x" * PAGE)
        library = ExportedDirectory(str(root))
        image = library.open(b"mnt/file")
        self.assertEqual(image.read(0, PAGE), b"x" * PAGE)
        self.assertNotEqual(image.attributes.ino, (root / "mnt" / "file").stat().st_ino)
        error = self.assertRaises(OSError, library.getattr, b"mnt/..")
        self.assertEqual(error.errno, errno.EACCES)

    test_mounted.skip = loopback.why_unavailable()  # type: ignore[attr-defined]
