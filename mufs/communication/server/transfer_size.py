"""What the link carries, and so how large a transfer may be for urgent ones not to wait long."""

from twisted.internet.interfaces import IReactorTime

from mufs.communication.server.output import SEND_BUFFER
from mufs.wire.pages import EXTENT

SENDING_TIME = 0.015
"""Seconds that it may take to send a transfer, beyond a block: 1 MiB from 0.56 Gbit/s on."""

COST_DECAY = 0.8
"""By what the cost of a byte falls with each sample that nothing held back."""

MIN_SAMPLE = 4 * SEND_BUFFER
"""Bytes that the link is measured by: most of them must pass it before the last are written."""


class TransferSize:
    """
    Measures what the link carries, from what is written.

    Between writes the link may stand idle or empty the send buffer. So what was written in all of
    the time is the least that it carries, and what was written in the time of writing alone, if
    that had to wait for the pace or the send buffer, is the most.

    @ivar limit: bytes of a transfer at most, beyond a block: what the link carries in
        C{SENDING_TIME}, at most an extent.
    @ivar cost: seconds that a byte takes as long as the link holds back what is written; falls
        while it does not, for then it may carry more; 0 at first.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.limit = 0
        self.cost = 0.0
        self._bytes_per_second = 0.0
        self._begin()

    def written(self, size: int, began: float, *, held_back: bool) -> None:
        """
        Something was written.

        @param size: in bytes.
        @param began: when that began, in seconds of the clock.
        @param held_back: whether it had to wait for the pace or the send buffer.
        """
        now = self._clock.seconds()
        self._bytes += size
        self._writing += now - began
        self._held_back |= held_back
        if self._bytes < MIN_SAMPLE:
            return
        self.cost = self._writing / self._bytes if self._held_back else COST_DECAY * self.cost
        rate = self._bytes_per_second
        if now > self._began:
            rate = max(rate, self._bytes / (now - self._began))
        if self._held_back and self._writing:
            rate = min(rate, self._bytes / self._writing)
        self._bytes_per_second = rate
        self.limit = int(min(EXTENT, rate * SENDING_TIME))
        self._begin()

    def _begin(self) -> None:
        self._began = self._clock.seconds()
        self._bytes, self._writing, self._held_back = 0, 0.0, False
