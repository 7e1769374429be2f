"""
The pace of the multicast, for all images together: when the next datagrams may be sent, and with
how much parity, as the clients' loss reports allow.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from statistics import median_low

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from mufs.communication.server.rate_control import RateControl
from mufs.wire.segments import group_count

MIN_INTERVAL = 0.1
"""Seconds of sending that are evaluated together at least."""

SLOW_START_INTERVAL = 0.025
"""The same in slow start, in seconds."""

MAX_INTERVAL = 1.0
"""Seconds after which an interval ends even if it has few segments."""

MIN_INTERVAL_SEGMENTS = 400
"""
Segments for which an interval is extended, counted once for each client that waits for them: of
fewer, chance loses too many or too few.
"""

ACCEPTED_REPORTS = 1
"""
Loss reports per transfer, on average, that are answered rather than prevented by parity. What the
client that lacks most needs is sent in any case; parity for the others costs no more.
"""

ACCEPTED_REPORTS_GROWING = 8
"""The same while the rate may grow: the reports tell when that leads to congestion."""

MAX_PARITY_AHEAD = 8
"""Parity segments of each group that go along with a transfer: 4 % of 187 segments."""

LINK_FULL_SECONDS = 0.2
"""Seconds for which the local link counts as full after the send buffer was."""

SENDING_SECONDS = 1.0
"""Seconds after the last datagram for which multicast counts as being in use."""

BURST_SECONDS = 0.004
"""Seconds of sending that may be made up for at once: timers are not more precise."""

RUN_SECONDS = 0.001
"""Seconds of sending that are charged together."""


@define(eq=False)
class Interval:
    """
    What was sent in some time, to whom, and what of it is reported lost.

    @ivar began: when it began, in seconds of the clock.
    @ivar rate: the sending rate in bits per second.
    @ivar parity: how many parity segments of each group went along with each transfer.
    @ivar reports: for each loss report, how many segments the client missed despite parity in the
        group of the transfer where it missed most.
    @ivar expected: segments sent, by client that waited for them.
    @ivar lost: segments reported lost, by client.
    """

    began: float
    rate: float
    parity: int
    transfers: int = 0
    reports: list[int] = field(factory=list)
    expected: Counter[Hashable] = field(factory=Counter)
    lost: Counter[Hashable] = field(factory=Counter)

    @property
    def loss(self) -> float:
        """The loss of the median client, as a fraction; of two clients, the lower loss."""
        fractions = [min(1.0, self.lost[c] / n) for c, n in self.expected.items() if n > 0]
        return median_low(fractions or [0.0])


class Pace:
    """
    Spaces datagrams in time, and adapts rate and parity to the loss reports of each interval.

    If the local link is the bottleneck, the send buffer fills up and writing waits for it, so the
    rate need not follow. If the bottleneck is elsewhere, loss reports show it, and
    L{RateControl} lowers the rate. The loss of the median client counts, so that one slow client
    does not slow down the others; it is served over TCP.

    Where several clients report losses that the rate does not cause, parity segments go along with
    each transfer, so that all but the one that lacks most need not report.

    @ivar parity: how many parity segments of each group to send along with a transfer.
    @ivar bytes: bytes of all datagrams so far.
    @ivar segments_awaited: segments of transfers, counted once for each client that waited.
    @ivar segments_lost: how many of them were missing in the first reports of the clients.
    """

    def __init__(self, clock: IReactorTime, *, floor: float, ceiling: float, start: float) -> None:
        """See L{RateControl} for the rates."""
        self._clock = clock
        self._control = RateControl(floor=floor, ceiling=ceiling, start=start)
        self._credit = 0.0
        self._refilled = clock.seconds()
        self.parity = 0
        self._current = Interval(self._refilled, self.rate, 0)
        self._previous = Interval(self._refilled, self.rate, 0)
        self._held_back = False
        self._blocked = False
        self.bytes = self.segments_awaited = self.segments_lost = 0
        self._full_at = float("-inf")

    @property
    def rate(self) -> float:
        """The sending rate, in bits per second of datagrams as they are written."""
        return self._control.rate

    @property
    def run(self) -> float:
        """Bytes that may be charged together."""
        return self.rate * RUN_SECONDS / 8

    @property
    def is_full(self) -> bool:
        """Whether there is more to multicast than the local link carries."""
        return self._clock.seconds() - self._full_at < LINK_FULL_SECONDS

    @property
    def is_sending(self) -> bool:
        """Whether anything was multicast recently."""
        return self.bytes > 0 and self._clock.seconds() - self._refilled < SENDING_SECONDS

    def delay(self, size: int) -> float:
        """Charge the next C{size} bytes; the seconds to wait before they may be sent."""
        now, rate = self._clock.seconds(), self._control.rate
        most = rate * BURST_SECONDS / 8
        credit = self._credit + (now - self._refilled) * rate / 8
        if credit > most:
            credit = min(credit, max(most, size))
        self._refilled = now
        self._credit = credit = credit - size
        self.bytes += size
        if credit >= 0:
            return 0.0
        self._held_back = True
        return -credit * 8 / rate

    def blocked(self) -> None:
        """The local send buffer was full."""
        self._blocked = True
        self._full_at = self._clock.seconds()

    def sent(self, audience: Iterable[Hashable], segments: int) -> Interval:
        """
        A transfer was sent.

        @param audience: the clients that wait for it.
        @param segments: how many segments it has.
        @return: the interval to pass to L{lost} with reports about this transfer.
        """
        interval = self._current
        interval.transfers += 1
        for client in audience:
            interval.expected[client] += segments
            self.segments_awaited += segments
        age = self._clock.seconds() - interval.began
        shortest = SLOW_START_INTERVAL if self._control.is_in_slow_start else MIN_INTERVAL
        is_large = interval.expected.total() >= MIN_INTERVAL_SEGMENTS
        if age >= shortest and (is_large or age >= MAX_INTERVAL):
            self._end_interval()
        return interval

    def lost(
        self, client: Hashable, segments: int, *, sent: int, in_group: int, interval: Interval
    ) -> None:
        """
        A client reports loss: the segments that it misses of a transfer that it waited for.

        A client that received nothing of the transfer does not count for the rate: it was not
        listening yet, or multicast does not reach it.

        @param segments: how many segments are missing, despite parity.
        @param sent: how many segments the transfer has.
        @param in_group: how many are missing in the group where most are.
        @param interval: what L{sent} returned for it; ignored once evaluated.
        """
        self.segments_lost += min(segments, sent)
        if segments < sent:
            # Parity that did not suffice replaced others, which were lost as well.
            interval.lost[client] += segments + interval.parity * group_count(sent)
            interval.reports.append(in_group)
        else:
            interval.expected[client] -= sent

    def _end_interval(self) -> None:
        """Evaluate the previous interval, whose reports have arrived by now; begin the next."""
        if self._previous.expected:
            may_grow = self._held_back and not self._blocked
            self._control.evaluate(self._previous.loss, self._previous.rate, may_grow=may_grow)
            accepted = ACCEPTED_REPORTS_GROWING if may_grow else ACCEPTED_REPORTS
            self.parity = _parity(self._previous, accepted * self._previous.transfers)
        self._previous = self._current
        self._current = Interval(self._clock.seconds(), self.rate, self.parity)
        self._held_back = self._blocked = False


def _parity(interval: Interval, accepted: int) -> int:
    """The parity with which an interval would have had no more reports than are accepted."""
    if len(interval.reports) > accepted:
        missing = sorted(interval.reports, reverse=True)[accepted]
        return min(MAX_PARITY_AHEAD, interval.parity + missing)
    return max(0, interval.parity - (len(interval.reports) < accepted / 2))
