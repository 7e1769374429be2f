"""The last lines of the log, for the status page."""

import time
from collections import deque
from collections.abc import Iterator

from attrs import frozen
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

MAX_EVENTS = 100
"""Lines that are kept."""

_SHOWN = frozenset({LogLevel.info, LogLevel.warn, LogLevel.error, LogLevel.critical})


@frozen
class Event:
    """
    A line of the log.

    @ivar time: seconds since 1970.
    @ivar is_warning: whether something does not work as it should.
    @ivar client: name and address of the client that it is about; empty if it is about none.
    """

    time: float
    text: str
    is_warning: bool
    client: tuple[str, str] = "", ""


@implementer(ILogObserver)
class RecentEvents:
    """Keeps the last lines that mUFS logs, from L{start} to L{stop}."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)

    def __iter__(self) -> Iterator[Event]:
        """The lines, the last one first."""
        return reversed(self._events.copy())

    def start(self) -> None:
        """Listen to the log; nothing happens if it does already."""
        globalLogPublisher.addObserver(self)

    def stop(self) -> None:
        """Listen no more."""
        globalLogPublisher.removeObserver(self)

    def __call__(self, event: LogEvent) -> None:
        """See C{ILogObserver}; in any thread."""
        if event.get("log_level") not in _SHOWN:
            return
        if event.get("log_namespace", "").startswith("mufs"):
            client = str(event.get("client", "")), str(event.get("address", ""))
            at = float(event.get("log_time", time.time()))
            is_warning = event["log_level"] is not LogLevel.info
            self._events.append(Event(at, formatEvent(event), is_warning, client))
