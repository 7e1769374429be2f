"""The figures of a service over the last ten minutes, and over the last day."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from time import time

from twisted.internet.interfaces import IReactorTime

from mufs.status.state import Sample, StateFile

SAMPLE_INTERVAL = 2.0
"""Seconds from one sample of the figures to the next."""

HISTORY_SECONDS = 600.0
"""Seconds for which these samples are kept."""

DAY_SAMPLE_INTERVAL = 300.0
"""Seconds from one sample of the last day to the next."""

DAY_SECONDS = 86400.0
"""Seconds for which those are kept."""

GAP_FACTOR = 2.5
"""Samples that are further apart than this many intervals have a gap between them."""

Points = list[tuple[float, float | None]]
"""Ages in seconds, the oldest first, and values; C{None} is a gap."""


class Series:
    """
    Samples of numeric figures at equal intervals.

    @ivar seconds: for how long they are kept.
    @ivar samples: times and figures, the oldest first.
    """

    def __init__(self, now: Callable[[], float], interval: float, seconds: float) -> None:
        """@param now: the time in seconds."""
        self._now = now
        self._longest = GAP_FACTOR * interval
        self.seconds = seconds
        self.samples: deque[Sample] = deque(maxlen=int(seconds / interval) + 1)

    def add(self, numbers: dict[str, float]) -> None:
        """Add a sample that was taken now."""
        self.samples.append((self._now(), numbers))

    def values(self, name: str) -> Points:
        """The value of a figure in each sample."""
        now = self._now()
        found: Points = []
        before: float | None = None
        for time_, sample in self.samples:
            if before is not None and time_ - before > self._longest:
                found.append((now - time_, None))
            if name in sample:
                found.append((now - time_, sample[name]))
            before = time_
        return found

    def rates(self, name: str, *, samples: int = 1) -> Points:
        """The growth of a counter per second, each over the last so many samples."""
        return [
            (age, None if grown is None else grown[name] / seconds)
            for age, seconds, grown in self._growth(samples)
        ]

    def shares(self, part: str, *whole: str) -> Points:
        """The growth of one counter as a fraction of that of others; a gap where none grew."""
        found: Points = []
        for age, _, grown in self._growth(1):
            total = 0.0 if grown is None else sum(grown[name] for name in whole)
            found.append((age, grown[part] / total if grown is not None and total > 0 else None))
        return found

    def _growth(self, samples: int) -> "Iterator[tuple[float, float, _Growth | None]]":
        now = self._now()
        found = list(self.samples)
        first = 0
        for number in range(1, len(found)):
            at, figures = found[number]
            if at - found[number - 1][0] > self._longest:
                first = number
                yield now - at, 0.0, None
                continue
            before, earlier = found[max(first, number - samples)]
            if at > before:
                yield now - at, at - before, _Growth(earlier, figures)


class _Growth:
    """The growth of counters from one sample to a later one."""

    def __init__(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        self._before, self._after = before, after

    def __getitem__(self, name: str) -> float:
        before, after = self._before.get(name, 0.0), self._after.get(name, 0.0)
        # A service that was started anew counts from 0.
        return after - before if after >= before else after


class History:
    """
    Samples of the figures.

    @ivar recent: those of the last ten minutes.
    @ivar day: those of the last day, by the time of day; also from before a restart, if they are
        kept.
    """

    def __init__(
        self,
        clock: IReactorTime,
        figures: Callable[[], Mapping[str, object]],
        *,
        of_day: Collection[str] = (),
        state: StateFile | None = None,
        now: Callable[[], float] = time,
    ) -> None:
        """
        @param figures: returns the figures; those that are not numbers are ignored.
        @param of_day: the names of those that are kept for a day.
        @param state: keeps them over restarts.
        @param now: the time of day, in seconds since 1970.
        """
        self._figures = figures
        self._of_day = of_day
        self._state = state
        self._now = now
        self.recent = Series(clock.seconds, SAMPLE_INTERVAL, HISTORY_SECONDS)
        self.day = Series(now, DAY_SAMPLE_INTERVAL, DAY_SECONDS)
        if state is not None:
            self.day.samples.extend(state.load())
        self._next_of_day = 0.0

    def sample(self) -> None:
        """Take a sample of the figures now."""
        numbers = {
            name: float(value)
            for name, value in self._figures().items()
            if isinstance(value, int | float)
        }
        self.recent.add(numbers)
        now = self._now()
        # The time of day may be set back.
        if not self._next_of_day - DAY_SAMPLE_INTERVAL <= now < self._next_of_day:
            self._next_of_day = now + DAY_SAMPLE_INTERVAL
            self.day.add({name: numbers[name] for name in self._of_day})
            if self._state is not None:
                self._state.save(self.day.samples)
