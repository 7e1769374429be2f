"""Threads for calls that may hang."""

import threading
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import TestCase

from mufs.filesystem.server.threads import DaemonThreads


class DaemonThreadsTests(TestCase):
    """Calls in threads."""

    timeout = 20

    def setUp(self) -> None:
        """Have two threads."""
        self.threads = DaemonThreads(reactor, 2, "test")
        self.threads.start()
        self.addCleanup(self.threads.stop)

    @inlineCallbacks
    def test_call(self) -> Any:
        """A call runs in a daemon thread, and its result or error comes back."""
        thread = yield self.threads.call(threading.current_thread)
        self.assertIsNot(thread, threading.current_thread())
        self.assertTrue(thread.daemon)
        self.assertEqual((yield self.threads.call(divmod, 7, 2)), (3, 1))
        with self.assertRaises(ZeroDivisionError):
            yield self.threads.call(divmod, 7, 0)

    @inlineCallbacks
    def test_hanging(self) -> Any:
        """While one call hangs, others run in the threads that are left."""
        hanging = threading.Event()
        self.addCleanup(hanging.set)
        waiting = self.threads.call(hanging.wait)
        for number in range(3):
            self.assertEqual((yield self.threads.call(abs, -number)), number)
        self.assertFalse(waiting.called)
        hanging.set()
        yield waiting
