"""Whether multicast works for a host."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.client.reception import (
    LOSSY,
    MAX_PROBE,
    PROBE,
    QUIET,
    SAMPLE,
    Reception,
)


class ReceptionTests(SynchronousTestCase):
    """What is made of what comes in, and of what does not."""

    def setUp(self) -> None:
        """Begin with a group that was just joined."""
        self.clock = Clock()
        self.reception = Reception(self.clock)

    def receive(self, loss: float, transfers: int = 300) -> None:
        """Transfers come in of which this fraction is lost, until TCP is to be used."""
        for _ in range(transfers):
            self.reception.heard()
            self.reception.result(100, round(100 * loss))
            if not self.reception.works:
                return
            self.clock.advance(0.05)

    def used_after(self, seconds: float) -> bool:
        """Whether multicast is tried again that much later, and not a moment before."""
        self.clock.advance(seconds - 0.01)
        early = self.reception.use()
        self.clock.advance(0.02)
        return self.reception.use() and not early

    def test_beginning(self) -> None:
        """Multicast is tried at once, and works as soon as something came."""
        self.assertEqual((self.reception.use(), self.reception.state), (True, "not used yet"))
        self.reception.heard()
        self.assertEqual((self.reception.use(), self.reception.state), (True, "working"))

    def test_tolerable(self) -> None:
        """Loss up to the bound is left to repair, for ever."""
        self.receive(LOSSY - 0.05, 500)
        self.assertEqual((self.reception.use(), self.reception.state), (True, "working"))

    def test_lossy(self) -> None:
        """With more loss over many segments TCP is used, and the state says why."""
        self.assertTrue(self.reception.works)
        self.receive(LOSSY + 0.2)
        self.assertFalse(self.reception.works)
        self.assertFalse(self.reception.use())
        self.assertIn("60% of the segments", self.reception.state)

    def test_few(self) -> None:
        """A few transfers with much loss decide nothing."""
        self.receive(LOSSY + 0.2, SAMPLE // 100 - 1)
        self.assertTrue(self.reception.works)
        self.assertTrue(self.reception.use())

    def test_silent(self) -> None:
        """A transfer lost as a whole while nothing comes at all is enough to use TCP."""
        self.reception.result(94, 94)
        self.assertFalse(self.reception.use())
        self.assertIn("nothing arrives", self.reception.state)

    def test_not_silent(self) -> None:
        """A transfer lost as a whole while others come in is mere loss."""
        self.reception.heard()
        self.clock.advance(QUIET - 0.1)
        self.reception.result(94, 94)
        self.assertTrue(self.reception.use())
        self.clock.advance(0.2)
        self.reception.result(94, 93)
        self.assertTrue(self.reception.use())
        self.reception.result(94, 94)
        self.assertFalse(self.reception.use())

    def test_heard_again(self) -> None:
        """After silence the first datagram brings multicast back."""
        self.reception.result(94, 94)
        self.reception.heard()
        self.assertEqual((self.reception.use(), self.reception.state), (True, "working"))

    def test_heard_though_lossy(self) -> None:
        """A path that was too lossy is not taken for mended by a datagram."""
        self.receive(LOSSY + 0.2)
        self.reception.heard()
        self.assertFalse(self.reception.use())

    def test_probes(self) -> None:
        """Now and then one read tries multicast, less and less often."""
        self.receive(LOSSY + 0.2)
        for after in (1, 1, 2, 4, 8, 16, 32, 64, 128, 256, MAX_PROBE, MAX_PROBE):
            self.assertTrue(self.used_after(after), f"after {after} s")
            self.assertFalse(self.reception.use())
            self.receive(1.0, 1)

    def test_mended(self) -> None:
        """One probe without much loss brings multicast back, and the next fault begins anew."""
        self.receive(LOSSY + 0.2)
        self.assertTrue(self.used_after(PROBE))
        self.receive(0.1, 1)
        self.assertEqual((self.reception.use(), self.reception.state), (True, "working"))
        self.receive(LOSSY + 0.2)
        self.assertTrue(self.used_after(PROBE))

    def test_unavailable(self) -> None:
        """Without a group multicast is never tried, whatever comes, until there is one."""
        self.reception.unavailable("no interface")
        for _ in range(100):
            self.reception.heard()
            self.reception.result(100, 0)
            self.clock.advance(0.1)
        self.clock.advance(10 * MAX_PROBE)
        self.assertFalse(self.reception.use())
        self.assertIn("no interface", self.reception.state)
        self.reception.available()
        self.assertTrue(self.reception.use())
