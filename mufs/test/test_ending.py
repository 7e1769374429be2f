"""The signals that end a service."""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mufs.ending import NUMBERS, end_once


class EndOnceTests(SynchronousTestCase):
    """Signals in this process."""

    def setUp(self) -> None:
        """Note what has an effect, and leave the signals as they are."""
        self.ended: list[int] = []
        for number in NUMBERS:
            self.addCleanup(signal.signal, number, signal.getsignal(number))

    def note(self, number: int, _: object) -> None:
        """See L{signal.signal}."""
        self.ended.append(number)

    def run_reactor(self) -> None:
        """A reactor begins to run, and takes the signals over."""
        reactor: Any = MemoryReactorClock()
        end_once(reactor)
        for number in NUMBERS:
            signal.signal(number, self.note)
        for function, arguments, more in reactor.whenRunningHooks:
            function(*arguments, **more)

    def test_once(self) -> None:
        """The first signal ends the reactor; further ones, of either kind, are ignored."""
        self.run_reactor()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        self.assertEqual(self.ended, [signal.SIGTERM])

    def test_before(self) -> None:
        """Until it runs, an interrupt is Python's, which the reactor takes over."""
        end_once(MemoryReactorClock())
        self.assertEqual(signal.getsignal(signal.SIGINT), signal.default_int_handler)

    def test_no_reactor(self) -> None:
        """A clock alone changes nothing."""
        before = signal.getsignal(signal.SIGINT)
        end_once(Clock())
        self.assertEqual(signal.getsignal(signal.SIGINT), before)
