"""Pulls that the server asks for (a push), so that all hosts fill their caches at once."""

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from mufs.filesystem.client.pull import PROGRESS_INTERVAL, Progress, Pulls
from mufs.wire.channel import ProtocolError, Type, pack
from mufs.wire.metadata import ROOT, Pull, Pulled, encode

MAX_SERVER_PULLS = 16
"""Pulls that a server may have running here at a time."""

KEY_DELAY = 0.5
"""Seconds from opening an image to requesting it, so that the other hosts have its key, too."""


class ServerPulls:
    """
    Runs the pulls that the server asks for, until their connection is lost.

    A pull counts as running for at least a second: this bounds the answers that endless requests
    can cause.
    """

    def __init__(self, pulls: Pulls, clock: IReactorTime, send: Callable[[bytes], None]) -> None:
        """@param send: writes a packet to the request channel."""
        self._pulls = pulls
        self._clock = clock
        self._send = send
        self._running: dict[int, tuple[bytes, Deferred[Progress]]] = {}

    def requested(self, pull: Pull) -> None:
        """
        The server asks for a pull, or, without a path, to cancel one.

        @raise ProtocolError: when too many are running, or the number is in use.
        """
        if not pull.path:
            if pull.number in self._running:
                self._running[pull.number][1].cancel()
            return
        if pull.number in self._running or len(self._running) >= MAX_SERVER_PULLS:
            raise ProtocolError(f"PULL {pull.number} beside {len(self._running)} others")
        last = Progress(0, 0, 0, 0, True)

        def report(progress: Progress) -> None:
            nonlocal last
            last = progress
            self._report(pull.number, progress)

        def begin() -> "Deferred[Progress]":
            if any(path == pull.path for path, _ in self._running.values()):
                raise OSError("it is being pulled already")
            # As root of this host, squashed by the server or not: it looked the path up for root.
            return self._pulls.pull(pull.path, ROOT, report, key_delay=KEY_DELAY)

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
            delay = max(0.0, begun + PROGRESS_INTERVAL - self._clock.seconds())
            self._clock.callLater(delay, self._ended, pull.number, pulling, progress, error[:255])

        pulling.addBoth(end)

    def disconnected(self) -> None:
        """The connection that the requests came by is lost: cancel them."""
        running, self._running = self._running, {}
        for _, pulling in running.values():
            pulling.cancel()

    def _ended(
        self, number: int, pulling: "Deferred[Progress]", progress: Progress, error: str
    ) -> None:
        if number in self._running and self._running[number][1] is pulling:
            del self._running[number]
            self._report(number, progress, ended=True, error=error)

    def _report(
        self, number: int, progress: Progress, *, ended: bool = False, error: str = ""
    ) -> None:
        if number in self._running or ended:
            pulled = Pulled(number, progress.held, progress.size, ended, error)
            self._send(pack(Type.PULLED, encode(pulled)))
