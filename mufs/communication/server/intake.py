"""Whether more is read from a client: what pauses reading, and when a client is given up."""

from collections.abc import Callable
from enum import Enum
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mufs.communication.server.limits import (
    CLOSE_TIMEOUT,
    HELLO_TIMEOUT,
    IDLE_TIMEOUT,
    MAX_WAITING_BYTES,
    STALL_TIMEOUT,
    TURN_SECONDS,
    Host,
)


class Pause(Enum):
    """A reason to read nothing more from a client for now."""

    SEND_BUFFER_FULL = 1
    METADATA_BACKLOG = 2
    THROTTLED = 3


_STOPS_WORK = frozenset({Pause.SEND_BUFFER_FULL, Pause.THROTTLED})


class Intake:
    """
    Pauses and resumes the reading of one client's requests, and watches that the client is alive.

    @ivar reasons: why reading is paused; empty while it is not.
    @ivar closed: whether the connection is ending: nothing is read any more.
    """

    def __init__(
        self,
        clock: IReactorTime,
        host: Host,
        producer: Any,
        *,
        answer: Callable[[], None],
        read: Callable[[], None],
        close: Callable[[str], None],
    ) -> None:
        """
        Wait for the client's HELLO.

        @param producer: brings the client's bytes: the transport, an C{IPushProducer}.
        @param answer: called when a reason has gone: answers that waited for that may go out.
        @param read: called when no reason is left, to handle what was received before the pause.
        @param close: called with a reason for the log when the client is to be given up; once
            more when the connection has not ended C{CLOSE_TIMEOUT} after L{begin_close}.
        """
        self._clock = clock
        self._host = host
        self._producer = producer
        self._answer = answer
        self._read = read
        self._close = close
        self.reasons: set[Pause] = set()
        self.closed = False
        self._last_activity = 0.0
        self._turn_began = 0.0
        self._turn_is_over = False
        self._deadline = clock.callLater(HELLO_TIMEOUT, close, "no HELLO came")
        self._stall: IDelayedCall | None = None
        self._throttle: IDelayedCall | None = None

    @property
    def may_send(self) -> bool:
        """Whether the connection has room for more answers."""
        return Pause.SEND_BUFFER_FULL not in self.reasons

    @property
    def may_work(self) -> bool:
        """Whether requests that were read already may be worked on."""
        return self.reasons.isdisjoint(_STOPS_WORK)

    def begin_turn(self) -> None:
        """Requests of this client are handled from here to L{end_turn}."""
        self._last_activity = self._clock.seconds()
        self._turn_began = self._host.limits.cpu()
        self._turn_is_over = False

    def may_read_on(self) -> bool:
        """Whether to handle one more request in this turn."""
        if self.reasons or self.closed:
            return False
        host = self._host
        self._turn_is_over = (
            host.share.waiting > MAX_WAITING_BYTES
            or host.limits.cpu() - self._turn_began > TURN_SECONDS
        )
        return not self._turn_is_over

    def end_turn(self) -> None:
        """Charge the host for the turn, and let others have theirs where it did not finish."""
        host = self._host
        host.charge(host.limits.cpu() - self._turn_began)
        self.throttle(self._turn_is_over)

    def pause(self, reason: Pause) -> None:
        """Read nothing more until L{resume} is called for this reason."""
        if not (self.closed or reason in self.reasons):
            self.reasons.add(reason)
            self._producer.pauseProducing()

    def resume(self, reason: Pause) -> None:
        """This reason to pause is gone; read on unless there is another."""
        if self.closed or reason not in self.reasons:
            return
        self.reasons.discard(reason)
        self._answer()
        if not (self.reasons or self.closed):
            self._producer.resumeProducing()
            self._read()

    def send_buffer_full(self) -> None:
        """The client has not taken what was sent to it: it has C{STALL_TIMEOUT} to do so."""
        self.pause(Pause.SEND_BUFFER_FULL)
        if self._stall is None and not self.closed:
            why = f"it read nothing of what was sent to it for {STALL_TIMEOUT:g} s"
            self._stall = self._clock.callLater(STALL_TIMEOUT, self._close, why)

    def send_buffer_empty(self) -> None:
        """The connection has room again."""
        _cancel(self._stall)
        self._stall = None
        self.resume(Pause.SEND_BUFFER_FULL)

    def throttle(self, end_of_turn: bool = False) -> None:
        """
        Pause for as long as the host has used up its share of the server.

        @param end_of_turn: pause in any case, if only until others have had their turn.
        """
        delay = self._host.throttle_delay()
        if self._throttle is None and not self.closed and (end_of_turn or delay):
            self._host.held_back += delay > 0
            self.pause(Pause.THROTTLED)
            self._throttle = self._clock.callLater(delay, self._unthrottle)

    def _unthrottle(self) -> None:
        self._throttle = None
        self.throttle()
        if self._throttle is None:
            self.resume(Pause.THROTTLED)

    def welcomed(self) -> None:
        """The client has said HELLO: from now on it may be silent for C{IDLE_TIMEOUT}."""
        _cancel(self._deadline)
        self._deadline = self._clock.callLater(IDLE_TIMEOUT, self.check_idle)

    def check_idle(self) -> None:
        """Give up a client that has sent nothing for C{IDLE_TIMEOUT}, although it was read."""
        now = self._clock.seconds()
        if self.reasons:
            self._last_activity = now
        left = self._last_activity + IDLE_TIMEOUT - now
        if left > 0:
            self._deadline = self._clock.callLater(left, self.check_idle)
        else:
            self._close(f"nothing came for {IDLE_TIMEOUT:g} s")

    def begin_close(self) -> None:
        """The connection is being closed here: read no more, and see that it does end."""
        self.stop()
        why = f"it has not ended {CLOSE_TIMEOUT:g} s after it was closed here"
        self._deadline = self._clock.callLater(CLOSE_TIMEOUT, self._close, why)

    def stop(self) -> None:
        """The connection has ended."""
        self.closed = True
        for timer in (self._deadline, self._stall, self._throttle):
            _cancel(timer)


def _cancel(timer: IDelayedCall | None) -> None:
    if timer is not None and timer.active():
        timer.cancel()
