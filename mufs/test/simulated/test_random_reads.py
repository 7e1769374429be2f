"""Reads at random on a simulated network: what they ask for, and how long they wait."""

from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client.random_reads import GAP_FILL_MAX_PAGES, WHOLE_BLOCK_WARMUP_READS
from mufs.test.support.simulation import SimulatedNetwork
from mufs.wire.pages import BLOCK, PAGE

APART = 8 * BLOCK
"""Bytes between two reads that are not in sequence."""


class RandomReadTests(SynchronousTestCase):
    """Reads of a page here and there."""

    def read(self, reads: int, **network: Any) -> tuple[SimulatedNetwork, Any]:
        """Make so many reads, each of the third page of another block."""
        net = SimulatedNetwork(1, **network)
        image = net.put_image(b"image", (reads + 2) * APART)
        client = net.clients[0]
        opened = client.remote.opened(net.run(client.open(b"image"))[0])
        for number in range(1, reads + 1):
            offset = number * APART + 2 * PAGE
            data = net.run(ensureDeferred(client.read(opened, offset, PAGE)))
            self.assertEqual(data, image.read(offset, PAGE))
        return net, opened

    def test_fast(self) -> None:
        """
        Where a block is there soon, each read brings its block, and more of what lies around the
        more there are: what lies beside is a hit.
        """
        net, opened = self.read(3 * WHOLE_BLOCK_WARMUP_READS, latency=0.0001)
        client = net.clients[0]
        coalescer = client.remote.coalescer
        self.assertEqual(
            client.hits + coalescer.joined + coalescer.misses, 3 * WHOLE_BLOCK_WARMUP_READS
        )
        # Later reads found their block among those that were brought around earlier ones.
        self.assertLess(coalescer.misses, 3 * WHOLE_BLOCK_WARMUP_READS - 8)
        self.assertGreater(client.cache.held, 3 * WHOLE_BLOCK_WARMUP_READS * BLOCK)
        hits = client.hits
        net.run(ensureDeferred(client.read(opened, 40 * APART + 31 * PAGE, PAGE)))
        self.assertEqual(client.hits, hits + 1)

    def test_slow(self) -> None:
        """Where it is not, reads bring their pages alone, but for some to find out."""
        net, _ = self.read(3 * WHOLE_BLOCK_WARMUP_READS, latency=0.0001, link=50e6)
        held = net.clients[0].cache.held
        self.assertLessEqual(
            held, (WHOLE_BLOCK_WARMUP_READS + 2) * BLOCK + (2 * WHOLE_BLOCK_WARMUP_READS - 2) * PAGE
        )
        self.assertGreaterEqual(held, WHOLE_BLOCK_WARMUP_READS * BLOCK)

    def test_gaps(self) -> None:
        """There, what lies between a read and what is held near it comes with it; nothing else."""
        net, opened = self.read(WHOLE_BLOCK_WARMUP_READS + 1, latency=0.0001, link=50e6)
        client = net.clients[0]
        there = (WHOLE_BLOCK_WARMUP_READS + 1) * APART + 2 * PAGE
        for pages, brought in (
            (GAP_FILL_MAX_PAGES - 1, GAP_FILL_MAX_PAGES - 1),
            (1 - GAP_FILL_MAX_PAGES, GAP_FILL_MAX_PAGES - 1),
            (64, 1),
            (-64, 1),
        ):
            held = client.cache.held
            net.run(ensureDeferred(client.read(opened, there + pages * PAGE, PAGE)))
            net.run(deferLater(net.clock, 1.0))
            self.assertEqual(client.cache.held - held, brought * PAGE, pages)
        self.assertEqual(net.leftovers(), [])

    def test_lag(self) -> None:
        """The longest wait since it was asked last is told: of reads that ended or wait still."""
        net, opened = self.read(1, latency=0.01)
        client = net.clients[0]
        report = client.remote.report()
        self.assertEqual((report.reads, report.hits), (1, 0))
        self.assertTrue(20 <= report.lag < 100, report)
        self.assertEqual(client.remote.report().lag, 0)
        net.server.kill()
        ensureDeferred(client.read(opened, 0, PAGE)).addErrback(lambda _: None)
        net.clock.advance(2.0)
        self.assertEqual(client.remote.report().lag, 2000)
        net.clock.advance(1.0)
        self.assertEqual(client.remote.report().lag, 3000)

    def test_small_cache(self) -> None:
        """A cache of one block gives right bytes all the same."""
        net, _ = self.read(10, latency=0.0001, cache_size=BLOCK)
        self.assertEqual(net.clients[0].cache.held, BLOCK)
        self.assertEqual(net.leftovers(), [])
