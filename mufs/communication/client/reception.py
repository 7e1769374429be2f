"""Whether multicast works for this host, judged by what comes of what was sent for it."""

from enum import Enum

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

QUIET = 0.5
"""Seconds without a datagram that, with a whole transfer lost, mean that none come through."""

PAUSE = 0.03
"""Seconds without a datagram after which none of those sent before will come any more."""

LOSSY = 0.4
"""A fraction of segments lost from which on TCP serves better."""

SAMPLE = 1000
"""Segments over which the loss is judged at least."""

SAMPLE_TIME = 2.0
"""Seconds over which it is judged at least: the server shall have had time to slow down."""

PROBE = 1.0
"""Seconds after which multicast is tried again, doubled each time it fails, up to C{MAX_PROBE}."""

MAX_PROBE = 300.0


class Fault(Enum):
    """What is wrong with multicast here."""

    NONE = "working"
    UNAVAILABLE = "not available"
    SILENT = "nothing arrives"
    LOSSY = "too lossy"


class Reception:
    """
    Decides whether to ask for multicast or for TCP.

    @ivar state: C{"working"}, or why it is not, for people.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.available()

    def available(self) -> None:
        """A group was joined: start over."""
        self._fault = Fault.NONE
        self.state = "not used yet"
        self._heard = float("-inf")
        self._expected = self._lost = 0
        self._since = 0.0
        self._probe_after = PROBE
        self._probe_at = 0.0

    def unavailable(self, why: str) -> None:
        """There is no group to listen to."""
        self._fail(Fault.UNAVAILABLE, why)

    def heard(self) -> None:
        """A datagram of the server came in."""
        self._heard = self._clock.seconds()
        if self.state != "working" and self._fault in (Fault.NONE, Fault.SILENT):
            self._recover()

    def result(self, expected: int, lost: int) -> None:
        """
        What came of a transfer that this host asked for.

        @param expected: its segments; C{lost}: those that had not come in due time.
        """
        if self._fault is Fault.UNAVAILABLE:
            return
        if lost == expected and self._clock.seconds() - self._heard > QUIET:
            self._fail(Fault.SILENT, "nothing arrives, though the server sent it to the group")
            return
        if not self._expected:
            self._since = self._clock.seconds()
        self._expected += expected
        self._lost += lost
        long = self._expected >= SAMPLE and self._clock.seconds() - self._since >= SAMPLE_TIME
        if long or (self._fault is Fault.LOSSY and self._expected >= 50):
            loss = self._lost / self._expected
            self._expected = self._lost = 0
            if loss > LOSSY:
                self._fail(Fault.LOSSY, f"too lossy: {loss:.0%} of the segments were lost")
            elif not self.works:
                self._recover()

    @property
    def hears(self) -> bool:
        """Whether datagrams are coming in just now."""
        return self._clock.seconds() - self._heard < PAUSE

    @property
    def works(self) -> bool:
        """Whether nothing is known to be wrong."""
        return self._fault is Fault.NONE

    def use(self) -> bool:
        """Whether to ask for multicast now; sometimes, to find out whether it works again."""
        if self.works:
            return True
        now = self._clock.seconds()
        if self._fault is Fault.UNAVAILABLE or now < self._probe_at:
            return False
        self._probe_at = now + self._probe_after
        self._probe_after = min(MAX_PROBE, self._probe_after * 2)
        return True

    def _recover(self) -> None:
        if not self.works:
            self._log.info("multicast works again")
        self._fault = Fault.NONE
        self.state = "working"
        self._probe_after = PROBE
        self._expected = self._lost = 0

    def _fail(self, fault: Fault, why: str) -> None:
        if self.works:
            self._log.warn("multicast is not working: {why}; reading over TCP", why=why)
            self._probe_at = self._clock.seconds() + self._probe_after
        self._fault = fault
        self.state = f"not working: {why}"
        self._expected = self._lost = 0
