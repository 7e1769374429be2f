"""The site served at the C{--status} endpoint."""

import json
from collections.abc import Callable, Collection
from importlib.resources import files

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from twisted.web.static import Data

from mufs.status.events import Events, Query, query_of
from mufs.status.figures import Schema
from mufs.status.history import SAMPLE_INTERVAL, History
from mufs.status.markup import Markup, element
from mufs.status.metrics import Figures, Metrics
from mufs.status.recent import RecentEvents
from mufs.status.state import StateFile

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Browsers load and run only what this site serves, whatever the names in the page contain."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="style.css">
<script src="refresh.js" defer></script>
<noscript><meta http-equiv="refresh" content="10"></noscript>
{title}
</head>
<body>
{body}
</body>
</html>
"""


class _Text(Resource):
    """Text made for each request."""

    isLeaf = True

    def __init__(self, kind: str, make: Callable[[Query], str]) -> None:
        super().__init__()
        self._kind = kind
        self._make = make

    def render_GET(self, request: Request) -> bytes:
        request.setHeader("content-type", self._kind)
        request.setHeader("cache-control", "no-store")
        request.setHeader("content-security-policy", POLICY)
        request.setHeader("x-content-type-options", "nosniff")
        request.setHeader("referrer-policy", "no-referrer")
        return self._make(query_of(request)).encode()


@frozen
class View:
    """
    What a page is made of, beside the figures.

    @ivar query: says which part of the service the page is about.
    """

    history: History
    events: RecentEvents
    query: Query


class QuietSite(Site):
    """A site that logs no requests, and shows no tracebacks."""

    noisy = False
    displayTracebacks = False

    def log(self, request: HTTPRequest) -> None:
        """Log nothing: requests for figures come every few seconds."""


class StatusSite(QuietSite):
    """
    The status page of a service, its figures and its metrics. It takes samples while its port
    listens.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        title: str,
        schema: Schema,
        *,
        figures: Figures,
        totals: Figures,
        body: Callable[[View], Markup],
        of_day: Collection[str] = (),
        state: StateFile | None = None,
    ) -> None:
        """
        @param figures: returns all figures, as /status.json has them.
        @param totals: returns the figures that samples are taken of.
        @param body: makes the content of the page.
        @param of_day: the names of the figures that the page shows for the last day.
        @param state: keeps them over restarts.
        """
        root = Resource()
        super().__init__(root, reactor=clock)
        self._history = History(clock, totals, of_day=of_day, state=state)
        self._recent = RecentEvents()
        self._body = body
        self._events = Events(self._main)
        self._ticks = LoopingCall(self._tick)
        self._ticks.clock = clock
        head = element("title", title)

        def page(query: Query) -> str:
            return PAGE.format(title=head, body=self._main(query))

        def text(query: Query) -> str:
            return json.dumps(figures(), indent=1) + "\n"

        root.putChild(b"", _Text("text/html; charset=utf-8", page))
        root.putChild(b"status.json", _Text("application/json", text))
        root.putChild(b"metrics", Metrics(schema, figures))
        root.putChild(b"events", self._events)
        for name, kind in (("style.css", "text/css"), ("refresh.js", "text/javascript")):
            content = files(__package__).joinpath(name).read_bytes()
            root.putChild(name.encode(), Data(content, f"{kind}; charset=utf-8"))

    def begin(self) -> None:
        """Keep what is logged from now on; otherwise from when its port listens."""
        self._recent.start()

    def startFactory(self) -> None:
        """Start taking samples: the port listens."""
        super().startFactory()
        self.begin()
        self._ticks.start(SAMPLE_INTERVAL).addErrback(
            lambda failure: self._log.failure("the status page is not kept up to date", failure)
        )

    def end(self) -> None:
        """
        End the responses that do not end by themselves, and keep nothing more of the log. To be
        called before the ports are closed: what is written afterwards is not sent.
        """
        self._events.end()
        self._recent.stop()

    def stopFactory(self) -> None:
        """Stop taking samples: the port is closed."""
        self.end()
        if self._ticks.running:
            self._ticks.stop()
        super().stopFactory()

    def _tick(self) -> None:
        self._history.sample()
        self._events.send()

    def _main(self, query: Query) -> Markup:
        return element("main", self._body(View(self._history, self._recent, query)))
