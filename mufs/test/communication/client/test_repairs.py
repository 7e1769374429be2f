"""What is asked for again, and when, after a SENT or a completion."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.client.multicast_health import (
    MAX_LOSS,
    MIN_SAMPLE_SECONDS,
    NO_DATAGRAM_TIMEOUT,
    MulticastHealth,
)
from mufs.communication.client.receiver import MulticastReceiver
from mufs.communication.client.repairs import (
    LATE_SEGMENT_DELAY,
    MAX_BACKLOG_DELAYS,
    MAX_QUEUE_DELAYS,
    OVERHEARD_REPAIR_DELAY,
    Repairs,
)
from mufs.communication.client.timer import Timer
from mufs.communication.server.sender import seal_transfer, trains
from mufs.test.support.doubles import receive
from mufs.test.support.properties import packets_of
from mufs.wire.channel import Framer, Occasion, Repair, Sent, Type
from mufs.wire.pages import BLOCK
from mufs.wire.sealing import Keys
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    SEGMENT,
    Descriptor,
    number_count,
    segment_count,
)

SOURCE = ("192.0.2.1", 40000)
KEYS = Keys(bytes(32))
CONTENT = bytes(range(256)) * (BLOCK // 256)
COUNT = segment_count(BLOCK, SEGMENT)
ALL = (1 << COUNT) - 1


class RepairsTestCase(SynchronousTestCase):
    """A receiver, and repairs whose packets are kept."""

    def setUp(self) -> None:
        """Listen to a server, and want all that it sends."""
        self.clock = Clock()
        self.health = MulticastHealth(self.clock)
        self.receiver = MulticastReceiver(self.health, self.deliver)
        self.backlog = False
        self.receiver.read_now = lambda: self.backlog
        self.receiver.listen_to(SOURCE, SEGMENT)
        self.receiver.begin_epoch(KEYS.epoch.number, KEYS.epoch.secret, self.clock.seconds())
        self.receiver.add_key(1, 1, KEYS.key(1, 1))
        self.packets: list[bytes] = []
        self.again: list[int] = []
        self.over_tcp: list[int] = []
        self.delivered: set[int] = set()
        self.unwanted = False
        self.repairs = Repairs(
            self.receiver,
            self.health,
            send=self.packets.append,
            is_wanted=self.is_wanted,
            read_again=self.again.append,
            read_over_tcp=self.over_tcp.append,
        )
        self.receiver.on_incomplete = self.repairs.on_incomplete
        self.timer = Timer(self.clock, self.repairs)

    def deliver(self, descriptor: Descriptor, data: memoryview, zeros: int) -> None:
        """A transfer was opened."""
        self.delivered.add(descriptor.transfer)

    def is_wanted(self, sent: Sent) -> bool:
        """Whether the transfer is still waited for."""
        return not self.unwanted and sent.transfer not in self.delivered

    def descriptor(self, number: int) -> Descriptor:
        """That of a transfer of a block."""
        return Descriptor(number, number * number_count(COUNT), 1, 1, number * BLOCK, BLOCK)

    def receive(self, number: int, missing: int = 0, end: bool = True) -> None:
        """Have a transfer come from the group, but for some of its segments."""
        transfer = seal_transfer(KEYS, self.descriptor(number), CONTENT, segment=SEGMENT)
        datagrams = [transfer.control(ANNOUNCEMENT)]
        datagrams += packets_of(trains(transfer, ((1 << COUNT) - 1) & ~missing, 1))
        receive(self.receiver, self.clock, *datagrams, *[transfer.control(COMPLETION)] * end)
        self.timer.set()

    def sent(self, number: int, occasion: Occasion = Occasion.NOW) -> None:
        """The server says that a transfer carried what request 7 asked for."""
        descriptor = self.descriptor(number)
        sent = Sent(7, number, descriptor.first, descriptor.offset, BLOCK, occasion)
        self.repairs.sent(sent, self.clock.seconds())
        self.timer.set()

    def repaired(self) -> list[Repair]:
        """The REPAIRs sent since the last call."""
        packets = [each for packet in self.packets for each in Framer().feed(packet)]
        self.packets.clear()
        self.assertEqual({kind for kind, _, _ in packets} - {Type.REPAIR}, set())
        return [Repair.parse(offset, body) for _, offset, body in packets]

    def pass_time(self, delays: int = MAX_BACKLOG_DELAYS) -> None:
        """Let some delays of late segments pass."""
        self.clock.pump([LATE_SEGMENT_DELAY] * delays)


class SentTests(RepairsTestCase):
    """Transfers that the server says it sent for this host."""

    def test_complete(self) -> None:
        """Of what came in full nothing is asked for, and it is counted as such."""
        self.receive(1)
        self.sent(1)
        self.pass_time()
        self.assertEqual((self.repaired(), self.over_tcp), ([], []))
        self.assertEqual((self.repairs.segments_lost, self.repairs.repairs_sent), (0, 0))

    def test_ignored(self) -> None:
        """What came in full before the key of its image is asked for at once, and was not lost."""
        self.receiver.listen_to(SOURCE, SEGMENT)
        self.receiver.begin_epoch(0, KEYS.epoch.secret, self.clock.seconds())
        self.receive(1)
        self.receiver.add_key(1, 1, KEYS.key(1, 1))
        self.sent(1)
        self.assertEqual((self.again, self.repaired()), ([7], []))
        self.patch(self.receiver, "read_now", lambda: True)
        self.sent(1, Occasion.BEFORE)
        self.assertEqual(self.repaired(), [Repair(7, 1, 1, (1 << COUNT) - 1)])
        self.assertEqual((self.repairs.segments_lost, self.repairs.repairs_sent), (0, 0))
        self.assertEqual(self.health.state, "working")

    def test_lost(self) -> None:
        """Missing segments are asked for by multicast, once they are due."""
        self.receive(1, missing=0b101, end=False)
        self.sent(1)
        self.assertEqual(self.repaired(), [])
        self.pass_time()
        self.assertEqual(self.repaired(), [Repair(7, 1, 1, 0b101)])
        self.assertEqual((self.repairs.segments_lost, self.repairs.repairs_sent), (2, 1))

    def test_at_once(self) -> None:
        """What is missing when later transfers came already is asked for without delay."""
        self.receive(1, missing=0b1, end=False)
        self.receive(2)
        self.sent(1)
        self.assertEqual(self.repaired(), [Repair(7, 1, 1, 0b1)])

    def test_under_way(self) -> None:
        """While datagrams of earlier transfers arrive, a later one may lie in a queue still."""
        self.receive(1)
        self.sent(2)
        for _ in range(MAX_QUEUE_DELAYS):
            self.health.on_datagram()
            self.pass_time(1)
            self.assertEqual(self.repaired(), [])
        self.health.on_datagram()
        self.pass_time(1)
        self.assertEqual(self.repaired(), [Repair(7, 2, 1, ALL)])

    def test_backlog(self) -> None:
        """While datagrams wait in the receive buffer nothing is taken for lost, for a while."""
        self.health.on_authentic_packet()
        self.backlog = True
        self.sent(1)
        self.pass_time(MAX_BACKLOG_DELAYS)
        self.assertEqual(self.repaired(), [])
        self.pass_time(1)
        self.assertEqual(self.repaired(), [Repair(7, 1, 1, ALL)])

    def test_second_attempt(self) -> None:
        """What a repair did not bring is asked for over TCP."""
        self.receive(1, missing=0b11)
        self.receive(2)
        self.sent(1)
        self.assertEqual([each.attempt for each in self.repaired()], [1])
        self.sent(1, Occasion.REPAIR)
        self.pass_time()
        self.assertEqual(self.repaired(), [Repair(7, 1, 2, 0b11)])
        self.sent(1, Occasion.TCP)
        self.assertEqual(self.over_tcp, [7])

    def test_repeated_as_a_whole(self) -> None:
        """A transfer of which nothing came, sent again, is repaired like a first sending."""
        self.health.on_authentic_packet()
        self.sent(1)
        self.pass_time()
        self.assertEqual(self.repaired(), [Repair(7, 1, 1, ALL)])
        self.receive(1, missing=0b1)
        self.sent(1, Occasion.REPAIR)
        self.pass_time()
        self.assertEqual(self.repaired(), [Repair(7, 1, 1, 0b1)])
        self.sent(1, Occasion.REPAIR)
        self.pass_time()
        self.assertEqual(self.repaired(), [Repair(7, 1, 2, 0b1)])

    def test_unwanted(self) -> None:
        """Nothing is asked for that nobody waits for any longer."""
        self.unwanted = True
        for occasion in Occasion:
            self.sent(1, occasion)
        self.pass_time()
        self.assertEqual((self.repaired(), self.over_tcp), ([], []))

    def test_no_multicast(self) -> None:
        """When multicast does not work, the range is read over TCP."""
        self.health.unavailable("no group")
        self.sent(1)
        self.pass_time()
        self.assertEqual((self.repaired(), self.over_tcp), ([], [7]))

    def test_nothing_arrives(self) -> None:
        """Transfers lost as a whole after a silence are reported: multicast does not work."""
        self.clock.advance(2 * NO_DATAGRAM_TIMEOUT)
        self.sent(1)
        self.pass_time()
        self.assertFalse(self.health.works)
        self.assertEqual((self.repaired(), self.over_tcp), ([], [7]))


class OthersTests(RepairsTestCase):
    """Transfers that others asked for."""

    def lose_much(self) -> None:
        """Lose more than can be borne, for a moment."""
        self.health.on_authentic_packet()
        self.health.result(COUNT, 0)
        self.clock.advance(MIN_SAMPLE_SECONDS)
        self.health.result(COUNT, 0)
        for _ in range(2):
            self.health.result(COUNT, round(COUNT * MAX_LOSS * 1.5))
            self.clock.advance(MIN_SAMPLE_SECONDS)
        self.assertEqual((self.health.is_failing, self.health.works), (True, True))

    def test_overheard(self) -> None:
        """An overheard transfer is repaired a while after its completion, and only once."""
        self.receive(1, missing=0b110)
        self.assertEqual(self.repaired(), [])
        self.clock.advance(OVERHEARD_REPAIR_DELAY)
        self.assertEqual(self.repaired(), [Repair(0, 1, 1, 0b110)])
        self.assertEqual(self.repairs.segments_lost, 2)
        self.receive(1, missing=0b110)
        self.clock.advance(OVERHEARD_REPAIR_DELAY)
        self.assertEqual(self.repaired(), [])

    def test_completed_meanwhile(self) -> None:
        """What the repairs of others bring in time is not asked for."""
        self.receive(1, missing=0b110)
        self.clock.advance(OVERHEARD_REPAIR_DELAY / 2)
        self.receive(1, missing=ALL & ~0b110)
        self.clock.advance(OVERHEARD_REPAIR_DELAY)
        self.assertEqual(self.repaired(), [])
        self.assertIn(1, self.delivered)

    def test_failing(self) -> None:
        """While too much is lost here, the group is not asked to repeat what is for others."""
        self.lose_much()
        self.receive(1, missing=0b1)
        self.clock.advance(OVERHEARD_REPAIR_DELAY)
        self.assertEqual(self.repaired(), [])
        self.sent(2, Occasion.BEFORE)
        self.pass_time()
        self.assertEqual((self.repaired(), self.over_tcp), ([], [7]))

    def test_before(self) -> None:
        """A transfer that was sent for others before is asked for like any, and was not lost."""
        self.receive(2)
        self.sent(1, Occasion.BEFORE)
        self.assertEqual(self.repaired(), [Repair(7, 1, 1, ALL)])
        self.assertEqual((self.repairs.segments_lost, self.repairs.repairs_sent), (0, 0))
