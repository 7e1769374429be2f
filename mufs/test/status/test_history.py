"""The history of figures."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.status.history import (
    DAY_SAMPLE_INTERVAL,
    DAY_SECONDS,
    HISTORY_SECONDS,
    SAMPLE_INTERVAL,
    History,
)
from mufs.status.state import StateFile


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
        self.assertEqual(self.history.recent.values("bytes"), [(SAMPLE_INTERVAL + 1, 3), (1, 5)])

    def test_rates(self) -> None:
        """A rate is the growth divided by the time between two samples, or several."""
        self.sample(bytes=100)
        self.sample(after=2, bytes=300)
        self.sample(after=4, bytes=340)
        self.assertEqual(self.history.recent.rates("bytes"), [(4, 100), (0, 10)])
        self.assertEqual(self.history.recent.rates("bytes", samples=5), [(4, 100), (0, 40)])

    def test_gap(self) -> None:
        """Where samples are missing there is a gap."""
        self.sample(bytes=100)
        self.sample(after=10, bytes=300)
        self.sample(bytes=400)
        recent = self.history.recent
        self.assertEqual(recent.rates("bytes", samples=3), [(2, None), (0, 50)])
        self.assertEqual(recent.values("bytes"), [(12, 100), (2, None), (2, 300), (0, 400)])

    def test_shares(self) -> None:
        """A share is that of the growth, and there is none where nothing grew."""
        self.sample(lost=5, sent=10)
        self.sample(lost=6, sent=14)
        self.sample()
        self.assertEqual(
            [share for _, share in self.history.recent.shares("lost", "sent")], [0.25, None]
        )
        both = self.history.recent.shares("lost", "lost", "sent")
        self.assertEqual([share for _, share in both], [0.2, None])

    def test_nothing_yet(self) -> None:
        """Without samples there are no values, and with a single one no rates."""
        self.assertEqual(self.history.recent.values("bytes"), [])
        self.sample()
        self.assertEqual(self.history.recent.rates("bytes"), [])
        self.assertEqual(self.history.recent.shares("lost", "sent"), [])

    def test_at_the_same_time(self) -> None:
        """Two samples at the same time give no rate, and no error."""
        self.sample()
        self.sample(after=0, bytes=5)
        self.assertEqual(self.history.recent.rates("bytes"), [])

    def test_bounded(self) -> None:
        """Samples older than ten minutes are dropped; texts and lists are not kept at all."""
        for number in range(1000):
            self.sample(bytes=number)
        values = self.history.recent.values("bytes")
        self.assertEqual(len(values), HISTORY_SECONDS / SAMPLE_INTERVAL + 1)
        self.assertEqual((values[0][0], values[-1][1]), (HISTORY_SECONDS, 999))
        self.assertEqual({*self.history.recent.samples[0][1]}, {"bytes", "lost", "sent"})


class DayTests(SynchronousTestCase):
    """The samples of the last day."""

    def setUp(self) -> None:
        """Have a directory, and a time of day."""
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.now = 1.8e9
        self.figures: dict[str, Any] = {"bytes": 0, "other": 5}

    def begin(self) -> History:
        """A service starts."""
        state = StateFile(self.directory, "mufs-x")
        return History(
            Clock(), lambda: self.figures, of_day=["bytes"], state=state, now=lambda: self.now
        )

    def run_for(self, history: History, seconds: float, per_second: int = 0) -> None:
        """Samples are taken for a time, in which a figure grows."""
        for _ in range(int(seconds / 60)):
            history.sample()
            self.now += 60
            self.figures["bytes"] += 60 * per_second

    def test_coarse(self) -> None:
        """A sample is kept every five minutes, of the figures that are shown, for a day."""
        history = self.begin()
        self.run_for(history, 2 * DAY_SECONDS, 10)
        self.assertEqual(len(history.day.samples), DAY_SECONDS / DAY_SAMPLE_INTERVAL + 1)
        self.assertEqual({*history.day.samples[0][1]}, {"bytes"})
        self.assertEqual({value for _, value in history.day.rates("bytes")}, {10})

    def test_restart(self) -> None:
        """The samples are there after a restart; the time without the service is a gap."""
        self.run_for(self.begin(), 3 * DAY_SAMPLE_INTERVAL, 10)
        self.now += 3600
        self.figures["bytes"] = 0
        history = self.begin()
        self.run_for(history, 3 * DAY_SAMPLE_INTERVAL, 10)
        values = [value for _, value in history.day.rates("bytes")]
        self.assertEqual(values, [10, 10, None, 10, 10])

    def test_quick_restart(self) -> None:
        """A counter that begins anew counts from 0."""
        self.run_for(self.begin(), DAY_SAMPLE_INTERVAL, 10)
        self.figures["bytes"] = 600
        history = self.begin()
        history.sample()
        self.assertEqual([value for _, value in history.day.rates("bytes")], [2])

    def test_clock_set_back(self) -> None:
        """A time of day that is set back stops nothing."""
        history = self.begin()
        history.sample()
        self.now -= DAY_SECONDS
        history.sample()
        self.assertEqual(len(history.day.samples), 2)
        self.assertEqual(history.day.rates("bytes"), [])
