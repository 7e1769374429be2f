"""The paper's experiment, shortened, without assertions on speed: see docs/experiments.md."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.lab import why_unavailable

NO_BENCH = None if find_spec("bench") else "needs the sources of the experiment"
CANNOT = NO_BENCH or why_unavailable()
if NO_BENCH is None:
    from bench.experiment.replay import Plan, replay
    from bench.experiment.results import Host, Outcome, Sample
    from bench.experiment.sampling import FileReads, parse, untraceable
    from bench.experiment.tables import picture, tables
    from bench.experiment.traces import PAGE, SIZES, Trace, trace
    from bench.systems import Mufs, Nfs

    CANNOT = CANNOT or untraceable()
    NFS = Outcome(
        system="nfs",
        hosts=[Host("client01", 10.0, 100), Host("client02", 8.0, 100)],
        started=5.0,
        server_reads=200,
        server_read_bytes=4_000_000,
        server_requests=200,
        server_bytes_sent=4_200_000,
        unique_bytes=2_000_000,
        samples=[Sample(0, 4_000_000, 0.5), Sample(1, 200_000, 0.25)],
        right=True,
    )
    MUFS = attrs.evolve(
        NFS,
        system="mufs",
        hosts=[Host("client01", 4.0, 100, 60, 10, 30), Host("client02", 5.0, 100, 90, 5, 5)],
        server_reads=40,
        server_bytes_sent=2_100_000,
    )


MAX_SENT_RATIO = 1.5
"""Relative to the bytes of one boot; a short boot has proportionally more unused read-ahead."""


class TraceTests(SynchronousTestCase):
    """Traces and their images."""

    skip = NO_BENCH

    def test_small(self) -> None:
        """Bytes read repeatedly count once as unique bytes; the image is the same each time."""
        path, images = Path(self.mktemp()), [Path(self.mktemp()) for _ in range(2)]
        path.write_text("t_seconds,offset,length\n0.5,0,8192\n0.6,4096,8192\n")
        small = Trace("small", path, 1 << 20)
        self.assertEqual(small.reads, [(0, 8192), (4096, 8192)])
        self.assertEqual((small.bytes_read, small.unique_bytes), (4 * PAGE, 3 * PAGE))
        for image in images:
            small.write_image(image)
            self.assertEqual(image.stat().st_size, small.size)
        self.assertEqual(*map(small.sha256, images))
        self.assertNotIn(bytes(16), images[0].read_bytes()[: 3 * PAGE])

    def test_all(self) -> None:
        """Each trace lies within its image, and reads whole pages, as O_DIRECT requires."""
        for name, size in SIZES.items():
            for offset, length in trace(name).reads:
                self.assertEqual((offset % PAGE, length % PAGE), (0, 0))
                self.assertTrue(0 < length <= size - offset)


class CountTests(SynchronousTestCase):
    """Read calls counted in the output of strace."""

    skip = NO_BENCH

    def test_parse(self) -> None:
        """A call that strace splits counts once; failed reads and reads at the end do not count."""
        log = Path(self.mktemp())
        log.write_text(
            '7 pread64(3, ""..., 4096, 0) = 4096\n'
            "7 preadv(3,  <unfinished ...>\n"
            '8 pread64(3, "", 10, 8192) = 0\n'
            '7 <... preadv resumed>[{iov_base=""..., iov_len=100}], 1, 0) = 100\n'
            "8 pread64(3, 0x7f, 10, 0) = -1 EIO (Input/output error)\n"
            "8 preadv2(3,  <unfinished ...>\n"
        )
        self.assertEqual(parse(log), FileReads(2, 4196))
        self.assertEqual(parse(log).since(FileReads(1, 4096)), FileReads(1, 100))


class TablesTests(SynchronousTestCase):
    """The tables of results."""

    skip = NO_BENCH

    def test_both(self) -> None:
        """Each host has a line; ratios are NFS / mUFS except for T, with the first host apart."""
        text = tables([NFS, MUFS])
        lines = text.split("\n")
        self.assertIn("| client01, NFS | 10.00 s | 100 | - | - | - | - |", lines)
        self.assertIn("| client02, mUFS | 5.00 s | 100 | 90 | 5 | 5 | 90.0% |", lines)
        self.assertIn("| read times of the image | 200 | 40 | 5.00 | 877 / 83 = 10.6 |", lines)
        self.assertIn("| bytes sent, MB | 4.20 | 2.10 | 2.00 | - |", lines)
        self.assertIn("| bytes sent / unique bytes of one boot | 2.10 | 1.05 | 2.00 | - |", lines)
        self.assertIn("NFS 10.00 s, mUFS 5.00 s: mUFS / NFS = 0.50", lines)
        self.assertIn("first host (client01): 60.0% (paper 5.9%); of the followers 90.0%", text)
        self.assertNotIn("WRONG", text)

    def test_one(self) -> None:
        """A single system has no ratios, and wrong bytes are reported."""
        text = tables([attrs.evolve(MUFS, right=False)])
        self.assertIn("| read times of the image | 40 |\n", text)
        self.assertIn("WRONG BYTES were read over mUFS", text)

    def test_picture(self) -> None:
        """Figure 6 is a PNG."""
        path = Path(self.mktemp())
        picture([("one", [NFS, MUFS]), ("two", [MUFS])], path)
        self.assertEqual(path.read_bytes()[1:4], b"PNG")

    if find_spec("matplotlib") is None:
        test_picture.skip = "needs matplotlib"  # type: ignore[attr-defined]


class ReplayTests(SynchronousTestCase):
    """The boot of a tiny image, replayed on two hosts."""

    skip = CANNOT

    def run_tiny(self, kind: type[Mufs] | type[Nfs]) -> Outcome:
        """Replay a boot on two hosts; assert that all bytes are right and all reads counted."""
        plan = Plan(trace("tiny"), think=0.0, hosts=2)
        outcome = replay(plan, kind)
        self.assertTrue(outcome.right)
        self.assertEqual([host.name for host in outcome.hosts], ["client01", "client02"])
        self.assertEqual(outcome.unique_bytes, plan.trace.unique_bytes)
        self.assertGreaterEqual(outcome.server_read_bytes, outcome.unique_bytes)
        self.assertGreater(outcome.server_bytes_sent, outcome.unique_bytes)
        self.assertEqual(
            sum(sample.bytes_sent for sample in outcome.samples), outcome.server_bytes_sent
        )
        for host in outcome.hosts:
            self.assertEqual(host.reads, len(plan.trace.reads))
        self.assertIn("Table V", tables([outcome]))
        return outcome

    def test_mufs(self) -> None:
        """With mUFS, each read of a program reaches the mount, and bytes are sent about once."""
        outcome = self.run_tiny(Mufs)
        for host in outcome.hosts:
            self.assertEqual(host.hits + host.joined + host.misses, host.reads)
        self.assertLess(outcome.server_bytes_sent, MAX_SENT_RATIO * outcome.unique_bytes)

    def test_nfs(self) -> None:
        """With NFS, the server reads and sends for each host separately."""
        outcome = self.run_tiny(Nfs)
        self.assertEqual(outcome.server_reads, 2 * len(trace("tiny").reads))
        self.assertGreater(outcome.server_bytes_sent, 2 * outcome.unique_bytes)

    if NO_BENCH is None and Nfs.lacking():
        test_nfs.skip = "needs nfs-ganesha and qemu-storage-daemon"  # type: ignore[attr-defined]
