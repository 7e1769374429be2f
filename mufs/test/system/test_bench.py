"""The bench, without other systems, and without assertions on speed: see bench/README.md."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.lab import why_unavailable
from mufs.test.support.netns import LabError
from mufs.test.support.processes import CHECKOUT

NO_BENCH = None if find_spec("bench") else "needs the sources of the bench"
if NO_BENCH is None:
    from bench import revisions
    from bench.cases import Figure, attempt, share
    from bench.measure import Row, image, read_csv, write_csv
    from bench.report import line, picture, ratios, tables
    from bench.systems import Mufs, System

    NFS = Row("v0", "share", "nfs", 64 << 20, 2, 0, 1, 100.0)  # of no real run

MIB = 1 << 20
IN_GIT = ["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"]


def ran(row: Row, seconds: float) -> Row:
    """Return the row of a run that succeeded."""
    return attrs.evolve(
        row, seconds=seconds, sent=10**6, cpu_server=0.5, cpu_clients=1.25, right=True
    )


class ReportTests(SynchronousTestCase):
    """The reports on rows."""

    skip = NO_BENCH

    def test_csv(self) -> None:
        """Rows survive writing and reading, with missing values, commas and line breaks."""
        rows = [
            ran(NFS, 1.5),
            attrs.evolve(NFS, rate=None, error='not "there", it said\nat all'),
            attrs.evolve(NFS, what="cold", per_second=3.25, unit="MB/s"),
        ]
        path = Path(self.mktemp())
        write_csv(rows, path)
        self.assertEqual(read_csv(path), rows)

    def test_table(self) -> None:
        """A cell shows the median of the successful runs, and the number of failed ones."""
        more = attrs.evolve(NFS, hosts=4)
        rows = [
            *(ran(NFS, 1.0), ran(NFS, 9.0), ran(NFS, 2.0)),
            *(ran(more, 3.0), attrs.evolve(more, error="gone")),
            attrs.evolve(NFS, system="sshfs", error="gone"),
            attrs.evolve(ran(more, 1.0), system="sshfs", right=False),
        ]
        lines = tables(rows).split("\n")
        self.assertIn("### share: 64 MiB, 100 Mbit/s", lines)
        self.assertIn("|  | 2 hosts | 4 hosts |", lines)
        half = "3.00 s, 1 MB, 0.5 + 1.2, 1 of 2 failed"
        self.assertIn(f"| nfs | 2.00 s, 1 MB, 0.5 + 1.2 | {half} |", lines)
        self.assertIn("| sshfs | failed | wrong bytes |", lines)

    def test_figures(self) -> None:
        """A case with several figures has a line for each, and a column for each system."""
        cold = attrs.evolve(ran(NFS, 1.0), what="cold", per_second=5e3, unit="reads/s")
        lines = tables([cold, attrs.evolve(cold, system="mufs", what="warm")]).split("\n")
        self.assertIn("|  | nfs | mufs |", lines)
        self.assertIn("| cold | 5,000 reads/s, 0.5 + 1.2 |  |", lines)
        self.assertIn("| warm |  | 5,000 reads/s, 0.5 + 1.2 |", lines)

    def test_ratio(self) -> None:
        """Times of other systems are also given relative to mUFS, if it did the same task."""
        mufs = attrs.evolve(NFS, system="mufs")
        rows = [ran(mufs, 2.0), ran(NFS, 5.0), ran(attrs.evolve(NFS, hosts=4), 6.0)]
        lines = tables(rows).split("\n")
        self.assertIn("| mufs | 2.00 s, 1 MB, 0.5 + 1.2 |  |", lines)
        self.assertIn("| nfs | 5.00 s (2.50), 1 MB, 0.5 + 1.2 | 6.00 s, 1 MB, 0.5 + 1.2 |", lines)

    def test_revisions(self) -> None:
        """mUFS is compared run by run with another revision; the median comes first."""
        own = attrs.evolve(NFS, system="mufs")
        other = attrs.evolve(NFS, system="mufs@v0")
        rows = []
        for run, seconds in enumerate((1.0, 3.0, 4.0), 1):
            rows += [ran(attrs.evolve(own, run=run), seconds)]
            rows += [ran(attrs.evolve(other, run=run), 2.0)]
        rows += [ran(attrs.evolve(own, run=4), 1.0), attrs.evolve(other, run=4, error="gone")]
        lines = ratios(rows).split("\n")
        self.assertIn("### mufs divided by mufs@v0", lines)
        same = "1.00 (1.00, 1.00, 1.00)"
        (found,) = (line for line in lines if line.startswith("| share"))
        self.assertEqual(
            found,
            "| share: 64 MiB, 100 Mbit/s, 2 hosts "
            f"| 1.50 (0.50, 1.50, 2.00) | {same} | {same} | {same} |  |",
        )
        self.assertEqual(ratios([ran(own, 1.0), ran(NFS, 1.0)]), "")

    def test_ratio_of_rates(self) -> None:
        """Where a rate is measured, times are compared for the same number of reads."""
        own = attrs.evolve(NFS, system="mufs", per_second=3e3, seconds=10.0, right=True)
        other = attrs.evolve(own, system="mufs@v0", per_second=1e3, cpu_server=0.01)
        rows = [attrs.evolve(own, cpu_server=6.0), other]
        self.assertIn("2 hosts | 0.33 |  |", ratios(rows))
        rows = [attrs.evolve(row, cpu_server=6.0) for row in rows]
        self.assertIn("2 hosts | 0.33 | 0.33 |", ratios(rows))

    def test_line(self) -> None:
        """The line of a run tells whether the bytes were right, or why it failed."""
        self.assertIn("1.50 s", line(ran(NFS, 1.5)))
        self.assertTrue(line(ran(NFS, 1.5)).endswith("right"))
        self.assertIn("WRONG", line(attrs.evolve(ran(NFS, 1.5), right=False)))
        self.assertTrue(line(attrs.evolve(NFS, error="gone")).endswith("FAILED: gone"))

    def test_picture(self) -> None:
        """A picture is drawn only of rows that can be compared."""
        path = Path(self.mktemp())
        picture([ran(NFS, 1.0)], path)
        self.assertFalse(path.exists())
        lossy = attrs.evolve(NFS, hosts=4, loss=10)
        rows = [NFS, attrs.evolve(NFS, hosts=4), lossy, attrs.evolve(lossy, system="mufs")]
        picture([ran(row, 2.0) for row in rows], path)
        self.assertEqual(path.read_bytes()[1:4], b"PNG")

    if find_spec("matplotlib") is None:
        test_picture.skip = "needs matplotlib"  # type: ignore[attr-defined]


def failing(row: Row, system: System) -> Iterator[Row]:
    """Measure nothing, but fail as a peer does."""
    (system.lab.directory / "peer.log").write_text("first\nout of luck\n\n")
    raise LabError("not within 30 s\nnor later")


class RunTests(SynchronousTestCase):
    """Real measurements."""

    skip = NO_BENCH or why_unavailable()

    def test_share(self) -> None:
        """Two hosts that read an image by mUFS get the right bytes, which are sent about once."""
        with image(8 * MIB) as given:
            run = attrs.evolve(NFS, system="mufs", size=given.size)
            (row,) = attempt(run, Figure(share, [Mufs]), Mufs, given)
        self.assertEqual((row.error, row.right), ("", True))
        assert row.sent is not None
        self.assertLess(row.sent, 1.2 * given.size)
        self.assertGreater(row.sent, given.size)
        assert row.memory is not None and row.cpu_clients is not None
        self.assertGreater(row.memory, 10 * MIB)
        self.assertGreater(row.cpu_clients, 0)
        self.assertRegex(row.libfuse, r"^[23]\.\d+")

    def test_failure(self) -> None:
        """The row of a failed run has the reason and the ends of all logs in one line."""
        with image(MIB) as given:
            (row,) = attempt(NFS, Figure(failing, [Mufs]), Mufs, given)
        self.assertFalse(row.right)
        self.assertEqual(row.error, "not within 30 s | nor later | peer: out of luck")


class RevisionTests(SynchronousTestCase):
    """Other revisions."""

    skip = NO_BENCH or why_unavailable()
    if not skip and subprocess.run(IN_GIT, capture_output=True).returncode:
        skip = "needs a git checkout"

    def test_unknown(self) -> None:
        """A name that git does not know is told in one line."""
        for name in ("no-such", "--all", "HEAD:mufs"):
            error = self.assertRaises(LabError, revisions.commit, name)
            self.assertEqual(str(error), f"git knows no revision {name!r} in {CHECKOUT}")

    def test_installed(self) -> None:
        """A revision is installed once, apart from this tree, and hosts read with it."""
        self.patch(revisions, "ENVIRONMENTS", Path(self.mktemp()).absolute())
        other = revisions.mufs_at("HEAD")
        program = Path(other.installation.twistd)
        made = program.stat()
        python = [str(program.with_name("python")), "-E", "-c", "import mufs; print(mufs.__file__)"]
        found = subprocess.run(python, cwd="/", capture_output=True, text=True, check=True).stdout
        self.assertTrue(found.startswith(str(revisions.ENVIRONMENTS)), found)
        with image(MIB) as given:
            run = attrs.evolve(NFS, system=other.name, size=given.size)
            (row,) = attempt(run, Figure(share, [other]), other, given)
        self.assertEqual((row.error, row.right), ("", True))
        self.assertRegex(other.name, "^mufs@")
        self.assertEqual(revisions.mufs_at("HEAD").installation, other.installation)
        self.assertEqual(program.stat(), made)
