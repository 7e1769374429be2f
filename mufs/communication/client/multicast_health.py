"""Whether multicast works for this host, judged by how much of it arrives."""

from collections.abc import Callable
from enum import Enum

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

NO_DATAGRAM_TIMEOUT = 0.5
"""Seconds without a datagram after which a lost transfer means that none get through."""

RECEIVING_TIMEOUT = 0.03
"""Seconds without a datagram after which those sent earlier are taken for lost."""

MAX_LOSS = 0.4
"""Fraction of segments lost above which TCP serves better."""

MIN_SAMPLE_SEGMENTS = 100
"""Segments in the smallest sample of which the loss is judged."""

MIN_SAMPLE_SECONDS = 0.1
"""Seconds that the shortest sample takes."""

LOSSY_SAMPLES = 10
"""Lossy samples in a row after which multicast is given up: the server had time to slow down."""

GOOD_SAMPLES = 20
"""
Good samples in a row after which it is trusted again: the first ones only fill the queue of a slow
link, and lose nothing yet.
"""

PROBE_DELAY = 1.0
"""
Seconds until multicast is tried again; doubled after each failure, up to C{MAX_PROBE_DELAY}.
"""

MAX_PROBE_DELAY = 300.0
"""Seconds."""

LOSSY_PROBE_DELAY = 15.0
"""The same after losses, up to C{MAX_LOSSY_PROBE_DELAY}: each probe fills the host's link."""

MAX_LOSSY_PROBE_DELAY = 60.0
"""Seconds."""

JOIN_DELAY = 0.5
"""Seconds from joining the group until what is sent to it is expected to arrive."""

TRIAL_SECONDS = 3.0
"""Seconds from then for which a host that had left the group tries multicast again."""


class Fault(Enum):
    """What is wrong with multicast here."""

    NONE = "working"
    UNAVAILABLE = "not available"
    SILENT = "nothing arrives"
    LOSSY = "too lossy"


class MulticastHealth:
    """
    Decides between multicast and TCP, for new requests (L{should_use}), for repairs
    (L{may_repair}), and for what has expired (L{works}), and whether to be in the group: a host
    whose link is too slow for it leaves, so that TCP gets through.

    It judges the losses that others measure: L{MulticastReceiver} reports each transfer that the
    group completes in order, L{Repairs} each that the server says it sent for this host.

    @ivar state: C{"working"}, or why it is not, as text.
    @ivar join: called with whether to be in the group, when that changes.
    @ivar is_failing: whether the last sample lost too much.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.join: Callable[[bool], None] = lambda joined: None
        self.available()

    def available(self) -> None:
        """A group was joined: start over."""
        self._fault = Fault.NONE
        self.state = "not used yet"
        self._last_datagram = float("-inf")
        self._sample_began = 0.0
        self._reset_sample()
        self._probe_after = PROBE_DELAY
        self._probe_at = self._trial_at = 0.0
        self._joined = True

    def resumed(self) -> None:
        """There is a new connection, and the group is the same: a slow link is still slow."""
        if self._fault is not Fault.LOSSY:
            self.available()

    def unavailable(self, why: str) -> None:
        """There is no group to listen to."""
        self._fail(Fault.UNAVAILABLE, why)

    def on_datagram(self) -> None:
        """A datagram came from the server's address, which others may forge."""
        self._last_datagram = self._clock.seconds()

    def on_authentic_packet(self) -> None:
        """A packet came that the server made."""
        self.on_datagram()
        if self.state != "working" and self._fault in (Fault.NONE, Fault.SILENT):
            self._recover()

    def result(self, expected: int, lost: int) -> None:
        """
        Count the losses of a transfer.

        @param expected: its segments; C{lost}: those that had not come when they were due.
        """
        now = self._clock.seconds()
        if self._fault is Fault.UNAVAILABLE or not self._joined:
            return
        if lost == expected and now - self._last_datagram > NO_DATAGRAM_TIMEOUT:
            self._fail(Fault.SILENT, "nothing arrives, though the server sent it to the group")
            return
        if not self._expected:
            self._sample_began = now
        self._expected += expected
        self._lost += lost
        if self._expected >= MIN_SAMPLE_SEGMENTS and now - self._sample_began >= MIN_SAMPLE_SECONDS:
            self._judge(self._lost / self._expected)

    @property
    def is_receiving(self) -> bool:
        """Whether datagrams are arriving just now."""
        return self._clock.seconds() - self._last_datagram < RECEIVING_TIMEOUT

    @property
    def works(self) -> bool:
        """Whether nothing is known to be wrong."""
        return self._fault is Fault.NONE

    def should_use(self) -> bool:
        """Whether a new request is to be answered by multicast; now and then, to probe it."""
        if self.works:
            return True
        now = self._clock.seconds()
        if self._fault is Fault.UNAVAILABLE:
            return False
        if self._fault is Fault.LOSSY:
            if now >= self._probe_at:
                self._set_joined(True)
                self._trial_at = now + JOIN_DELAY
                self._wait(self._trial_at + TRIAL_SECONDS, MAX_LOSSY_PROBE_DELAY)
            return self._joined and 0 <= now - self._trial_at < TRIAL_SECONDS
        if now < self._probe_at:
            return False
        self._wait(now, MAX_PROBE_DELAY)
        self._join_anew()
        return True

    def may_repair(self, *, for_others: bool) -> bool:
        """
        Whether missing segments are to be sent again by multicast.

        @param for_others: the transfer was requested by others: while too much is lost here, its
            repair would be lost, too, and only take capacity from the group.
        """
        return self.works and not (for_others and self.is_failing)

    def _wait(self, now: float, max_delay: float) -> None:
        """Probe after the present delay, and then after twice that."""
        self._probe_at = now + self._probe_after
        self._probe_after = min(max_delay, self._probe_after * 2)

    def _reset_sample(self) -> None:
        self._expected = self._lost = self._same_verdicts = 0
        self.is_failing = False

    def _judge(self, loss: float) -> None:
        """A sample is complete."""
        self._expected = self._lost = 0
        before, self.is_failing = self.is_failing, loss > MAX_LOSS
        self._same_verdicts = self._same_verdicts + 1 if self.is_failing == before else 1
        if self.is_failing:
            if self._fault is Fault.LOSSY or self._same_verdicts >= LOSSY_SAMPLES:
                self._fail(Fault.LOSSY, f"too lossy: {loss:.0%} of the segments were lost")
        elif self._fault is Fault.LOSSY and self._same_verdicts >= GOOD_SAMPLES:
            self._recover()

    def _recover(self) -> None:
        if not self.works:
            self._log.info("multicast works again")
        self._fault = Fault.NONE
        self.state = "working"
        self._reset_sample()

    def _fail(self, fault: Fault, why: str) -> None:
        now = self._clock.seconds()
        if self.works:
            self._log.warn("multicast is not working: {why}; reading over TCP", why=why)
        if self._fault is not fault:
            self._probe_after = LOSSY_PROBE_DELAY if fault is Fault.LOSSY else PROBE_DELAY
            self._probe_at = now + self._probe_after
            if fault is Fault.SILENT:
                self._join_anew()
        elif fault is Fault.LOSSY:
            self._probe_at = now + self._probe_after
        self._fault = fault
        self.state = f"not working: {why}"
        self._reset_sample()
        self._set_joined(fault is not Fault.LOSSY)

    def _join_anew(self) -> None:
        """Leave and join: a switch may not know that this host is in the group."""
        self._set_joined(False)
        self._set_joined(True)

    def _set_joined(self, joined: bool) -> None:
        if joined != self._joined:
            self._joined = joined
            self.join(joined)
