"""The figures of a service, as JSON over HTTP."""

import json
from collections.abc import Callable

from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

Figures = Callable[[], dict[str, object]]


class StatusPage(Resource):
    """C{/status.json}: the figures as they are now."""

    isLeaf = True

    def __init__(self, figures: Figures) -> None:
        super().__init__()
        self._figures = figures

    def render_GET(self, request: Request) -> bytes:
        """The figures as a JSON object."""
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"no-store")
        return json.dumps(self._figures(), indent=1).encode() + b"\n"


class _QuietSite(Site):
    noisy = False
    displayTracebacks = False

    def log(self, request: HTTPRequest) -> None:
        """Whoever asks for figures asks every few seconds: that is not worth a line."""


def status_site(figures: Figures) -> Site:
    """What to serve at the C{--status} endpoint."""
    root = Resource()
    root.putChild(b"status.json", StatusPage(figures))
    return _QuietSite(root)
