"""What the log says of one client."""

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mufs.units import format_bytes, format_duration, shown
from mufs.wire.metadata import Report

REFUSED_OPEN_LOG_INTERVAL = 60.0
"""Seconds from one line about images that a client may not open to the next."""


def why_ended(reason: Failure) -> str:
    """Why a connection ended that was not closed for a fault of the client."""
    if reason.check(ConnectionAborted):
        return "the server ended the connection"
    if reason.check(ConnectionDone):
        return "it closed the connection"
    return "it ended, or the connection broke"


class ClientLog:
    """
    The lines about a client that was welcomed. They have its address, too: without TLS several
    hosts may have one name.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, name: str, address: str) -> None:
        self._clock = clock
        self._who = {"client": name, "address": address or "?"}
        self._began = clock.seconds()
        self._works = True
        self._refused_opens = 0
        self._refusal_logged_at = float("-inf")

    @property
    def connected_for(self) -> float:
        """Seconds since the client was welcomed."""
        return self._clock.seconds() - self._began

    def closing(self, reason: str) -> None:
        """The server closes the connection."""
        self._log.warn(
            "closing the connection of {client} ({address}): {reason}", reason=reason, **self._who
        )

    def left(self, why: str, *, delivered: int, over_tcp: int) -> None:
        """
        The connection has ended.

        @param delivered: bytes that the client gave to its readers.
        @param over_tcp: bytes that it was sent over TCP.
        """
        self._log.info(
            "{client} ({address}) left after {duration}: {why}; {delivered} delivered to readers, "
            "{over_tcp} sent over TCP",
            why=why,
            duration=format_duration(self.connected_for),
            delivered=format_bytes(delivered),
            over_tcp=format_bytes(over_tcp),
            **self._who,
        )

    def reported(self, report: Report) -> None:
        """The client reported on itself: say whether multicast works for it, if that is new."""
        if report.works != self._works:
            self._works = report.works
            if report.works:
                self._log.info("{client} ({address}) receives multicast again", **self._who)
            else:
                why = shown(report.multicast)
                self._log.warn("{client} ({address}) reads over TCP: {why}", why=why, **self._who)

    def refused_open(self, path: bytes, error: OSError) -> None:
        """The client could not open an image: say so, once in C{REFUSED_OPEN_LOG_INTERVAL}."""
        now = self._clock.seconds()
        self._refused_opens += 1
        if now < self._refusal_logged_at + REFUSED_OPEN_LOG_INTERVAL:
            return
        self._refusal_logged_at = now
        others = self._refused_opens - 1
        self._refused_opens = 0
        self._log.warn(
            "{client} ({address}) was refused {path}: {error}{more}",
            path=shown(path),
            error=error.strerror or error,
            more=f" (and {others} more opens since the last line)" if others else "",
            **self._who,
        )
