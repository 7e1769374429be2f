"""How findings are shown."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mufs.commands.check.finding import WIDTH, ok, problem, warning


class FindingTests(SynchronousTestCase):
    """How findings are shown."""

    def test_width(self) -> None:
        """Text fits 80 columns; a command is one line, however long it is."""
        command = "nft add rule inet filter input " + "ip saddr 192.0.2.1 " * 5 + "accept"
        lines = problem("receive buffer", "word " * 40, "remedy " * 30, command).lines()
        self.assertTrue(lines[0].startswith("problem  receive buffer  word"), lines)
        self.assertEqual(lines[-1].strip(), command)
        self.assertLessEqual(max(map(len, lines[:-1])), WIDTH)
        self.assertEqual(sum("->" in line for line in lines), 1)

    def test_lines(self) -> None:
        """Each line of a remedy begins a line."""
        lines = warning("multicast", "x", "1. this\n2. that").lines()
        self.assertEqual([line.strip() for line in lines[1:]], ["-> 1. this", "2. that"])
        self.assertEqual(len(ok("multicast", "x").lines()), 1)
