"""Congestion control: which rate follows from the loss of each interval."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.rate_control import (
    DRAIN_FACTOR,
    MAX_GROWTH,
    MIN_GROWTH,
    SETTLING_INTERVALS,
    TOLERATED_LOSS,
    RateControl,
)
from mufs.test.support.properties import examples


class RateControlTests(SynchronousTestCase):
    """A rate of 100 Mbit/s to begin with."""

    def setUp(self) -> None:
        """Bound it by 1 Mbit/s and 1 Gbit/s."""
        self.control = RateControl(floor=1e6, ceiling=1e9, start=1e8)

    def evaluate(self, *losses: float, may_grow: bool = False) -> float:
        """Evaluate intervals sent at the present rate; the rate after them."""
        for loss in losses:
            self.control.evaluate(loss, self.control.rate, may_grow=may_grow)
        return self.control.rate

    def settle(self) -> None:
        """Let the intervals after a back-off pass."""
        self.evaluate(*[0.0] * SETTLING_INTERVALS)

    def test_bounds(self) -> None:
        """The rate begins within its bounds; the ceiling wins over the floor."""
        for floor, ceiling, start, expected in (
            (1e6, 1e9, 1e5, 1e6),
            (1e6, 1e9, 1e10, 1e9),
            (1e9, 1e6, 1e8, 1e6),
        ):
            control = RateControl(floor=floor, ceiling=ceiling, start=start)
            self.assertEqual(control.rate, expected)

    def test_slow_start(self) -> None:
        """Until it meets congestion, the rate doubles, up to the ceiling."""
        self.assertTrue(self.control.is_in_slow_start)
        self.assertEqual(self.evaluate(0.0, 0.0, may_grow=True), 4e8)
        self.assertEqual(self.evaluate(0.0, 0.0, may_grow=True), 1e9)

    def test_unused(self) -> None:
        """A rate that does not limit what is sent does not grow."""
        self.assertEqual(self.evaluate(0.0, 0.0, 0.0), 1e8)

    def test_tolerated(self) -> None:
        """Tolerated loss does not slow sending."""
        self.assertEqual(self.evaluate(*[TOLERATED_LOSS] * 10), 1e8)

    def test_back_off(self) -> None:
        """At congestion the rate drops below what arrived, and then returns to that."""
        self.assertAlmostEqual(self.evaluate(0.5), DRAIN_FACTOR * 5e7)
        self.assertFalse(self.control.is_in_slow_start)
        self.settle()
        self.assertAlmostEqual(self.control.rate, DRAIN_FACTOR * 5e7)
        self.assertAlmostEqual(self.evaluate(0.0), 5e7)

    def test_settling(self) -> None:
        """Loss in the intervals right after a back-off is ignored."""
        rate = self.evaluate(0.5)
        self.assertEqual(self.evaluate(*[0.9] * SETTLING_INTERVALS), rate)

    def test_persistent(self) -> None:
        """Loss that a lower rate does not remove restores the rate, and is the base loss then."""
        self.evaluate(0.3)
        self.settle()
        self.assertEqual(self.evaluate(0.3), 1e8)
        self.assertEqual(self.evaluate(*[0.3 + TOLERATED_LOSS / 2] * 5), 1e8)
        self.assertLess(self.evaluate(0.5), 1e8)

    def test_small(self) -> None:
        """For a small loss the rate drops by twice the loss only, also when it persists."""
        self.assertAlmostEqual(self.evaluate(0.05), 0.95 * 0.95 * 1e8)
        self.settle()
        self.assertEqual(self.evaluate(0.05), 1e8)

    def test_not_congestion(self) -> None:
        """After a loss that had another cause the rate grows as it would have without it."""
        self.evaluate(0.3)
        self.settle()
        self.evaluate(0.3, 0.3)
        self.assertTrue(self.control.is_in_slow_start)
        self.assertEqual(self.evaluate(0.3, may_grow=True), 2e8)

    def test_base_loss_fades(self) -> None:
        """The base loss follows the loss when that goes down."""
        self.evaluate(0.3)
        self.settle()
        self.evaluate(0.3, *[0.0] * 20)
        self.assertLess(self.evaluate(0.1), 1e8)

    def test_growth(self) -> None:
        """After a back-off the rate grows slowly near the capacity, and faster far from it."""
        self.evaluate(0.5)
        self.settle()
        before = self.evaluate(0.0)
        self.assertAlmostEqual(self.evaluate(0.0, may_grow=True), before * (1 + MIN_GROWTH))
        while self.evaluate(0.0, may_grow=True) < 2.5 * before:
            pass
        before = self.control.rate
        self.assertAlmostEqual(self.evaluate(0.0, may_grow=True), before * (1 + MAX_GROWTH))

    @examples(200)
    @given(st.lists(st.tuples(st.floats(0, 1), st.floats(1e6, 1e9), st.booleans()), max_size=50))
    def test_any_losses(self, steps: list[tuple[float, float, bool]]) -> None:
        """Whatever is lost, the rate keeps its bounds."""
        self.setUp()
        for loss, sent_at, may_grow in steps:
            self.control.evaluate(loss, sent_at, may_grow=may_grow)
            self.assertTrue(1e6 <= self.control.rate <= 1e9)
