"""The multicast controller: what is sent, in which order, and who is notified."""

from errno import EIO, ESTALE

from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.queue import MulticastQueue
from mufs.cache.server.sent import MAX_BYTES_AWAITED, SentWindow
from mufs.communication.server.controller import MulticastController
from mufs.communication.server.disk_reads import SLOW_READ_SECONDS
from mufs.communication.server.pacing import Pace
from mufs.communication.server.packer import Packer
from mufs.communication.server.scavenger import SCAVENGER_DIVISOR
from mufs.interfaces import IImage
from mufs.test.support.doubles import ImageInMemory, RecordingOutput, RecordingReader
from mufs.wire.channel import Occasion, Priority, Read, Repair
from mufs.wire.pages import BLOCK, PAGE
from mufs.wire.sealing import Keys, unseal
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    REPAIRED,
    Descriptor,
    number_count,
    parse,
)

SIZE = 3 * BLOCK + PAGE + 100
CONTENT = b"".join(b"%07d\n" % number for number in range(SIZE // 8 + 1))[:SIZE]


class ControllerTests(SynchronousTestCase):
    """A controller that sends to a recorded group."""

    def setUp(self) -> None:
        """Create a controller, an image, and clients."""
        self.clock = Clock()
        self.start(1e12)
        self.image = ImageInMemory(CONTENT)
        self.a, self.b = RecordingReader("a"), RecordingReader("b")
        self.reads: list[tuple[int, int]] = []
        self.failures: dict[int, Exception] = {}
        self.hanging: list[Deferred[memoryview]] | None = None

    def start(self, rate: float) -> None:
        """Have a controller that sends at a rate in bits per second."""
        self.window, self.keys = SentWindow(), Keys(bytes(32))
        self.controller = MulticastController(
            MulticastQueue(self.window),
            self.window,
            keys=self.keys,
            pace=Pace(self.clock, floor=rate, ceiling=rate, start=rate),
            read=self.read,
            packer=Packer(execute, None),
            clock=self.clock,
        )
        self.output = self.controller.output = RecordingOutput()

    def read(self, image: IImage, offset: int, length: int, more: int) -> "Deferred[memoryview]":
        """Read at once, and record it."""
        self.reads.append((offset, length))
        if offset in self.failures:
            return fail(self.failures[offset])
        if self.hanging is not None and image is not self.image:
            self.hanging.append(Deferred())
            return self.hanging[-1].addCallback(lambda _: memoryview(image.read(offset, length)))
        return execute(lambda: memoryview(image.read(offset, length)))

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
        What was sent, by transfer: the phases of its control packets, the numbers of its
        segments, their bytes, and its descriptor.
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
        Have C{b} read one block after the other, at the rate of a link, beside a greedy C{a}.

        @return: how many blocks were sent for each.
        """
        self.start(1e8)
        large = ImageInMemory(bytes(2 * MAX_BYTES_AWAITED), image=8)
        self.controller.request(
            self.a, large, Read(1, 1, 0, 2 * MAX_BYTES_AWAITED, Priority.BLOCKED)
        )
        end, asked = self.clock.seconds() + seconds, 1
        while self.clock.seconds() < end:
            if len(self.b.told) == asked - 1:
                own = ImageInMemory(bytes(BLOCK), image=100 + asked)
                asked += 1
                self.controller.request(self.b, own, Read(1, 1, 0, BLOCK, Priority.AHEAD))
            self.clock.advance(0.001)
        return [len(self.a.told), len(self.b.told)]

    def test_one_voice(self) -> None:
        """Loss reports of several connections of one host count as those of one client."""
        self.b.share = self.a.share
        for reader in (self.a, self.b):
            self.ask(reader, 1, 0, BLOCK)
        (transfer,) = {told[1] for told in self.a.told}
        self.assertEqual(list(transfer.interval.expected), [self.a.share])
        for reader in (self.a, self.b):
            self.controller.repair(reader, Repair(1, 1, 1, 0b1))
        self.assertEqual(list(transfer.interval.lost), [self.a.share])

    def test_repeated(self) -> None:
        """What is sent again as a whole to who had not waited for it does not count as repaired."""
        self.ask(self.a, 1, 0, BLOCK)
        self.ask(self.b, 2, 0, BLOCK)
        self.assertEqual(self.b.told[-1][2], Occasion.BEFORE)
        for attempt, reader in enumerate((self.b, self.a), 1):
            self.controller.repair(reader, Repair(3, 1, 1, (1 << 94) - 1))
            self.clock.advance(1)
            self.assertEqual(reader.told[-1][2], Occasion.REPAIR)
            counted = self.controller.segments_sent, self.controller.segments_repaired
            self.assertEqual(counted, (188, 94 * (attempt - 1)))

    def test_scavenger_class(self) -> None:
        """A greedy client gets a small part of the time beside others, and all of it alone."""
        greedy, other = self.busy(4.0)
        self.assertGreater(greedy + other, 4.0 * 1e8 / 8 / (BLOCK * 1.02) - 20)
        self.assertLess(greedy, 3 * other / SCAVENGER_DIVISOR)
        self.assertGreater(greedy, 0)
        before = len(self.a.told)
        for _ in range(1500):
            self.clock.advance(0.001)
        self.assertGreater(len(self.a.told) - before, 0.4 * 1e8 / 8 / BLOCK)

    def test_transfers(self) -> None:
        """A range is sent block by block, each announced, sealed, completed and numbered on."""
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
        """Clients that ask while a block is sent, or just after, cause no second transfer."""
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
        """While the send buffer is full, nothing is lost, duplicated or notified."""
        self.output.room = 0
        self.ask(self.a, 1, 0, BLOCK)
        while not self.a.told:
            self.assertEqual(self.output.room, 0)
            self.output.drain(5000)
            self.clock.advance(0.001)
        ((phases, numbers, _, _),) = self.received().values()
        self.assertEqual((phases, numbers), ([ANNOUNCEMENT, COMPLETION], list(range(94))))

    def test_urgent(self) -> None:
        """An entry that a reader waits for is sent before read-ahead that is ready."""
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
        """Sending takes as long as the rate implies."""
        self.start(1e6)
        self.controller.request(self.a, self.image, Read(1, 1, 0, BLOCK, Priority.BLOCKED))
        while not self.a.told:
            self.clock.advance(0.01)
        expected = self.controller.bytes_multicast * 8 / 1e6
        self.assertLess(abs(self.clock.seconds() - expected), 0.6)

    def test_failed_read(self) -> None:
        """Clients that wait for an entry that cannot be read get an error; others are served."""
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
        """While reads of one image hang, others are sent; its own follow, numbered on."""
        self.hanging = []
        other = ImageInMemory(CONTENT, image=2)
        for block in range(3):
            for page in range(0, 8, 2):
                read = Read(9, 1, block * BLOCK + page * PAGE, PAGE, Priority.BLOCKED)
                self.controller.request(self.a, other, read)
        self.ask(self.b, 1, 0, BLOCK)
        self.clock.advance(SLOW_READ_SECONDS)
        self.assertEqual([tag for tag, _, _ in self.b.told], [1])
        self.ask(self.b, 2, BLOCK, BLOCK)
        self.assertEqual([tag for tag, _, _ in self.b.told], [1, 2])
        self.assertEqual(self.a.told, [])
        for each in self.hanging:
            each.callback(memoryview(b""))
        self.clock.advance(1)
        self.assertEqual(len(self.a.told), 12)
        firsts = [numbers[0] for _, numbers, _, _ in self.received().values()]
        self.assertEqual(firsts, sorted(firsts))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_repair(self) -> None:
        """Only the missing segments of a transfer are sent again, and readers are notified."""
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
        """A whole transfer sent again ends with a completion, as it may be lost again."""
        self.ask(self.a, 1, 0, BLOCK)
        self.output.written.clear()
        self.controller.repair(self.a, Repair(1, 1, 1, (1 << 94) - 1))
        self.clock.advance(0.01)
        ((phases, numbers, _, _),) = self.received().values()
        self.assertEqual((phases, numbers), ([ANNOUNCEMENT, COMPLETION], list(range(94))))

    def test_repair_by_parity(self) -> None:
        """Clients that miss different segments get parity, each time new segments of it."""
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
        """Each transfer carries as much parity as the pace says."""
        self.controller.pace.parity = 3
        self.ask(self.a, 1, 0, SIZE)
        self.assertEqual(
            [len(numbers) for _, numbers, _, _ in self.received().values()], [97, 97, 97, 6]
        )
        self.assertEqual(self.controller.parity_sent, 12)

    def test_repair_over_tcp(self) -> None:
        """A second attempt is left to TCP; a transfer no longer held is not repaired."""
        self.ask(self.a, 1, 0, BLOCK)
        self.output.written.clear()
        self.assertIs(self.controller.repair(self.a, Repair(1, 1, 2, 1)), self.window.get(1))
        self.assertIsNone(self.controller.repair(self.a, Repair(1, 99, 1, 1)))
        self.clock.advance(1)
        self.assertEqual(self.output.written, [])

    def test_overheard_repair(self) -> None:
        """A repair of an overheard transfer is sent, and nobody is notified."""
        self.ask(self.a, 1, 0, BLOCK)
        self.controller.repair(self.b, Repair(0, 1, 1, 1))
        self.clock.advance(0.001)
        self.assertEqual((self.controller.segments_repaired, self.b.told), (1, []))

    def test_forget(self) -> None:
        """A client that left is not notified, and entries only for it are not sent."""
        self.output.room = 0
        for block in range(8):
            self.ask(self.a, block + 1, block % 3 * BLOCK + block * PAGE, PAGE)
        self.controller.forget(self.a)
        self.output.drain()
        self.clock.advance(1)
        self.assertEqual(self.a.told, [])
        self.assertLess(len(self.received()), 8)

    def test_stop(self) -> None:
        """Once stopped, nothing is sent."""
        self.output.room = 5000
        self.ask(self.a, 1, 0, SIZE)
        self.controller.stop()
        written = len(self.output.written)
        self.output.drain()
        self.clock.advance(10)
        self.assertEqual(len(self.output.written), written)

    def test_stop_while_reading(self) -> None:
        """An entry that was being read when the controller stopped is not sent."""
        self.hanging = []
        read = Read(9, 1, 0, PAGE, Priority.BLOCKED)
        self.controller.request(self.a, ImageInMemory(CONTENT, image=2), read)
        self.clock.advance(0)
        self.controller.stop()
        self.hanging[0].callback(memoryview(b""))
        self.assertEqual(self.output.written, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])
