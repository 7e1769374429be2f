"""What is served at a status endpoint, over connections in memory."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mufs.status.events import MAX_LISTENERS, MAX_SKIPPED_EVENTS
from mufs.status.figures import COUNTER, Figure, Schema
from mufs.status.history import SAMPLE_INTERVAL, History
from mufs.status.markup import Markup, element
from mufs.status.site import StatusSite
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
        """The port listens no longer; nothing is left to be done then."""
        if self.site.numPorts:
            self.site.doStop()
        for transport in self.transports:
            if transport.connected:
                transport.loseConnection()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def now(self) -> dict[str, Any]:
        """The figures."""
        return self.figures

    def body(self, history: History) -> Markup:
        """What the page shows: how often it was made, and the figures."""
        self.pages += 1
        self.assertIs(history, self.site._history)
        return element("p", f"{self.figures['reads']} reads")

    def connect(self) -> FakeTransport:
        """A browser connects."""
        transport = FakeTransport()
        protocol: Any = self.site.buildProtocol(None)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.transports.append(transport)
        return transport

    def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Ask for something: status, headers and body of the answer."""
        transport = self.connect()
        transport.protocol.dataReceived(f"{method} {path} HTTP/1.0\r\n\r\n".encode())
        head, _, body = transport.taken().partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        headers = (line.partition(": ")[::2] for line in rest)
        return int(first.split()[1]), {name.lower(): value for name, value in headers}, body

    def listen(self) -> FakeTransport:
        """A browser listens to the events."""
        transport = self.connect()
        transport.protocol.dataReceived(b"GET /events HTTP/1.1\r\nHost: here\r\n\r\n")
        return transport


class SiteTests(SiteTestCase):
    """What can be asked for."""

    def test_figures(self) -> None:
        """The figures are served as JSON, not to be cached, as they are at that moment."""
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
        """The page shows without script what there is now, and its title cannot break it."""
        self.figures["reads"] = 7
        status, headers, body = self.get("/")
        self.assertEqual((status, headers["content-type"]), (200, "text/html; charset=utf-8"))
        self.assertIn(b"<main><p>7 reads</p></main>", body)
        self.assertIn(b"<title>test &lt;&amp;&gt;</title>", body)

    def test_nothing_from_elsewhere(self) -> None:
        """A browser that shows the page runs what is served here, and nothing that stands in it."""
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
        """There is nothing else to be found, and nothing to be done."""
        for path in ("/status", "/../status.json", "/etc/passwd"):
            self.assertEqual(self.get(path)[0], 404, path)
        for path in ("/", "/status.json", "/metrics", "/events"):
            self.assertEqual(self.get(path, "POST")[0], 405, path)

    def test_samples(self) -> None:
        """While the port listens a sample is taken each time; none is when it does not."""
        for reads in range(5):
            self.figures["reads"] = reads
            self.clock.advance(SAMPLE_INTERVAL)
        values = [value for _, value in self.site._history.values("reads")]
        self.assertEqual(values[1:], [0, 1, 2, 3, 4])
        self.site.doStop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class EventTests(SiteTestCase):
    """Browsers that listen."""

    def test_at_once_and_again(self) -> None:
        """A listener is told what the page shows at once, and then each time; as one line each."""
        listener = self.listen()
        head, _, first = listener.taken().partition(b"\r\n\r\n")
        self.assertIn(b"text/event-stream", head)
        self.assertIn(b"data: <main><p>1 reads</p></main>\n\n", first)
        self.figures["reads"] = 2
        self.clock.advance(SAMPLE_INTERVAL)
        self.assertIn(b"data: <main><p>2 reads</p></main>\n\n", listener.taken())

    def test_lines(self) -> None:
        """What has lines in it is one event all the same."""
        self.site._body = lambda history: Markup("a\nb\r\n\r\nevent: c")
        self.assertIn(
            b"data: <main>a\ndata: b\ndata: \ndata: event: c</main>\n\n", self.listen().taken()
        )

    def test_nobody(self) -> None:
        """As long as nobody listens no page is made."""
        self.clock.pump([SAMPLE_INTERVAL] * 10)
        self.assertEqual(self.pages, 0)

    def test_once_for_all(self) -> None:
        """However many listen, the page is made once each time."""
        for _ in range(5):
            self.listen()
        self.pages = 0
        self.clock.advance(SAMPLE_INTERVAL)
        self.assertEqual(self.pages, 1)

    def test_gone(self) -> None:
        """A listener that has gone is forgotten."""
        listener = self.listen()
        listener.protocol.connectionLost(Failure(ConnectionError()))
        self.pages = 0
        self.clock.advance(SAMPLE_INTERVAL)
        self.assertEqual(self.pages, 0)

    def test_bounded(self) -> None:
        """So many may listen, and one more when one of them has gone."""
        listeners = [self.listen() for _ in range(MAX_LISTENERS)]
        self.assertIn(b" 503 ", self.listen().taken())
        self.clock.advance(SAMPLE_INTERVAL)
        for listener in listeners:
            self.assertEqual(listener.taken().count(b"data: "), 2)
        listeners[0].protocol.connectionLost(Failure(ConnectionError()))
        self.assertIn(b" 200 ", self.listen().taken())

    def test_slow(self) -> None:
        """A listener that takes nothing has one event waiting at most, and then the next one."""
        listener = self.listen()
        listener.taken()
        listener.producer.pauseProducing()
        self.clock.pump([SAMPLE_INTERVAL] * (MAX_SKIPPED_EVENTS - 1))
        self.assertEqual(listener.taken(), b"")
        listener.producer.resumeProducing()
        self.clock.advance(SAMPLE_INTERVAL)
        self.assertEqual(listener.taken().count(b"data: "), 1)
        self.assertFalse(listener.disconnecting)

    def test_dead(self) -> None:
        """One that takes nothing for long is cut off, and makes room for another."""
        listener = self.listen()
        listener.producer.pauseProducing()
        self.clock.pump([SAMPLE_INTERVAL] * (MAX_SKIPPED_EVENTS + 1))
        self.assertFalse(listener.connected)
        self.assertEqual(self.site._events._listeners, {})

    def test_shutdown(self) -> None:
        """When the port is closed the response ends as it should, and so does the connection."""
        listener = self.listen()
        self.site.doStop()
        self.assertTrue(listener.taken().endswith(b"\r\n0\r\n\r\n"))
        self.assertFalse(listener.connected)
