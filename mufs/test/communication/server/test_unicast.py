"""Reads answered over TCP."""

from errno import EIO

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.sent import MAX_BYTES_AWAITED, Share
from mufs.communication.server.pacing import LINK_FULL_SECONDS, SENDING_SECONDS, Pace
from mufs.communication.server.unicast import CREDIT, LOOK, PIECE, SHARE, UnicastReads
from mufs.interfaces import IImage
from mufs.test.support.doubles import ImageInMemory
from mufs.test.support.virtual import VirtualTime
from mufs.wire.channel import Data, Framer, Priority, Read

SIZE = 64 * PIECE


class ShareTests(SynchronousTestCase):
    """What a client gets over TCP beside multicast."""

    def setUp(self) -> None:
        """A client that takes all that it gets, of one image."""
        self.clock = VirtualTime()
        self.pace = Pace(self.clock, floor=1e8, ceiling=1e8, start=1e8)
        self.image = ImageInMemory(bytes(SIZE))
        self.share = Share()
        self.reads = self.make_reads()

    def make_reads(self) -> UnicastReads:
        return UnicastReads(
            self.clock,
            self.pace,
            self.read,
            lambda packet: None,
            lambda tag, error: None,
            self.share,
        )

    def read(self, image: IImage, offset: int, length: int, more: int) -> "Deferred[bytes]":
        return succeed(image.read(offset, length))

    def ask(self, reads: UnicastReads) -> None:
        reads.request(self.image, Read(1, 1, 0, SIZE, Priority.BLOCKED, True))

    def multicast(self, size: int) -> None:
        """Send so much to the group, more than the link takes."""
        for _ in range(size // PIECE):
            self.clock.advance(self.pace.delay(PIECE))
            self.pace.blocked()

    def test_alone(self) -> None:
        """While nothing goes to the group, a read is answered as fast as it is taken."""
        self.ask(self.reads)
        self.assertEqual(self.reads.bytes_sent, SIZE)

    def test_many(self) -> None:
        """However many reads waited while the connection was full, each is answered."""
        self.reads.pause(True)
        for tag in range(1, 5001):
            self.reads.request(self.image, Read(tag, 1, 0, 1, Priority.BLOCKED, True))
        self.assertEqual(self.reads.bytes_sent, 0)
        self.reads.pause(False)
        self.assertEqual(self.reads.bytes_sent, 5000)

    def test_idle_link(self) -> None:
        """So it is while what goes to the group leaves room on the link."""
        for _ in range(100):
            self.clock.advance(self.pace.delay(PIECE))
        self.ask(self.reads)
        self.assertEqual(self.reads.bytes_sent, SIZE)

    def test_share(self) -> None:
        """While multicast fills the link, each client gets its share, and no client none."""
        self.multicast(SHARE * CREDIT)
        clients = [self.reads, self.make_reads()]
        for reads in clients:
            self.ask(reads)
        before = self.pace.bytes
        self.multicast(16 * SHARE * PIECE)
        share = (self.pace.bytes - before) / SHARE
        for reads in clients:
            self.assertGreater(reads.bytes_sent, 0.9 * share)
            self.assertLessEqual(reads.bytes_sent, share + CREDIT + PIECE)

    def test_greedy(self) -> None:
        """A greedy client gets its share while anything is multicast, also on an idle link."""
        self.clock.advance(self.pace.delay(PIECE))
        self.share.waiting = MAX_BYTES_AWAITED
        self.ask(self.reads)
        self.assertLessEqual(self.reads.bytes_sent, CREDIT + PIECE)
        self.clock.advance(SENDING_SECONDS + LOOK)
        self.assertEqual(self.reads.bytes_sent, SIZE)

    def test_afterwards(self) -> None:
        """It gets all soon after multicast has ended."""
        self.multicast(SHARE * PIECE)
        self.ask(self.reads)
        self.assertLess(self.reads.bytes_sent, SIZE)
        self.clock.advance(LINK_FULL_SECONDS + 2 * LOOK)
        self.assertEqual(self.reads.bytes_sent, SIZE)

    def test_no_debt(self) -> None:
        """What it got of an idle link is not held against it."""
        self.ask(self.reads)
        self.multicast(4 * SHARE * PIECE)
        self.ask(self.reads)
        before = self.reads.bytes_sent
        self.multicast(4 * SHARE * PIECE)
        self.assertGreater(self.reads.bytes_sent, before)

    def test_gone(self) -> None:
        """A client that has gone while it waited gets nothing more."""
        self.multicast(SHARE * PIECE)
        self.ask(self.reads)
        before = self.reads.bytes_sent
        self.reads.stop()
        self.clock.advance(1)
        self.assertEqual(self.reads.bytes_sent, before)


class HangingTests(SynchronousTestCase):
    """One of the images that a client reads over TCP does not answer."""

    def setUp(self) -> None:
        """A client, and reads that wait for the test."""
        clock = VirtualTime()
        self.asked: list[tuple[IImage, int, Deferred[bytes]]] = []
        self.sent: list[tuple[int, int]] = []
        self.failed: list[int] = []
        self.reads = UnicastReads(
            clock,
            Pace(clock, floor=1e8, ceiling=1e8, start=1e8),
            self.read,
            self.write,
            lambda tag, error: self.failed.append(tag),
            Share(),
        )

    def read(self, image: IImage, offset: int, length: int, more: int) -> "Deferred[bytes]":
        self.asked.append((image, offset, Deferred()))
        return self.asked[-1][2]

    def write(self, packet: bytes) -> None:
        ((_, offset, body),) = Framer().feed(packet)
        data = Data.parse(offset, body)
        self.sent.append((data.image, data.offset))

    def answer(self, image: IImage) -> None:
        """Answer all that is read of an image, one piece after the other."""
        while found := [each for each in self.asked if each[0] is image]:
            self.asked.remove(found[0])
            found[0][2].callback(bytes(PIECE))

    def test_others(self) -> None:
        """The other images are read on, and that one goes on where it was, in order."""
        slow, quick = ImageInMemory(bytes(SIZE), 1), ImageInMemory(bytes(SIZE), 2)
        self.reads.request(slow, Read(1, 1, 0, 3 * PIECE, Priority.BLOCKED, True))
        self.reads.request(quick, Read(2, 2, 0, 2 * PIECE, Priority.AHEAD, True))
        self.reads.request(slow, Read(3, 1, 8 * PIECE, PIECE, Priority.BLOCKED, True))
        self.assertEqual(len(self.asked), 2)
        self.answer(quick)
        self.assertEqual(self.sent, [(2, 0), (2, PIECE)])
        self.assertEqual(len(self.asked), 1)
        self.answer(slow)
        offsets = [offset for image, offset in self.sent if image == 1]
        self.assertEqual(offsets, [0, PIECE, 2 * PIECE, 8 * PIECE])

    def test_failed(self) -> None:
        """A read that fails is not read on; the next one of that image is."""
        slow = ImageInMemory(bytes(SIZE), 1)
        self.reads.request(slow, Read(1, 1, 0, 3 * PIECE, Priority.BLOCKED, True))
        self.reads.request(slow, Read(3, 1, 8 * PIECE, PIECE, Priority.BLOCKED, True))
        self.asked.pop()[2].errback(OSError(EIO, "a bad sector"))
        self.answer(slow)
        self.assertEqual((self.failed, self.sent), ([1], [(1, 8 * PIECE)]))
        self.assertEqual(self.asked, [])
