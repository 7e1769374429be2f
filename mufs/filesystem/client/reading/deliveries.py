"""How many bytes readers were given, and how long their reads took."""

from bisect import bisect_left

from attrs import define, field

BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Seconds: the upper bounds of the classes of a L{Histogram}, whose last one has none."""


@define(eq=False)
class Histogram:
    """
    How long reads of one kind took.

    @ivar counts: how many reads, by class.
    @ivar seconds: how long they took together.
    """

    counts: list[int] = field(factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """The number of reads."""
        return sum(self.counts)


class Deliveries:
    """
    The reads that have ended, by how they were answered.

    Any thread may count, without a lock: CPython switches threads at calls and loops alone, so no
    addition is lost.

    @ivar hits: those that the cache answered, C{joined} those that waited for bytes already on
        their way, and C{misses} those that had to ask the server; with those that failed.
    @ivar bytes_delivered: bytes that readers were given.
    """

    def __init__(self) -> None:
        self.hits = Histogram()
        self.joined = Histogram()
        self.misses = Histogram()
        self.bytes_delivered = 0
        self._reported = 0

    @property
    def reads_and_hits(self) -> tuple[int, int]:
        """The number of reads, and of those that the cache answered, at one moment."""
        # FUSE's threads go on counting meanwhile.
        hits = self.hits.total
        return hits + self.joined.total + self.misses.total, hits

    def note(self, kind: Histogram, seconds: float, length: int) -> None:
        """A read has ended that was given C{length} bytes; 0 if it failed."""
        number = bisect_left(BOUNDS, seconds)
        kind.counts[number] += 1
        kind.seconds += seconds
        self.bytes_delivered += length

    def take_delivered(self) -> int:
        """Bytes delivered since the last call."""
        total = self.bytes_delivered
        delivered, self._reported = total - self._reported, total
        return delivered
