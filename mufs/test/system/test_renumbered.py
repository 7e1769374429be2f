"""Disks that are mounted over the shared directory, and that get another device number."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.loopback import make_loopback, why_unavailable
from mufs.test.support.processes import wait_until
from mufs.test.support.trees import MIB


def run(*command: str) -> str:
    """Run a command, and return its output."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()


class RenumberedTests(SynchronousTestCase):
    """A server whose directory is a file system on a loop device."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Make the file system, with an image."""
        self.loopback = make_loopback(self)
        self.images = self.loopback.images
        self.data = os.urandom(MIB)
        self.disk = self.loopback.directory / "disk"
        with open(self.disk, "wb") as disk:
            disk.truncate(16 * MIB)
        run("mke2fs", "-q", "-t", "ext4", str(self.disk))
        device = self.attach(self.disk)
        self.mount(device)
        (self.images / "image").write_bytes(self.data)
        self.number = os.stat(self.images).st_dev
        self.unmount(device)

    def attach(self, file: Path) -> str:
        """Attach a file to a loop device."""
        device = run("losetup", "--find", "--show", str(file))
        self.addCleanup(subprocess.run, ["losetup", "-d", device], check=False, capture_output=True)
        return device

    def mount(self, device: str) -> None:
        """Mount a device over the shared directory."""
        run("mount", device, str(self.images))
        self.addCleanup(
            subprocess.run, ["umount", "-l", str(self.images)], check=False, capture_output=True
        )

    def unmount(self, device: str) -> None:
        """Unmount and detach a device."""
        run("umount", str(self.images))
        run("losetup", "-d", device)

    def test_another_number(self) -> None:
        """Mounted after the start it is noticed; with another number its images are the same."""
        server = self.loopback.start_server()
        self.loopback.start_client("here")
        shown = self.loopback.mount_point("here")
        self.assertEqual(os.listdir(shown), [])
        device = self.attach(self.disk)
        self.mount(device)
        wait_until(lambda: "image" in os.listdir(shown), 20, "the disk is seen")
        self.assertEqual(server.output.count("sharing that"), 1)
        with open(shown / "image", "rb", buffering=0) as image:
            self.assertEqual(image.read(MIB), self.data)
            server.stop()
            self.unmount(device)
            spare = self.loopback.directory / "spare"
            spare.write_bytes(bytes(MIB))
            self.attach(spare)
            self.mount(self.attach(self.disk))
            self.assertNotEqual(os.stat(self.images).st_dev, self.number)
            server = self.loopback.start_server()
            os.posix_fadvise(image.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            wait_until(lambda: server.status()["clients"], 20, "the client is back")
            self.assertEqual(os.pread(image.fileno(), MIB, 0), self.data)
            self.assertEqual(os.fstat(image.fileno()).st_size, MIB)
        self.assertEqual((shown / "image").read_bytes(), self.data)
        self.assertEqual(server.status()["image_read_bytes"], 0)
