"""The client's end of the group: from datagrams to opened transfers."""

from random import Random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.receiver import (
    MAX_REST,
    MIN_REST,
    OLD_EPOCH_LIFETIME,
    MulticastReceiver,
)
from mufs.communication.server.sender import seal_transfer, trains
from mufs.test.support.doubles import receive
from mufs.wire.pages import BLOCK, EXTENT, PAGE
from mufs.wire.sealing import Keys
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    HEADER,
    REPAIRED,
    SEGMENT,
    TRANSMISSION,
    Descriptor,
    number_count,
)

SOURCE = ("192.0.2.1", 40000)
KEYS = Keys(bytes(32))
CONTENT = b"".join(number.to_bytes(4, "big") for number in range(EXTENT // 4))


class ReceiverTests(SynchronousTestCase):
    """A receiver that has the key of an image."""

    def setUp(self) -> None:
        """Listen to a server."""
        self.clock = Clock()
        self.opened: list[bytes] = []
        self.multicast_health = MulticastHealth(self.clock)
        self.receiver = MulticastReceiver(
            self.multicast_health,
            lambda descriptor, data, zeros: self.opened.append(bytes(data)),
        )
        self.receiver.listen_to(SOURCE, SEGMENT)
        self.receiver.begin_epoch(KEYS.epoch.number, KEYS.epoch.secret, self.clock.seconds())
        self.receiver.add_key(1, 1, KEYS.key(1, 1))

    def datagrams(self, number: int, length: int = BLOCK, end: int = COMPLETION) -> list[bytes]:
        """Those of a transfer of an extent, or its first bytes, one for each packet."""
        first = number * number_count(749)
        descriptor = Descriptor(number, first, 1, 1, number * EXTENT, length)
        transfer = seal_transfer(KEYS, descriptor, CONTENT[:length], segment=SEGMENT)
        segments = [bytes(train) for train in trains(transfer, (1 << transfer.count) - 1, 1)]
        ends = [transfer.control(phase) for phase in (ANNOUNCEMENT, end)]
        return [ends[0], *segments, ends[1]]

    def receive(self, *datagrams: bytes) -> None:
        """Have them arrive one by one."""
        for datagram in datagrams:
            receive(self.receiver, self.clock, datagram)

    def test_one_by_one(self) -> None:
        """A transfer in single datagrams is opened with its last segment."""
        announcement, *segments, completion = self.datagrams(1)
        self.receive(announcement, *segments[:-1])
        self.assertEqual(self.opened, [])
        self.receive(segments[-1])
        self.assertEqual(self.opened, [CONTENT[:BLOCK]])
        self.receive(completion)
        self.assertEqual(self.receiver.segments_received, len(segments))

    def test_at_once(self) -> None:
        """Transfers of any size are opened from datagrams that are processed together."""
        lengths = [EXTENT, PAGE, BLOCK, EXTENT - PAGE]
        receive(
            self.receiver,
            self.clock,
            *(each for n, length in enumerate(lengths, 1) for each in self.datagrams(n, length)),
        )
        self.assertEqual(self.opened, [CONTENT[:length] for length in lengths])
        self.assertEqual(self.receiver.segments_received, 749 + 3 + 94 + 747)
        self.assertEqual((self.receiver.segments_due, self.receiver.segments_late), (1593, 0))

    def test_disorder(self) -> None:
        """Among those, some may be in another order, come twice, be lost, or be no packets."""
        announcement, *segments, completion = self.datagrams(1, EXTENT)
        chance = Random(5)
        late = [segments.pop(chance.randrange(len(segments))) for _ in range(40)]
        for each in chance.sample(segments, 40):
            segments.insert(chance.randrange(len(segments)), each)
        for each in [b"", b"x", bytes(1412), bytes(2824), b"\0\0\0\2" + bytes(1408)]:
            segments.insert(chance.randrange(len(segments)), each)
        receive(self.receiver, self.clock, announcement, *segments, completion)
        self.assertEqual(self.opened, [])
        self.assertEqual(self.receiver.datagrams_dropped, 4)
        self.assertEqual(self.receiver.segments_late, 40)
        receive(self.receiver, self.clock, announcement, *late)
        self.assertEqual(self.opened, [CONTENT])

    def test_long_last_segment(self) -> None:
        """A forged last segment that is longer than the last one does no harm to those before."""
        announcement, *segments, _ = self.datagrams(1)
        forged = HEADER.pack(TRANSMISSION, SEGMENT, number_count(749) + 93) + bytes(SEGMENT)
        receive(self.receiver, self.clock, announcement, *segments[:-1], forged, segments[-1])
        self.assertEqual(self.opened, [CONTENT[:BLOCK]])

    def test_rejected(self) -> None:
        """What is not what the server sealed is not delivered, and received anew."""
        announcement, *segments, completion = self.datagrams(1, EXTENT)
        forged = bytearray(segments[7])
        forged[-1] ^= 1
        receive(
            self.receiver,
            self.clock,
            announcement,
            *segments[:7],
            bytes(forged),
            *segments[8:],
            completion,
        )
        self.assertEqual((self.opened, self.receiver.transfers_rejected), ([], 1))
        receive(self.receiver, self.clock, announcement, *segments, completion)
        self.assertEqual(self.opened, [CONTENT])

    def test_replaced_keys(self) -> None:
        """Replaced keys open what was sent with them for a short time, and then no more."""
        for seconds, opened in ((0.0, 1), (OLD_EPOCH_LIFETIME - 0.1, 1), (OLD_EPOCH_LIFETIME, 0)):
            self.setUp()
            self.receiver.begin_epoch(1, bytes(32), self.clock.seconds())
            self.clock.advance(seconds)
            self.receive(*self.datagrams(1))
            self.assertEqual(len(self.opened), opened)
            self.assertEqual(self.receiver.datagrams_dropped, 0 if opened else 2)
            self.assertEqual(self.receiver.transfers_rejected, 0)

    def test_last_epoch_alone(self) -> None:
        """Only the last of the earlier epochs is known, however fast they follow each other."""
        for number in (1, 2):
            self.receiver.begin_epoch(number, bytes(32), self.clock.seconds())
        self.receive(*self.datagrams(1))
        self.assertEqual(self.opened, [])

    def test_restarted_server(self) -> None:
        """The keys of a previous run of the server are forgotten."""
        self.receiver.listen_to(SOURCE, SEGMENT)
        self.receiver.begin_epoch(0, bytes(32), self.clock.seconds())
        self.receiver.add_key(1, 1, KEYS.key(1, 1))
        self.receive(*self.datagrams(1))
        self.assertEqual(self.opened, [])

    def test_lost(self) -> None:
        """What is missing is known."""
        announcement, *segments, _ = self.datagrams(1)
        self.receive(announcement, *segments[:40], *segments[41:60])
        missing = self.receiver.reassembly.missing(1, number_count(749), BLOCK)
        self.assertEqual(missing, (1 << 94) - (1 << 60) | 1 << 40)

    def test_loss(self) -> None:
        """What had not come when its transfer was completed is lost, also if it comes later."""
        announcement, *segments, completion = self.datagrams(1)
        self.receive(announcement, *segments[:90], completion)
        self.receive(announcement, *segments[90:], self.datagrams(1, end=REPAIRED)[-1])
        self.assertEqual(self.opened, [CONTENT[:BLOCK]])
        self.assertEqual((self.receiver.segments_due, self.receiver.segments_late), (94, 4))
        self.receive(*self.datagrams(2))
        self.assertEqual((self.receiver.segments_due, self.receiver.segments_late), (188, 4))

    def test_key_within_transfer(self) -> None:
        """A transfer that had begun before the key of its image came is ignored, not lost."""
        incomplete: list[Descriptor] = []
        self.receiver.listen_to(SOURCE, SEGMENT)
        self.receiver.begin_epoch(0, KEYS.epoch.secret, self.clock.seconds())
        self.receiver.on_incomplete = lambda descriptor, now: incomplete.append(descriptor)
        announcement, *segments, completion = self.datagrams(1)
        self.receive(announcement, *segments)
        self.receiver.add_key(1, 1, KEYS.key(1, 1))
        self.receive(completion)
        self.assertEqual((incomplete, self.opened), ([], []))
        self.assertEqual((self.receiver.segments_due, self.receiver.segments_late), (94, 0))
        self.receive(announcement, *segments, completion)
        self.assertEqual(self.opened, [CONTENT[:BLOCK]])

    def test_repairs_for_others(self) -> None:
        """Repairs of transfers sent before this host joined do not count as losses."""
        for number in range(1, 30):
            announcement, *segments, end = self.datagrams(number, end=REPAIRED)
            self.receive(announcement, segments[number], end)
            self.clock.advance(0.01)
        self.assertEqual(self.receiver.segments_due, 0)
        self.assertFalse(self.multicast_health.is_failing)

    def test_rests(self) -> None:
        """Reading rests for half the time that a transfer still takes, up to a limit."""
        self.assertEqual(self.receiver.rest(self.clock.seconds()), 0.0)
        for took, passed, rest in (
            (0.010, 0.002, 0.004),
            (0.010, 0.0085, MIN_REST),
            (0.010, 0.0095, 0.0),
            (0.010, 0.100, 0.0),
            (0.100, 0.002, MAX_REST),
        ):
            self.setUp()
            announcement, *segments, completion = self.datagrams(1)
            self.receive(announcement)
            self.clock.advance(took)
            self.receive(*segments, completion)
            announcement, *segments, completion = self.datagrams(2)
            self.receive(announcement)
            self.clock.advance(passed)
            self.receive(segments[0])
            self.assertAlmostEqual(self.receiver.rest(self.clock.seconds()), rest)
            self.receive(*segments, completion)
            self.assertEqual(self.receiver.rest(self.clock.seconds()), 0.0)

    def test_repairs_do_not_rest(self) -> None:
        """Repairs, and transfers of a few segments, are read at once: somebody waits for them."""
        announcement, *segments, completion = self.datagrams(1)
        self.receive(announcement)
        self.clock.advance(0.1)
        self.receive(*segments[10:], completion)
        self.receive(announcement, *segments[:9])
        self.assertEqual(self.receiver.rest(self.clock.seconds()), 0.0)
        self.receive(segments[9], completion)
        announcement, *segments, completion = self.datagrams(2, PAGE)
        self.receive(announcement, *segments[:-1])
        self.assertEqual(self.receiver.rest(self.clock.seconds()), 0.0)
        self.receive(segments[-1], completion)
        self.assertEqual(self.opened, [CONTENT[:BLOCK], CONTENT[:PAGE]])
