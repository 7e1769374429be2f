"""Disks of the server that fail or hang: a FUSE file system mounted in the exported directory."""

from __future__ import annotations

import os
import signal
import sys
from errno import EIO
from pathlib import Path

from mufs.test.support.lab import SERVER, Lab
from mufs.test.support.processes import Program, mounted, wait_until
from mufs.test.system.test_failures import ENDED
from mufs.test.system.test_network import MIB, LabTestCase

DISK = """
import os, sys, time
from errno import EIO
from fuse import FUSE, FuseOSError, Operations

content, bad, hang, point = open(sys.argv[1], "rb").read(), int(sys.argv[2]), *sys.argv[3:]


class Disk(Operations):
    def getattr(self, path, handle=None):
        if path == "/":
            return {"st_mode": 0o40755, "st_nlink": 2, "st_mtime": 1, "st_ctime": 1}
        size = len(content)
        return {"st_mode": 0o100444, "st_nlink": 1, "st_size": size, "st_mtime": 1, "st_ctime": 1}

    def readdir(self, path, handle):
        return [".", "..", "disk.img"]

    def read(self, path, size, offset, handle):
        while os.path.exists(hang):
            time.sleep(0.02)
        if offset < bad + 512 and bad < offset + size:
            raise FuseOSError(EIO)
        return content[offset : offset + size]


FUSE(Disk(), point, foreground=True, direct_io=True)
"""
"""A file with a bad sector of 512 bytes, whose reads hang while another file exists."""

NOWHERE = 1 << 40
BAD = 5 * MIB // 2 + 3 * 4096


class DiskTestCase(LabTestCase):
    """Has a lab with an image on a good disk, and the same image on a faulty one."""

    def make_disk(self, hosts: int, bad: int = NOWHERE) -> Lab:
        lab = self.make_lab(hosts, 4 * MIB + 77)
        self.hang = lab.directory / "hang"
        self.content = (lab.images / "disk.img").read_bytes()
        point = lab.images / "bad"
        point.mkdir()
        source = lab.directory / "content"
        source.write_bytes(self.content)
        command = [sys.executable, "-c", DISK, *map(str, (source, bad, self.hang, point))]
        self.disk: Program = lab.start_program("disk", SERVER, command)
        # Ends hanging reads even if the test fails.
        self.addCleanup(self.disk.kill)
        self.disk.wait_until(lambda: mounted(point), 20, "mounts")
        self.server = lab.start_server()
        return lab


class BadSectorTests(DiskTestCase):
    """A bad sector in an image."""

    def test_alone(self) -> None:
        """The page with the bad sector gives EIO on every host; all other pages are read right."""
        lab = self.make_disk(2, BAD)
        lab.start_clients("--timeout", "10")
        lab.network.set_loss("host2", 1000)
        readers = lab.start_readers("bad/disk.img")
        for reading in [reader.result(60) for reader in readers]:
            self.assertEqual((reading.error, reading.size), ("EIO", BAD // 4096 * 4096))
        for host in lab.hosts:
            self.check_pages(lab.mount_point(host) / "bad" / "disk.img")
        self.assertNotIn("Traceback", self.server.output)

    def check_pages(self, path: Path) -> None:
        """Assert that all pages can be read but the one with the bad sector."""
        with open(path, "rb", buffering=0) as image:
            for offset in range(0, self.size, 4096):
                try:
                    data = os.pread(image.fileno(), 4096, offset)
                except OSError as error:
                    self.assertEqual((error.errno, offset), (EIO, BAD // 4096 * 4096))
                else:
                    self.assertEqual(data, self.content[offset : offset + 4096])


class HangingTests(DiskTestCase):
    """A disk that hangs for a while."""

    def test_others(self) -> None:
        """Reads of other images are not delayed by it, and its own end when it answers."""
        lab = self.make_disk(3)
        lab.start_clients()
        lab.network.set_loss("host2", 1000)
        self.hang.touch()
        hanging = [lab.start_reader(host, "bad/disk.img") for host in ("host1", "host2")]
        wait_until(lambda: self.server.status()["queue"], 10, "they wait")
        self.assert_right([reader.result(20) for reader in lab.start_readers("disk.img")])
        self.assertEqual([reader.running for reader in hanging], [True, True])
        self.hang.unlink()
        self.assert_right([reader.result(20) for reader in hanging])

    def test_too_long(self) -> None:
        """Its reads fail with EIO after the timeout, and succeed again once it answers."""
        lab = self.make_disk(1)
        lab.start_client("host1", "--timeout", "2")
        self.hang.touch()
        failed = lab.start_reader("host1", "bad/disk.img").result(20)
        self.assertEqual((failed.error, failed.size), ("EIO", 0))
        self.hang.unlink()
        self.assert_right([lab.start_reader("host1", "bad/disk.img").result(20)])

    def test_stop(self) -> None:
        """SIGTERM ends a server whose disk hangs."""
        lab = self.make_disk(1)
        lab.start_client("host1", "--timeout", "4")
        self.hang.touch()
        reader = lab.start_reader("host1", "bad/disk.img")
        wait_until(lambda: self.server.status()["queue"], 10, "it waits")
        self.server.signal(signal.SIGTERM)
        # It has stopped, but the kernel keeps the process while its read hangs.
        wait_until(lambda: "Server Shut Down" in self.server.output, 5, "the server ends")
        self.hang.unlink()
        self.assertIn(self.server.wait(5), ENDED)
        self.assertEqual(reader.result(20).error, "EIO")
