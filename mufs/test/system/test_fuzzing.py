"""The command of C{make fuzz}, without a fuzzer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase


class RunnerTests(SynchronousTestCase):
    """The command line of the fuzzing command."""

    def run_it(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        command = [sys.executable, "-m", "mufs.test.fuzz", *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    def test_repeat(self) -> None:
        """With --repeat an input is run again by the target in its file name."""
        directory = Path(self.mktemp())
        directory.mkdir()
        found = directory / "framer-crash-1"
        found.write_bytes(b"any")
        done = self.run_it("--repeat", str(found))
        self.assertEqual((done.returncode, done.stdout), (0, f"{found}: nothing is wrong\n"))

    def test_unknown(self) -> None:
        """An unknown target is refused with a list of the targets."""
        done = self.run_it("nonsense")
        self.assertEqual(done.returncode, 2)
        self.assertIn("no such target: nonsense (there are framer, ", done.stderr)
