"""Mount points: which are accepted, and their state when a client ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs.sockets import ask, escape
from mufs.test.support.loopback import make_loopback, unmount, why_unavailable
from mufs.test.support.processes import Service, mounted, wait_until

END_TIMEOUT = 10.0
"""Seconds that the end of a process may take on a busy machine."""

ENDED = (0, -signal.SIGTERM)
"""Exit statuses of a service after SIGTERM."""

OTHER = """
import sys
from fuse import FUSE, Operations
FUSE(Operations(), sys.argv[1], foreground=True, subtype="other")
"""
"""A FUSE file system that is not mUFS."""


def file_system(path: Path) -> str | None:
    """Return the type of the topmost mount at a path, without accessing it."""
    found = None
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            if before.split()[4] == str(path):
                found = after.split()[0]
    return found


def close(descriptor: int) -> None:
    """Close a file, ignoring the error if its mount is gone."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


class MountPointTestCase(SynchronousTestCase):
    """Has a server with one image, and an unused mount point."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Start the server."""
        self.loopback = make_loopback(self)
        (self.loopback.images / "image").write_bytes(b"i" * 1_000_000)
        self.server = self.loopback.start_server()
        self.point = self.loopback.mount_point("point")

    def start_client(self, name: str = "client", *options: str) -> Service:
        """Start a client, and wait for its mount."""
        return self.loopback.start_client(name, *options, point=self.point)

    def assert_serves(self) -> None:
        """Assert that the image can be read at the mount point."""
        self.assertEqual((self.point / "image").read_bytes() == b"i" * 1_000_000, True)

    def assert_refused(self, service: Service, *expected: str) -> None:
        """Assert that it ends with status 1 and one line on standard error with the reason."""
        self.assertEqual(service.wait(20), 1)
        lines = [line for line in service.output.splitlines() if not line.startswith("20")]
        self.assertEqual(len(lines), 1, service.output)
        for each in expected:
            self.assertIn(each, lines[0])


class RefusalTests(MountPointTestCase):
    """Services that cannot start end with one line and status 1."""

    def test_unfit(self) -> None:
        """A mount point that is missing, not a directory, not empty or in use is refused."""
        self.start_client()
        full = self.loopback.mount_point("full")
        (full / "file").touch()
        for number, (point, reason) in enumerate(
            (
                (self.loopback.directory / "none", "No such file"),
                (full / "file", "Not a directory"),
                (full, "not empty"),
                (self.point, "mounted there already"),
            )
        ):
            service = self.loopback.launch_client(f"refused{number}", point=point)
            self.assert_refused(service, str(point), reason)
        self.assert_serves()
        self.assertTrue(mounted(self.point))

    def test_in_use_under_another_name(self) -> None:
        """A mount point in use is refused under any of its names, including non-ASCII ones."""
        self.point = self.loopback.mount_point("Größe und\tmehr")
        os.unlink(self.loopback.images / "image")
        self.loopback.launch_client("first", point=self.point)
        wait_until(lambda: os.path.ismount(self.point), 20, "mounted")
        self.addCleanup(subprocess.run, ["umount", "-l", str(self.point)], check=False)
        os.symlink(self.point, self.loopback.directory / "other name")
        for number, path in enumerate((self.point, self.loopback.directory / "other name")):
            service = self.loopback.launch_client(f"again{number}", point=path)
            self.assert_refused(service, "mounted there already")

    def test_at_the_same_time(self) -> None:
        """Of two clients that wait for one server at one place one ends, and leaves the other."""
        os.unlink(self.loopback.images / "image")
        self.server.stop()
        first = self.loopback.launch_client("first", point=self.point)
        first.wait_until(lambda: "waiting for" in first.output, 20, "waits")
        second = self.loopback.launch_client("second", point=self.point)
        self.assert_refused(second, str(self.point), "another mUFS client")
        self.loopback.start_server()
        first.wait_until(lambda: mounted(self.point), 20, "mounts")
        path = self.loopback.directory / "run" / "client" / f"{escape(str(self.point))}.sock"
        self.assertTrue(ask(str(path))["connected"])

    def test_port_taken(self) -> None:
        """A server whose port is taken ends, and the one that has it continues."""
        second = self.loopback.start_server("second", wait=False)
        self.assert_refused(second, str(self.loopback.port), "in use")
        self.start_client()
        self.assert_serves()


