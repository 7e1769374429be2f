"""The clock of the simulation."""

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.virtual import VirtualTime


class VirtualTimeTests(SynchronousTestCase):
    """Calls in virtual time."""

    def setUp(self) -> None:
        """Have a call in 2 s."""
        self.clock = VirtualTime()
        self.called: list[float] = []
        self.call = self.clock.callLater(2.0, lambda: self.called.append(self.clock.seconds()))

    def test_moved(self) -> None:
        """A call that is moved forth and back is made once, at the time given last."""
        for delays in [[], [1.0], [3.0], [1.0, 3.0], [3.0, 1.0], [1.0, 1.5], [3.0, 1.0, 5.0, 4.0]]:
            self.setUp()
            for delay in delays:
                self.call.reset(delay)
            self.clock.advance(10.0)
            self.assertEqual(self.called, [delays[-1] if delays else 2.0])

    def test_moved_on(self) -> None:
        """A call may be moved on again and again."""
        for _ in range(5):
            self.clock.advance(1.5)
            self.call.reset(2.0)
        self.clock.advance(10.0)
        self.assertEqual(self.called, [9.5])

    def test_cancelled(self) -> None:
        """A call that was moved and cancelled is not made."""
        self.call.reset(3.0)
        self.call.cancel()
        self.clock.advance(10.0)
        self.assertEqual(self.called, [])
