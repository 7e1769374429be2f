"""How fast the server sends: one rate for all images, found by what the clients report."""

from collections import Counter
from collections.abc import Hashable, Iterable
from math import inf
from statistics import median_low

from twisted.internet.interfaces import IReactorTime

INTERVAL = 0.1
"""Seconds between two judgements of the rate."""

START_INTERVAL = 0.025
"""The same as long as no congestion was met: the rate doubles each time then."""

TOLERATED_LOSS = 0.15
"""Up to this fraction above the background, losses are repaired and not taken for congestion."""

SAMPLE = 400
"""Segments that a judgement needs at least."""

SETTLING = 3
"""Judgements after a cut until its effect shows."""

CUTS = 2
"""Cuts that must not have lessened the loss before it is taken for background."""

BURST = 0.004
"""Seconds' worth of sending that may be made up for at once: timers are no finer."""


class Pace:
    """
    The rate of sending, in bits a second, between a floor and a ceiling.

    Where the local link is the bottleneck the send buffer fills and writing waits for it, without
    any of this. Where it is elsewhere the clients' loss tells. The median client counts: one
    that cannot follow does not slow the others, it is served over TCP.

    Loss that sending slower does not lessen is not congestion: each time that more is lost than
    tolerated the rate is cut as a trial, and given back when as much is lost as before. That
    much is taken for the background of the path from then on, until less is lost.

    @ivar rate: bits a second, of datagrams as they are written.
    """

    def __init__(self, clock: IReactorTime, floor: float, ceiling: float, start: float) -> None:
        self._clock = clock
        self._floor = min(floor, ceiling)
        self._ceiling = ceiling
        self.rate = max(self._floor, min(start, ceiling))
        self._congested_rate = inf
        self._background = 0.0
        self._trial: tuple[float, float] | None = None
        self._settling = 0
        self._cuts = 0
        self._credit = 0.0
        self._refilled = self._judged = clock.seconds()
        self._expected: Counter[Hashable] = Counter()
        self._lost: Counter[Hashable] = Counter()
        self._held_back = False

    def delay(self, size: int) -> float:
        """Seconds to wait before the next C{size} bytes may go; to be asked once for each."""
        now = self._clock.seconds()
        burst = max(self.rate * BURST / 8, size)
        self._credit = min(burst, self._credit + (now - self._refilled) * self.rate / 8)
        self._refilled = now
        self._credit -= size
        if self._credit >= 0:
            return 0.0
        self._held_back = True
        return -self._credit * 8 / self.rate

    def sent(self, audience: Iterable[Hashable], segments: int) -> None:
        """So many segments went out, and these clients wait for them."""
        for client in audience:
            self._expected[client] += segments
        enough = max(self._expected.values(), default=0) >= SAMPLE
        interval = START_INTERVAL if self._congested_rate == inf else INTERVAL
        if enough and self._clock.seconds() - self._judged >= interval:
            self._judge()

    def lost(self, client: Hashable, segments: int) -> None:
        """A client reports segments that it waited for and did not get."""
        self._lost[client] += segments

    def _judge(self) -> None:
        now = self._clock.seconds()
        if self._settling:
            self._settling -= 1
            if self._settling == SETTLING - 1:
                # What came so far speaks of what was sent before the cut.
                self._expected.clear()
                self._lost.clear()
        if not self._settling:
            self._adapt(self._loss(), min(10.0, (now - self._judged) / INTERVAL))
        self.rate = max(self._floor, min(self.rate, self._ceiling))
        self._judged = now
        self._held_back = False
        # Losses are reported a moment after the sending that they belong to: old ones fade.
        for counts in (self._expected, self._lost):
            for client in list(counts):
                counts[client] //= 2
                if not counts[client]:
                    del counts[client]

    def _loss(self) -> float:
        """The fraction that the median client lost; of two, the better one."""
        return median_low(min(1.0, self._lost[c] / n) for c, n in self._expected.items())

    def _adapt(self, loss: float, intervals: float) -> None:
        if self._trial is not None:
            rate, before = self._trial
            self._trial = None
            if loss <= 0.75 * before:
                self._congested_rate = rate
            elif self._cuts < CUTS:
                # The loss may have begun within what was judged: cut once more to be sure.
                self._cut(rate, max(loss, before), max(0.1, 1 - loss))
                return
            else:
                self._background = loss
                self.rate = rate
        self._background = min(self._background, loss)
        excess = (loss - self._background) / (1 - self._background) if loss < 1 else 1.0
        if excess > TOLERATED_LOSS:
            self._cuts = 0
            self._cut(self.rate, loss, max(0.1, 1 - excess))
            return
        self._congested_rate *= 1.02**intervals
        if self._held_back and self._congested_rate == inf:
            self.rate *= 2
        elif self._held_back:
            growth = 1.1 if self.rate < 0.85 * self._congested_rate else 1.01
            self.rate *= growth**intervals

    def _cut(self, rate: float, loss: float, factor: float) -> None:
        self._trial = rate, loss
        self._cuts += 1
        self._settling = SETTLING
        self.rate *= factor
