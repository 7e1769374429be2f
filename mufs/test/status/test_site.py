"""The site at the status endpoint, over connections in memory."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from mufs.status.figures import COUNTER, Figure, Schema
from mufs.status.history import SAMPLE_INTERVAL
from mufs.status.markup import Markup, element
from mufs.status.site import StatusSite, View
from mufs.test.support.doubles import FakeTransport

SCHEMA = Schema("mufs_test_", [Figure("reads", "reads", COUNTER, "Reads")])


class SiteTestCase(SynchronousTestCase):
    """Has a site whose port listens, and a clock."""

    def setUp(self) -> None:
        """Have figures that change."""
        self.clock = Clock()
        self.figures: dict[str, Any] = {"reads": 1}
        self.pages = 0
        self.site = StatusSite(
            self.clock, "test <&>", SCHEMA, figures=self.now, totals=self.now, body=self.body
        )
        self.site.doStart()
        self.transports: list[FakeTransport] = []
        self.addCleanup(self.end)

    def end(self) -> None:
        """Close the port; no timer is left then."""
        if self.site.numPorts:
            self.site.doStop()
        for transport in self.transports:
            if transport.connected:
                transport.loseConnection()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def now(self) -> dict[str, Any]:
        """The figures."""
        return self.figures

    def body(self, view: View) -> Markup:
        """What the page shows: the figures, and what the query asks for."""
        self.pages += 1
        self.assertIs(view.history, self.site._history)
        return element("p", f"{self.figures['reads']} reads{view.query.get('image', '')}")

    def connect(self) -> FakeTransport:
        """A browser connects."""
        transport = FakeTransport()
        protocol: Any = self.site.buildProtocol(None)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.transports.append(transport)
        return transport

    def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Send a request; status, headers and body of the response."""
        transport = self.connect()
        transport.protocol.dataReceived(f"{method} {path} HTTP/1.0\r\n\r\n".encode())
        head, _, body = transport.taken().partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        headers = (line.partition(": ")[::2] for line in rest)
        return int(first.split()[1]), {name.lower(): value for name, value in headers}, body


class SiteTests(SiteTestCase):
    """The resources of the site."""

    def test_figures(self) -> None:
        """The figures are served as JSON, current and not to be cached."""
        some: list[dict[str, Any]] = [
            {"reads": 1},
            {"hit_rate": 0.5, "multicast": "not working: \N{SNOWMAN}"},
        ]
        for figures in some:
            self.figures = figures
            status, headers, body = self.get("/status.json")
            self.assertEqual((status, json.loads(body)), (200, figures))
            self.assertEqual(headers["content-type"], "application/json")
            self.assertEqual(headers["cache-control"], "no-store")
        self.figures = {"reads": 1}

    def test_page(self) -> None:
        """The page shows the current figures without scripts, and its title is escaped."""
        self.figures["reads"] = 7
        status, headers, body = self.get("/")
        self.assertEqual((status, headers["content-type"]), (200, "text/html; charset=utf-8"))
        self.assertIn(b"<main><p>7 reads</p></main>", body)
        self.assertIn(b"<title>test &lt;&amp;&gt;</title>", body)

    def test_query(self) -> None:
        """The query says what the page is about; what is no UTF-8 does no harm."""
        self.assertIn(
            b"<p>1 reads of &lt;a&gt;</p>", self.get("/?image=%20of%20%3Ca%3E&image=b&other=c")[2]
        )
        self.assertIn("1 reads\ufffd</p>", self.get("/?image=%ff")[2].decode())

    def test_events_of_the_log(self) -> None:
        """The lines of mUFS in the log are kept while the port listens, but for debugging."""
        Logger("mufs.x").info("one {line}", line="<line>")
        Logger("mufs.x").debug("two")
        Logger("twisted.x").info("three")
        Logger("mufs.x").warn("four", client="host1", address="192.0.2.11")
        found = [(event.text, event.is_warning) for event in self.site._recent]
        self.assertEqual(found, [("four", True), ("one <line>", False)])
        self.assertEqual(next(iter(self.site._recent)).client, ("host1", "192.0.2.11"))
        self.site.doStop()
        Logger("mufs.x").info("five")
        self.assertEqual(len(list(self.site._recent)), 2)

    def test_nothing_from_elsewhere(self) -> None:
        """The policy lets a browser run only what the site serves, and nothing within the page."""
        _, headers, body = self.get("/")
        policy = headers["content-security-policy"]
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn("unsafe", policy)
        for source in (b'src="refresh.js"', b'href="style.css"'):
            self.assertIn(source, body)
        self.assertNotIn(b"//", body)
        kind = self.get("/refresh.js")[1]["content-type"]
        self.assertEqual(kind, "text/javascript; charset=utf-8")
        self.assertIn(b"prefers-color-scheme: dark", self.get("/style.css")[2])

    def test_nothing_else(self) -> None:
        """Other paths are not found, and other methods not allowed."""
        for path in ("/status", "/../status.json", "/etc/passwd"):
            self.assertEqual(self.get(path)[0], 404, path)
        for path in ("/", "/status.json", "/metrics", "/events"):
            self.assertEqual(self.get(path, "POST")[0], 405, path)

    def test_samples(self) -> None:
        """Samples are taken at each interval while the port listens, and not otherwise."""
        for reads in range(5):
            self.figures["reads"] = reads
            self.clock.advance(SAMPLE_INTERVAL)
        values = [value for _, value in self.site._history.recent.values("reads")]
        self.assertEqual(values[1:], [0, 1, 2, 3, 4])
        self.site.doStop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
