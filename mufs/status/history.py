"""The figures of a service over the last ten minutes."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping

from twisted.internet.interfaces import IReactorTime

SAMPLE_INTERVAL = 2.0
"""Seconds from one sample of the figures to the next."""

HISTORY_SECONDS = 600.0
"""Seconds for which samples are kept."""

Points = list[tuple[float, float]]
"""Ages in seconds, the oldest first, and values."""


class History:
    """Samples of the numeric figures, over C{HISTORY_SECONDS}."""

    def __init__(self, clock: IReactorTime, figures: Callable[[], Mapping[str, object]]) -> None:
        """@param figures: returns the figures; those that are not numbers are ignored."""
        self._clock = clock
        self._figures = figures
        self._samples: deque[tuple[float, dict[str, float]]] = deque(
            maxlen=int(HISTORY_SECONDS / SAMPLE_INTERVAL) + 1
        )

    def sample(self) -> None:
        """Take a sample of the figures now."""
        numbers = {
            name: value for name, value in self._figures().items() if isinstance(value, int | float)
        }
        self._samples.append((self._clock.seconds(), numbers))

    def values(self, name: str) -> Points:
        """The value of a figure in each sample."""
        now = self._clock.seconds()
        return [(now - time, sample[name]) for time, sample in self._samples]

    def rates(self, name: str) -> Points:
        """The growth of a counter per second."""
        return [(age, grown[name] / seconds) for age, seconds, grown in self._growth()]

    def shares(self, part: str, *whole: str) -> Points:
        """The growth of one counter as a fraction of the growth of others together."""
        found = []
        for age, _, grown in self._growth():
            total = sum(grown[name] for name in whole)
            found.append((age, grown[part] / total if total > 0 else 0.0))
        return found

    def _growth(self) -> "Iterator[tuple[float, float, _Growth]]":
        now = self._clock.seconds()
        samples = iter(self._samples)
        before = next(samples, None)
        for sample in samples:
            assert before is not None
            seconds = sample[0] - before[0]
            if seconds > 0:
                yield now - sample[0], seconds, _Growth(before[1], sample[1])
            before = sample


class _Growth:
    """The growth of figures from one sample to the next."""

    def __init__(self, before: dict[str, float], after: dict[str, float]) -> None:
        self._before, self._after = before, after

    def __getitem__(self, name: str) -> float:
        return self._after[name] - self._before[name]
