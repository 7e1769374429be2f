"""Clients with a persistent cache: real processes, mounts and SIGKILL."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.lab import write_image
from mufs.test.support.loopback import Loopback, unmount, why_unavailable
from mufs.test.support.processes import CHECKOUT, MUFS, Service, wait_until

MIB = 1 << 20


class PersistentCacheTestCase(SynchronousTestCase):
    """Has a server with one image, and a cache directory for its client."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Start the server."""
        self.loopback = Loopback()
        self.addCleanup(self.loopback.close)
        self.cache_path = self.loopback.directory / "cache"
        self.image = self.loopback.images / "disk.img"
        self.size = 12 * MIB + 1237
        self.sha256 = write_image(self.image, self.size)
        self.server = self.loopback.start_server()
        timer = self.loopback.guard()
        self.addCleanup(timer.cancel)

    def start(self, *options: str) -> Service:
        """Start the client."""
        return self.loopback.start_client("here", "--cache-dir", str(self.cache_path), *options)

    def read(self) -> str:
        """Return the SHA-256 of the image on the mount, read past the kernel's page cache."""
        path = self.loopback.mount_point("here") / "disk.img"
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def sent(self) -> int:
        """Return the bytes of file data that the server has sent."""
        figures = self.server.status()
        sent: int = figures["bytes_multicast"] + figures["bytes_over_tcp"]
        return sent

    def mufs(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the command C{mufs}."""
        return subprocess.run(
            [*MUFS, *arguments],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip


class ClientTests(PersistentCacheTestCase):
    """Clients that are restarted or killed."""

    def test_restart(self) -> None:
        """A restarted client reads everything from its cache, and nothing from the server."""
        client = self.start()
        self.assertEqual(self.read(), self.sha256)
        client.stop()
        before = self.sent()
        self.assertGreater(before, self.size)
        client = self.start()
        self.assertEqual(self.read(), self.sha256)
        self.assertEqual(self.sent(), before)
        figures = client.status()
        self.assertEqual((figures["bytes_requested"], figures["blocks_damaged"]), (0, 0))

    def test_killed(self) -> None:
        """After kills and damage of the cache directory, the next client reads right."""
        random = Random(7)
        for _ in range(3):
            client = self.start()
            reader = subprocess.Popen(
                ["cat", str(self.loopback.mount_point("here") / "disk.img")],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            enough = random.randrange(self.size // 2)
            wait_until(lambda: self.taken() > enough, 20, "something in the cache")  # noqa: B023
            client.kill()
            reader.wait(20)
            unmount(self.loopback.directory / "here")
            for name in ("index", *(p.name for p in self.cache_path.iterdir() if "-" in p.name)):
                self.damage(random, self.cache_path / name)
        self.start()
        self.assertEqual(self.read(), self.sha256)

    def test_damaged(self) -> None:
        """A damaged page on the disk is requested again, and its block is stored again."""
        client = self.start()
        self.assertEqual(self.read(), self.sha256)
        client.stop()
        (data,) = [p for p in self.cache_path.iterdir() if "-" in p.name and p.suffix != ".path"]
        with open(data, "r+b") as file:
            file.seek(5 * MIB)
            file.write(b"wrong")
        for damaged in (1, 0):
            client = self.start()
            self.assertEqual(self.read(), self.sha256)
            figures = client.status()
            self.assertEqual(figures["blocks_damaged"], damaged)
            self.assertLessEqual(figures["bytes_requested"], damaged * 128 * 1024)
            client.stop()

    def taken(self) -> int:
        """Return the disk space of the directory's files, in bytes."""
        found = os.listdir(self.cache_path) if self.cache_path.exists() else []
        return sum(os.lstat(self.cache_path / name).st_blocks * 512 for name in found)

    def damage(self, random: Random, path: Path) -> None:
        """Change some bits of a file, and sometimes truncate it."""
        with open(path, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            for _ in range(5):
                place = random.randrange(size)
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ 1 << random.randrange(8)]))
            if random.random() < 0.3:
                file.truncate(random.randrange(size))

    def test_small(self) -> None:
        """A cache smaller than the image never exceeds its limit, and reads are right."""
        self.start("--cache-size", "4M")
        for _ in range(2):
            self.assertEqual(self.read(), self.sha256)
            self.assertLessEqual(self.taken(), 4 * MIB + 16384)

    def test_replaced(self) -> None:
        """An image replaced while no client ran is read again, and the old one is dropped."""
        client = self.start()
        self.assertEqual(self.read(), self.sha256)
        client.stop()
        sha256 = write_image(self.loopback.images / "new.img", self.size)
        os.replace(self.loopback.images / "new.img", self.image)
        self.start()
        self.assertEqual(self.read(), sha256)
        wait_until(lambda: self.taken() < self.size * 3 // 2, 10, "the old image is dropped")

    def test_second_client(self) -> None:
        """A second client with the same directory ends with one line; the first one continues."""
        self.start()
        second = self.loopback.launch_client("second", "--cache-dir", str(self.cache_path))
        self.assertEqual(second.wait(20), 1)
        told = f"mufs-client: --cache-dir {self.cache_path}: a client uses it: give a directory"
        self.assertRegex(second.output, f"^{re.escape(told)}.*\n$")
        self.assertEqual(self.read(), self.sha256)

    def test_removed(self) -> None:
        """A client whose cache directory is removed goes on reading."""
        self.start()
        shutil.rmtree(self.cache_path)
        self.assertEqual(self.read(), self.sha256)

    def test_disk_filled(self) -> None:
        """When others fill its disk the cache gives up old blocks, and goes on with new ones."""
        self.cache_path.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32M,mode=700", "none", str(self.cache_path)],
            check=True,
        )
        self.addCleanup(unmount, self.cache_path)
        client = self.start("--cache-reserve", "4M", "--cache-size", "1G")
        self.assertIn("--cache-size: 1024 MiB is more than the disk of", client.output)
        self.assertEqual(self.read(), self.sha256)

        def free() -> int:
            found = os.statvfs(self.cache_path)
            return found.f_bavail * found.f_frsize

        with open(self.cache_path / "lost+found", "wb") as other:
            other.write(bytes(free() - MIB))
        wait_until(lambda: free() > 4 * MIB - (64 << 10), 30, "gives up blocks")
        self.assertIn("is filling up: the cache gives up old blocks", client.output)
        given_up = client.status()["evictions_for_space"]
        self.assertGreater(given_up, 0)
        self.assertEqual(self.read(), self.sha256)
        wait_until(lambda: free() > 2 * MIB, 30, "keeps a reserve")
        figures = client.status()
        self.assertGreater(figures["evictions_for_space"], given_up)
        self.assertGreater(figures["cache_bytes"], 4 * MIB)
        self.assertEqual(client.output.count("filling up"), 1)

    def test_memory(self) -> None:
        """Without a cache directory, the client opens and makes no files except log and socket."""
        before = self.files()
        client = self.loopback.start_client("here")
        self.assertEqual(self.read(), self.sha256)
        made = self.files() - before
        self.assertEqual({name for name in made if not name.startswith("here.")}, set())
        names = [os.readlink(e.path) for e in os.scandir(f"/proc/{client.pid}/fd")]
        files = {name for name in names if name.startswith("/") and not name.startswith("/dev/")}
        self.assertEqual(
            {name for name in files if "mufs-cache (deleted)" not in name}, {str(client.log)}
        )

    def files(self) -> set[str]:
        """Return the files in the client's working directory, except mounts."""
        return {e.name for e in os.scandir(self.loopback.directory) if e.name != "here"}


