"""Congestion control of the multicast: the sending rate that the loss of each interval leads to."""

TOLERATED_LOSS = 0.04
"""Loss up to this fraction above the base loss is repaired; it is not taken for congestion."""

PERSISTENT_LOSS_FRACTION = 0.7
"""What fraction of the loss must remain after a back-off for it not to be congestion."""

DRAIN_FACTOR = 0.8
"""
Fraction of the capacity to send at right after a back-off at least, so that queues drain. If less
was lost than that leaves free, as much is left free as was lost: that shows as well whether it is
lost at a lower rate, too.
"""

MAX_GROWTH = 0.5
"""By what fraction the rate grows in an interval at most, far from the capacity last measured."""

MIN_GROWTH = 0.01
"""By what fraction it grows at least, close to that capacity."""

SETTLING_INTERVALS = 2
"""Intervals after a back-off that are ignored: sent before it, or while queues drain."""


class RateControl:
    """
    The sending rate in bits per second, between a floor and a ceiling.

    Loss beyond what is tolerated means congestion: back off to the rate that arrived. If most of
    the loss persists at the lower rate, it has another cause, which sending more slowly does not
    remove: restore the rate, and take that loss as the base loss, above which more is congestion.
    Without congestion the rate grows: it doubles in slow start, until the first back-off, and
    later grows faster the farther it is from the capacity measured then.

    @ivar rate: bits per second.
    """

    def __init__(self, *, floor: float, ceiling: float, start: float) -> None:
        """
        @param floor: bits per second; lowered to the ceiling if it is above.
        @param ceiling: bits per second.
        @param start: bits per second to begin with.
        """
        self._floor = min(floor, ceiling)
        self._ceiling = ceiling
        self.rate = max(self._floor, min(start, ceiling))
        self._capacity: float | None = None
        self._base_loss = 0.0
        self._settling = 0
        self._before_back_off: tuple[float, float | None, float] | None = None

    @property
    def is_in_slow_start(self) -> bool:
        """Whether no congestion was met yet."""
        return self._capacity is None

    def evaluate(self, loss: float, sent_at: float, *, may_grow: bool) -> None:
        """
        Adapt the rate to the loss of an interval.

        @param loss: the fraction of segments that were lost.
        @param sent_at: the rate of that interval, in bits per second.
        @param may_grow: whether the rate, and not the local link or a lack of data, limits what
            is sent.
        """
        if self._settling:
            self._settling -= 1
            return
        before, self._before_back_off = self._before_back_off, None
        if before is not None and loss > PERSISTENT_LOSS_FRACTION * before[2]:
            self.rate, self._capacity, _ = before
            self._base_loss = loss
            self._settling = 1
        elif loss > self._base_loss + TOLERATED_LOSS:
            self._before_back_off = self.rate, self._capacity, loss
            self._settling = SETTLING_INTERVALS
            self._capacity = max(self._floor, sent_at * (1 - loss))
            self.rate = max(DRAIN_FACTOR, 1 - loss) * self._capacity
        else:
            if before is not None and self._capacity is not None:
                self.rate = self._capacity
            self._base_loss = min(self._base_loss, (3 * self._base_loss + loss) / 4)
            if may_grow:
                self.rate *= 1 + self._growth()
        self.rate = max(self._floor, min(self.rate, self._ceiling))

    def _growth(self) -> float:
        if self._capacity is None:
            return 1.0
        distance = abs(self.rate / self._capacity - 1)
        return max(MIN_GROWTH, min(MAX_GROWTH, distance / 2))
