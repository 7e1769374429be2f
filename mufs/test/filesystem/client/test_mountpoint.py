"""The kernel's list of mounts, and directories that a client can be mounted at."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client import mountpoint
from mufs.filesystem.client.mountpoint import (
    AUTOMOUNT,
    TYPE,
    Mounted,
    UnusableMountPoint,
    claim,
    make_ready,
    mounts,
    uppermost,
)


class MountTableTestCase(SynchronousTestCase):
    """Has a list of mounts of its own, which is empty."""

    def setUp(self) -> None:
        """Put it in place of the kernel's."""
        self.table = Path(self.mktemp())
        self.table.write_bytes(b"")
        self.patch(mountpoint, "MOUNT_TABLE", str(self.table))

    def add(self, number: int, path: bytes, kind: str, optional: bytes = b"shared:1 ") -> None:
        """Add a line, with the path as the kernel writes it."""
        with self.table.open("ab") as table:
            table.write(b"%d 1 0:%d / %s rw,relatime " % (number, number, path))
            table.write(optional + b"- " + kind.encode() + b" none rw\n")


class MountsTests(MountTableTestCase):
    """What is mounted where."""

    def test_paths(self) -> None:
        """Paths are the bytes that they are, whatever the kernel escapes in them."""
        written = [rb"/a\040b", rb"/tab\011new\012line", rb"/back\134slash", rb"/\134040", b"/\xff"]
        for number, path in enumerate(written):
            self.add(number, path, "ext4")
        paths = [path for path, _ in mounts()]
        self.assertEqual(paths, [b"/a b", b"/tab\tnew\nline", rb"/back\slash", rb"/\040", b"/\xff"])

    def test_unescaped(self) -> None:
        """Blank characters that the kernel does not escape are part of the path."""
        self.add(1, b"/a\rb\x0bc\x0cd", TYPE)
        self.assertEqual(list(mounts()), [(b"/a\rb\x0bc\x0cd", Mounted(1, "0:1", TYPE))])

    def test_optional_fields(self) -> None:
        """The type is found after any number of optional fields."""
        for number, optional in enumerate((b"", b"shared:1 ", b"shared:1 master:2 unbindable ")):
            self.add(number, b"/mnt", "ext4", optional)
        found = [there for _, there in mounts()]
        self.assertEqual(found, [Mounted(number, f"0:{number}", "ext4") for number in range(3)])

    def test_uppermost(self) -> None:
        """Of several mounts at a path the last one counts; mounts beneath the path do not."""
        self.add(9, b"/mnt", AUTOMOUNT)
        self.assertEqual(uppermost("/mnt"), Mounted(9, "0:9", AUTOMOUNT))
        self.add(3, b"/mnt", TYPE)
        self.add(10, b"/mnt/below", "ext4")
        self.add(11, b"/mnt2", "ext4")
        self.assertEqual(uppermost("/mnt"), Mounted(3, "0:3", TYPE))

    def test_not_mounted(self) -> None:
        """A path where nothing is mounted has no mount, even if there is one beneath it."""
        self.add(1, b"/mnt/below", TYPE)
        self.assertIsNone(uppermost("/mnt"))

    def test_any_name(self) -> None:
        """A path that is not valid UTF-8 is found by its name with surrogate escapes."""
        self.add(1, b"/\xffa\\040b", TYPE)
        self.assertEqual(uppermost("/\udcffa b"), Mounted(1, "0:1", TYPE))

    def test_kernel(self) -> None:
        """The kernel's own list can be read."""
        self.patch(mountpoint, "MOUNT_TABLE", "/proc/self/mountinfo")
        self.assertTrue(all(path.startswith(b"/") for path, _ in mounts()))


