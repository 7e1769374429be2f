"""A short soak test, and the detection of errors by the soak test."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs.test import soak_reader
from mufs.test.soak import IMAGES, MAX_GROWTH, MIB, SETTLING_SECONDS, HostReader, Sample, growth
from mufs.test.support.lab import why_unavailable
from mufs.test.support.processes import wait_until


class SoakTests(SynchronousTestCase):
    """A whole run."""

    skip = why_unavailable()

    def test_short(self) -> None:
        """A short run with two hosts and some faults finds no problems."""
        command = [sys.executable, "-m", "mufs.test.soak", "--seed", "5", "--hosts", "2"]
        done = subprocess.run(
            [*command, "--minutes", "0.2"], capture_output=True, text=True, timeout=120
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("all well", done.stdout)


class NoticeTests(SynchronousTestCase):
    """The checks of the reader, with a directory instead of a mount."""

    def setUp(self) -> None:
        self.mount, self.truth = Path(self.mktemp()), Path(self.mktemp())
        self.mount.mkdir()
        self.truth.mkdir()
        for image in IMAGES:
            content = image.encode() * 100_000
            (self.mount / image).write_bytes(content)
            (self.truth / f"{image}.1").write_bytes(content)

    def start(self) -> HostReader:
        reader = HostReader(self.mount, self.truth, "seed")
        self.addCleanup(reader.kill)
        wait_until(lambda: reader.figures["reads"] > 200 or reader.wrong, 30, "it reads")
        return reader

    def test_right(self) -> None:
        """Right bytes are not reported."""
        reader = self.start()
        self.assertTrue(reader.stop(10))
        self.assertEqual((reader.wrong, reader.errors), ([], []))

    def test_one_bit(self) -> None:
        """A single wrong bit in each page is reported."""
        for image in IMAGES:
            content = bytearray((self.mount / image).read_bytes())
            for offset in range(100, len(content), 4096):
                content[offset] ^= 1
            (self.mount / image).write_bytes(content)
        self.assertGreater(len(self.start().wrong), 0)

    def test_mixed_versions(self) -> None:
        """Ranges of different versions in one open file are reported."""
        for image in IMAGES:
            first = (self.truth / f"{image}.1").read_bytes()
            second = bytes(len(first))
            (self.truth / f"{image}.2").write_bytes(second)
            half = len(first) // 2
            (self.mount / image).write_bytes(first[:half] + second[half:])
        self.assertGreater(len(self.start().wrong), 0)

    def test_errors(self) -> None:
        """Reads that fail are reported with time and errno."""
        before = time.monotonic()
        reader = self.start()
        (self.mount / "a.img").unlink()
        wait_until(lambda: reader.errors, 10, "an error")
        at, error = reader.errors[0]
        self.assertEqual(error, "ENOENT")
        self.assertGreater(at, before)


class ShortReadTests(SynchronousTestCase):
    """What the reader says of a read that gives less than was asked for."""

    def setUp(self) -> None:
        self.mount = self.truth = Path(self.mktemp())
        self.truth.mkdir()
        self.content = random.Random(1).randbytes(300_000)
        (self.mount / "a.img").write_bytes(self.content)
        (self.truth / "a.img.1").write_bytes(self.content)
        self.lines: list[dict[str, object]] = []
        self.patch(soak_reader, "write_line", lambda **what: self.lines.append(what))

    def read(self, *answers: bytes | OSError) -> list[object]:
        """Read the image once, have pread give these answers, and return what is reported wrong."""
        left = list(answers)

        def pread(file: int, length: int, offset: int) -> bytes:
            answer = left.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer

        self.patch(os, "pread", pread)
        reader = soak_reader.Reader(self.mount, self.truth, "seed")
        self.patch(reader, "ranges", lambda size: [(0, 1 << 20)])
        reader.read_image("a.img")
        return [line["wrong"] for line in self.lines if "wrong" in line]

    def test_then_error(self) -> None:
        """A first part followed by an error is right, and the error is reported."""
        stale = OSError(errno.ESTALE, "stale")
        self.assertIs(stale, self.assertRaises(OSError, self.read, self.content[:131072], stale))
        self.assertEqual(self.lines, [])

    def test_then_bytes(self) -> None:
        """A first part followed by more bytes, or by the end of the file, is wrong."""
        for more in (self.content[131072:], b""):
            self.assertEqual(len(self.read(self.content[:131072], more)), 1)
            self.lines.clear()

    def test_wrong_part(self) -> None:
        """A first part with other bytes is wrong, whatever follows."""
        stale = OSError(errno.ESTALE, "stale")
        self.assertEqual(len(self.read(bytes(131072), stale)), 1)

    def test_early_end(self) -> None:
        """No bytes where the image has some are wrong."""
        self.assertEqual(len(self.read(b"")), 1)


class GrowthTests(SynchronousTestCase):
    """The detection of growth, from one sample each second."""

    def held(self, memory: float = 0, files: float = 0, threads: float = 0) -> float:
        """Return the detected growth for a process that grows by these amounts each second."""
        return growth(
            [
                Sample(
                    second,
                    80 * MIB + round(second * memory),
                    20 + round(second * files),
                    9 + round(second * threads),
                )
                for second in range(1800)
            ]
        )[0]

    def test_flat(self) -> None:
        """A constant process does not grow."""
        self.assertEqual(self.held(), 0)

    def test_leaks(self) -> None:
        """Constant growth of memory, files or threads is detected."""
        self.assertGreater(self.held(memory=MAX_GROWTH / 600), MAX_GROWTH)
        self.assertEqual(self.held(files=0.05), float("inf"))
        self.assertEqual(self.held(threads=0.05), float("inf"))

    def test_young(self) -> None:
        """Growth at the start of a process does not count."""
        young = [Sample(second, second * MIB, 1, 1) for second in range(int(SETTLING_SECONDS))]
        self.assertEqual(growth(young)[0], 0)
