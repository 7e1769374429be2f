"""The order in which reads have waited for too long."""

from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.reading.deliveries import Histogram
from mufs.filesystem.client.reading.in_flight import WaitingRead
from mufs.filesystem.client.reading.overdue import TCP_DELAY, URGENT_DELAY, OverdueReads
from mufs.filesystem.client.reading.sequences import SequenceDetector
from mufs.test.support.doubles import make_attributes
from mufs.wire.pages import PAGE

IMAGE = OpenImage(b"image", (1, 1), make_attributes(PAGE), SequenceDetector(PAGE))


class OverdueTests(SynchronousTestCase):
    """Reads that wait."""

    def setUp(self) -> None:
        """No read waits."""
        self.overdue = OverdueReads()

    def add(self, now: float) -> WaitingRead:
        """A read begins to wait."""
        target = memoryview(bytearray(PAGE))
        waiting = WaitingRead(IMAGE, 0, target, now, Histogram(), pages={0: 1})
        self.overdue.add(waiting, now)
        return waiting

    def pop(self, now: float) -> list[WaitingRead]:
        """What is overdue."""
        return list(self.overdue.pop(now))

    def test_order(self) -> None:
        """Each read is overdue after a short time, and then again and again after a longer one."""
        self.assertIsNone(self.overdue.due)
        first, second = self.add(0.0), self.add(0.05)
        self.assertEqual(self.overdue.due, URGENT_DELAY)
        self.assertEqual(self.pop(URGENT_DELAY / 2), [])
        self.assertEqual(self.pop(URGENT_DELAY), [first])
        self.assertEqual(self.overdue.due, URGENT_DELAY + 0.05)
        self.assertEqual(self.pop(1.0), [second])
        self.assertEqual(self.overdue.due, URGENT_DELAY + TCP_DELAY)
        third = self.add(2.0)
        self.assertEqual(self.overdue.due, 2.0 + URGENT_DELAY)
        self.assertEqual(self.pop(10.0), [third, first, second])
        self.assertEqual(self.overdue.due, 10.0 + TCP_DELAY)

    def test_ended(self) -> None:
        """Reads that have ended are not overdue, and nothing is due when none is left."""
        first, second = self.add(0.0), self.add(0.05)
        first.pages.clear()
        self.assertEqual(self.overdue.due, URGENT_DELAY + 0.05)
        second.pages.clear()
        self.assertEqual(self.pop(1.0), [])
        self.assertIsNone(self.overdue.due)
