"""Server-sent events: what a page shows, sent again and again to whoever listens."""

from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import SERVICE_UNAVAILABLE
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

MOST_LISTENERS = 32
"""Browsers that listen at a time; more are told to come back later."""

PATIENCE = 30
"""Events that a listener may leave lying before it is taken for dead."""


@implementer(IPushProducer)
class Pieces:
    """
    A response that comes in pieces, as long as it lasts.

    @ivar full: whether those before are not taken yet.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.full = False

    def pauseProducing(self) -> None:
        """See C{IPushProducer}."""
        self.full = True

    def resumeProducing(self) -> None:
        """See C{IPushProducer}."""
        self.full = False

    def stopProducing(self) -> None:
        """See C{IPushProducer}."""
        self.full = True


class _Listener(Pieces):
    """One response that does not end by itself; it holds no more than one event unsent."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._left = 0

    def send(self, event: bytes) -> None:
        if not self.full:
            self._left = 0
            self.request.write(event)
        elif self._left < PATIENCE:
            self._left += 1
        else:
            self.request.channel.forceAbortClient()


class Events(Resource):
    """C{/events}: one event at once, and then whenever L{send} is called."""

    _log = Logger()
    isLeaf = True

    def __init__(self, content: Callable[[], str]) -> None:
        """@param content: what an event tells."""
        super().__init__()
        self._content = content
        self._listeners: dict[Request, _Listener] = {}

    def render_GET(self, request: Request) -> bytes | int:
        """Begin to listen."""
        if len(self._listeners) >= MOST_LISTENERS:
            request.setResponseCode(SERVICE_UNAVAILABLE)
            return b"too many listen already\n"
        request.setHeader("content-type", "text/event-stream")
        request.setHeader("cache-control", "no-store")
        listener = self._listeners[request] = _Listener(request)
        request.notifyFinish().addErrback(self._gone, request)
        request.registerProducer(listener, True)
        listener.send(self._event())
        return NOT_DONE_YET

    def send(self) -> None:
        """Tell all that listen; without any it costs nothing."""
        if self._listeners:
            event = self._event()
            for listener in list(self._listeners.values()):
                listener.send(event)

    def end(self) -> None:
        """End all responses."""
        for request in list(self._listeners):
            del self._listeners[request]
            request.unregisterProducer()
            request.channel.persistent = False
            request.finish()

    def _gone(self, reason: Failure, request: Request) -> None:
        self._listeners.pop(request, None)

    def _event(self) -> bytes:
        lines = self._content().splitlines()
        return "".join([*(f"data: {line}\n" for line in lines), "\n"]).encode()
