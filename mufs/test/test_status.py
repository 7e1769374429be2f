"""The figures over HTTP."""

import json

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from mufs.status import status_site


class StatusTests(SynchronousTestCase):
    """What a status endpoint serves."""

    def setUp(self) -> None:
        """Have figures that change."""
        self.figures: dict[str, object] = {"reads": 1}
        self.site = status_site(lambda: self.figures)

    def get(self, *path: bytes) -> DummyRequest:
        """The request for a path, answered."""
        request = DummyRequest([*path])
        body = self.site.getResourceFor(request).render(request)
        if isinstance(body, bytes):
            request.write(body)
        return request

    def test_figures(self) -> None:
        """The figures are served as JSON, not to be cached, as they are at that moment."""
        some: list[dict[str, object]] = [
            {"reads": 1},
            {"hit_rate": 0.5, "multicast": "not working: \N{SNOWMAN}"},
        ]
        for figures in some:
            self.figures = figures
            request = self.get(b"status.json")
            self.assertEqual(json.loads(b"".join(request.written)), figures)
            headers = dict(request.responseHeaders.getAllRawHeaders())
            self.assertEqual(headers[b"Content-Type"], [b"application/json"])
            self.assertEqual(headers[b"Cache-Control"], [b"no-store"])

    def test_nothing_else(self) -> None:
        """There is nothing else to be found."""
        for path in [[b""], [b"status"], [b"..", b"status.json"]]:
            self.assertEqual(self.get(*path).responseCode, 404)
