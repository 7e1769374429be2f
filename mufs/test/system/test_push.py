"""Pushes from the command line, to real hosts."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support import lab
from mufs.test.support.lab import SERVER, Lab, write_image
from mufs.test.support.processes import Service, wait_until
from mufs.test.support.simulation import MIB
from mufs.test.system.test_pull import start


class LabTests(SynchronousTestCase):
    """Pushes to real hosts, from the server's host."""

    skip = lab.why_unavailable()
    size = 64 * MIB

    def make(self, hosts: int, *options: str, **how: Any) -> list[Service]:
        """Start server and clients, and return the clients."""
        self.lab = Lab(hosts, **how)
        self.addCleanup(self.lab.close)
        self.sha256 = write_image(self.lab.images / "disk.img", self.size)
        self.server = self.lab.start_server(*options)
        return self.lab.start_clients()

    def push(self, *arguments: str) -> subprocess.Popen[str]:
        """Start C{mufs push}."""
        pushing = start(self.lab.directory / "run", "push", *arguments)
        self.addCleanup(pushing.communicate)
        self.addCleanup(pushing.kill)
        return pushing

    def pushed(self, *arguments: str) -> tuple[int, list[str], list[str]]:
        """Push, and return the exit status and the lines of stdout and stderr."""
        pushing = self.push(*arguments)
        out, errors = pushing.communicate(timeout=90)
        return pushing.returncode, out.splitlines(), errors.splitlines()

    def sent(self) -> int:
        """Return the bytes that the server's interface has sent, headers included."""
        return self.lab.network.bytes_sent(SERVER)

    def assert_all_there(self) -> None:
        """Assert that all hosts read the image right, without bytes from the server."""
        before = self.server.status()
        readers = self.lab.start_readers("disk.img")
        self.assertEqual(
            [reader.result().sha256 for reader in readers], [self.sha256] * len(readers)
        )
        after = self.server.status()
        for figure in ("bytes_multicast", "bytes_over_tcp", "requests"):
            self.assertEqual(after[figure], before[figure])

    def assert_sent_once(self, hosts: int) -> None:
        """Assert that a push sends the image once, with at most 6 % for headers and requests."""
        self.make(hosts, rate=200)
        before = self.sent()
        status, out, errors = self.pushed(str(self.lab.images / "disk.img"))
        self.assertEqual((status, errors), (0, []))
        self.assertIn("64.0 MiB of 64.0 MiB (100 %), ", out[-1])
        self.assertTrue(out[-1].endswith(f", {hosts}/{hosts} done"), out[-1])
        ratio = (self.sent() - before) / self.size
        self.assertLess(ratio, 1.06)
        self.assert_all_there()

    def test_two(self) -> None:
        """An image is sent once to two hosts."""
        self.assert_sent_once(2)

    def test_four(self) -> None:
        """An image is sent once to four hosts."""
        self.assert_sent_once(4)

    def test_loss(self) -> None:
        """With 1 % loss at two hosts, little more is sent."""
        self.make(2, rate=200)
        for host in self.lab.hosts:
            self.lab.network.set_loss(host, 10)
        before = self.sent()
        self.assertEqual(self.pushed("disk.img")[0], 0)
        ratio = (self.sent() - before) / self.size
        self.assertLess(ratio, 1.15)
        self.assert_all_there()

    def test_killed(self) -> None:
        """A client killed during a push is reported as failed, and the other one gets the image."""
        clients = self.make(2, "--rate-max", "100M")
        pushing = self.push("disk.img")
        wait_until(lambda: clients[1].status()["cache_bytes"] > MIB, 20, "some of it is there")
        clients[1].kill()
        _, errors = pushing.communicate(timeout=60)
        self.assertEqual(pushing.returncode, 1)
        self.assertTrue(errors.endswith(": the connection was lost\n"), errors)
        self.assertEqual(clients[0].status()["cache_bytes"], self.size)

    def test_restarted(self) -> None:
        """A restarted client with a persistent cache is sent only the missing bytes."""
        self.lab = Lab(1)
        self.addCleanup(self.lab.close)
        self.sha256 = write_image(self.lab.images / "disk.img", self.size)
        self.server = self.lab.start_server("--rate-max", "100M")
        options = ("--cache-dir", str(self.lab.directory / "kept"))
        client = self.lab.start_client("host1", *options)
        pushing = self.push("disk.img")
        wait_until(lambda: client.status()["cache_bytes"] > 8 * MIB, 20, "some of it is there")
        client.stop()
        self.assertEqual(pushing.wait(60), 1)
        client = self.lab.start_client("host1", *options)
        held = client.status()["cache_bytes"]
        self.assertGreater(held, 4 * MIB)
        before = self.server.status()["bytes_multicast"]
        self.assertEqual(self.pushed("disk.img")[0], 0)
        after = self.server.status()["bytes_multicast"]
        self.assertLess(after - before, 1.02 * (self.size - held) + MIB)
        self.assert_all_there()

    def test_interrupted(self) -> None:
        """Ctrl-C ends the push at the client, too."""
        (client,) = self.make(1, "--rate-max", "100M")
        pushing = self.push("disk.img")
        wait_until(lambda: client.status()["cache_bytes"] > MIB, 20, "some of it is there")
        pushing.send_signal(signal.SIGINT)
        self.assertEqual(pushing.wait(10), 130)
        requested = client.status()["bytes_requested"]
        wait_until(
            lambda: client.status()["cache_bytes"] == requested,
            20,
            "all that was requested arrived",
        )
        self.assertLess(requested, self.size)

    def test_errors(self) -> None:
        """Errors are one line."""
        self.lab = Lab(1)
        self.addCleanup(self.lab.close)
        (self.lab.images / "dir").mkdir()
        (self.lab.images / "secret").write_bytes(b"s")
        (self.lab.images / "secret").chmod(0o600)
        (self.lab.images / "large").write_bytes(bytes(9 * MIB))
        self.assertEqual(self.pushed("dir"), (1, [], ["mufs: no server runs here"]))
        self.server = self.lab.start_server()
        self.lab.start_client("host1", "--cache-size", "8M")
        for arguments, line in (
            (["none"], "none: No such file or directory"),
            (["/etc/passwd"], "/etc/passwd: No such file or directory"),
            (["dir"], "dir: is a directory"),
            (["secret"], "secret: no client is connected that may see it"),
        ):
            self.assertEqual(self.pushed(*arguments), (1, [], [f"mufs: {line}"]))
        # The example is one of the servers that run here.
        (error,) = self.pushed("dir", "--server", "x")[2]
        self.assertIn("mufs: x: no server listens there on this host, such as ", error)
        name = self.server.status()["clients"][0]["name"]
        status, _, errors = self.pushed("large")
        where = "(10.77.0.11)"
        self.assertEqual(status, 1)
        why = "the image has 9.0 MiB of data, the cache 8.0 MiB"
        self.assertEqual(errors, [f"mufs: {name} {where}: {why}"])
        status, _, errors = self.pushed("secret", "--to", name, "other")
        self.assertEqual(
            sorted(errors),
            sorted([f"mufs: {name} {where}: permission denied", "mufs: other: is not connected"]),
        )
