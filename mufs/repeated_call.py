"""A service that calls a function again and again."""

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall


class RepeatedCall(Service):
    """As Twisted's C{TimerService}, but it may also be stopped before it was started."""

    def __init__(
        self, clock: IReactorTime, interval: float, function: Callable[[], object]
    ) -> None:
        """@param interval: seconds from one call to the next; the first one is at the start."""
        self._interval = interval
        self._calls = LoopingCall(function)
        self._calls.clock = clock

    def startService(self) -> None:
        """Begin to call."""
        super().startService()
        self._calls.start(self._interval)

    def stopService(self) -> None:
        """Call no more."""
        super().stopService()
        if self._calls.running:
            self._calls.stop()
