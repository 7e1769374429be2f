"""Timers for objects that say when they are due."""

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.client.timer import Timer


class Work:
    """
    Something to do at given times.

    @ivar times: when, in order.
    """

    def __init__(self, *times: float) -> None:
        self.times = list(times)
        self.done: list[float] = []

    @property
    def due(self) -> float | None:
        """When the next is due."""
        return self.times[0] if self.times else None

    def check(self, now: float) -> None:
        """Do what is due."""
        while self.times and self.times[0] <= now:
            self.done.append(self.times.pop(0))


class TimerTests(SynchronousTestCase):
    """A timer on a clock."""

    def setUp(self) -> None:
        """Have two things to do."""
        self.clock = Clock()
        self.clock.advance(0.1)
        self.work = Work(1.0, 3.0)
        self.timer = Timer(self.clock, self.work)
        self.timer.set()

    def test_due(self) -> None:
        """It calls at each time, and has one timer at most."""
        for now, done in [(0.9, []), (1.0, [1.0]), (2.9, [1.0]), (3.1, [1.0, 3.0])]:
            self.clock.advance(now - self.clock.seconds())
            self.timer.set()
            self.assertEqual(self.work.done, done)
            self.assertLessEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_changed(self) -> None:
        """What is due earlier, later or not at all is noticed."""
        for times in [[0.5, 1.0], [2.0], [], [0.7]]:
            self.work.times = times
            self.timer.set()
            calls = [call.getTime() for call in self.clock.getDelayedCalls()]
            self.assertEqual(calls, times[:1])

    def test_moved(self) -> None:
        """What was put off or brought forward is done at its time, and once."""
        for time in [2.0, 0.5, 1.5]:
            self.work.times = [time]
            self.timer.set()
        for now, done in [(1.0, []), (1.5, [1.5]), (3.0, [1.5])]:
            self.clock.advance(now - self.clock.seconds())
            self.assertEqual(self.work.done, done)

    def test_overdue(self) -> None:
        """What is overdue already is called at once, but not from within."""
        self.work.times = [0.05]
        self.timer.set()
        self.assertEqual(self.work.done, [])
        self.clock.advance(0)
        self.assertEqual(self.work.done, [0.05])

    def test_early(self) -> None:
        """A clock that calls a moment too early does no harm."""
        calls: Any = self.clock.getDelayedCalls()
        self.clock.advance(0.8999)
        calls[0].func()
        self.assertEqual(self.work.done, [1.0])
