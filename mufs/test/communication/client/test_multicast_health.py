"""Whether multicast works for a host."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.client.multicast_health import (
    GOOD_SAMPLES,
    JOIN_DELAY,
    LOSSY_PROBE_DELAY,
    LOSSY_SAMPLES,
    MAX_LOSS,
    MAX_LOSSY_PROBE_DELAY,
    MAX_PROBE_DELAY,
    MIN_SAMPLE_SECONDS,
    NO_DATAGRAM_TIMEOUT,
    PROBE_DELAY,
    TRIAL_SECONDS,
    MulticastHealth,
)


class MulticastHealthTests(SynchronousTestCase):
    """Verdicts on what arrives and what does not."""

    def setUp(self) -> None:
        """Start with a group that was just joined."""
        self.clock = Clock()
        self.multicast_health = MulticastHealth(self.clock)
        self.joined = [True]
        self.multicast_health.join = self.joined.append

    def receive(self, loss: float, samples: int = 300) -> None:
        """Report samples with this fraction lost, until TCP is to be used."""
        worked = self.multicast_health.works
        for _ in range(samples):
            for segments in (60, 40):
                self.multicast_health.on_authentic_packet()
                self.multicast_health.result(segments, round(segments * loss))
                if worked and not self.multicast_health.works:
                    return
                self.clock.advance(1.5 * MIN_SAMPLE_SECONDS)

    def used_after(self, seconds: float) -> bool:
        """Whether multicast is tried again after that time, and no sooner."""
        self.clock.advance(seconds - 0.01)
        early = self.multicast_health.should_use()
        self.clock.advance(0.02)
        return self.multicast_health.should_use() and not early

    def test_beginning(self) -> None:
        """Multicast is tried at once, and works as soon as something arrives."""
        self.assertEqual(
            (self.multicast_health.should_use(), self.multicast_health.state),
            (True, "not used yet"),
        )
        self.multicast_health.on_authentic_packet()
        self.assertEqual(
            (self.multicast_health.should_use(), self.multicast_health.state), (True, "working")
        )

    def test_anybody(self) -> None:
        """Datagrams that may be forged do not prove that multicast works."""
        self.multicast_health.result(10, 10)
        self.assertFalse(self.multicast_health.works)
        self.multicast_health.on_datagram()
        self.assertFalse(self.multicast_health.works)
        self.multicast_health.on_authentic_packet()
        self.assertTrue(self.multicast_health.works)

    def test_tolerable(self) -> None:
        """Loss up to the limit is left to repair, for any time."""
        self.receive(MAX_LOSS - 0.05, 500)
        self.assertEqual(
            (self.multicast_health.should_use(), self.multicast_health.state), (True, "working")
        )

    def test_lossy(self) -> None:
        """With more loss over many segments TCP is used, and the state says why."""
        self.assertTrue(self.multicast_health.works)
        self.receive(MAX_LOSS + 0.2)
        self.assertFalse(self.multicast_health.works)
        self.assertFalse(self.multicast_health.should_use())
        self.assertIn("60% of the segments", self.multicast_health.state)

    def test_passing(self) -> None:
        """A spell of heavy loss changes nothing, but counts as failing until it ends."""
        for _ in range(5):
            self.receive(1.0, LOSSY_SAMPLES - 1)
            self.assertTrue(self.multicast_health.is_failing)
            self.receive(MAX_LOSS, 1)
            self.assertFalse(self.multicast_health.is_failing)
        self.assertTrue(self.multicast_health.should_use())
        self.assertEqual(self.joined, [True])

    def test_at_once(self) -> None:
        """Segments lost at one moment are one sample at most, however many."""
        for _ in range(100):
            self.multicast_health.on_authentic_packet()
            self.multicast_health.result(94, 90)
        self.assertTrue(self.multicast_health.works)

    def test_silent(self) -> None:
        """One transfer lost as a whole while nothing arrives is enough to use TCP."""
        self.multicast_health.result(94, 94)
        self.assertFalse(self.multicast_health.should_use())
        self.assertIn("nothing arrives", self.multicast_health.state)

    def test_not_silent(self) -> None:
        """A transfer lost as a whole while others arrive is just loss."""
        self.multicast_health.on_authentic_packet()
        self.clock.advance(NO_DATAGRAM_TIMEOUT - 0.1)
        self.multicast_health.result(94, 94)
        self.assertTrue(self.multicast_health.should_use())
        self.clock.advance(0.2)
        self.multicast_health.result(94, 93)
        self.assertTrue(self.multicast_health.should_use())
        self.multicast_health.result(94, 94)
        self.assertFalse(self.multicast_health.should_use())

    def test_heard_again(self) -> None:
        """After silence the first authentic packet brings multicast back."""
        self.multicast_health.result(94, 94)
        self.multicast_health.on_authentic_packet()
        self.assertEqual(
            (self.multicast_health.should_use(), self.multicast_health.state), (True, "working")
        )

    def test_heard_though_lossy(self) -> None:
        """A path that was too lossy is not trusted again for one datagram."""
        self.receive(MAX_LOSS + 0.2)
        self.multicast_health.on_authentic_packet()
        self.assertFalse(self.multicast_health.should_use())

    def test_silent_probes(self) -> None:
        """While nothing arrives the group is rejoined, and one read tries it, ever less often."""
        self.multicast_health.result(94, 94)
        for after in (1, 1, 2, 4, 8, 16, 32, 64, 128, 256, MAX_PROBE_DELAY, MAX_PROBE_DELAY):
            self.assertEqual(self.joined, [True, False, True])
            del self.joined[1:]
            self.assertTrue(self.used_after(after), f"after {after} s")
            self.assertFalse(self.multicast_health.should_use())
            self.multicast_health.result(94, 94)

    def test_silent_again(self) -> None:
        """Once it has worked, a new silence is probed as often as the first."""
        for _ in range(2):
            self.multicast_health.result(94, 94)
            self.assertTrue(self.used_after(PROBE_DELAY))
            self.multicast_health.on_authentic_packet()
            self.clock.advance(NO_DATAGRAM_TIMEOUT + 0.1)

    def test_leaves(self) -> None:
        """A host that loses too much leaves the group; results of earlier transfers are ignored."""
        self.receive(MAX_LOSS + 0.2)
        self.assertEqual(self.joined, [True, False])
        state = self.multicast_health.state
        self.clock.advance(NO_DATAGRAM_TIMEOUT + 0.1)
        self.multicast_health.result(94, 94)
        self.multicast_health.result(94, 0)
        self.assertEqual((self.multicast_health.state, self.joined), (state, [True, False]))

    def test_trials(self) -> None:
        """It joins again now and then, and leaves at the first lossy sample."""
        self.receive(MAX_LOSS + 0.2)
        for after in (
            LOSSY_PROBE_DELAY,
            2 * LOSSY_PROBE_DELAY,
            MAX_LOSSY_PROBE_DELAY,
            MAX_LOSSY_PROBE_DELAY,
        ):
            self.clock.advance(after - MIN_SAMPLE_SECONDS * 2)
            self.assertFalse(self.multicast_health.should_use())
            self.assertFalse(self.joined[-1])
            self.clock.advance(MIN_SAMPLE_SECONDS * 2)
            self.assertFalse(self.multicast_health.should_use())
            self.assertTrue(self.joined[-1])
            self.assertTrue(self.used_after(JOIN_DELAY))
            self.receive(0.0, GOOD_SAMPLES - 1)
            self.receive(1.0, 1)
            self.assertFalse(self.multicast_health.should_use())
            self.assertFalse(self.joined[-1])

    def test_trial_without_results(self) -> None:
        """A trial in which nothing is sent ends; what is overheard later decides it."""
        self.receive(MAX_LOSS + 0.2)
        self.clock.advance(LOSSY_PROBE_DELAY)
        self.multicast_health.should_use()
        self.clock.advance(JOIN_DELAY + TRIAL_SECONDS + 0.1)
        self.assertFalse(self.multicast_health.should_use())
        self.assertTrue(self.joined[-1])
        self.receive(0.0, GOOD_SAMPLES)
        self.assertTrue(self.multicast_health.works)

    def test_mended(self) -> None:
        """A trial with little loss brings multicast back; the next fault is judged from scratch."""
        for _ in range(2):
            self.receive(MAX_LOSS + 0.2)
            self.clock.advance(LOSSY_PROBE_DELAY)
            self.assertFalse(self.multicast_health.should_use())
            self.receive(0.1, GOOD_SAMPLES)
            self.assertEqual(
                (self.multicast_health.should_use(), self.multicast_health.state), (True, "working")
            )
            self.assertTrue(self.joined[-1])

    def test_new_connection(self) -> None:
        """A new connection to the same group may end silence, but makes no slow link fast."""
        self.receive(MAX_LOSS + 0.2)
        self.multicast_health.resumed()
        self.assertEqual((self.multicast_health.should_use(), self.joined[-1]), (False, False))
        self.multicast_health.available()
        self.multicast_health.result(94, 94)
        self.multicast_health.resumed()
        self.assertTrue(self.multicast_health.should_use())

    def test_unavailable(self) -> None:
        """Without a group multicast is never tried, whatever arrives."""
        self.multicast_health.unavailable("no interface")
        for _ in range(100):
            self.multicast_health.on_authentic_packet()
            self.multicast_health.result(100, 0)
            self.clock.advance(0.1)
        self.clock.advance(10 * MAX_PROBE_DELAY)
        self.assertFalse(self.multicast_health.should_use())
        self.assertIn("no interface", self.multicast_health.state)
        self.multicast_health.available()
        self.assertTrue(self.multicast_health.should_use())
