"""How fast the server sends, and with how much parity."""

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.pacing import BURST_SECONDS, MAX_PARITY_AHEAD, Pace
from mufs.communication.server.rate_control import TOLERATED_LOSS
from mufs.test.support.properties import examples
from mufs.wire.segments import group_count

TRAIN = 45 * 1412
"""Bytes of one write."""

FLOOR, CEILING = 1e6, 1e9


Loss = Callable[[float], float]
"""The fraction of segments that a client loses, by sending rate in bits per second."""


def congested(capacity: float) -> Loss:
    """The loss behind a link of this capacity, in bits per second."""
    return lambda rate: max(0.0, 1 - capacity / rate)


def always(fraction: float) -> Loss:
    """The same loss at any rate."""
    return lambda rate: fraction


class PacingTestCase(SynchronousTestCase):
    """A clock, and clients that report losses."""

    def setUp(self) -> None:
        """Begin at zero."""
        self.clock = Clock()

    def make_pace(self, start: float, floor: float = FLOOR, ceiling: float = CEILING) -> Pace:
        return Pace(self.clock, floor=floor, ceiling=ceiling, start=start)

    def write(self, pace: Pace, size: int = TRAIN) -> None:
        """Send as the sender does: wait as long as the pace says."""
        self.clock.advance(pace.delay(size))

    def send(self, pace: Pace, seconds: float, **clients: Loss) -> float:
        """
        Send blocks for some time to clients that report their losses 20 ms later.

        @return: the mean rate in bits per second.
        """
        begin, bits = self.clock.seconds(), 0
        lost = dict.fromkeys(clients, 0.0)
        while self.clock.seconds() < begin + seconds:
            for size in (TRAIN, TRAIN, 4 * 1412):
                self.write(pace, size)
                bits += size * 8
            interval = pace.sent(clients, 94)
            for client, loss in clients.items():
                lost[client] += 94 * loss(pace.rate)
                whole = int(lost[client])
                lost[client] -= whole
                if whole:
                    self.clock.callLater(
                        0.02, pace.lost, client, whole, sent=94, in_group=whole, interval=interval
                    )
        return bits / (self.clock.seconds() - begin)


class ParityTests(PacingTestCase):
    """How many parity segments go along with a transfer."""

    def report(
        self, pace: Pace, lost: list[int], groups: int = 1, *, held_back: bool = False
    ) -> int:
        """
        Send transfers to clients that report the losses that parity does not repair.

        @param lost: for each client, how many segments it loses of each group of each transfer.
        @param held_back: whether there is more to send than the rate allows.
        @return: the parity in the end.
        """
        sent = 94 * groups
        for _ in range(40):
            self.clock.advance(0.01)
            parity = pace.parity
            if held_back:
                pace.delay(10_000_000)
            interval = pace.sent(range(len(lost)), sent)
            for client, segments in enumerate(lost):
                if (left := segments - parity) > 0:
                    pace.lost(client, left * groups, sent=sent, in_group=left, interval=interval)
        return pace.parity

    def test_one(self) -> None:
        """The reports of a single client cause no parity: it is sent what it lacks, no more."""
        self.assertEqual(self.report(self.make_pace(1e8), [0, 0, 0, 2]), 0)

    def test_many(self) -> None:
        """With several clients, parity grows at once until only one of them reports."""
        lost = [0] * 500 + [1] * 300 + [2] * 100 + [3] * 20 + [5]
        self.assertEqual(self.report(self.make_pace(1e8), lost), 3)

    def test_growing(self) -> None:
        """While the rate may grow, the reports of a few clients cause no parity."""
        pace = self.make_pace(1e8)
        self.assertEqual(self.report(pace, [2] * 8, held_back=True), 0)
        self.assertGreater(self.report(pace, [2] * 8), 0)

    def test_groups(self) -> None:
        """Parity covers what is missing in one group of a transfer, which has as much in others."""
        lost = [0] * 500 + [1] * 300 + [2] * 100 + [3] * 20 + [5]
        self.assertEqual(self.report(self.make_pace(1e8), lost, groups=4), 3)

    def test_most(self) -> None:
        """Parity is limited."""
        self.assertEqual(self.report(self.make_pace(1e8), [40] * 100), MAX_PARITY_AHEAD)

    def test_passing(self) -> None:
        """When nothing is lost any more, parity decreases step by step."""
        pace = self.make_pace(1e8)
        self.assertEqual(self.report(pace, [7] * 100 + [9]), 7)
        while pace.parity:
            before = pace.parity
            self.clock.advance(0.1)
            pace.sent([1], 94)
            self.assertIn(pace.parity, (before, before - 1))