class EndTests(MountPointTestCase):
    """The end of a client."""

    def test_killed(self) -> None:
        """After a client was killed, another one mounts at the same mount point."""
        first = self.start_client()
        file = os.open(self.point / "image", os.O_RDONLY)
        self.addCleanup(close, file)
        first.kill()
        self.start_client("next")
        self.assert_serves()
        self.assertRaises(OSError, os.pread, file, 10, 0)

    def test_unmounted_by_hand(self) -> None:
        """fusermount -u ends the client with status 0."""
        client = self.start_client()
        self.assert_serves()
        subprocess.run(["fusermount", "-u", self.point], check=True, timeout=10)
        self.assertEqual(client.wait(END_TIMEOUT), 0)
        self.assertNotIn("Traceback", client.output)

    def test_busy(self) -> None:
        """SIGTERM ends a client with open and mapped files, and leaves no mount."""
        client = self.start_client()
        file = os.open(self.point / "image", os.O_RDONLY)
        self.addCleanup(close, file)
        self.assertLess(client.stop(), END_TIMEOUT)
        self.assertIn(client.wait(), ENDED)
        self.assertFalse(mounted(self.point))
        self.assertRaises(OSError, os.pread, file, 10, 0)
        self.assertEqual(os.listdir(self.point), [])
        self.assertNotIn("Traceback", client.output)

    def test_while_mounting(self) -> None:
        """SIGTERM during mounting ends the client, and leaves no mount."""
        for number in range(5):
            client = self.loopback.launch_client(f"client{number}", point=self.point)
            while client.running and not mounted(self.point):
                pass
            for each in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):
                client.signal(each)
            self.assertIn(client.wait(END_TIMEOUT), ENDED)
            self.assertFalse(mounted(self.point))

    def test_odd_names(self) -> None:
        """A mount point may have any name, and is unmounted at the end."""
        for number, name in enumerate(("with space", "Größe", "a,b=c", "back\\slash", "-u", "#")):
            self.point = self.loopback.mount_point(name)
            client = self.loopback.launch_client(f"client{number}", point=self.point)
            wait_until(lambda: os.path.ismount(self.point), 20, f"mounted at {name}")
            self.assert_serves()
            self.assertLess(client.stop(), END_TIMEOUT)
            self.assertFalse(os.path.ismount(self.point), name)

    def test_successor(self) -> None:
        """A client that ends late does not unmount a newer client's mount."""
        first = self.start_client("first")
        file = os.open(self.point / "image", os.O_RDONLY)
        subprocess.run(["fusermount", "-u", "-z", self.point], check=True, timeout=10)
        second = self.start_client("second")
        os.close(file)
        self.assertEqual(first.wait(END_TIMEOUT), 0, first.output)
        time.sleep(0.5)
        self.assertTrue(second.running)
        self.assertTrue(mounted(self.point))
        self.assert_serves()


