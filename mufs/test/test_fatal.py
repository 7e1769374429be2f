"""A service that cannot go on."""

from __future__ import annotations

import atexit
import os
import sys
from io import StringIO
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.internet.testing import MemoryReactor
from twisted.logger import LogEvent, Logger, LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from mufs import fatal


class FailTests(SynchronousTestCase):
    """The end of a process, without ending this one."""

    def setUp(self) -> None:
        """Keep what is to be done at exit, what is printed, and what is logged."""
        self.at_exit: list[Any] = []
        self.exits: list[int] = []
        self.printed = StringIO()
        self.events: list[LogEvent] = []
        self.patch(atexit, "register", self.at_exit.append)
        self.patch(os, "_exit", self.exits.append)
        self.patch(sys, "__stderr__", self.printed)
        observer: Any = self.events.append
        self.patch(fatal, "_log", Logger(observer=observer))
        self.reactor = MemoryReactor()

    def test_line(self) -> None:
        """The message is logged, and printed with the name of the service."""
        fatal.fail(self.reactor, "mufs-server", "no {such} thing")
        self.assertEqual(self.printed.getvalue(), "mufs-server: no {such} thing\n")
        (event,) = self.events
        self.assertEqual(event["log_level"], LogLevel.critical)
        self.assertEqual(formatEvent(event), "no {such} thing")

    def test_journal(self) -> None:
        """Where standard error is the journal, which has the log, nothing is printed."""
        self.patch(fatal, "is_stream", lambda stream: stream is self.printed)
        fatal.fail(self.reactor, "mufs-server", "no such thing")
        self.assertEqual(self.printed.getvalue(), "")
        self.assertEqual(len(self.events), 1)

    def test_once(self) -> None:
        """Where the log is on standard error anyway, the message comes once, without a time."""
        place = open(self.mktemp(), "w+")  # noqa: SIM115
        self.addCleanup(place.close)
        for name in ("__stdout__", "__stderr__"):
            self.patch(sys, name, place)
        for arguments, logged in (([], 0), (["--logfile=/var/log/mufs"], 1), (["-l/x"], 1)):
            self.patch(sys, "argv", ["mufs-server", *arguments])
            self.events.clear()
            fatal.fail(self.reactor, "mufs-server", "no such thing")
            self.assertEqual(len(self.events), logged, arguments)
        place.seek(0)
        self.assertEqual(place.read(), 3 * "mufs-server: no such thing\n")

    def test_nowhere(self) -> None:
        """A service in the background has its log elsewhere."""
        with open(os.devnull, "w") as nowhere:
            for name in ("__stdout__", "__stderr__"):
                self.patch(sys, name, nowhere)
            self.patch(sys, "argv", ["mufs-server"])
            fatal.fail(self.reactor, "mufs-server", "no such thing")
        self.assertEqual(len(self.events), 1)

    def test_status(self) -> None:
        """The reactor is stopped once it runs, and the status is 1 when the interpreter exits."""
        fatal.fail(self.reactor, "mufs-server", "no such thing")
        self.assertFalse(self.reactor.hasStopped)
        self.reactor.run()
        self.assertTrue(self.reactor.hasStopped)
        self.assertEqual(self.exits, [])
        for each in self.at_exit:
            each()
        self.assertEqual(self.exits, [1])

    def test_stopping(self) -> None:
        """A reactor that stops already may be told again."""

        def stop() -> None:
            raise ReactorNotRunning

        self.reactor.hasRun = True
        self.patch(self.reactor, "stop", stop)
        fatal.fail(self.reactor, "mufs-server", "no such thing")
        self.assertEqual(len(self.at_exit), 1)
