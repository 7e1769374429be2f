"""A server that no longer answers."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.client.silence import SILENCE_CHECK_INTERVAL, SilenceDetector


class SilenceTests(SynchronousTestCase):
    """Has a connection on which a request was made."""

    def setUp(self) -> None:
        """Make the request."""
        self.clock = Clock()
        self.events: list[str] = []
        self.waiting = True
        self.silence = SilenceDetector(
            self.clock,
            is_waiting=lambda: self.waiting,
            ping=lambda: self.events.append("ping"),
            on_silent=lambda: self.events.append("silent"),
        )
        self.silence.watch()

    def test_silent(self) -> None:
        """One from which nothing comes is asked for life, and silent within a second."""
        self.clock.pump([0.05] * 20)
        self.assertEqual(self.events, ["ping", "silent"])
        self.assertTrue(self.silence.is_silent)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_back(self) -> None:
        """Whatever comes ends the silence; the next request is watched again."""
        self.clock.pump([0.05] * 20)
        self.silence.heard()
        self.assertFalse(self.silence.is_silent)
        self.silence.watch()
        self.clock.pump([0.05] * 20)
        self.assertEqual(self.events, 2 * ["ping", "silent"])

    def test_slow(self) -> None:
        """One that answers other things is not silent, and is asked once for life."""
        for _ in range(16):
            self.clock.advance(SILENCE_CHECK_INTERVAL)
            self.silence.heard()
        self.assertEqual(self.events, ["ping"])

    def test_stalled(self) -> None:
        """A client that was stopped itself for a while finds nobody silent for that."""
        self.clock.advance(5.0)
        self.assertEqual(self.events, ["ping"])

    def test_answered(self) -> None:
        """When all requests are answered nothing is watched."""
        self.waiting = False
        self.clock.pump([0.05] * 20)
        self.assertEqual(self.events, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """After the end of the connection nothing is left."""
        self.silence.stop()
        self.silence.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
