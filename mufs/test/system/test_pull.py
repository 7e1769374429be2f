"""Pulls from the command line, through real mounts."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs.sockets import VARIABLE
from mufs.test.support import lab
from mufs.test.support.lab import SERVER, Lab, write_image
from mufs.test.support.processes import CHECKOUT, MUFS, Service, wait_until
from mufs.test.support.simulation import MIB
from mufs.test.system.test_control import ProcessTestCase


def start(run: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start the command C{mufs}, whose output is no terminal."""
    return subprocess.Popen(
        [*MUFS, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), VARIABLE: str(run)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class CommandTests(ProcessTestCase):
    """C{mufs pull} at a real mount."""

    def test_pull(self) -> None:
        """Images are pulled one after the other, also by a link; each failure is one line."""
        images = self.loopback.images
        sha256 = write_image(images / "other.img", 3 * MIB + 5)
        write_image(images / "large.img", 70 * MIB)
        (images / "dir").mkdir()
        (images / "link").symlink_to("dir/../other.img")
        (images / "secret").write_bytes(b"s")
        (images / "secret").chmod(0o600)
        client = self.loopback.start_client("here", "--cache-size", "64M")
        point = self.loopback.mount_point("here")
        names = ["disk.img", "link", "none", "dir", "secret", "large.img"]
        done = self.mufs("pull", *(f"{point}/{name}" for name in names), "/proc/none")
        self.assertEqual(done.returncode, 1)
        *refused, elsewhere = done.stderr.splitlines()
        # The example is one of the mounts that are here.
        self.assertIn("mufs: /proc/none is not on a mount of mUFS, such as /", elsewhere)
        self.assertEqual(
            refused,
            [
                f"mufs: {point}/none: No such file or directory",
                f"mufs: {point}/dir: is a directory",
                f"mufs: {point}/secret: permission denied",
                f"mufs: {point}/large.img: the image has 70.0 MiB of data, the cache 64.0 MiB",
            ],
        )
        first, second = done.stdout.splitlines()
        self.assertTrue(first.startswith("disk.img: 976.6 KiB of 976.6 KiB (100 %), "), first)
        self.assertTrue(second.startswith("other.img: 3.0 MiB of 3.0 MiB (100 %), "), second)
        before = self.server.status()["bytes_multicast"]
        with open(point / "other.img", "rb") as image:
            self.assertEqual(hashlib.file_digest(image, "sha256").hexdigest(), sha256)
        self.assertEqual(self.server.status()["bytes_multicast"], before)
        self.assertEqual(client.status()["misses"], 0)
        quiet = self.mufs("pull", "--quiet", f"{point}/disk.img")
        self.assertEqual((quiet.returncode, quiet.stdout, quiet.stderr), (0, "", ""))

    def test_interrupted(self) -> None:
        """Ctrl-C ends the pull at the client, and the next pull resumes it."""
        size = 64 * MIB
        write_image(self.loopback.images / "large.img", size)
        self.server.stop()
        self.loopback.start_server(options=("--rate-max", "100M"))
        client = self.loopback.start_client("here")
        point = self.loopback.mount_point("here")
        pulling = start(self.run_directory, "pull", point / "large.img")
        self.addCleanup(pulling.communicate)
        self.addCleanup(pulling.kill)
        wait_until(lambda: client.status()["cache_bytes"] > 8 * MIB, 20, "8 MiB are in the cache")
        pulling.send_signal(signal.SIGINT)
        self.assertEqual(pulling.wait(10), 130)
        assert pulling.stderr is not None
        self.assertEqual(pulling.stderr.read(), "")
        # Outstanding requests are still answered.
        requested = client.status()["bytes_requested"]
        wait_until(
            lambda: client.status()["cache_bytes"] == requested,
            20,
            "all that was requested arrived",
        )
        self.assertLess(requested, size)
        self.assertEqual(self.mufs("pull", "--quiet", f"{point}/large.img").returncode, 0)
        self.assertEqual(client.status()["bytes_requested"], size)

    def test_server_away(self) -> None:
        """While the server is away the output reports it, and the pull resumes when it returns."""
        size = 32 * MIB
        write_image(self.loopback.images / "large.img", size)
        self.server.stop()
        server = self.loopback.start_server(options=("--rate-max", "50M"))
        client = self.loopback.start_client("here")
        pulling = start(self.run_directory, "pull", self.loopback.mount_point("here") / "large.img")
        self.addCleanup(pulling.communicate)
        self.addCleanup(pulling.kill)
        wait_until(lambda: client.status()["cache_bytes"] > MIB, 20, "some of it is there")
        server.kill()
        assert pulling.stdout is not None
        line = ""
        while not line.endswith(", waiting for the server\n"):
            line = pulling.stdout.readline()
            self.assertNotEqual(line, "")
        self.loopback.start_server()
        self.assertEqual(pulling.wait(30), 0)
        self.assertIn("(100 %)", pulling.stdout.read())
        self.assertEqual(client.status()["cache_bytes"], size)


class LabTests(SynchronousTestCase):
    """Real hosts that pull."""

    skip = lab.why_unavailable()

    def has_begun(self, client: Service) -> bool:
        """Return whether the cache of a client has any data."""
        held: int = client.status()["cache_bytes"]
        return held > MIB

    def test_apart(self) -> None:
        """For a second host that starts later, only what was already sent is sent again."""
        self.lab = Lab(2, rate=100)
        self.addCleanup(self.lab.close)
        size = 32 * MIB
        sha256 = write_image(self.lab.images / "disk.img", size)
        server = self.lab.start_server()
        clients = self.lab.start_clients()
        run, network = self.lab.directory / "run", self.lab.network
        begin = network.bytes_sent(SERVER)
        pulls = []
        for host, client in zip(self.lab.hosts, clients, strict=True):
            point = self.lab.mount_point(host)
            pulls.append(start(run, "pull", "--quiet", point / "disk.img"))
            self.addCleanup(pulls[-1].communicate)
            self.addCleanup(pulls[-1].kill)
            wait_until(partial(self.has_begun, client), 20, f"{host} pulls")
            before_last = network.bytes_sent(SERVER) - begin
        self.assertEqual([pull.wait(60) for pull in pulls], [0, 0])
        self.assertLess(network.bytes_sent(SERVER) - begin, 1.06 * size + before_last)
        before = server.status()["bytes_multicast"]
        for reader in self.lab.start_readers("disk.img"):
            self.assertEqual(reader.result().sha256, sha256)
        self.assertEqual(server.status()["bytes_multicast"], before)
        self.assertEqual([client.status()["misses"] for client in clients], [0, 0])
