"""The multicast controller: what goes out, in which order, and who is told."""

from errno import EIO, ESTALE

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.queue import MulticastQueue
from mufs.cache.server.sent import GREEDY, SentWindow
from mufs.communication.server.controller import (
    LAST_PART,
    SLOW,
    MulticastController,
    seal_transfer,
    trains,
)
from mufs.communication.server.pacing import Pace
from mufs.interfaces import IImage
from mufs.test.support.doubles import ImageInMemory, RecordingOutput, RecordingReader, make_sent
from mufs.test.support.properties import examples, packets_of
from mufs.wire.channel import Occasion, Priority, Read, Repair
from mufs.wire.pages import BLOCK, PAGE
from mufs.wire.sealing import Keys, unseal
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    HEADER,
    REPAIRED,
    Descriptor,
    number_count,
    parse,
)

SIZE = 3 * BLOCK + PAGE + 100
CONTENT = b"".join(b"%07d\n" % number for number in range(SIZE // 8 + 1))[:SIZE]


class TrainTests(SynchronousTestCase):
    """Segments on their way into datagrams."""

    @examples(100)
    @given(st.integers(1, 30_000), st.data(), st.integers(1, 50))
    def test_any_segments(self, total: int, data: st.DataObject, most: int) -> None:
        """Just the chosen segments go out, whole, in order, not too many at a time."""
        transfer = make_sent(1, ImageInMemory(CONTENT), 0, total, first=0xFFFFFFF0, segment=100)
        count = len(transfer.rows)
        segments = data.draw(st.integers(1, (1 << count) - 1))
        found = trains(transfer, segments, most)
        packets = packets_of(transfer.rows)
        chosen = [packet for i, packet in enumerate(packets) if segments >> i & 1]
        self.assertEqual(b"".join(found), b"".join(chosen))
        for train in found[:-1]:
            self.assertEqual(len(train), most * (HEADER.size + 100))
        self.assertLessEqual(len(found[-1]), most * (HEADER.size + 100))


class ControllerTests(SynchronousTestCase):
    """A controller with a group that remembers."""

    def setUp(self) -> None:
        """Have an image, and clients."""
        self.clock = Clock()
        self.window, self.keys = SentWindow(), Keys(bytes(32))
        pace = Pace(self.clock, 1e12, 1e12, 1e12)
        self.controller = MulticastController(
            MulticastQueue(self.window), self.window, self.keys, pace, self.read, self.clock
        )
        self.output = self.controller.output = RecordingOutput()
        self.image = ImageInMemory(CONTENT)
        self.a, self.b = RecordingReader("a"), RecordingReader("b")
        self.reads: list[tuple[int, int]] = []
        self.failures: dict[int, Exception] = {}
        self.hanging: list[Deferred[bytes]] | None = None

    def read(self, image: IImage, offset: int, length: int, more: int) -> "Deferred[bytes]":
        """Read at once, and remember it."""
        self.reads.append((offset, length))
        if offset in self.failures:
            return fail(self.failures[offset])
        if self.hanging is not None and image is not self.image:
            self.hanging.append(Deferred())
            return self.hanging[-1].addCallback(lambda _: image.read(offset, length))
        return execute(image.read, offset, length)

    def ask(
        self,
        reader: RecordingReader,
        tag: int,
        offset: int,
        length: int,
        priority: Priority = Priority.BLOCKED,
    ) -> None:
        """A client reads from the image."""
        self.controller.request(reader, self.image, Read(tag, 1, offset, length, priority))
        self.clock.advance(0.001)

    def received(self) -> dict[int, tuple[list[int], list[int], bytes, Descriptor]]:
        """
        What went out, by transfer: the phases of its control packets, the numbers of its
        segments, the bytes of these, and its descriptor.
        """
        found: dict[int, tuple[list[int], list[int], bytes, Descriptor]] = {}
        now = 0
        for packet in parse(b"".join(self.output.written)):
            if len(packet) == 2:
                phase, descriptor = packet
                now = descriptor.transfer
                phases, numbers, data, _ = found.get(now, ([], [], b"", descriptor))
                found[now] = [*phases, phase], numbers, data, descriptor
            else:
                first, _, rows = packet
                phases, numbers, data, descriptor = found[now]
                numbers = [*numbers, *range(first, first + len(rows))]
                found[now] = phases, numbers, data + rows.tobytes(), descriptor
        return found

    def busy(self, seconds: float) -> list[int]:
        """
        Have C{b} read one block after the other, at the rate of a link, beside a greedy C{a};
        blocks that went out for each.
        """
        self.controller._pace = Pace(self.clock, 1e8, 1e8, 1e8)
        large = ImageInMemory(bytes(2 * GREEDY), image=8)
        self.controller.request(self.a, large, Read(1, 1, 0, 2 * GREEDY, Priority.BLOCKED))
        end, asked = self.clock.seconds() + seconds, 1
        while self.clock.seconds() < end:
            if len(self.b.told) == asked - 1:
                own = ImageInMemory(bytes(BLOCK), image=100 + asked)
                asked += 1
                self.controller.request(self.b, own, Read(1, 1, 0, BLOCK, Priority.AHEAD))
            self.clock.advance(0.001)
        return [len(self.a.told), len(self.b.told)]

    def test_one_voice(self) -> None:
        """What the connections of one host report lost slows the server down no more than one."""
        self.b.share = self.a.share
        for reader in (self.a, self.b):
            self.ask(reader, 1, 0, BLOCK)
        (transfer,) = {told[1] for told in self.a.told}
        self.assertEqual(list(transfer.interval.expected), [self.a.share])
        for reader in (self.a, self.b):
            self.controller.repair(reader, Repair(1, 1, 1, 0b1))
        self.assertEqual(list(transfer.interval.lost), [self.a.share])

    def test_last_line(self) -> None:
        """A greedy client gets a small part of the time beside others, and all of it alone."""
        greedy, other = self.busy(4.0)
        self.assertGreater(greedy + other, 4.0 * 1e8 / 8 / (BLOCK * 1.02) - 20)
        self.assertLess(greedy, 3 * other / LAST_PART)
        self.assertGreater(greedy, 0)
        before = len(self.a.told)
        for _ in range(1500):
            self.clock.advance(0.001)
        self.assertGreater(len(self.a.told) - before, 0.4 * 1e8 / 8 / BLOCK)

    def test_datagrams(self) -> None:
        """A completion goes in the datagram of the last segment, if that leaves room for it."""
        for length, alone in (PAGE, False), (14 * PAGE, True):
            self.output.written.clear()
            self.ask(self.a, 7, 2 * BLOCK if alone else BLOCK, length)
            datagrams = [
                train[at : at + HEADER.size + 1400]
                for train in self.output.written
                for at in range(0, len(train), HEADER.size + 1400)
            ]
            announcement, *_, last = [list(parse(datagram)) for datagram in datagrams]
            self.assertEqual([packet[0] for packet in announcement], [ANNOUNCEMENT])
            self.assertEqual(len(last), 1 if alone else 2)
            self.assertEqual(last[-1][0], COMPLETION)
            self.clock.advance(60)

    def test_transfers(self) -> None:
        """A range goes out block by block, each announced, numbered on, sealed and completed."""
        self.ask(self.a, 7, 0, SIZE)
        content, next_number, sent = b"", 0, 0
        for number, (phases, numbers, sealed, d) in self.received().items():
            self.assertEqual(phases, [ANNOUNCEMENT, COMPLETION])
            self.assertEqual(d.first, next_number)
            segments = -(-d.total // 1400)
            self.assertEqual(numbers, list(range(d.first, d.first + segments)))
            next_number += number_count(segments)
            sent += segments
            data = unseal(self.keys.cipher(1, 1), d, sealed + d.tag)
            assert data is not None
            self.assertEqual((d.offset, d.total), (len(content), len(data)))
            content += data
            self.assertEqual(self.window.get(number), self.a.told[number - 1][1])
        self.assertEqual(content, CONTENT)
        self.assertEqual([(tag, why) for tag, _, why in self.a.told], [(7, Occasion.NOW)] * 4)
        self.assertEqual(self.controller.transfers, 4)
        self.assertEqual(self.controller.segments_sent, sent)
        self.assertEqual(self.controller.bytes_multicast, sum(map(len, self.output.written)))

    def test_lockstep(self) -> None:
        """Clients that ask while a block is sent, or just after, cost no second transfer."""
        self.output.room = 0
        self.ask(self.a, 1, 0, BLOCK)
        self.ask(self.b, 2, 0, BLOCK)
        self.output.drain()
        self.clock.advance(1)
        self.ask(self.a, 3, PAGE, PAGE)
        self.assertEqual(self.reads, [(0, BLOCK)])
        self.assertEqual(len(self.received()), 1)
        self.assertEqual([why for _, _, why in self.b.told], [Occasion.NOW])
        self.assertEqual([why for _, _, why in self.a.told], [Occasion.NOW, Occasion.BEFORE])

    def test_full(self) -> None:
        """While the send buffer is full nothing is lost, doubled or told."""
        self.output.room = 0
        self.ask(self.a, 1, 0, BLOCK)
        while not self.a.told:
            self.assertEqual(self.output.room, 0)
            self.output.drain(5000)
            self.clock.advance(0.001)
        ((phases, numbers, _, _),) = self.received().values()
        self.assertEqual((phases, numbers), ([ANNOUNCEMENT, COMPLETION], list(range(94))))

    def test_urgent(self) -> None:
        """What somebody waits for goes before what is only read ahead, and was read already."""
        self.output.room = 0
        for tag in range(1, 4):
            self.ask(self.a, tag, tag * PAGE, PAGE, Priority.AHEAD)
        while not self.a.told:
            self.output.drain(100)
            self.clock.advance(0.001)
        self.assertEqual(self.reads[2:], [(3 * PAGE, PAGE)])
        self.ask(self.b, 4, 4 * PAGE, PAGE, Priority.BACKGROUND)
        self.ask(self.b, 5, 5 * PAGE, PAGE, Priority.BLOCKED)
        self.output.drain()
        self.clock.advance(1)
        offsets = [descriptor.offset // PAGE for *_, descriptor in self.received().values()]
        self.assertEqual(offsets, [1, 2, 5, 3, 4])

    def test_pace(self) -> None:
        """Sending takes as long as the rate makes it."""
        self.controller._pace = Pace(self.clock, 1e6, 1e6, 1e6)
        self.controller.request(self.a, self.image, Read(1, 1, 0, BLOCK, Priority.BLOCKED))
        while not self.a.told:
            self.clock.advance(0.01)
        expected = self.controller.bytes_multicast * 8 / 1e6
        self.assertLess(abs(self.clock.seconds() - expected), 0.6)

    def test_failed_read(self) -> None:
        """Who waits for what cannot be read is told so, the others are served, and it goes on."""
        for failure in (OSError(ESTALE, "changed"), ValueError("a bug")):
            self.output.room = 0
            self.ask(self.a, 1, 0, PAGE)
            self.failures[BLOCK] = failure
            self.ask(self.a, 2, BLOCK, PAGE)
            self.ask(self.b, 3, BLOCK, PAGE)
            self.ask(self.b, 4, 2 * BLOCK, PAGE)
            self.output.drain()
            self.clock.advance(1)
            failed = [(tag, error.errno) for tag, error in self.a.failures + self.b.failures]
            code = ESTALE if isinstance(failure, OSError) else EIO
            self.assertEqual(failed, [(2, code), (3, code)])
            self.failures.clear()
            self.ask(self.b, 5, BLOCK, PAGE)
            told = [tag for tag, _, _ in self.a.told + self.b.told]
            self.assertEqual(told, [1, 4, 5])
            self.flushLoggedErrors(ValueError)
            self.setUp()

    def test_hanging_image(self) -> None:
        """While reads of one image hang, others are sent; it follows, its segments numbered on."""
        self.hanging = []
        other = ImageInMemory(CONTENT, image=2)
        for block in range(3):
            for page in range(0, 8, 2):
                read = Read(9, 1, block * BLOCK + page * PAGE, PAGE, Priority.BLOCKED)
                self.controller.request(self.a, other, read)
        self.ask(self.b, 1, 0, BLOCK)
        self.clock.advance(SLOW)
        self.assertEqual([tag for tag, _, _ in self.b.told], [1])
        self.ask(self.b, 2, BLOCK, BLOCK)
        self.assertEqual([tag for tag, _, _ in self.b.told], [1, 2])
        self.assertEqual(self.a.told, [])
        for each in self.hanging:
            each.callback(b"")
        self.clock.advance(1)
        self.assertEqual(len(self.a.told), 12)
        firsts = [numbers[0] for _, numbers, _, _ in self.received().values()]
        self.assertEqual(firsts, sorted(firsts))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_repair(self) -> None:
        """Of a transfer only the segments that are missing go out again, and that is told."""
        self.ask(self.a, 1, 0, BLOCK)
        self.output.written.clear()
        missing = 1 << 3 | 1 << 93
        transfer = self.controller.repair(self.a, Repair(1, 1, 1, missing))
        self.clock.advance(0.001)
        ((phases, numbers, _, _),) = self.received().values()
        self.assertEqual((phases, numbers), ([ANNOUNCEMENT, REPAIRED], [3, 93]))
        self.assertEqual(self.a.told[-1], (1, transfer, Occasion.REPAIR))
        self.assertEqual(self.controller.segments_repaired, 2)

    def test_repair_of_all(self) -> None:
        """What goes out again as a whole ends as it did the first time: it can be lost anew."""
        self.ask(self.a, 1, 0, BLOCK)
        self.output.written.clear()
        self.controller.repair(self.a, Repair(1, 1, 1, (1 << 94) - 1))
        self.clock.advance(0.01)
        ((phases, numbers, _, _),) = self.received().values()
        self.assertEqual((phases, numbers), ([ANNOUNCEMENT, COMPLETION], list(range(94))))

    def test_repair_by_parity(self) -> None:
        """For clients that miss different segments parity goes out, any time other one."""
        self.ask(self.a, 1, 0, BLOCK)
        for number, parity in ((1, 94), (2, 96)):
            self.output.room = 0
            self.ask(self.a, 3, number * BLOCK, BLOCK)
            self.controller.repair(self.a, Repair(1, 1, 1, 0b0011))
            self.controller.repair(self.b, Repair(2, 1, 1, 0b1100))
            self.output.written.clear()
            self.output.drain()
            self.clock.advance(0.01)
            phases, numbers, _, _ = self.received()[1]
            self.assertEqual((phases, numbers), ([ANNOUNCEMENT, REPAIRED], [parity, parity + 1]))
        self.assertEqual(self.controller.segments_repaired, 4)

    def test_parity(self) -> None:
        """As much parity as the pace says goes along with each transfer."""
        self.controller._pace.parity = 3
        self.ask(self.a, 1, 0, SIZE)
        self.assertEqual(
            [len(numbers) for _, numbers, _, _ in self.received().values()], [97, 97, 97, 6]
        )
        self.assertEqual(self.controller.parity_sent, 12)

    def test_repair_over_tcp(self) -> None:
        """The second attempt is not answered by multicast; what is gone is not answered at all."""
        self.ask(self.a, 1, 0, BLOCK)
        self.output.written.clear()
        self.assertIs(self.controller.repair(self.a, Repair(1, 1, 2, 1)), self.window.get(1))
        self.assertIsNone(self.controller.repair(self.a, Repair(1, 99, 1, 1)))
        self.clock.advance(1)
        self.assertEqual(self.output.written, [])

    def test_overheard_repair(self) -> None:
        """A repair that nobody waits for goes out, and nobody is told."""
        self.ask(self.a, 1, 0, BLOCK)
        self.controller.repair(self.b, Repair(0, 1, 1, 1))
        self.clock.advance(0.001)
        self.assertEqual((self.controller.segments_repaired, self.b.told), (1, []))

    def test_forget(self) -> None:
        """A client that has gone is not told, and what it alone waited for is not sent."""
        self.output.room = 0
        for block in range(8):
            self.ask(self.a, block + 1, block % 3 * BLOCK + block * PAGE, PAGE)
        self.controller.forget(self.a)
        self.output.drain()
        self.clock.advance(1)
        self.assertEqual(self.a.told, [])
        self.assertLess(len(self.received()), 8)

    def test_stop(self) -> None:
        """Once stopped nothing goes out any more."""
        self.output.room = 5000
        self.ask(self.a, 1, 0, SIZE)
        self.controller.stop()
        written = len(self.output.written)
        self.output.drain()
        self.clock.advance(10)
        self.assertEqual(len(self.output.written), written)

    def test_stop_while_reading(self) -> None:
        """What was being read when it stopped is not sent."""
        self.hanging = []
        read = Read(9, 1, 0, PAGE, Priority.BLOCKED)
        self.controller.request(self.a, ImageInMemory(CONTENT, image=2), read)
        self.controller.stop()
        self.hanging[0].callback(b"")
        self.assertEqual(self.output.written, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_seal(self) -> None:
        """A transfer is sealed under the key of its generation, its tag in the descriptor."""
        descriptor = Descriptor(1, 2, 5, 6, 0, PAGE)
        transfer = seal_transfer(self.keys, descriptor, CONTENT[:PAGE], 1400)
        d = transfer.descriptor
        sealed = b"".join(packet[HEADER.size :] for packet in packets_of(transfer.rows))
        self.assertEqual(unseal(self.keys.cipher(5, 6), d, sealed + d.tag), CONTENT[:PAGE])
