"""Findings about what was received from the group."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from mufs.commands.check import multicast
from mufs.commands.check.finding import Finding, Level
from mufs.commands.check.packets import TEST_GROUP, Query
from mufs.commands.check.session import Reading
from mufs.wire.metadata import VERSION, Welcome

WELCOME = Welcome(VERSION, "239.5.5.0", 7041, ("192.0.2.1", 40000), 1400)
READING = Reading(
    seconds=5.0,
    bytes_asked=12_000_000,
    bytes_over_tcp=0,
    segments=9000,
    segment=1400,
    loss=0.0,
    dropped=0,
    works=True,
    state="working",
    is_lost=False,
)
SILENT = attrs.evolve(
    READING, segments=0, loss=None, works=False, bytes_over_tcp=100_000, state="not working: ..."
)


class MulticastTests(SynchronousTestCase):
    """What the figures of a session mean."""

    def judge(self, seen: bool | None = None, asked: bool | None = None, **changes: Any) -> Finding:
        """The finding of a reading that differs from a good one by these changes."""
        return multicast.judge(attrs.evolve(READING, **changes), WELCOME, seen=seen, asked=asked)

    def silent(self, seen: bool | None, asked: bool | None = None) -> Finding:
        return multicast.judge(SILENT, WELCOME, seen=seen, asked=asked)

    def test_loss(self) -> None:
        """A little loss is fine, some a warning, and what multicast is given up for a problem."""
        for loss, level in (
            (0.009, Level.OK), (0.01, Level.WARNING), (0.4, Level.WARNING), (0.41, Level.PROBLEM),
        ):  # fmt: skip
            self.assertIs(self.judge(loss=loss).level, level, loss)
        self.assertIn("20.2 Mbit/s", self.judge().figure)
        self.assertIs(self.judge(works=False, state="not working: too lossy").level, Level.PROBLEM)

    def test_short_alone(self) -> None:
        """Where short datagrams alone come, the size of packets is the remedy."""
        found = self.judge(loss=0.989, segments=50, works=False)
        self.assertIs(found.level, Level.PROBLEM)
        self.assertIn("1440", found.figure)
        self.assertIn("mtu", found.commands[0])

    def test_silent(self) -> None:
        """What came to the interface tells this host's firewall from the network."""
        here = self.silent(seen=True)
        self.assertIn("firewall of this host", here.remedy)
        self.assertIn("udp dport 7041 accept", here.commands[0])
        away = self.silent(seen=False, asked=False)
        self.assertNotIn("firewall of this host", away.remedy)
        self.assertIn("there is none, see above", away.remedy)
        self.assertEqual(away.commands, ())
        unknown = self.silent(seen=None)
        self.assertIn("as root", unknown.remedy)
        self.assertEqual(unknown.commands, here.commands)

    def test_nothing_sent(self) -> None:
        """A server that sends nothing proves nothing; a connection that is lost is a problem."""
        self.assertIs(self.judge(segments=0, loss=None).level, Level.WARNING)
        away = self.judge(segments=0, loss=None, bytes_over_tcp=100_000)
        self.assertIs(away.level, Level.PROBLEM)
        self.assertIn("no interface", away.figure)
        self.assertIs(self.judge(is_lost=True).level, Level.PROBLEM)

    def test_over_tcp(self) -> None:
        """TCP is spoken of only where it is needed."""
        self.assertIsNone(multicast.over_tcp(READING))
        came = multicast.over_tcp(SILENT)
        assert came is not None
        self.assertIs(came.level, Level.OK)
        nothing = multicast.over_tcp(attrs.evolve(SILENT, bytes_over_tcp=0))
        assert nothing is not None
        self.assertIs(nothing.level, Level.PROBLEM)

    def test_others(self) -> None:
        """Datagrams of others in the group are a warning."""
        self.assertIs(multicast.others(READING).level, Level.OK)
        self.assertIs(multicast.others(attrs.evolve(READING, dropped=3)).level, Level.WARNING)

    def test_querier(self) -> None:
        """Whoever asks is named, but for a bridge that has no address."""
        found = multicast.querier([Query("192.0.2.254", TEST_GROUP, 2)], 5)
        self.assertIs(found.level, Level.OK)
        self.assertEqual(found.figure, "192.0.2.254 sends queries, IGMP version 2")
        self.assertIn("switch", multicast.querier([Query("0.0.0.0", "0.0.0.0", 3)], 5).figure)
        self.assertIs(multicast.querier([], 5).level, Level.WARNING)