class LossCountTests(SynchronousTestCase):
    """How losses are counted."""

    def test_counted(self) -> None:
        """Segments count once per client that waited; no more are lost than were sent."""
        pace = Pace(Clock(), floor=1e6, ceiling=1e9, start=1e8)
        interval = pace.sent(["a", "b", "c"], 94)
        pace.lost("a", 10, sent=94, in_group=10, interval=interval)
        pace.lost("b", 5000, sent=94, in_group=5000, interval=interval)
        self.assertEqual((pace.segments_awaited, pace.segments_lost), (3 * 94, 104))


class RateTests(PacingTestCase):
    """A constant rate."""

    @examples(100)
    @given(
        st.sampled_from([1e6, 5e7, 1e9]),
        st.lists(
            st.tuples(st.integers(1, TRAIN), st.sampled_from([0, 0, 0, 0, 1e-5, 1e-3, 0.2])),
            min_size=1,
            max_size=60,
        ),
    )
    def test_never_above(self, rate: float, writes: list[tuple[int, float]]) -> None:
        """
        In any period no more is sent than the rate allows, except for a burst or one packet; a
        sender that never pauses gets the whole rate.
        """
        self.setUp()
        pace = self.make_pace(rate, rate, rate)
        out: list[tuple[float, int]] = []
        paused = 0.0
        for size, pause in writes:
            self.clock.advance(pause)
            paused += pause
            self.write(pace, size)
            out.append((self.clock.seconds(), size))
        largest = max(size for _, size in out)
        for i, (start, _) in enumerate(out):
            total = 0
            for moment, size in out[i:]:
                total += size
                most = (
                    rate * (moment - start) / 8 + max(rate * BURST_SECONDS / 8, largest) + largest
                )
                self.assertLessEqual(total, most * 1.000001 + 1)
        whole = sum(size for _, size in out)
        self.assertLessEqual(self.clock.seconds() - paused, whole * 8 / rate + 1e-6)

    def test_kept(self) -> None:
        """Over a second of writes without pauses, the rate is kept to 1 %."""
        pace = self.make_pace(1e8, 1e8, 1e8)
        sent = 0
        while self.clock.seconds() < 1:
            self.write(pace)
            sent += TRAIN
        self.assertLess(abs(sent * 8 / 1e8 - 1), 0.01)

    def test_burst(self) -> None:
        """After any pause, only a burst is sent at once."""
        pace = self.make_pace(1e8, 1e8, 1e8)
        self.clock.advance(1000)
        at_once = 0
        while pace.delay(1412) == 0:
            at_once += 1412
        self.assertLess(abs(at_once - 1e8 * BURST_SECONDS / 8), 1412)

    def test_slow(self) -> None:
        """A packet larger than a burst is sent whole, and the next one waits for it."""
        pace = self.make_pace(1e6, 1e6, 1e6)
        self.clock.advance(1000)
        self.assertEqual(pace.delay(TRAIN), 0)
        self.assertAlmostEqual(pace.delay(TRAIN), TRAIN * 8 / 1e6)


