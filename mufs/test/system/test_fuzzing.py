"""The command behind C{make fuzz}, as far as it needs no fuzzer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase


class RunnerTests(SynchronousTestCase):
    """`make fuzz`, as far as it needs no fuzzer."""

    def run_it(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        command = [sys.executable, "-m", "mufs.test.fuzz", *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    def test_repeat(self) -> None:
        """An input that was found is run again; the name of its file tells the target."""
        directory = Path(self.mktemp())
        directory.mkdir()
        found = directory / "framer-crash-1"
        found.write_bytes(b"any")
        done = self.run_it("--repeat", str(found))
        self.assertEqual((done.returncode, done.stdout), (0, f"{found}: nothing is wrong\n"))

    def test_unknown(self) -> None:
        """A target that there is not is refused with a line that tells which there are."""
        done = self.run_it("nonsense")
        self.assertEqual(done.returncode, 2)
        self.assertIn("no such target: nonsense (there are framer, ", done.stderr)
