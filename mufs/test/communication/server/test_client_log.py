"""What the log says of a client."""

from __future__ import annotations

import errno
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure as Error

from mufs.communication.server.client_log import REFUSED_OPEN_LOG_INTERVAL
from mufs.test.support.channels import PING, ServerChannelTestCase
from mufs.wire.channel import Type, pack_tagged
from mufs.wire.metadata import At, Report, encode

WHO = "host (10.0.1.1)"


class ClientLogTests(ServerChannelTestCase):
    """The lines about the one client of a server."""

    def setUp(self) -> None:
        """Listen to the log."""
        super().setUp()
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def lines(self) -> list[str]:
        """The lines since the last call."""
        events, self.events[:] = self.events[:], []
        return [text for event in events if WHO in (text := str(formatEvent(event)))]

    def report(self, *, delivered: int = 0, works: bool = True, multicast: str = "working") -> None:
        """The client reports."""
        report = Report(9, 5, 20, delivered, works, multicast)
        self.send(pack_tagged(Type.PING, 1, encode(report)))

    def refuse(self, times: int, error: int = errno.EACCES) -> None:
        """The client tries to open an image that it may not open."""
        failed = OSError(error, "Permission denied")
        opening = pack_tagged(Type.OPEN, 1, encode(At(b"a/b\n.img")))

        def in_thread(*_: object) -> Deferred[Any]:
            return fail(failed)

        self.patch(self.channel._metadata, "_in_thread", in_thread)
        for _ in range(times):
            self.assertEqual(self.send(opening)[0][0], Type.ERROR)

    def pass_time(self, seconds: float) -> None:
        """The client stays for so long."""
        for _ in range(2):
            self.server.clock.advance(seconds / 2)
            self.send(PING)

    def test_left(self) -> None:
        """A client that leaves has a line that says why, after how long, and how much it got."""
        self.pass_time(61)
        self.report(delivered=3 << 20)
        self.channel.connectionLost(Error(ConnectionDone()))
        self.assertEqual(self.lines(), [
            f"{WHO} left after 1 min 1 s: it closed the connection; 3.0 MiB delivered to readers, "
            "0 B sent over TCP"
        ])  # fmt: skip

    def test_reasons(self) -> None:
        """The line says who ended the connection."""
        broke, ended = "it ended, or the connection broke", "the server ended the connection"
        reasons = [(ConnectionLost, broke), (ConnectionAborted, ended)]
        for kind, why in reasons:
            self.channel, self.wire = self.server.connect(host="10.0.1.1")
            self.channel.connectionLost(Error(kind()))
            self.assertIn(f": {why}; ", self.lines()[-1])
        self.channel, self.wire = self.server.connect(host="10.0.1.1")
        self.channel.close("it broke the protocol")
        self.channel.connectionLost(Error(ConnectionDone()))
        closing, left = self.lines()
        self.assertEqual(closing, f"closing the connection of {WHO}: it broke the protocol")
        self.assertIn(": the server closed the connection; ", left)

    def test_never_welcomed(self) -> None:
        """A connection that ends before it was welcomed has no such line."""
        self.channel, self.wire = self.server.connect(hello=False)
        self.channel.connectionLost(Error(ConnectionDone()))
        self.assertEqual(self.lines(), [])

    def test_multicast(self) -> None:
        """Whether multicast works for a client is said when that changes."""
        for works, why in ((True, "working"), (False, "not working: no\u202eq"), (False, "x")):
            self.report(works=works, multicast=why)
        self.report()
        self.assertEqual(self.lines(), [
            f"{WHO} reads over TCP: not working: no\\u202eq", f"{WHO} receives multicast again",
        ])  # fmt: skip

    def test_refused_opens(self) -> None:
        """The first refused open has a line, and then one a minute says how many more."""
        self.refuse(3)
        text = f"{WHO} was refused a/b\\n.img: Permission denied"
        self.assertEqual(self.lines(), [text])
        self.pass_time(REFUSED_OPEN_LOG_INTERVAL)
        self.refuse(2)
        self.assertEqual(self.lines(), [f"{text} (and 2 more opens since the last line)"])

    def test_missing(self) -> None:
        """An image that does not exist is nothing to log."""
        self.refuse(1, errno.ENOENT)
        self.assertEqual(self.lines(), [])
