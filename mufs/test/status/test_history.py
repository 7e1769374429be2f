"""The history of figures."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.status.history import HISTORY_SECONDS, SAMPLE_INTERVAL, History


class HistoryTests(SynchronousTestCase):
    """What the samples of a history show."""

    def setUp(self) -> None:
        """Have figures that change."""
        self.clock = Clock()
        self.figures: dict[str, Any] = {"bytes": 0, "lost": 0, "sent": 0, "name": "n", "list": [1]}
        self.history = History(self.clock, lambda: self.figures)

    def sample(self, after: float = SAMPLE_INTERVAL, **changes: Any) -> None:
        """Let time pass, and take a sample."""
        self.clock.advance(after)
        self.figures.update(changes)
        self.history.sample()

    def test_values(self) -> None:
        """The values of a figure come with their ages, the oldest first."""
        self.sample(bytes=3)
        self.sample(bytes=5)
        self.clock.advance(1)
        self.assertEqual(self.history.values("bytes"), [(SAMPLE_INTERVAL + 1, 3), (1, 5)])

    def test_rates(self) -> None:
        """A rate is the growth divided by the time between two samples, however long that is."""
        self.sample(bytes=100)
        self.sample(after=2, bytes=300)
        self.sample(after=10, bytes=400)
        self.assertEqual(self.history.rates("bytes"), [(10, 100), (0, 10)])

    def test_shares(self) -> None:
        """A share is that of the growth, and 0 where nothing grew."""
        self.sample(lost=5, sent=10)
        self.sample(lost=6, sent=14)
        self.sample()
        self.assertEqual([share for _, share in self.history.shares("lost", "sent")], [0.25, 0])
        both = self.history.shares("lost", "lost", "sent")
        self.assertEqual([share for _, share in both], [0.2, 0])

    def test_nothing_yet(self) -> None:
        """Without samples there are no values, and with a single one no rates."""
        self.assertEqual(self.history.values("bytes"), [])
        self.sample()
        self.assertEqual(self.history.rates("bytes"), [])
        self.assertEqual(self.history.shares("lost", "sent"), [])

    def test_at_the_same_time(self) -> None:
        """Two samples at the same time give no rate, and no error."""
        self.sample()
        self.sample(after=0, bytes=5)
        self.assertEqual(self.history.rates("bytes"), [])

    def test_bounded(self) -> None:
        """Samples older than ten minutes are dropped; texts and lists are not kept at all."""
        for number in range(1000):
            self.sample(bytes=number)
        values = self.history.values("bytes")
        self.assertEqual(len(values), HISTORY_SECONDS / SAMPLE_INTERVAL + 1)
        self.assertEqual((values[0][0], values[-1][1]), (HISTORY_SECONDS, 999))
        self.assertEqual({*self.history._samples[0][1]}, {"bytes", "lost", "sent"})
