"""
The commands of docs/tutorial.md, run as they are shown.

The C{bash} blocks are run in order in one shell. A C{text} block is the output of the commands in
the block before it: C{...} stands for anything within a line, or for any lines if it is a line of
its own. After a comment C{<!-- numbers within 10% -->} numbers may differ by that much; after
C{<!-- numbers vary -->} they may differ by any amount.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mufs.test.support import lab
from mufs.test.support.netns import LabError, run
from mufs.test.support.processes import CHECKOUT, mount_points

TUTORIAL_TIMEOUT = 150
"""Seconds for the whole tutorial, which takes about 10."""

BLOCK = re.compile(
    r"^(?:<!-- numbers (?:within (?P<within>\d+)%|(?P<any>vary)) -->\n)?"
    r"```(?P<kind>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]\d+)?")


@attrs.frozen
class Step:
    """Commands, and their expected output, if shown."""

    commands: str
    output: str | None = None
    within: float = 0.0
    """The relative difference allowed between printed and shown numbers."""


def steps(document: str) -> list[Step]:
    """Return the steps in a document."""
    found: list[Step] = []
    for block in BLOCK.finditer(document):
        if block["kind"] == "bash":
            found.append(Step(block["text"]))
        elif block["kind"] == "text":
            within = math.inf if block["any"] else int(block["within"] or 0) / 100
            found[-1] = attrs.evolve(found[-1], output=block["text"], within=within)
    return found


def matches(shown: str, printed: str, within: float) -> bool:
    """Return whether printed output matches the output shown."""
    pattern, numbers = "", []
    for line in shown.splitlines():
        if line == "...":
            pattern += r"(?:.*\n)*"
            continue
        for piece in re.split(rf"(\.\.\.|{NUMBER.pattern})", line):
            if piece == "...":
                pattern += ".*"
            elif within and NUMBER.fullmatch(piece):
                pattern += f"({NUMBER.pattern})"
                numbers.append(float(piece))
            else:
                pattern += re.escape(piece)
        pattern += r"\n"
    found = re.fullmatch(pattern, printed)
    return found is not None and all(
        math.isclose(float(text), number, rel_tol=within)
        for text, number in zip(found.groups(), numbers, strict=True)
    )


class RuleTests(SynchronousTestCase):
    """The comparison of output."""

    def test_matches(self) -> None:
        """Output with equal text, with ellipses or with similar numbers matches."""
        for shown, printed, within in [
            ("a 1.5\n", "a 1.5\n", 0),
            ("a ... c\n", "a b b c\n", 0),
            ("a\n...\nc\n", "a\nb\nb\nc\n", 0),
            ("a 1.00 b 2\n", "a 1.09 b 1.9\n", 0.1),
            ("6.0e+07\n", "6.3e+07\n", 0.1),
            ("a 0.0\n", "a 1e+3\n", math.inf),
        ]:
            self.assertTrue(matches(shown, printed, within), shown)

    def test_differs(self) -> None:
        """Output with different text, lines or numbers does not match."""
        for shown, printed, within in [
            ("a 1.5\n", "a 1.6\n", 0),
            ("a ... c\n", "a b\nb c\n", 0),
            ("a\n", "a\nb\n", 0),
            ("a 1.00\n", "a 1.12\n", 0.1),
            ("1 a\n", "a\n", 0.1),
            ("a.b\n", "acb\n", 0),
        ]:
            self.assertFalse(matches(shown, printed, within), shown)

    def test_steps(self) -> None:
        """Commands are paired with the output that follows them."""
        document = (
            "```bash\n1\n2\n```\n\n<!-- numbers within 5% -->\n```text\n3\n```\n```bash\n4\n```\n"
        )
        self.assertEqual(steps(document), [Step("1\n2\n", "3\n", 0.05), Step("4\n")])


class TutorialTests(SynchronousTestCase):
    """The whole tutorial."""

    skip = lab.why_unavailable() or (None if shutil.which("curl") else "needs curl")

    def setUp(self) -> None:
        """Make a directory for it."""
        self.document = CHECKOUT / "docs" / "tutorial.md"
        if not self.document.exists():
            raise SkipTest("needs the checkout")
        self.directory = Path(tempfile.mkdtemp(prefix="mufs-tutorial-"))
        self.addCleanup(self.clean)

    def namespaces(self) -> list[str]:
        """Return the network namespaces of the tutorial."""
        return [line.split()[0] for line in run("ip", "netns").splitlines() if line[:5] == "tour-"]

    def mounts(self) -> list[str]:
        """Return the mounts of the tutorial."""
        return [point for point in mount_points() if point.startswith(str(self.directory))]

    def clean(self) -> None:
        """Remove everything that a failed run left behind."""
        for name in self.namespaces():
            for pid in run("ip", "netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "delete", name)
        for point in self.mounts():
            with contextlib.suppress(LabError):
                run("umount", "-l", point)
        shutil.rmtree(self.directory, ignore_errors=True)

    def test_tutorial(self) -> None:
        """Each command succeeds and prints what is shown, and nothing is left at the end."""
        if self.namespaces():
            raise SkipTest("the tutorial is already running on this machine")
        tour = steps(self.document.read_text())
        self.assertGreater(len(tour), 10)
        outputs = self.directory / "outputs"
        outputs.mkdir()
        script = "set -e\n"
        for number, step in enumerate(tour):
            script += f"exec >{outputs}/{number} 2>&1\n{step.commands}"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        shell = subprocess.Popen(
            ["bash", "-c", f"umask 022\n{script}"],
            cwd=self.directory,
            start_new_session=True,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(CHECKOUT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            status = shell.wait(TUTORIAL_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            status = shell.wait()
        done = len(list(outputs.iterdir()))
        for number, step in enumerate(tour[:done]):
            printed = (outputs / str(number)).read_text(errors="replace")
            ended = number == done - 1 and status != 0
            if ended or (
                step.output is not None and not matches(step.output, printed, step.within)
            ):
                logs = [path.read_text()[-2000:] for path in self.directory.glob("tour/*.log")]
                self.fail("\n".join([step.commands, f"status {status}", printed, *logs]))
        self.assertEqual(done, len(tour))
        self.assertEqual(self.namespaces(), [])
        self.assertEqual(self.mounts(), [])
        self.assertEqual(os.listdir(self.directory), ["outputs"])
