"""Reads answered over TCP."""

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.sent import GREEDY, Share
from mufs.communication.server.pacing import FULL, SENDING, Pace
from mufs.communication.server.unicast import CREDIT, LOOK, PIECE, SHARE, UnicastReads
from mufs.interfaces import IImage
from mufs.test.doubles import ImageInMemory
from mufs.test.virtual import VirtualTime
from mufs.wire.channel import Priority, Read

SIZE = 64 * PIECE


class ShareTests(SynchronousTestCase):
    """What a client gets over TCP beside multicast."""

    def setUp(self) -> None:
        """A client that takes all that it gets, of one image."""
        self.clock = VirtualTime()
        self.pace = Pace(self.clock, 1e8, 1e8, 1e8)
        self.image = ImageInMemory(bytes(SIZE))
        self.share = Share()
        self.reads = self.make_reads()

    def make_reads(self) -> UnicastReads:
        return UnicastReads(
            self.clock, self.pace, self.read, lambda packet: None, lambda tag, error: None,
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
        self.share.waiting = GREEDY
        self.ask(self.reads)
        self.assertLessEqual(self.reads.bytes_sent, CREDIT + PIECE)
        self.clock.advance(SENDING + LOOK)
        self.assertEqual(self.reads.bytes_sent, SIZE)

    def test_afterwards(self) -> None:
        """It gets all soon after multicast has ended."""
        self.multicast(SHARE * PIECE)
        self.ask(self.reads)
        self.assertLess(self.reads.bytes_sent, SIZE)
        self.clock.advance(FULL + 2 * LOOK)
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