class SilentServerTests(MountPointTestCase):
    """The server does not answer, but keeps its connections."""

    def freeze(self, timeout: int) -> None:
        """Mount with this timeout in seconds, and freeze the server."""
        self.client = self.start_client("client", "--timeout", str(timeout), "--offline-for", "0")
        self.assert_serves()
        time.sleep(1.1)  # until cached attributes expire
        self.server.signal(signal.SIGSTOP)

    def test_timeout(self) -> None:
        """An operation fails after the timeout, and succeeds when the server answers again."""
        self.freeze(3)
        begin = time.monotonic()
        self.assertRaises(OSError, os.stat, self.point / "image")
        self.assertGreater(time.monotonic() - begin, 2.9)
        self.server.signal(signal.SIGCONT)
        self.assert_serves()

    def test_unmounted(self) -> None:
        """fusermount -u unmounts immediately, and ends the client."""
        self.freeze(60)
        begin = time.monotonic()
        subprocess.run(["fusermount", "-u", self.point], check=True, timeout=END_TIMEOUT)
        self.client.wait(END_TIMEOUT)
        self.assertLess(time.monotonic() - begin, END_TIMEOUT)

    def test_waiting(self) -> None:
        """SIGTERM ends a client with a waiting reader, which gets an error."""
        self.freeze(60)
        with subprocess.Popen(["ls", "-l", self.point], stderr=subprocess.PIPE) as reader:
            time.sleep(0.5)
            self.assertIsNone(reader.poll())
            self.assertLess(self.client.stop(), END_TIMEOUT)
            self.assertNotEqual(reader.wait(END_TIMEOUT), 0)
        self.assertFalse(mounted(self.point))


class OtherFileSystemTests(MountPointTestCase):
    """Other file systems at the mount point are left alone."""

    def mount_other(self) -> None:
        """Mount a small file system."""
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(self.point)]
        subprocess.run(command, check=True)

    def test_in_use(self) -> None:
        """A client does not mount over a file system with files."""
        self.mount_other()
        (self.point / "file").touch()
        self.assert_refused(self.loopback.launch_client("client", point=self.point), "not empty")
        self.assertEqual(os.listdir(self.point), ["file"])

    def test_empty(self) -> None:
        """An empty file system at the mount point is still mounted after the client's end."""
        self.mount_other()
        client = self.loopback.launch_client("client", point=self.point)
        wait_until(
            lambda: not client.running or file_system(self.point) == "fuse.mufs", 20, "mounts"
        )
        if client.running:
            client.stop()
            time.sleep(0.5)
        self.assertEqual(file_system(self.point), "tmpfs")

    def test_on_top(self) -> None:
        """A file system mounted over the client's mount is still mounted after its end."""
        client = self.start_client()
        self.mount_other()
        client.stop()
        time.sleep(0.5)
        self.assertEqual(file_system(self.point), "tmpfs")

    def test_mounted_since(self) -> None:
        """A file system mounted after the client's mount was removed stays mounted."""
        client = self.start_client()
        file = os.open(self.point / "image", os.O_RDONLY)
        subprocess.run(["fusermount", "-u", "-z", self.point], check=True, timeout=10)
        self.mount_other()
        os.close(file)
        client.wait(END_TIMEOUT)
        time.sleep(0.5)
        self.assertEqual(file_system(self.point), "tmpfs")

    def test_dead(self) -> None:
        """A dead mount of another FUSE file system is refused, and not unmounted."""
        other = subprocess.Popen([sys.executable, "-c", OTHER, self.point])
        self.addCleanup(unmount, self.point)
        wait_until(lambda: file_system(self.point) == "fuse.other", 20, "mounted")
        other.kill()
        other.wait(10)
        self.assert_refused(self.loopback.launch_client("client", point=self.point))
        self.assertEqual(file_system(self.point), "fuse.other")


class LimitTests(SynchronousTestCase):
    """A server with a system's default resource limits."""

    skip = why_unavailable() or (None if shutil.which("prlimit") else "needs prlimit")

    def test_open_files(self) -> None:
        """A server raises a low soft limit of open files when it needs more."""
        loopback = make_loopback(self)
        for number in range(120):
            (loopback.images / str(number)).write_text(str(number))
        loopback.start_server(enter=("prlimit", "--nofile=64:4096"))
        loopback.start_client("client")
        with contextlib.ExitStack() as opened:
            for number in range(120):
                path = loopback.mount_point("client") / str(number)
                self.assertEqual(opened.enter_context(open(path)).read(), str(number))
