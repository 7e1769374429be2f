"""Server-sent events: the content of a page, sent to browsers again and again."""

from collections.abc import Callable, Mapping

from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import SERVICE_UNAVAILABLE
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

MAX_LISTENERS = 32
"""Browsers that may listen at a time; further ones are told to come back later."""

Query = Mapping[str, str]
"""The fields of the query of a URL."""

MAX_SKIPPED_EVENTS = 30
"""Events in a row that a listener may be too slow for before its connection is closed."""


PARTS = b"client", b"address", b"image"
"""The fields that say which part of a service a page is about."""


def query_of(request: Request) -> Query:
    """C{PARTS} in the query of a request; of several with one name the first counts."""
    given: dict[bytes, list[bytes]] = request.args or {}
    return {
        name.decode(): given[name][0].decode(errors="replace") for name in PARTS if name in given
    }


@implementer(IPushProducer)
class StreamedResponse:
    """
    A response that is sent part by part.

    @ivar full: whether the transport still buffers what was written before.
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


class _Listener(StreamedResponse):
    """A response that does not end by itself; it buffers one event at most."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._skipped = 0

    def send(self, event: bytes) -> None:
        if not self.full:
            self._skipped = 0
            self.request.write(event)
        elif self._skipped < MAX_SKIPPED_EVENTS:
            self._skipped += 1
        else:
            self.request.channel.forceAbortClient()


class Events(Resource):
    """
    C{/events}: one event at once, then one with each call of L{send}. What it has depends on the
    query of the request.
    """

    _log = Logger()
    isLeaf = True

    def __init__(self, content: Callable[[Query], str]) -> None:
        """@param content: returns the data of an event for a query."""
        super().__init__()
        self._content = content
        self._listeners: dict[Request, _Listener] = {}

    def render_GET(self, request: Request) -> bytes | int:
        """Begin to listen."""
        if len(self._listeners) >= MAX_LISTENERS:
            request.setResponseCode(SERVICE_UNAVAILABLE)
            return b"too many listen already\n"
        request.setHeader("content-type", "text/event-stream")
        request.setHeader("cache-control", "no-store")
        listener = self._listeners[request] = _Listener(request)
        request.notifyFinish().addErrback(self._gone, request)
        request.registerProducer(listener, True)
        listener.send(self._event(query_of(request)))
        return NOT_DONE_YET

    def send(self) -> None:
        """Send an event to all listeners."""
        made: dict[tuple[tuple[str, str], ...], bytes] = {}
        for request, listener in list(self._listeners.items()):
            query = query_of(request)
            part = tuple(query.items())
            if part not in made:
                made[part] = self._event(query)
            listener.send(made[part])

    def end(self) -> None:
        """End all responses."""
        for request in list(self._listeners):
            del self._listeners[request]
            request.unregisterProducer()
            request.channel.persistent = False
            request.finish()

    def _gone(self, reason: Failure, request: Request) -> None:
        self._listeners.pop(request, None)

    def _event(self, query: Query) -> bytes:
        lines = self._content(query).splitlines()
        return "".join([*(f"data: {line}\n" for line in lines), "\n"]).encode()
