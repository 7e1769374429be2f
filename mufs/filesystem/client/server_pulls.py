"""Pulls that the server asks for, so that all hosts fill their caches at the same time."""

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from mufs.filesystem.client.pull import PROGRESS_INTERVAL, Progress, Pulls
from mufs.wire.channel import ProtocolError, Type, pack
from mufs.wire.metadata import ROOT, Pull, Pulled, encode

MAX_SERVER_PULLS = 16
"""Pulls that a server may ask for at a time."""

KEY_DELAY = 0.5
"""Seconds from opening an image to asking for it: the other hosts shall have its key, too."""


class ServerPulls:
    """
    Carries out what the server asks for on one connection after the other.

    An order ends a second after it came at the earliest, and until then it counts: so orders
    without end cost no more than some answers a second.
    """

    def __init__(self, pulls: Pulls, clock: IReactorTime, send: Callable[[bytes], None]) -> None:
        """@param send: writes a packet to the request channel."""
        self._pulls = pulls
        self._clock = clock
        self._send = send
        self._running: dict[int, tuple[bytes, Deferred[Progress]]] = {}

    def asked(self, pull: Pull) -> None:
        """
        The server asks for a pull, or, without a path, that one be given up.

        @raise ProtocolError: when it asks for too much.
        """
        if not pull.path:
            if pull.number in self._running:
                self._running[pull.number][1].cancel()
            return
        if pull.number in self._running or len(self._running) >= MAX_SERVER_PULLS:
            raise ProtocolError(f"PULL {pull.number} beside {len(self._running)} others")
        last = Progress(0, 0, 0, 0, True)

        def tell(progress: Progress) -> None:
            nonlocal last
            last = progress
            self._report(pull.number, progress)

        def begin() -> "Deferred[Progress]":
            if any(path == pull.path for path, _ in self._running.values()):
                raise OSError("it is being pulled already")
            # Root of this host, whomever the server counts that as: it has looked for him, too.
            return self._pulls.pull(pull.path, ROOT, tell, KEY_DELAY)

        begun = self._clock.seconds()
        pulling = maybeDeferred(begin)
        self._running[pull.number] = pull.path, pulling

        def end(result: "Progress | Failure") -> None:
            progress, error = last, ""
            if isinstance(result, Progress):
                progress = result
            elif result.check(CancelledError):
                error = "interrupted"
            else:
                result.trap(OSError)
                error = getattr(result.value, "strerror", None) or str(result.value)
            rest = max(0.0, begun + PROGRESS_INTERVAL - self._clock.seconds())
            self._clock.callLater(rest, self._ended, pull.number, pulling, progress, error[:255])

        pulling.addBoth(end)

    def lost(self) -> None:
        """The connection has gone, and with it who asked."""
        running, self._running = self._running, {}
        for _, pulling in running.values():
            pulling.cancel()

    def _ended(
        self, number: int, pulling: "Deferred[Progress]", progress: Progress, error: str
    ) -> None:
        if number in self._running and self._running[number][1] is pulling:
            del self._running[number]
            self._report(number, progress, True, error)

    def _report(
        self, number: int, progress: Progress, ended: bool = False, error: str = ""
    ) -> None:
        if number in self._running or ended:
            pulled = Pulled(number, progress.held, progress.size, ended, error)
            self._send(pack(Type.PULLED, encode(pulled)))
