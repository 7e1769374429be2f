"""
How fast the server sends, and with how much parity: for all images together, found by what the
clients report.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from statistics import median_low

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

INTERVAL = 0.1
"""Seconds of sending that are judged together, at the least."""

START_INTERVAL = 0.025
"""The same as long as no congestion was met: the rate doubles each time then."""

SAMPLE = 100
"""Segments that an interval shall have, so that one lost is not much; it is drawn out for them."""

TOLERATED_LOSS = 0.04
"""Up to this fraction above what is lost at any rate, losses are repaired, not congestion."""

PERSISTENT = 0.7
"""What part of the loss must be left when the rate was cut for it to be of another kind."""

DRAIN = 0.8
"""What part of the rate that came through is sent at for a moment, for queues to empty."""

MOST_GROWTH = 0.5
"""By what part the rate grows in an interval at the most: far from where it was cut last."""

LEAST_GROWTH = 0.01
"""The same at the least: close to where it was cut last."""

SETTLING = 2
"""Intervals after a cut whose losses say nothing: sent before it, or while queues empty."""

REPORTS = 8
"""Reports of loss on a transfer, on the average, that are cheaper answered than prevented."""

MOST_PARITY = 8
"""Parity segments that go along with a transfer at the most: with 94 segments, 8.5 %."""

FULL = 0.2
"""Seconds after the send buffer was full for which the local link is taken for full."""

SENDING = 1.0
"""Seconds after something was sent for which more is taken to be coming."""

BURST = 0.004
"""Seconds' worth of sending that may be made up for at once: timers are no finer."""


@define(eq=False)
class Interval:
    """
    A time of sending: what was sent in it, for whom, and what of that they report lost.

    @ivar parity: parity segments that went along with each transfer.
    @ivar reports: for each report how many segments were lacking still.
    """

    began: float
    rate: float
    parity: int
    transfers: int = 0
    segments: int = 0
    reports: list[int] = field(factory=list)
    expected: Counter[Hashable] = field(factory=Counter)
    lost: Counter[Hashable] = field(factory=Counter)

    @property
    def loss(self) -> float:
        """What the median client lost, as a fraction; with two the better one counts."""
        fractions = [min(1.0, self.lost[c] / n) for c, n in self.expected.items() if n > 0]
        return median_low(fractions or [0.0])


