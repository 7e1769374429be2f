"""Server-sent events, at a site over connections in memory."""

from twisted.python.failure import Failure

from mufs.status.events import MAX_LISTENERS, MAX_SKIPPED_EVENTS
from mufs.status.history import SAMPLE_INTERVAL
from mufs.status.markup import Markup
from mufs.test.status.test_site import SiteTestCase
from mufs.test.support.doubles import FakeTransport


class EventTests(SiteTestCase):
    """Browsers that listen."""

    def listen(self) -> FakeTransport:
        """A browser listens to the events."""
        transport = self.connect()
        transport.protocol.dataReceived(b"GET /events HTTP/1.1\r\nHost: here\r\n\r\n")
        return transport

    def test_at_once_and_again(self) -> None:
        """A listener gets the content of the page at once, then at each interval, in one line."""
        listener = self.listen()
        head, _, first = listener.taken().partition(b"\r\n\r\n")
        self.assertIn(b"text/event-stream", head)
        self.assertIn(b"data: <main><p>1 reads</p></main>\n\n", first)
        self.figures["reads"] = 2
        self.clock.advance(SAMPLE_INTERVAL)
        self.assertIn(b"data: <main><p>2 reads</p></main>\n\n", listener.taken())

    def test_lines(self) -> None:
        """Content of several lines is still one event."""
        self.site._body = lambda history: Markup("a\nb\r\n\r\nevent: c")
        self.assertIn(
            b"data: <main>a\ndata: b\ndata: \ndata: event: c</main>\n\n", self.listen().taken()
        )

    def test_nobody(self) -> None:
        """No page is made while nobody listens."""
        self.clock.pump([SAMPLE_INTERVAL] * 10)
        self.assertEqual(self.pages, 0)

    def test_once_for_all(self) -> None:
        """The page is made once at each interval, however many listen."""
        for _ in range(5):
            self.listen()
        self.pages = 0
        self.clock.advance(SAMPLE_INTERVAL)
        self.assertEqual(self.pages, 1)

    def test_gone(self) -> None:
        """A listener that has disconnected is forgotten."""
        listener = self.listen()
        listener.protocol.connectionLost(Failure(ConnectionError()))
        self.pages = 0
        self.clock.advance(SAMPLE_INTERVAL)
        self.assertEqual(self.pages, 0)

    def test_bounded(self) -> None:
        """The number of listeners is limited; when one disconnects another one may listen."""
        listeners = [self.listen() for _ in range(MAX_LISTENERS)]
        self.assertIn(b" 503 ", self.listen().taken())
        self.clock.advance(SAMPLE_INTERVAL)
        for listener in listeners:
            self.assertEqual(listener.taken().count(b"data: "), 2)
        listeners[0].protocol.connectionLost(Failure(ConnectionError()))
        self.assertIn(b" 200 ", self.listen().taken())

    def test_slow(self) -> None:
        """A listener that does not read has one event waiting at most."""
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
        """One that does not read for long is disconnected, and makes room for another."""
        listener = self.listen()
        listener.producer.pauseProducing()
        self.clock.pump([SAMPLE_INTERVAL] * (MAX_SKIPPED_EVENTS + 1))
        self.assertFalse(listener.connected)
        self.assertEqual(self.site._events._listeners, {})

    def test_shutdown(self) -> None:
        """When the port is closed the response ends properly, and so does the connection."""
        listener = self.listen()
        self.site.doStop()
        self.assertTrue(listener.taken().endswith(b"\r\n0\r\n\r\n"))
        self.assertFalse(listener.connected)