class MakeReadyTests(MountTableTestCase):
    """Directories, fit and unfit."""

    def setUp(self) -> None:
        """Have an empty directory, and no fusermount."""
        super().setUp()
        self.point = Path(self.mktemp()).absolute()
        self.point.mkdir()
        self.ran: list[list[str]] = []
        self.dead = 0
        self.patch(subprocess, "run", self.run_fusermount)
        self.patch(mountpoint, "DEVICE", os.devnull)

    def run_fusermount(self, arguments: list[str], check: bool) -> None:
        """Unmount what is there."""
        self.ran.append(arguments)
        self.dead -= 1

    def leave(self, kind: str, dead: int) -> None:
        """Leave mounts at the directory, the topmost C{dead} of which are dead."""
        self.add(1, os.fsencode(self.point), kind)
        self.dead = dead
        stat: Any = os.stat

        def lookup(path: Any, *args: Any, **more: Any) -> Any:
            if path == str(self.point) and self.dead:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            return stat(path, *args, **more)

        self.patch(os, "stat", lookup)

    def assert_refused(self, path: Path, reason: str) -> None:
        """The directory is refused for this reason."""
        error = self.assertRaises(UnusableMountPoint, make_ready, str(path))
        self.assertEqual(str(error), reason)

    def test_fit(self) -> None:
        """An empty directory is accepted; the path returned is absolute and without links."""
        link = self.point.parent / f"{self.point.name}.link"
        link.symlink_to(self.point)
        for path in (self.point, link, os.path.relpath(link)):
            self.assertEqual(make_ready(str(path)), os.path.realpath(self.point))
        self.assertEqual(self.ran, [])

    def test_unfit(self) -> None:
        """What is missing, a file, or not empty is refused."""
        (self.point / "file").touch()
        self.assert_refused(self.point, "is not empty")
        self.assert_refused(self.point / "none", os.strerror(errno.ENOENT))
        self.assert_refused(self.point / "file", os.strerror(errno.ENOTDIR))

    def test_in_use(self) -> None:
        """A directory where a client is mounted is refused, and its mount stays."""
        self.leave(TYPE, dead=0)
        self.assert_refused(self.point, "an mUFS client is mounted there already")
        self.assertEqual(self.ran, [])

    def test_other_mount(self) -> None:
        """Another file system that is empty, and an automount point, may be mounted over."""
        for kind in ("ext4", AUTOMOUNT):
            self.leave(kind, dead=0)
            self.assertEqual(make_ready(str(self.point)), str(self.point))
        self.assertEqual(self.ran, [])

    def test_dead(self) -> None:
        """The dead mount of a client that was killed is unmounted."""
        self.leave(TYPE, dead=1)
        self.assertEqual(make_ready(str(self.point)), str(self.point))
        self.assertEqual(self.ran, [["fusermount", "-u", "-z", "-q", "--", str(self.point)]])

    def test_dead_beneath(self) -> None:
        """If the directory is still dead after that, it is refused."""
        self.leave(TYPE, dead=2)
        self.assert_refused(self.point, "a dead mount is left there, and cannot be unmounted")
        self.assertEqual(len(self.ran), 1)

    def test_dead_other(self) -> None:
        """The dead mount of another file system is refused, and stays."""
        self.leave("fuse.other", dead=1)
        self.assert_refused(self.point, "a dead mount of another file system is left there")
        self.assertEqual(self.ran, [])

    def test_no_fusermount(self) -> None:
        """Without fusermount a dead mount is refused, and the error says why."""

        def run(arguments: list[str], check: bool) -> None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "fusermount")

        self.leave(TYPE, dead=1)
        self.patch(subprocess, "run", run)
        reason = f"a dead mount is left there; fusermount: {os.strerror(errno.ENOENT)}"
        self.assert_refused(self.point, reason)


class DeviceTests(SynchronousTestCase):
    """A host, or a container, without FUSE."""

    def test_missing(self) -> None:
        """Nothing can be mounted there, which is said at once."""
        self.patch(mountpoint, "DEVICE", "/none")
        error = self.assertRaises(UnusableMountPoint, make_ready, ".")
        self.assertIn("/none is missing", str(error))


class ClaimTests(MountTableTestCase):
    """Clients that want the same mount point before anything is mounted there."""

    def setUp(self) -> None:
        """Have an empty directory."""
        super().setUp()
        self.path = os.path.realpath(self.mktemp())
        os.mkdir(self.path)

    def test_claim(self) -> None:
        """Only one has it, for as long as its descriptor is open."""
        first = claim(self.path)
        error = self.assertRaises(UnusableMountPoint, claim, self.path)
        self.assertIn("another mUFS client", str(error))
        os.close(first)
        os.close(claim(self.path))

    def test_mounted(self) -> None:
        """Where a client has mounted in the meantime there is nothing to claim."""
        self.add(1, self.path.encode(), TYPE)
        error = self.assertRaises(UnusableMountPoint, claim, self.path)
        self.assertIn("mounted there already", str(error))

    def test_no_locks(self) -> None:
        """A file system without locks is no reason not to mount."""

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        self.patch(fcntl, "flock", refuse)
        os.close(claim(self.path))
