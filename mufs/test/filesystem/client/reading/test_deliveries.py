"""What is counted of reads that have ended."""

from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client.reading.deliveries import BOUNDS, Deliveries


class DeliveriesTests(SynchronousTestCase):
    """Reads that have ended."""

    def setUp(self) -> None:
        """Begin to count."""
        self.deliveries = Deliveries()

    def test_classes(self) -> None:
        """A read counts in the first class whose bound it does not exceed, or in the last one."""
        hits = self.deliveries.hits
        for seconds in (0.0, BOUNDS[0], 0.0002, BOUNDS[-1], 99.0):
            self.deliveries.note(hits, seconds, 1)
        self.assertEqual((hits.counts[:2], hits.counts[-2:]), ([2, 1], [1, 1]))
        self.assertEqual(hits.total, 5)
        self.assertEqual(hits.seconds, sum((BOUNDS[0], 0.0002, BOUNDS[-1], 99.0)))

    def test_kinds(self) -> None:
        """All reads count, and those that the cache answered."""
        for kind in (self.deliveries.hits, self.deliveries.joined, self.deliveries.misses):
            self.deliveries.note(kind, 0.01, 10)
        self.assertEqual(self.deliveries.reads_and_hits, (3, 1))
        self.assertEqual(self.deliveries.bytes_delivered, 30)

    def test_reported(self) -> None:
        """Each byte is reported once."""
        self.assertEqual(self.deliveries.take_delivered(), 0)
        for length in (5, 7):
            self.deliveries.note(self.deliveries.hits, 0.0, length)
        self.assertEqual([self.deliveries.take_delivered() for _ in range(2)], [12, 0])

    def test_threads(self) -> None:
        """Nothing is lost when several threads count at once."""

        def count() -> None:
            for _ in range(5000):
                self.deliveries.note(self.deliveries.hits, 0.0, 3)

        threads = [Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(self.deliveries.bytes_delivered, 60_000)
        self.assertEqual(self.deliveries.hits.total, 20_000)
