"""The clock of the reactor's timers."""

from twisted.internet.base import ReactorBase
from twisted.trial.unittest import SynchronousTestCase

from mufs import clock


class Reactor(ReactorBase):
    """Twisted's timers, and nothing else of a reactor."""

    def installWaker(self) -> None:
        """See L{ReactorBase.installWaker}."""


class ClockTests(SynchronousTestCase):
    """Timers of a reactor that uses the monotonic clock."""

    def test_timers(self) -> None:
        """A timer expires by the monotonic clock, whatever the time of day."""
        now = 1000.0
        self.patch(clock, "monotonic", lambda: now)
        reactor = Reactor()
        clock.use_monotonic_clock(reactor)
        expired: list[int] = []
        reactor.callLater(5, expired.append, 1)
        now += 4.9
        reactor.runUntilCurrent()
        self.assertEqual(expired, [])
        now += 0.2
        reactor.runUntilCurrent()
        self.assertEqual(expired, [1])
