"""Random reads on a simulated network: what they request, and how long they wait."""

from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client.reading.random_reads import GAP_FILL_MAX_PAGES, WHOLE_BLOCK_WARMUP_READS
from mufs.test.support.simulation import SimulatedNetwork
from mufs.wire.pages import BLOCK, PAGE

READ_DISTANCE = 8 * BLOCK
"""Bytes between two random reads."""


class RandomReadTests(SynchronousTestCase):
    """Reads of single pages at random."""

    def read(self, reads: int, **network: Any) -> tuple[SimulatedNetwork, Any]:
        """Read the third page of different blocks C{reads} times."""
        net = SimulatedNetwork(1, **network)
        image = net.put_image(b"image", (reads + 2) * READ_DISTANCE)
        client = net.clients[0]
        opened = client.remote.opened(net.run(client.open(b"image"))[0])
        for number in range(1, reads + 1):
            offset = number * READ_DISTANCE + 2 * PAGE
            data = net.run(ensureDeferred(client.read(opened, offset, PAGE)))
            self.assertEqual(data, image.read(offset, PAGE))
        return net, opened

    def test_fast(self) -> None:
        """
        When whole blocks arrive fast, each read fetches its block, and later ones more around it,
        so that a read beside an earlier one is a hit.
        """
        net, opened = self.read(3 * WHOLE_BLOCK_WARMUP_READS, latency=0.0001)
        client = net.clients[0]
        deliveries = client.remote.reads.deliveries
        self.assertEqual(deliveries.reads_and_hits[0], 3 * WHOLE_BLOCK_WARMUP_READS)
        # Some blocks were already fetched around earlier reads.
        self.assertLess(deliveries.misses.total, 3 * WHOLE_BLOCK_WARMUP_READS - 8)
        self.assertGreater(client.cache.held, 3 * WHOLE_BLOCK_WARMUP_READS * BLOCK)
        hits = client.hits
        net.run(ensureDeferred(client.read(opened, 40 * READ_DISTANCE + 31 * PAGE, PAGE)))
        self.assertEqual(client.hits, hits + 1)

    def test_slow(self) -> None:
        """When whole blocks are slow, reads fetch only their pages, except for a few probes."""
        net, _ = self.read(3 * WHOLE_BLOCK_WARMUP_READS, latency=0.0001, link=50e6)
        held = net.clients[0].cache.held
        self.assertLessEqual(
            held, (WHOLE_BLOCK_WARMUP_READS + 2) * BLOCK + (2 * WHOLE_BLOCK_WARMUP_READS - 2) * PAGE
        )
        self.assertGreaterEqual(held, WHOLE_BLOCK_WARMUP_READS * BLOCK)

    def test_gaps(self) -> None:
        """On a slow path, a read also fetches a small gap to cached pages, and nothing else."""
        net, opened = self.read(WHOLE_BLOCK_WARMUP_READS + 1, latency=0.0001, link=50e6)
        client = net.clients[0]
        there = (WHOLE_BLOCK_WARMUP_READS + 1) * READ_DISTANCE + 2 * PAGE
        for pages, fetched in (
            (GAP_FILL_MAX_PAGES - 1, GAP_FILL_MAX_PAGES - 1),
            (1 - GAP_FILL_MAX_PAGES, GAP_FILL_MAX_PAGES - 1),
            (64, 1),
            (-64, 1),
        ):
            held = client.cache.held
            net.run(ensureDeferred(client.read(opened, there + pages * PAGE, PAGE)))
            net.run(deferLater(net.clock, 1.0))
            self.assertEqual(client.cache.held - held, fetched * PAGE, pages)
        self.assertEqual(net.leftovers(), [])

    def test_lag(self) -> None:
        """A report gives the longest wait since the last one, including reads that still wait."""
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
        """With a cache of one block, reads return the right bytes."""
        net, _ = self.read(10, latency=0.0001, cache_size=BLOCK)
        self.assertEqual(net.clients[0].cache.held, BLOCK)
        self.assertEqual(net.leftovers(), [])
