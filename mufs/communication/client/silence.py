"""Notices within a second that the server leaves a connection without an answer."""

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

SILENCE_CHECK_INTERVAL = 0.2
"""Seconds between two checks whether anything came while requests wait."""

MAX_SILENT_CHECKS = 3
"""
Checks in a row that find nothing, with a PING after the first, before the server counts as silent.
They are counted, and time is not, because what came may wait for this process.
"""


class SilenceDetector:
    """
    Watches a connection while requests wait on it.

    @ivar is_silent: nothing has come since the server was found silent.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        is_waiting: Callable[[], bool],
        ping: Callable[[], None],
        on_silent: Callable[[], None],
    ) -> None:
        """
        @param is_waiting: whether a request waits for its answer.
        @param ping: asks the server for a sign of life.
        """
        self._clock = clock
        self._is_waiting = is_waiting
        self._ping = ping
        self._on_silent = on_silent
        self._check: IDelayedCall | None = None
        self._has_heard = False
        self._silent_checks = 0
        self.is_silent = False

    def heard(self) -> None:
        """Something came from the server."""
        self.is_silent, self._has_heard = False, True

    def watch(self) -> None:
        """A request was sent."""
        if self._check is None:
            self._has_heard, self._silent_checks = False, 0
            self._check_later()

    def stop(self) -> None:
        """The connection has ended."""
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _check_later(self) -> None:
        self._check = self._clock.callLater(SILENCE_CHECK_INTERVAL, self._look)

    def _look(self) -> None:
        self._check = None
        if self.is_silent or not self._is_waiting():
            return
        self._silent_checks = 0 if self._has_heard else self._silent_checks + 1
        self._has_heard = False
        if self._silent_checks == 1:
            self._ping()
        elif self._silent_checks == MAX_SILENT_CHECKS:
            self.is_silent = True
            self._on_silent()
            return
        self._check_later()
