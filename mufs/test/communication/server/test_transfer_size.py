"""How large a transfer may be."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.output import SEND_BUFFER
from mufs.communication.server.transfer_size import TransferSize
from mufs.wire.pages import BLOCK, EXTENT


class TransferSizeTests(SynchronousTestCase):
    """A link behind a send buffer."""

    def setUp(self) -> None:
        """Begin with an empty send buffer."""
        self.clock = Clock()
        self.size = TransferSize(self.clock)
        self.buffered = 0.0

    def idle(self, seconds: float, link: float) -> None:
        """Write nothing for some time, in which the send buffer drains."""
        self.clock.advance(seconds)
        self.buffered = max(0.0, self.buffered - seconds * link / 8)

    def write(self, size: int, link: float) -> None:
        """
        Write, as fast as the send buffer takes it.

        @param link: bits per second.
        """
        began = self.clock.seconds()
        over = max(0.0, self.buffered + size - SEND_BUFFER)
        self.buffered += size
        self.idle(over * 8 / link, link)
        self.size.written(size, began, held_back=over > 0)

    def send(self, link: float, size: int | None = None, pause: float = 0.0) -> int:
        """Send for a while, by default transfers as large as they may be; the limit in blocks."""
        for _ in range(100):
            self.write(size or max(BLOCK, self.size.limit // BLOCK * BLOCK), link)
            self.idle(pause, link)
        return self.size.limit // BLOCK

    def test_begin(self) -> None:
        """Nothing is known of the link at first."""
        self.assertEqual(self.size.limit, 0)

    def test_links(self) -> None:
        """It follows the link: a block at 100 Mbit/s, an extent at 1 Gbit/s."""
        blocks = [self.send(rate) for rate in (1e7, 1e8, 3e8, 1e9, 1e8, 1e10)]
        self.assertEqual(blocks, [0, 1, 4, 8, 1, 8])
        self.assertEqual(self.size.limit, EXTENT)

    def test_cost(self) -> None:
        """A byte costs what a full link takes for it; less and less while the link is not full."""
        self.assertEqual(self.size.cost, 0)
        for link in (1e8, 1e9):
            self.send(link)
            self.assertAlmostEqual(self.size.cost * link / 8, 1, delta=0.1)
        costs = []
        for _ in range(20):
            self.send(1e9, size=BLOCK, pause=0.01)
            costs.append(self.size.cost)
        self.assertEqual(costs, sorted(costs, reverse=True))
        self.assertLess(costs[-1] * 1e9 / 8, 0.01)

    def test_idle(self) -> None:
        """A link that is hardly used keeps its limit, though the send buffer takes all at once."""
        for link, blocks in ((1e9, 8), (1e8, 1)):
            self.assertEqual(self.send(link), blocks)
            self.assertEqual(self.send(link, size=BLOCK, pause=0.1), blocks)
            self.assertEqual(self.send(link, size=4096, pause=0.001), blocks)

    def test_at_once(self) -> None:
        """What takes no time at all says nothing."""
        for _ in range(100):
            self.size.written(BLOCK, self.clock.seconds(), held_back=False)
        self.assertEqual(self.size.limit, 0)