class Pace:
    """
    The rate of sending, in bits a second, between a floor and a ceiling.

    Where the local link is the bottleneck the send buffer fills, and writing waits for it: the
    rate need not know. Where it is elsewhere the clients' loss tells: the rate is cut to what
    came through. If as much is lost after that the loss is of another kind, which slowing does
    not help: the rate is what it was again, and only loss beyond that is congestion. The median
    client counts: one that cannot follow does not slow the others, it is served over TCP.

    Where so many clients report that answering them is work, parity goes along with each
    transfer, so that all but a few are whole without asking.

    @ivar rate: bits a second, of datagrams as they are written.
    @ivar parity: how many parity segments to send along with a transfer.
    @ivar bytes: what was sent so far.
    @ivar segments_awaited: segments of transfers, each counted for every client that waited for it.
    @ivar segments_lost: those of them that the client lacked when it asked first.
    """

    def __init__(self, clock: IReactorTime, floor: float, ceiling: float, start: float) -> None:
        self._clock = clock
        self._floor = min(floor, ceiling)
        self._ceiling = ceiling
        self.rate = max(self._floor, min(start, ceiling))
        self._capacity: float | None = None
        self._base = 0.0
        self._settling = 0
        self._cut: tuple[float, float] | None = None
        self._credit = 0.0
        self._refilled = clock.seconds()
        self.parity = 0
        self._now = Interval(self._refilled, self.rate, 0)
        self._before = Interval(self._refilled, self.rate, 0)
        self._held_back = False
        self._blocked = False
        self.bytes = self.segments_awaited = self.segments_lost = 0
        self._filled = float("-inf")

    @property
    def is_full(self) -> bool:
        """Whether there is more to multicast than the local link takes, just now."""
        return self._clock.seconds() - self._filled < FULL

    @property
    def is_sending(self) -> bool:
        """Whether something was multicast just now."""
        return self.bytes > 0 and self._clock.seconds() - self._refilled < SENDING

    def delay(self, size: int) -> float:
        """Seconds to wait before the next C{size} bytes may go; to be asked once for each."""
        now = self._clock.seconds()
        burst = max(self.rate * BURST / 8, size)
        self._credit = min(burst, self._credit + (now - self._refilled) * self.rate / 8)
        self._refilled = now
        self._credit -= size
        self.bytes += size
        if self._credit >= 0:
            return 0.0
        self._held_back = True
        return -self._credit * 8 / self.rate

    def blocked(self) -> None:
        """The local send buffer was full."""
        self._blocked = True
        self._filled = self._clock.seconds()

    def sent(self, audience: Iterable[Hashable], segments: int) -> Interval:
        """
        A transfer of so many segments went out, and these clients wait for it.

        @return: what L{lost} wants to be told with the losses among them.
        """
        interval = self._now
        interval.transfers += 1
        interval.segments += segments
        for client in audience:
            interval.expected[client] += segments
            self.segments_awaited += segments
        age = self._clock.seconds() - interval.began
        least = START_INTERVAL if self._capacity is None else INTERVAL
        if age >= least and (interval.segments >= SAMPLE or age >= 10 * INTERVAL):
            self._turn()
        return interval

    def lost(self, client: Hashable, segments: int, sent: int, interval: Interval) -> None:
        """
        A client reports segments of a transfer that it waited for and lacks, parity or not.

        Who got nothing of it did not listen yet, or does not hear at all: that has nothing to do
        with the rate.

        @param sent: how many segments the transfer has.
        @param interval: what L{sent} said of them; judged already, it is past caring.
        """
        self.segments_lost += min(segments, sent)
        if segments < sent:
            interval.lost[client] += segments
            interval.reports.append(segments)
        else:
            interval.expected[client] -= sent

    def _turn(self) -> None:
        """An interval is over; the reports on the one before it have come in by now."""
        if self._before.expected:
            self._judge(self._before.loss, self._before.rate)
            self.parity = _parity(self._before)
        self._before = self._now
        self._now = Interval(self._clock.seconds(), self.rate, self.parity)
        self._held_back = self._blocked = False

    def _judge(self, loss: float, rate: float) -> None:
        if self._settling:
            self._settling -= 1
            return
        cut, self._cut = self._cut, None
        if cut is not None and loss > PERSISTENT * cut[1]:
            self._base = loss
            self.rate = cut[0]
            self._settling = 1
        elif loss > self._base + TOLERATED_LOSS:
            self._cut = self.rate, loss
            self._settling = SETTLING
            self._capacity = max(self._floor, rate * (1 - loss))
            self.rate = DRAIN * self._capacity
        else:
            if cut is not None and self._capacity is not None:
                self.rate = self._capacity
            self._base = min(self._base, (3 * self._base + loss) / 4)
            if self._held_back and not self._blocked:
                self.rate *= 1 + self._growth()
        self.rate = max(self._floor, min(self.rate, self._ceiling))

    def _growth(self) -> float:
        if self._capacity is None:
            return 1.0
        distance = abs(self.rate / self._capacity - 1)
        return max(LEAST_GROWTH, min(MOST_GROWTH, distance / 2))


def _parity(interval: Interval) -> int:
    """With how many parity segments no more than C{REPORTS} would have been made of a transfer."""
    allowed = REPORTS * interval.transfers
    if len(interval.reports) > allowed:
        lacking = sorted(interval.reports, reverse=True)[allowed]
        return min(MOST_PARITY, interval.parity + lacking)
    return max(0, interval.parity - (len(interval.reports) < allowed / 4))
