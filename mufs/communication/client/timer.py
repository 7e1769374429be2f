"""Timers of a reactor for objects that have none, but say when they are to be called."""

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Timed(Protocol):
    """What has something to do later."""

    @property
    def due(self) -> float | None:
        """When L{check} is to be called, in seconds; C{None} if there is nothing to do."""

    def check(self, now: float) -> None:
        """Do what is due."""


class Timer:
    """Calls an object when it is due."""

    def __init__(self, clock: IReactorTime, timed: Timed) -> None:
        self._clock = clock
        self._timed = timed
        self._call: IDelayedCall | None = None
        self._due: float | None = None

    def set(self) -> None:
        """Look when the object is due; to be called whenever that may have changed."""
        due, call = self._timed.due, self._call
        if due == self._due:
            return
        self._due = due
        if due is not None:
            delay = max(0.0, due - self._clock.seconds())
            if call is not None:
                call.reset(delay)
            else:
                self._call = self._clock.callLater(delay, self._fire)
        elif call is not None:
            call.cancel()
            self._call = None

    def _fire(self) -> None:
        due, self._call, self._due = self._due, None, None
        assert due is not None
        # A reactor may be early by the rounding of its times.
        self._timed.check(max(due, self._clock.seconds()))
        self.set()
