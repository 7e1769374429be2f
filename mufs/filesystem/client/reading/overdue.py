"""When a read has waited for too long."""

from collections import deque
from collections.abc import Iterator

from mufs.filesystem.client.reading.in_flight import WaitingRead

URGENT_DELAY = 0.125
"""Seconds until a read that waits for read-ahead has it sent before other read-ahead."""

TCP_DELAY = 3.0
"""Seconds from then until a read is asked for over TCP, whatever multicast does."""

TIMER_RESOLUTION = 0.001
"""Seconds by which a read may be overdue early, so that no timer is set for less."""


class OverdueReads:
    """The waiting reads, in the order in which each will have waited for too long."""

    def __init__(self) -> None:
        # All in a line wait for the same time, so each is in order.
        self._new: deque[tuple[float, WaitingRead]] = deque()
        self._urged: deque[tuple[float, WaitingRead]] = deque()

    def add(self, waiting: WaitingRead, now: float) -> None:
        """A read begins to wait."""
        self._new.append((now + URGENT_DELAY, waiting))

    @property
    def due(self) -> float | None:
        """When the next read is overdue, in seconds; C{None} if none waits."""
        times = []
        for line in (self._new, self._urged):
            while line and not line[0][1].pages:
                line.popleft()
            if line:
                times.append(line[0][0])
        return min(times, default=None)

    def pop(self, now: float) -> Iterator[WaitingRead]:
        """The reads that are overdue now, each of which will be once more C{TCP_DELAY} later."""
        for line in (self._new, self._urged):
            while line and line[0][0] <= now + TIMER_RESOLUTION:
                _, waiting = line.popleft()
                if waiting.pages:
                    self._urged.append((now + TCP_DELAY, waiting))
                    yield waiting
