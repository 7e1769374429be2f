"""What is served at the C{--status} endpoint."""

import json
from collections.abc import Callable
from importlib.resources import files

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from twisted.web.static import Data

from mufs.status.events import Events
from mufs.status.figures import Schema
from mufs.status.history import EVERY, History
from mufs.status.markup import Markup, element
from mufs.status.metrics import Figures, Metrics

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No browser loads or runs anything but what is served here, whatever names stand in the page."""

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
    """Something made anew for each request."""

    isLeaf = True

    def __init__(self, kind: str, make: Callable[[], str]) -> None:
        super().__init__()
        self._kind = kind
        self._make = make

    def render_GET(self, request: Request) -> bytes:
        request.setHeader("content-type", self._kind)
        request.setHeader("cache-control", "no-store")
        request.setHeader("content-security-policy", POLICY)
        request.setHeader("x-content-type-options", "nosniff")
        request.setHeader("referrer-policy", "no-referrer")
        return self._make().encode()


class QuietSite(Site):
    """Nothing of it is worth a line in the log, and no error shows what it is made of."""

    noisy = False
    displayTracebacks = False

    def log(self, request: HTTPRequest) -> None:
        """Whoever asks for figures asks every few seconds."""


class StatusSite(QuietSite):
    """
    The page of a service, its figures and its metrics. While its port listens it takes samples.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        title: str,
        schema: Schema,
        figures: Figures,
        numbers: Figures,
        body: Callable[[History], Markup],
    ) -> None:
        """
        @param figures: as /status.json has them.
        @param numbers: those without the lists, which is done for every sample.
        @param body: what the page shows.
        """
        root = Resource()
        super().__init__(root, reactor=clock)
        self._history = History(clock, numbers)
        self._body = body
        self._events = Events(self._main)
        self._ticks = LoopingCall(self._tick)
        self._ticks.clock = clock
        head = element("title", title)

        def page() -> str:
            return PAGE.format(title=head, body=self._main())

        def text() -> str:
            return json.dumps(figures(), indent=1) + "\n"

        root.putChild(b"", _Text("text/html; charset=utf-8", page))
        root.putChild(b"status.json", _Text("application/json", text))
        root.putChild(b"metrics", Metrics(schema, figures))
        root.putChild(b"events", self._events)
        for name, kind in (("style.css", "text/css"), ("refresh.js", "text/javascript")):
            content = files(__package__).joinpath(name).read_bytes()
            root.putChild(name.encode(), Data(content, f"{kind}; charset=utf-8"))

    def startFactory(self) -> None:
        """The port listens: begin to take samples."""
        super().startFactory()
        self._ticks.start(EVERY).addErrback(
            lambda failure: self._log.failure("the status page is not kept up to date", failure)
        )

    def end(self) -> None:
        """
        End what does not end by itself. The service is ending: the last bytes go out while its
        ports are being closed, and not if this was done afterwards.
        """
        self._events.end()

    def stopFactory(self) -> None:
        """The port listens no longer."""
        self.end()
        if self._ticks.running:
            self._ticks.stop()
        super().stopFactory()

    def _tick(self) -> None:
        self._history.sample()
        self._events.send()

    def _main(self) -> Markup:
        return element("main", self._body(self._history))