class CommandTests(PersistentCacheTestCase):
    """The command C{mufs cache}."""

    def setUp(self) -> None:
        """Have an image in the cache."""
        super().setUp()
        client = self.start()
        self.assertEqual(self.read(), self.sha256)
        self.in_use = self.mufs("cache", "rm", str(self.cache_path), "--all")
        self.listed = self.mufs("cache", "ls", str(self.cache_path))
        client.stop()

    def test_ls(self) -> None:
        """The images are listed, even while a client runs."""
        done = self.mufs("cache", "ls", str(self.cache_path))
        head, line = done.stdout.splitlines()
        self.assertEqual(head.split(), ["held", "size", "last", "used", "image"])
        self.assertEqual(
            (line.split()[:5], line.split()[-1]),
            (["12.0", "MiB", "12.0", "MiB", "100%"], "disk.img"),
        )
        self.assertEqual(self.listed.returncode, 0)
        self.assertIn("disk.img", self.listed.stdout)

    def test_rm(self) -> None:
        """Images are removed by name, by age, or all, but not while a client runs."""
        self.assertEqual(self.in_use.returncode, 1)
        told = f"mufs cache: {self.cache_path}: a client uses it"
        self.assertRegex(self.in_use.stderr, f"^{re.escape(told)}.*\n$")
        unknown = self.mufs("cache", "rm", str(self.cache_path), "other.img")
        self.assertIn("no image other.img", unknown.stderr)
        done = self.mufs("cache", "rm", str(self.cache_path), "--unused", "1")
        self.assertEqual(done.stdout, "0 images removed, 0 B\n")
        done = self.mufs("cache", "rm", str(self.cache_path), "disk.img")
        self.assertEqual(done.stdout, "1 images removed, 12.0 MiB\n")
        self.start()
        self.assertEqual(self.read(), self.sha256)
        self.loopback.services["here"].stop()
        self.assertEqual(self.mufs("cache", "rm", str(self.cache_path), "--all").returncode, 0)
        self.assertEqual(os.listdir(self.cache_path), [])
        refused = self.mufs("cache", "ls", str(self.cache_path))
        told = f"mufs cache: {self.cache_path}: holds no cache of mUFS"
        self.assertRegex(refused.stderr, f"^{re.escape(told)}.*\n$")

    def test_verify(self) -> None:
        """Damaged pages are counted and removed."""
        done = self.mufs("cache", "verify", str(self.cache_path))
        pages = -(-self.size // 4096)
        self.assertEqual(done.stdout, f"{pages} pages checked, 0 of them damaged and removed\n")
        (data,) = [p for p in self.cache_path.iterdir() if "-" in p.name and p.suffix != ".path"]
        with open(data, "r+b") as file:
            for place in (0, 5000, self.size - 1):
                file.seek(place)
                file.write(b"wrong"[: self.size - place])
        done = self.mufs("cache", "verify", str(self.cache_path))
        self.assertEqual(done.stdout, f"{pages} pages checked, 3 of them damaged and removed\n")
        self.assertEqual(done.returncode, 1)
        done = self.mufs("cache", "verify", str(self.cache_path))
        self.assertEqual((done.stdout.split()[0], done.returncode), (str(pages - 3), 0))
        self.start()
        self.assertEqual(self.read(), self.sha256)
