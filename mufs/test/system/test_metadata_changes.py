"""Images whose metadata change while they are read: their bytes are sent once."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.loopback import make_loopback, why_unavailable
from mufs.test.support.processes import wait_until
from mufs.test.support.trees import MIB

CHANGES = 1000
"""Changes of metadata during the reads."""


class MetadataChangeTests(SynchronousTestCase):
    """A server and a client, and an image."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Start both."""
        self.loopback = make_loopback(self)
        self.data = os.urandom(4 * MIB)
        self.image = self.loopback.images / "image"
        self.image.write_bytes(self.data)
        self.server = self.loopback.start_server(options=("--no-root-squash",))
        self.loopback.start_client("here")
        self.shown = self.loopback.mount_point("here") / "image"

    def sent(self) -> int:
        """Bytes that the server has read of images."""
        return int(self.server.status()["image_read_bytes"])

    def read_all(self, descriptor: int) -> bytes:
        """All bytes of the image as the client has it, without the kernel's pages of it."""
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(descriptor, len(self.data), 0)

    def change(self) -> None:
        """Change the metadata of the image in all ways, many times."""
        other = f"{self.image}.other"
        for number in range(CHANGES // 5):
            self.image.chmod(0o600 | number & 0o77)
            os.link(self.image, other)
            os.chown(self.image, number, number)
            os.utime(self.image)
            os.unlink(other)
            if number % 5 == 0:
                subprocess.run(["touch", str(self.image)], check=True)

    def test_many(self) -> None:
        """1,000 changes of metadata during reads: no ESTALE, the right bytes, none sent twice."""
        open_all_the_time = os.open(self.shown, os.O_RDONLY)
        self.addCleanup(os.close, open_all_the_time)
        changing = Thread(target=self.change)
        changing.start()
        wrong, passes = 0, 0
        try:
            while changing.is_alive() or not passes:
                wrong += self.read_all(open_all_the_time) != self.data
                opened = os.open(self.shown, os.O_RDONLY)
                try:
                    os.fstat(opened)
                    wrong += self.read_all(opened) != self.data
                finally:
                    os.close(opened)
                passes += 1
        finally:
            changing.join()
        self.assertEqual(wrong, 0)
        self.assertEqual(self.sent(), len(self.data))

    def test_attributes(self) -> None:
        """The mount shows the new attributes after a second at most, and the same bytes."""
        with open(self.shown, "rb", buffering=0) as image:
            image.read()
            self.image.chmod(0o640)
            os.utime(self.image, (1, 1))

            def is_shown() -> bool:
                found = os.fstat(image.fileno())
                return (found.st_mode & 0o777, found.st_mtime) == (0o640, 1)

            wait_until(is_shown, 10, "shows the new attributes")
            self.assertEqual(self.read_all(image.fileno()), self.data)
        self.assertEqual(self.sent(), len(self.data))

    def test_closed(self) -> None:
        """An image that nobody has open may be touched as well."""
        self.assertEqual(self.shown.read_bytes(), self.data)
        for change in (["chmod", "600"], ["touch"], ["chown", "1"]):
            subprocess.run([*change, str(self.image)], check=True)
            self.assertEqual(self.shown.read_bytes(), self.data)
        self.assertEqual(self.sent(), len(self.data))

    def test_loop_device(self) -> None:
        """An image that is written to by a loop device is stale, also when it is touched then."""
        with open(self.shown, "rb", buffering=0) as image:
            image.read(4096)
            device = _losetup("--find", "--show", str(self.image))
            try:
                with open(device, "r+b", buffering=0) as disk:
                    disk.write(hashlib.sha256(b"new").digest() * 128)
                    os.fsync(disk.fileno())
                subprocess.run(["touch", str(self.image)], check=True)
            finally:
                _losetup("--detach", device)
            with self.assertRaises(OSError) as raised:
                os.pread(image.fileno(), 4096, 2 * MIB)
            self.assertEqual(raised.exception.errno, errno.ESTALE)
        self.assertEqual(self.shown.read_bytes(), self.image.read_bytes())


def _losetup(*arguments: str) -> str:
    return subprocess.run(
        ["losetup", *arguments], check=True, capture_output=True, text=True, timeout=20
    ).stdout.strip()
