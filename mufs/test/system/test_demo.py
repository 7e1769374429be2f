"""The demo, started as a user does."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs.demo import Failed, check_machine
from mufs.test.support.lab import write_image
from mufs.test.support.processes import wait_until

MIB = 1 << 20


def why_unavailable() -> str | None:
    """Return why the demo cannot run on this machine, or None if it can."""
    try:
        check_machine()
    except Failed as reason:
        return str(reason)
    return None


class DemoTests(SynchronousTestCase):
    """Runs of the demo, each with its own directory for temporary files."""

    skip = why_unavailable()

    def setUp(self) -> None:
        self.temporary = Path(self.mktemp()).absolute()
        self.temporary.mkdir()
        self.output = self.temporary.with_suffix(".output")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.output, "wb") as output:
            demo = subprocess.Popen(
                [sys.executable, "-m", "mufs.demo", *arguments],
                env={**os.environ, "TMPDIR": str(self.temporary)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.addCleanup(self.clean, demo)
        return demo

    def clean(self, demo: subprocess.Popen[bytes]) -> None:
        """Remove everything that a failed demo left behind."""
        if demo.poll() is None:
            demo.kill()
            demo.wait()
        for pid, _ in self.processes():
            os.kill(pid, signal.SIGKILL)
        for point in self.mounts():
            subprocess.run(["fusermount", "-uzq", point])
        shutil.rmtree(self.temporary, ignore_errors=True)

    def processes(self) -> Iterator[tuple[int, str]]:
        """Return the processes that the demo started: ID and command line."""
        for found in Path("/proc").glob("[0-9]*"):
            try:
                command = (found / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (found / "environ").read_bytes()
            except OSError:
                continue
            if str(self.temporary).encode() in environment:
                yield int(found.name), command

    def mounts(self) -> list[str]:
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith(str(self.temporary))]

    def read_output(self) -> str:
        return self.output.read_text()

    def assert_ends(self, demo: subprocess.Popen[bytes], status: int) -> None:
        """Assert that it ends with this status, and leaves no process, mount or file."""
        self.assertEqual(demo.wait(90), status, self.read_output())
        self.assertEqual(list(self.processes()), [])
        self.assertEqual(self.mounts(), [])
        self.assertEqual(os.listdir(self.temporary), [])

    def assert_delivered(self, size: int) -> None:
        """Assert that its table shows an image of that size, read by both hosts, and adds up."""
        output = self.read_output()
        hosts = re.findall(
            r"^host \d +\S+ +\S+ +([\d.]+)% +(\d+) +(\d+) +(\d+) +right$", output, re.MULTILINE
        )
        self.assertEqual(len(hosts), 2, output)
        for rate, hits, joined, misses in hosts:
            reads = int(hits) + int(joined) + int(misses)
            self.assertGreater(reads, 0)
            self.assertApproximates(float(rate), 100 * int(hits) / reads, 0.1)
        delivered = self.figure(r"delivered to the hosts +([\d.]+) MB")
        self.assertApproximates(delivered, 2 * size / 1e6, 0.1)
        sent = self.figure(r"sent by the server +([\d.]+) MB")
        parts = [self.figure(r"([\d.]+) by multicast"), self.figure(r"([\d.]+) over TCP")]
        self.assertApproximates(sent, sum(parts), 0.2)
        self.assertGreater(parts[0], 0)
        packed = [
            self.figure(rf"before it was packed .*?{part}")
            for part in (
                r"([\d.]+) MB",
                r"([\d.]+) zero",
                r"([\d.]+) compressed",
                r"([\d.]+) as it",
            )
        ]
        self.assertApproximates(packed[0], sum(packed[1:]), 0.2)
        self.assertGreaterEqual(self.figure(r"each byte ([\d.]+) times"), 0.95)

    def figure(self, pattern: str) -> float:
        found = re.search(pattern, self.read_output())
        assert found is not None, self.read_output()
        return float(found[1])

    def make_image(self, size: int) -> str:
        image = Path(self.mktemp()) / "some image.img"
        image.parent.mkdir()
        write_image(image, size)
        return str(image)

    def wait_for(self, demo: subprocess.Popen[bytes], word: str) -> None:
        """Wait until its output contains C{word}, or it has ended."""
        wait_until(
            lambda: demo.poll() is not None or word in self.read_output(), 60, f"prints {word}"
        )

    def test_own_image(self) -> None:
        """Without an image, the demo makes one with a file system."""
        if shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            self.skipTest("needs mke2fs")
        self.assert_ends(self.start(), 0)
        self.assert_delivered(64 * MIB)
        self.assertGreater(self.figure(r"([\d.]+) of its 67.1 MB are holes"), 5)
        self.assertGreater(self.figure(r"([\d.]+) compressed to"), 0)

    def test_image_given(self) -> None:
        """Both hosts read the given image, of any size, which is not changed."""
        size = 3 * MIB + 1237
        image = self.make_image(size)
        before = os.stat(image)
        self.assert_ends(self.start(image), 0)
        self.assert_delivered(size)
        after = os.stat(image)
        self.assertEqual((before.st_ctime_ns, before.st_nlink), (after.st_ctime_ns, after.st_nlink))

    def test_interrupted(self) -> None:
        """Ctrl-C during the reads ends the demo and all its processes."""
        image = self.make_image(0)
        os.truncate(image, 1 << 30)
        demo = self.start(image)
        self.wait_for(demo, "reading")
        demo.send_signal(signal.SIGINT)
        self.assert_ends(demo, 130)

    def test_terminated_at_once(self) -> None:
        """SIGTERM while the services start ends the demo and all its processes."""
        demo = self.start(self.make_image(MIB))
        self.wait_for(demo, "starting")
        demo.send_signal(signal.SIGTERM)
        self.assert_ends(demo, 143)

    def test_client_killed(self) -> None:
        """When a client dies, the demo reports it, and ends."""
        image = self.make_image(0)
        os.truncate(image, 1 << 30)
        demo = self.start(image)
        self.wait_for(demo, "reading")
        for pid, command in self.processes():
            if "/host1 " in command:
                os.kill(pid, signal.SIGKILL)
        self.assert_ends(demo, 1)
        self.assertIn("mufs.demo: client1 ended by itself", self.read_output())

    def test_no_such_image(self) -> None:
        """An image that cannot be read is an error of one line."""
        for name, reason in [
            ("/nonexistent/disk.img", "No such file or directory"),
            (os.path.dirname(self.make_image(1)), "not a file, or empty"),
            (self.make_image(0), "not a file, or empty"),
        ]:
            self.assert_ends(self.start(name), 1)
            self.assertEqual(self.read_output(), f"mufs.demo: {name}: {reason}\n")