class AdaptationTests(PacingTestCase):
    """A rate that follows loss reports."""

    def test_rising(self) -> None:
        """While nothing is lost and only the pace limits sending, the rate grows."""
        pace = self.make_pace(1e7)
        self.send(pace, 10, a=always(0), b=always(0))
        self.assertGreater(pace.rate, 1e8)

    def test_idle(self) -> None:
        """A rate that does not limit sending does not grow."""
        pace = self.make_pace(1e8)
        for _ in range(100):
            self.clock.advance(1)
            pace.delay(1412)
            pace.sent(["a"], 94)
        self.assertEqual(pace.rate, 1e8)

    def test_tolerated(self) -> None:
        """Tolerated loss does not slow sending."""
        pace = self.make_pace(1e8)
        some = always(TOLERATED_LOSS * 0.8)
        self.assertGreaterEqual(self.send(pace, 10, a=some, b=some), 0.99e8)

    def test_congested(self) -> None:
        """Behind a slower link, the rate drops to about the capacity of the link."""
        pace = self.make_pace(1e9)
        link = congested(5e7)
        self.send(pace, 5, a=link, b=link, c=link)
        mean = self.send(pace, 10, a=link, b=link, c=link)
        self.assertGreater(mean, 0.7 * 5e7)
        self.assertLess(mean, 1.3 * 5e7)

    def test_concealed(self) -> None:
        """What parity replaced counts as lost for the rate where it did not suffice."""
        pace = self.make_pace(1e8)
        pace.parity = 8
        for _ in range(3):
            interval = pace.sent(["a"], 940)
            pace.lost("a", 20, sent=940, in_group=4, interval=interval)
            self.clock.advance(0.2)
        self.assertEqual(interval.lost["a"], 20 + 8 * group_count(940))

    def test_by_chance(self) -> None:
        """A few lost segments of the first transfer do not slow sending; as many of all do."""
        pace = self.make_pace(1e8)
        self.write(pace, 94 * 1412)
        pace.lost("a", 7, sent=94, in_group=7, interval=pace.sent(["a"], 94))
        for _ in range(9):
            self.clock.advance(0.03)
            pace.sent(["a"], 94)
        self.assertGreaterEqual(pace.rate, 1e8)
        for _ in range(20):
            self.clock.advance(0.03)
            pace.lost("a", 7, sent=94, in_group=7, interval=pace.sent(["a"], 94))
        self.assertLess(pace.rate, 1e8)

    def test_background(self) -> None:
        """Loss that does not depend on the rate does not slow sending for long."""
        pace = self.make_pace(1e8)
        most = always(0.5)
        self.send(pace, 5, a=most, b=most)
        self.assertGreater(self.send(pace, 10, a=most, b=most), 0.7e8)

    def test_all_lost(self) -> None:
        """When nearly all of the first interval was lost, the rate recovers from the floor."""
        pace = self.make_pace(1e8)
        for lost in (199, 0, 0, 0, 0, 0, 0, 0):
            self.write(pace, 10_000_000)
            pace.lost("a", lost, sent=200, in_group=lost, interval=pace.sent(["a"], 200))
        self.assertGreater(pace.rate, FLOOR)

    def test_deaf(self) -> None:
        """A client that receives nothing of whole transfers does not affect the rate."""
        pace = self.make_pace(1e8)
        for _ in range(20):
            self.write(pace, 1_000_000)
            pace.lost("a", 200, sent=200, in_group=200, interval=pace.sent(["a"], 200))
        self.assertGreaterEqual(pace.rate, 1e8)

    def test_median(self) -> None:
        """One slow client of three does not slow the others; two of three do."""
        pace = self.make_pace(1e8, ceiling=1e8)
        slow, fast = congested(1e7), congested(1e9)
        mean = self.send(pace, 5, a=fast, b=fast, c=slow)
        self.assertGreater(mean, 0.99e8)
        self.send(pace, 5, a=fast, b=slow, c=slow)
        self.assertLess(pace.rate, 0.3e8)

    def test_others(self) -> None:
        """Loss reports of clients that nothing was sent to are ignored."""
        pace = self.make_pace(1e8)
        for _ in range(10):
            pace.lost(
                "stranger", 100_000, sent=200_000, in_group=100_000, interval=pace.sent([], 0)
            )
            self.send(pace, 1, a=always(0))
        self.assertGreaterEqual(pace.rate, 1e8)

    def test_nobody(self) -> None:
        """Transfers without an audience do not affect the rate."""
        pace = self.make_pace(1e8)
        self.assertGreater(self.send(pace, 2), 0.99e8)

    @examples(200)
    @given(
        st.tuples(st.floats(1, 1e10), st.floats(1, 1e10), st.floats(1, 1e10)),
        st.lists(
            st.one_of(
                st.tuples(st.just("delay"), st.integers(1, 65535)),
                st.tuples(st.just("advance"), st.floats(0, 100)),
                st.tuples(st.just("sent"), st.lists(st.sampled_from("abc")), st.integers(1, 940)),
                st.tuples(
                    st.just("lost"),
                    st.sampled_from("abcd"),
                    st.integers(0, 1 << 20),
                    st.integers(0, 1 << 20),
                ),
            ),
            max_size=60,
        ),
    )
    def test_floor_and_ceiling(
        self, bounds: tuple[float, float, float], steps: list[tuple[Any, ...]]
    ) -> None:
        """Whatever is reported, the rate stays within its bounds, and no delay is negative."""
        self.setUp()
        floor, ceiling, start = bounds
        pace = self.make_pace(start, floor, ceiling)
        interval = pace.sent("", 0)
        for step, *args in [*steps, ("sent", ["a"], 1)]:
            if step == "advance":
                self.clock.advance(*args)
            elif step == "delay":
                self.assertGreaterEqual(pace.delay(*args), 0)
            elif step == "sent":
                interval = pace.sent(*args)
            else:
                pace.lost(args[0], args[1], sent=args[2], in_group=args[1], interval=interval)
            self.assertLessEqual(pace.rate, ceiling)
            self.assertGreaterEqual(pace.rate, min(floor, ceiling))
