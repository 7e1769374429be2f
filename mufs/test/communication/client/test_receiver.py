"""The client's end of the group: from datagrams to opened transfers."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.client import receiver
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.receiver import (
    MAX_BATCH_SEGMENTS,
    MAX_GATHER_DELAY,
    MIN_GATHER_DELAY,
    OLD_EPOCH_LIFETIME,
    RECEIVE_BUFFER,
    MulticastReceiver,
    max_transfer,
)
from mufs.communication.server.sender import seal_transfer, trains
from mufs.wire.pages import BLOCK, EXTENT, PAGE
from mufs.wire.sealing import Keys
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    REPAIRED,
    SEGMENT,
    Descriptor,
    number_count,
)

SOURCE = ("192.0.2.1", 40000)
KEYS = Keys(bytes(32))
CONTENT = bytes(range(256)) * (BLOCK // 256)


class PortDouble:
    """A socket that remembers whether it is read."""

    reads = True

    def stopReading(self) -> None:
        """See L{FileDescriptor.stopReading}."""
        self.reads = False

    def startReading(self) -> None:
        """See L{FileDescriptor.startReading}."""
        self.reads = True


class ReceiverTests(SynchronousTestCase):
    """A receiver that has the key of an image."""

    def setUp(self) -> None:
        """Listen to a server."""
        self.clock = Clock()
        self.opened: list[bytes] = []
        self.multicast_health = MulticastHealth(self.clock)
        self.receiver = MulticastReceiver(
            self.clock, self.multicast_health, lambda descriptor, data: self.opened.append(data)
        )
        self.port = self.receiver.transport = PortDouble()  # type: ignore[assignment]
        self.receiver.listen_to(SOURCE, SEGMENT)
        self.receiver.begin_epoch(KEYS.epoch.number, KEYS.epoch.secret)
        self.receiver.add_key(1, 1, KEYS.key(1, 1))

    def datagrams(self, number: int, length: int = BLOCK, end: int = COMPLETION) -> list[bytes]:
        """Those of a transfer of a block, or its first bytes, one for each packet."""
        first = number * number_count(94)
        descriptor = Descriptor(number, first, 1, 1, number * BLOCK, length)
        transfer = seal_transfer(KEYS, descriptor, CONTENT[:length], segment=SEGMENT)
        segments = [bytes(train) for train in trains(transfer, (1 << len(transfer.rows)) - 1, 1)]
        ends = [transfer.control(phase) for phase in (ANNOUNCEMENT, end)]
        return [ends[0], *segments, ends[1]]

    def receive(self, *datagrams: bytes) -> None:
        """Have them arrive one by one."""
        for datagram in datagrams:
            self.receiver.datagramReceived(datagram, SOURCE)

    def test_one_by_one(self) -> None:
        """A transfer in single datagrams is opened with its last segment."""
        announcement, *segments, completion = self.datagrams(1)
        self.receive(announcement, *segments[:-1])
        self.assertEqual(self.opened, [])
        self.receive(segments[-1])
        self.assertEqual(self.opened, [CONTENT])
        self.receive(completion)
        self.assertEqual(self.receiver.segments_received, len(segments))

    def test_replaced_keys(self) -> None:
        """Replaced keys open what was sent with them for a short time, and then no more."""
        for seconds, opened in ((0.0, 1), (OLD_EPOCH_LIFETIME - 0.1, 1), (OLD_EPOCH_LIFETIME, 0)):
            self.setUp()
            self.receiver.begin_epoch(1, bytes(32))
            self.clock.advance(seconds)
            self.receive(*self.datagrams(1))
            self.assertEqual(len(self.opened), opened)
            self.assertEqual(self.receiver.datagrams_dropped, 0 if opened else 2)
            self.assertEqual(self.receiver.transfers_rejected, 0)

    def test_last_epoch_alone(self) -> None:
        """Only the last of the earlier epochs is known, however fast they follow each other."""
        for number in (1, 2):
            self.receiver.begin_epoch(number, bytes(32))
        self.receive(*self.datagrams(1))
        self.assertEqual(self.opened, [])

    def test_restarted_server(self) -> None:
        """The keys of a previous run of the server are forgotten."""
        self.receiver.listen_to(SOURCE, SEGMENT)
        self.receiver.begin_epoch(0, bytes(32))
        self.receiver.add_key(1, 1, KEYS.key(1, 1))
        self.receive(*self.datagrams(1))
        self.assertEqual(self.opened, [])

    def test_lost(self) -> None:
        """What is missing is known as soon as the batch is flushed."""
        announcement, *segments, _ = self.datagrams(1)
        self.receive(announcement, *segments[:40], *segments[41:60])
        self.receiver.flush_batch()
        missing = self.receiver.reassembly.missing(1, number_count(94), BLOCK)
        self.assertEqual(missing, (1 << 94) - (1 << 60) | 1 << 40)

    def test_loss(self) -> None:
        """What had not come when its transfer was completed is lost, also if it comes later."""
        announcement, *segments, completion = self.datagrams(1)
        self.receive(announcement, *segments[:90], completion)
        self.receive(announcement, *segments[90:], self.datagrams(1, end=REPAIRED)[-1])
        self.assertEqual(self.opened, [CONTENT])
        self.assertEqual((self.receiver.segments_due, self.receiver.segments_late), (94, 4))
        self.receive(*self.datagrams(2))
        self.assertEqual((self.receiver.segments_due, self.receiver.segments_late), (188, 4))

    def test_key_within_transfer(self) -> None:
        """A transfer that had begun before the key of its image came is ignored, not lost."""
        incomplete: list[Descriptor] = []
        self.receiver.listen_to(SOURCE, SEGMENT)
        self.receiver.begin_epoch(0, KEYS.epoch.secret)
        self.receiver.on_incomplete = incomplete.append
        announcement, *segments, completion = self.datagrams(1)
        self.receive(announcement, *segments)
        self.receiver.add_key(1, 1, KEYS.key(1, 1))
        self.receive(completion)
        self.assertEqual((incomplete, self.opened), ([], []))
        self.assertEqual((self.receiver.segments_due, self.receiver.segments_late), (94, 0))
        self.receive(announcement, *segments, completion)
        self.assertEqual(self.opened, [CONTENT])

    def test_repairs_for_others(self) -> None:
        """Repairs of transfers sent before this host joined do not count as losses."""
        for number in range(1, 30):
            announcement, *segments, end = self.datagrams(number, end=REPAIRED)
            self.receive(announcement, segments[number], end)
            self.clock.advance(0.01)
        self.assertEqual(self.receiver.segments_due, 0)
        self.assertFalse(self.multicast_health.is_failing)

    def test_only_whole_segments_wait(self) -> None:
        """A datagram that is not a segment does not harm the batch."""
        announcement, *segments, _ = self.datagrams(1)
        forged = [segments[3][:700], b"", bytes(len(segments[3]))]
        self.receive(announcement, *segments[:50], *forged, *segments[50:])
        self.assertEqual(self.opened, [CONTENT])
        self.assertEqual(self.receiver.datagrams_dropped, 2)

    def test_bounded(self) -> None:
        """The batch is bounded, however many segments come without a completion."""
        for number in range(1, 5):
            self.receive(*self.datagrams(number)[1:94])
        self.assertGreaterEqual(self.receiver.segments_received, 4 * 93 - MAX_BATCH_SEGMENTS)

    def test_gathers(self) -> None:
        """Single segments gather in the receive buffer if it is large."""
        announcement, *segments, _ = self.datagrams(1)
        self.receive(announcement, segments[0])
        self.assertTrue(self.port.reads)
        self.receiver.buffer = RECEIVE_BUFFER
        self.receive(*segments)
        self.assertFalse(self.port.reads)
        self.clock.advance(MIN_GATHER_DELAY)
        self.assertTrue(self.port.reads)
        self.receive(segments[0])
        self.receiver.stopProtocol()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_gathers_longer(self) -> None:
        """They gather for half the time that the transfer still takes, up to a limit."""
        for took, passed, rest in (
            (0.010, 0.002, 0.004),
            (0.010, 0.009, MIN_GATHER_DELAY),
            (0.010, 0.100, MIN_GATHER_DELAY),
            (0.100, 0.002, MAX_GATHER_DELAY),
        ):
            self.setUp()
            announcement, *segments, completion = self.datagrams(1)
            self.receive(announcement)
            self.clock.advance(took)
            self.receive(*segments, completion)
            announcement, *segments, completion = self.datagrams(2)
            self.receive(announcement)
            self.clock.advance(passed)
            self.receiver.buffer = RECEIVE_BUFFER
            self.receive(segments[0])
            (call,) = self.clock.getDelayedCalls()
            self.assertAlmostEqual(call.getTime() - self.clock.seconds(), rest)

    def test_repairs_do_not_gather(self) -> None:
        """Repairs are read at once: somebody waits for them."""
        announcement, *segments, completion = self.datagrams(1)
        self.receive(announcement, *segments[10:], completion)
        self.receiver.buffer = RECEIVE_BUFFER
        self.receive(announcement, *segments[:9])
        self.assertTrue(self.port.reads)
        self.receive(segments[9], completion)
        self.assertEqual(self.opened, [CONTENT])

    def test_few_do_not_gather(self) -> None:
        """A transfer of a few segments is read at once."""
        self.receiver.buffer = RECEIVE_BUFFER
        announcement, *segments, completion = self.datagrams(1, PAGE)
        self.receive(announcement, *segments[:-1])
        self.assertTrue(self.port.reads)
        self.receive(segments[-1], completion)
        self.assertEqual(self.opened, [CONTENT[:PAGE]])


class MaxTransferTests(SynchronousTestCase):
    """What a receive buffer has room for."""

    def test_sizes(self) -> None:
        """Two transfers fit into the buffer; a block is possible with any."""
        for granted, found in [
            (0, BLOCK),
            (212_992, BLOCK),
            (1 << 20, 637_000),
            (RECEIVE_BUFFER, EXTENT),
        ]:
            self.patch(receiver, "grow_receive_buffer", lambda *_, granted=granted: granted)
            self.assertEqual(max_transfer(), found)

    def test_here(self) -> None:
        """It is asked of a real socket."""
        self.assertTrue(BLOCK <= max_transfer() <= EXTENT)
