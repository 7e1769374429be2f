"""When the scavenger class may send: alone, or in a small part of the time beside others."""

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mufs.cache.server.items import SCAVENGER, SERVICE_CLASSES, Entry, Resend
from mufs.cache.server.queue import MulticastQueue
from mufs.communication.server.pacing import Pace
from mufs.wire.channel import Priority

SCAVENGER_DIVISOR = 40
"""While others are served, the scavenger class gets one in C{SCAVENGER_DIVISOR} of the time."""

SCAVENGER_DELAY = 1.0
"""Seconds since others were last served after which the scavenger class gets all of the time."""

_OTHERS: tuple[int, ...] = tuple(Priority)
_SCAVENGER_FIRST = SCAVENGER, *_OTHERS

MIN_TIMER_DELAY = 0.001
"""Seconds until the scavenger class is served at the earliest when the queue had nothing else."""


class ScavengerSchedule:
    """Decides which service classes of the queue may be taken from now."""

    def __init__(
        self, queue: MulticastQueue, pace: Pace, clock: IReactorTime, *, wake: Callable[[], None]
    ) -> None:
        """@param wake: called when the scavenger class may be served again."""
        self._queue = queue
        self._pace = pace
        self._clock = clock
        self._wake = wake
        self._others_at = float("-inf")
        self._next_at = float("-inf")
        self._timer: IDelayedCall | None = None

    def classes(self, is_idle: bool) -> tuple[int, ...]:
        """
        The service classes that may be taken from, the first one first.

        @param is_idle: whether nothing is read or ready to be sent.
        """
        now = self._clock.seconds()
        if now >= self._others_at + SCAVENGER_DELAY:
            return SERVICE_CLASSES
        # One item at a time, so that others never wait for more than that.
        if now >= self._next_at and is_idle:
            return _SCAVENGER_FIRST
        return _OTHERS

    def note_dequeued(self, item: Entry | Resend) -> None:
        """An item was taken from the queue."""
        if item.service_class != SCAVENGER and self._queue.is_for_others(item):
            self._others_at = self._clock.seconds()

    def charge_sent(self, item: Entry | Resend, began: float) -> None:
        """An item was sent: the scavenger class waits for a multiple of the time its own took."""
        if item.service_class == SCAVENGER:
            now = self._clock.seconds()
            took = max(now - began, item.cost * 8 / self._pace.rate)
            self._next_at = now + SCAVENGER_DIVISOR * took

    def schedule(self) -> None:
        """Serve the scavenger class later, if all that is left in the queue is in it."""
        if self._queue.has_scavenger_items and self._timer is None:
            turn = min(self._next_at, self._others_at + SCAVENGER_DELAY) - self._clock.seconds()
            self._timer = self._clock.callLater(max(MIN_TIMER_DELAY, turn), self._serve)

    def stop(self) -> None:
        """Do not serve the scavenger class any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _serve(self) -> None:
        self._timer = None
        self._wake()
