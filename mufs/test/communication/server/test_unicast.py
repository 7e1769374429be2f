"""File data over TCP."""

from errno import EIO
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.sent import MAX_BYTES_AWAITED, Share
from mufs.communication.server.pacing import LINK_FULL_SECONDS, SENDING_SECONDS, Pace
from mufs.communication.server.unicast import (
    DATA_SIZE,
    MAX_CREDIT,
    MULTICAST_WEIGHT,
    RETRY_DELAY,
    UnicastReads,
)
from mufs.interfaces import IImage
from mufs.test.support.doubles import ImageInMemory, make_sent
from mufs.test.support.virtual import VirtualTime
from mufs.wire.channel import HEADER, MAX_DATA, Data, Framer, Priority, Read, Type, parse_tagged
from mufs.wire.pages import BLOCK, EXTENT
from mufs.wire.segments import ANNOUNCEMENT, COMPLETION, REPAIRED, SEGMENT, parse

SIZE = 64 * DATA_SIZE


class ShareTestCase(SynchronousTestCase):
    """A client that multicast does not reach."""

    def setUp(self) -> None:
        """A client that reads all that it is sent, and one image."""
        self.clock = VirtualTime()
        self.pace = Pace(self.clock, floor=1e8, ceiling=1e8, start=1e8)
        self.image = ImageInMemory(b"not zero" * (SIZE // 8))
        self.share = Share()
        self.written: list[bytes] = []
        self.reads = self.make_reads()

    def make_reads(self) -> UnicastReads:
        return UnicastReads(
            self.clock,
            self.pace,
            read=self.read,
            write=lambda packet: self.written.append(packet),
            failed=lambda tag, error: None,
            share=self.share,
        )

    def read(self, image: IImage, offset: int, length: int, more: int) -> "Deferred[memoryview]":
        return succeed(memoryview(image.read(offset, length)))

    def ask(self, reads: UnicastReads) -> None:
        reads.request(self.image, Read(1, 1, 0, SIZE, Priority.BLOCKED, True))

    def multicast(self, size: int) -> None:
        """Send this many bytes to the group, which fill the link."""
        for _ in range(size // DATA_SIZE):
            self.clock.advance(self.pace.delay(DATA_SIZE))
            self.pace.blocked()


class ShareTests(ShareTestCase):
    """What a client gets over TCP beside multicast."""

    def test_alone(self) -> None:
        """While nothing is multicast, reads are answered as fast as the client takes them."""
        self.ask(self.reads)
        self.assertEqual(self.reads.bytes_sent, SIZE)

    def test_many(self) -> None:
        """Any number of reads that waited while the connection was full are answered."""
        self.reads.pause()
        for tag in range(1, 5001):
            self.reads.request(self.image, Read(tag, 1, 0, 1, Priority.BLOCKED, True))
        self.assertEqual(self.reads.bytes_sent, 0)
        self.reads.resume()
        self.assertEqual(self.reads.bytes_sent, 5000)

    def test_idle_link(self) -> None:
        """The same while multicast does not fill the link."""
        for _ in range(100):
            self.clock.advance(self.pace.delay(DATA_SIZE))
        self.ask(self.reads)
        self.assertEqual(self.reads.bytes_sent, SIZE)

    def test_share(self) -> None:
        """While multicast fills the link, each client gets its share."""
        self.multicast(MULTICAST_WEIGHT * MAX_CREDIT)
        clients = [self.reads, self.make_reads()]
        for reads in clients:
            self.ask(reads)
        before = self.pace.bytes
        self.multicast(16 * MULTICAST_WEIGHT * DATA_SIZE)
        share = (self.pace.bytes - before) / MULTICAST_WEIGHT
        for reads in clients:
            self.assertGreater(reads.bytes_sent, 0.9 * share)
            self.assertLessEqual(reads.bytes_sent, share + MAX_CREDIT + DATA_SIZE)

    def test_greedy(self) -> None:
        """A greedy client gets its share while anything is multicast, also on an idle link."""
        self.clock.advance(self.pace.delay(DATA_SIZE))
        self.share.waiting = MAX_BYTES_AWAITED
        self.ask(self.reads)
        self.assertLessEqual(self.reads.bytes_sent, MAX_CREDIT + DATA_SIZE)
        self.clock.advance(SENDING_SECONDS + RETRY_DELAY)
        self.assertEqual(self.reads.bytes_sent, SIZE)

    def test_afterwards(self) -> None:
        """Soon after multicast has ended the client gets all."""
        self.multicast(MULTICAST_WEIGHT * DATA_SIZE)
        self.ask(self.reads)
        self.assertLess(self.reads.bytes_sent, SIZE)
        self.clock.advance(LINK_FULL_SECONDS + 2 * RETRY_DELAY)
        self.assertEqual(self.reads.bytes_sent, SIZE)

    def test_no_debt(self) -> None:
        """What the client got on an idle link is not charged later."""
        self.ask(self.reads)
        self.multicast(4 * MULTICAST_WEIGHT * DATA_SIZE)
        self.ask(self.reads)
        before = self.reads.bytes_sent
        self.multicast(4 * MULTICAST_WEIGHT * DATA_SIZE)
        self.assertGreater(self.reads.bytes_sent, before)

    def test_gone(self) -> None:
        """A client that has gone while it waited gets nothing more."""
        self.multicast(MULTICAST_WEIGHT * DATA_SIZE)
        self.ask(self.reads)
        before = self.reads.bytes_sent
        self.reads.stop()
        self.clock.advance(1)
        self.assertEqual(self.reads.bytes_sent, before)


class SegmentTests(ShareTestCase):
    """Segments of a transfer over TCP."""

    def setUp(self) -> None:
        """A transfer of a whole block."""
        super().setUp()
        self.transfer = make_sent(1, self.image, 0, BLOCK)
        self.all = (1 << self.transfer.count) - 1
        self.share.repair_credit = 10 * BLOCK

    def sent(self) -> list[tuple[int, list[tuple[Any, ...]]]]:
        """The tag and the packets of each SEGMENTS that was written since the last call."""
        written, self.written = self.written, []
        found = []
        for kind, _, body in Framer().feed(b"".join(written)):
            self.assertEqual(kind, Type.SEGMENTS)
            tag, packets = parse_tagged(body)
            found.append((tag, list(parse(packets))))
        return found

    def test_some(self) -> None:
        """The segments come between announcement and completion, and are counted."""
        self.assertEqual(self.reads.send_segments(self.transfer, 0b1010, 7), 2)
        size = sum(len(packet) for packet in self.written)
        (tag, announced), (_, (one, two)), (_, completed) = self.sent()
        self.assertEqual((tag, announced[0][0], completed[0][0]), (7, ANNOUNCEMENT, REPAIRED))
        number = self.transfer.descriptor.first
        self.assertEqual([one[0], two[0]], [number + 1, number + 3])
        self.assertEqual(self.reads.bytes_sent, size - 3 * (HEADER.size + 4))

    def test_whole(self) -> None:
        """A transfer that is sent as a whole ends as it did first; further bits are ignored."""
        count = self.transfer.count
        sent = self.reads.send_segments(self.transfer, self.all | 1 << 4000, 7)
        self.assertEqual(sent, count)
        packets = [packet for _, packets in self.sent() for packet in packets]
        self.assertEqual(sum(len(packet[2]) for packet in packets[1:-1]), count)
        self.assertEqual(packets[-1][0], COMPLETION)

    def test_none(self) -> None:
        """For an empty bitmap only the announcement and the completion are sent."""
        self.assertEqual(self.reads.send_segments(self.transfer, 0, 7), 0)
        self.assertEqual(len(self.sent()), 2)

    def test_full(self) -> None:
        """A client whose buffer is full gets none."""
        self.reads.pause()
        self.assertEqual(self.reads.send_segments(self.transfer, 1, 7), 0)
        self.assertEqual(self.sent(), [])

    def test_share(self) -> None:
        """While multicast fills the link, most of a transfer goes only within the share."""
        self.multicast(MULTICAST_WEIGHT * DATA_SIZE)
        sent = [self.reads.send_segments(self.transfer, self.all, 7) for _ in range(8)]
        self.assertEqual(sent[-1], 0)
        self.assertLessEqual(sum(sent) * SEGMENT, MAX_CREDIT + BLOCK)
        self.assertEqual(self.reads.send_segments(self.transfer, 0b1010, 7), 2)

    def test_large(self) -> None:
        """Of a large transfer no more goes beyond the share than of a small one."""
        self.multicast(MULTICAST_WEIGHT * DATA_SIZE)
        large = make_sent(2, self.image, 0, EXTENT)
        few = DATA_SIZE // SEGMENT
        while self.reads.charge(DATA_SIZE):
            pass
        self.assertEqual(self.reads.send_segments(large, (1 << few + 1) - 1, 7), 0)
        self.assertEqual(self.reads.send_segments(large, (1 << few) - 1, 7), few)
        self.assertTrue(all(len(packet) <= MAX_DATA for packet in self.written))

    def test_not_asked_for(self) -> None:
        """A client that has read little is sent few segments."""
        self.share.repair_credit = 5 * SEGMENT
        sent = [self.reads.send_segments(self.transfer, 0b11, 7) for _ in range(4)]
        self.assertEqual(sent, [2, 2, 0, 0])


class HangingTests(SynchronousTestCase):
    """One of the images that a client reads over TCP does not answer."""

    def setUp(self) -> None:
        """A client, and reads that wait for the test."""
        clock = VirtualTime()
        self.asked: list[tuple[IImage, int, Deferred[memoryview]]] = []
        self.sent: list[tuple[int, int]] = []
        self.failed: list[int] = []
        self.reads = UnicastReads(
            clock,
            Pace(clock, floor=1e8, ceiling=1e8, start=1e8),
            read=self.read,
            write=self.write,
            failed=lambda tag, error: self.failed.append(tag),
            share=Share(),
        )

    def read(self, image: IImage, offset: int, length: int, more: int) -> "Deferred[memoryview]":
        self.asked.append((image, offset, Deferred()))
        return self.asked[-1][2]

    def write(self, packet: bytes) -> None:
        ((_, offset, body),) = Framer().feed(packet)
        data = Data.parse(offset, body)
        self.sent.append((data.image, data.offset))

    def answer(self, image: IImage) -> None:
        """Answer all that is read of an image, one part after the other."""
        while found := [each for each in self.asked if each[0] is image]:
            self.asked.remove(found[0])
            found[0][2].callback(memoryview(bytes(DATA_SIZE)))

    def test_others(self) -> None:
        """Other images are read meanwhile, and that one goes on where it was, in order."""
        slow, quick = ImageInMemory(bytes(SIZE), 1), ImageInMemory(bytes(SIZE), 2)
        self.reads.request(slow, Read(1, 1, 0, 3 * DATA_SIZE, Priority.BLOCKED, True))
        self.reads.request(quick, Read(2, 2, 0, 2 * DATA_SIZE, Priority.AHEAD, True))
        self.reads.request(slow, Read(3, 1, 8 * DATA_SIZE, DATA_SIZE, Priority.BLOCKED, True))
        self.assertEqual(len(self.asked), 2)
        self.answer(quick)
        self.assertEqual(self.sent, [(2, 0), (2, DATA_SIZE)])
        self.assertEqual(len(self.asked), 1)
        self.answer(slow)
        offsets = [offset for image, offset in self.sent if image == 1]
        self.assertEqual(offsets, [0, DATA_SIZE, 2 * DATA_SIZE, 8 * DATA_SIZE])

    def test_failed(self) -> None:
        """A read that fails ends there; the next one of that image is answered."""
        slow = ImageInMemory(bytes(SIZE), 1)
        self.reads.request(slow, Read(1, 1, 0, 3 * DATA_SIZE, Priority.BLOCKED, True))
        self.reads.request(slow, Read(3, 1, 8 * DATA_SIZE, DATA_SIZE, Priority.BLOCKED, True))
        self.asked.pop()[2].errback(OSError(EIO, "a bad sector"))
        self.answer(slow)
        self.assertEqual((self.failed, self.sent), ([1], [(1, 8 * DATA_SIZE)]))
        self.assertEqual(self.asked, [])
