"""How fast the server sends: one rate for all images, found by what the clients report."""

from collections import Counter
from collections.abc import Hashable, Iterable
from statistics import median

from twisted.internet.interfaces import IReactorTime

INTERVAL = 0.1
"""Seconds between two judgements of the rate."""

TOLERATED_LOSS = 0.15
"""Up to this fraction, losses are repaired and not taken for congestion."""

BURST = 0.004
"""Seconds' worth of sending that may be made up for at once: timers are no finer."""


class Pace:
    """
    The rate of sending, in bits a second, between a floor and a ceiling.

    Where the local link is the bottleneck the send buffer fills, and writing waits for it: the
    rate then follows what got out. Where it is elsewhere the clients' loss tells. The median
    client counts: one that cannot follow does not slow the others, it is served over TCP.

    @ivar rate: bits a second, of datagrams as they are written.
    """

    def __init__(self, clock: IReactorTime, floor: float, ceiling: float, start: float) -> None:
        self._clock = clock
        self._floor = min(floor, ceiling)
        self._ceiling = ceiling
        self.rate = max(self._floor, min(start, ceiling))
        self._lossy_rate = ceiling
        self._credit = 0.0
        self._refilled = self._judged = clock.seconds()
        self._expected: Counter[Hashable] = Counter()
        self._lost: Counter[Hashable] = Counter()
        self._out = 0
        self._held_back = False
        self._blocked = False
        self._settling = False

    def delay(self, size: int) -> float:
        """Seconds to wait before the next C{size} bytes may go; to be asked once for each."""
        now = self._clock.seconds()
        burst = max(self.rate * BURST / 8, size)
        self._credit = min(burst, self._credit + (now - self._refilled) * self.rate / 8)
        self._refilled = now
        self._credit -= size
        self._out += size
        if self._credit >= 0:
            return 0.0
        self._held_back = True
        return -self._credit * 8 / self.rate

    def blocked(self) -> None:
        """The local send buffer was full."""
        self._blocked = True

    def sent(self, audience: Iterable[Hashable], segments: int) -> None:
        """So many segments went out, and these clients wait for them."""
        for client in audience:
            self._expected[client] += segments
        if self._clock.seconds() - self._judged >= INTERVAL:
            self._judge()

    def lost(self, client: Hashable, segments: int) -> None:
        """A client reports segments that it waited for and did not get."""
        self._lost[client] += segments

    def _judge(self) -> None:
        now = self._clock.seconds()
        achieved = self._out * 8 / (now - self._judged)
        loss = median(
            [min(1.0, self._lost[c] / n) for c, n in self._expected.items()] or [0.0]
        )
        if loss > TOLERATED_LOSS and not self._settling:
            self._lossy_rate = self.rate
            self.rate *= 1 - loss
            # The next reports still speak of what was sent at the old rate.
            self._settling = True
        else:
            self._settling = False
            if self._blocked:
                self.rate = min(self.rate, achieved * 1.25)
            elif self._held_back and loss <= TOLERATED_LOSS:
                self.rate *= 1.1 if self.rate < 0.85 * self._lossy_rate else 1.01
        self.rate = max(self._floor, min(self.rate, self._ceiling))
        self._judged = now
        self._out = 0
        self._held_back = self._blocked = False
        # Losses are reported a moment after the sending that they belong to: old ones fade.
        for counts in (self._expected, self._lost):
            for client in list(counts):
                counts[client] //= 2
                if not counts[client]:
                    del counts[client]
