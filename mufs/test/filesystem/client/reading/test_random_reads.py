"""What a read at random brings beside its own pages."""

from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client.blocks import BlockCache
from mufs.filesystem.client.reading.random_reads import (
    GAP_FILL_MAX_PAGES,
    PROBE_EVERY_READS,
    WHOLE_BLOCK_MAX_SECONDS,
    WHOLE_BLOCK_WARMUP_READS,
    RandomReads,
    whole_blocks,
)
from mufs.wire.pages import ALL_PAGES, BLOCK, BLOCK_PAGES, EXTENT, PAGE

KEY = 1, 1


class WholeBlockTests(SynchronousTestCase):
    """Whether a read asks for its whole block."""

    def setUp(self) -> None:
        """No read was made."""
        self.reads = RandomReads(BlockCache(BLOCK))

    def warm_up(self, seconds: float) -> None:
        """Make the first reads, each of which has its block after so many seconds."""
        for _ in range(WHOLE_BLOCK_WARMUP_READS):
            self.assertTrue(self.reads.wants_block())
            self.assertFalse(self.reads.wants_surroundings)
            self.reads.block_arrived(seconds)

    def test_fast(self) -> None:
        """Where blocks arrive fast, each read brings its block, and soon what lies around it."""
        self.warm_up(WHOLE_BLOCK_MAX_SECONDS / 2)
        for _ in range(2 * PROBE_EVERY_READS):
            self.assertTrue(self.reads.wants_block())
            self.assertTrue(self.reads.wants_surroundings)

    def test_slow(self) -> None:
        """Where they do not, only the first reads do, and one in 64 to measure the path."""
        self.warm_up(2 * WHOLE_BLOCK_MAX_SECONDS)
        found = []
        for number in range(WHOLE_BLOCK_WARMUP_READS + 1, 2 * PROBE_EVERY_READS + 1):
            if self.reads.wants_block():
                found.append(number)
            self.assertFalse(self.reads.wants_surroundings)
        self.assertEqual(found, [PROBE_EVERY_READS, 2 * PROBE_EVERY_READS])

    def test_late(self) -> None:
        """Single blocks that come late, however late, change nothing; several in a row do."""
        self.warm_up(WHOLE_BLOCK_MAX_SECONDS / 5)
        for _ in range(4):
            self.reads.block_arrived(100.0)
            self.assertTrue(self.reads.wants_block())
            for _ in range(8):
                self.reads.block_arrived(WHOLE_BLOCK_MAX_SECONDS / 5)
        for _ in range(8):
            self.reads.block_arrived(100.0)
        self.assertFalse(self.reads.wants_block())

    def test_becomes_fast(self) -> None:
        """Some fast blocks in a row make up for slow ones, one alone does not."""
        self.warm_up(2 * WHOLE_BLOCK_MAX_SECONDS)
        self.reads.block_arrived(0.0)
        self.assertFalse(self.reads.wants_block())
        for _ in range(8):
            self.reads.block_arrived(0.0)
        self.assertTrue(self.reads.wants_block())


class GapTests(SynchronousTestCase):
    """What lies between a read and cached pages near it."""

    def setUp(self) -> None:
        """Have two pages in the cache, in the second of four blocks."""
        self.cache = BlockCache(4 * BLOCK)
        self.reads = RandomReads(self.cache)
        self.first = BLOCK_PAGES + 8
        self.cache.store(KEY, self.first * PAGE, bytes(2 * PAGE))

    def gaps(self, page: int, length: int = PAGE) -> list[tuple[int, int]]:
        """The gaps beside a read at a page: first pages, and numbers of pages."""
        return [
            (offset // PAGE, size // PAGE)
            for offset, size in self.reads.gaps(KEY, page * PAGE, length)
        ]

    def test_before(self) -> None:
        """The pages between cached ones and a read behind them, up to the next block."""
        end = self.first + 2
        for missing in range(1, GAP_FILL_MAX_PAGES):
            self.assertEqual(self.gaps(end + missing), [(end, missing)])
        self.assertEqual(self.gaps(end), [])
        self.assertEqual(self.gaps(end + GAP_FILL_MAX_PAGES), [])

    def test_behind(self) -> None:
        """The pages between a read and cached ones behind it, up to the block before."""
        for missing in range(1, GAP_FILL_MAX_PAGES):
            page = self.first - missing - 1
            self.assertEqual(self.gaps(page), [(page + 1, missing)])
        self.assertEqual(self.gaps(self.first - 1), [])
        self.assertEqual(self.gaps(self.first - 1 - GAP_FILL_MAX_PAGES), [])

    def test_both(self) -> None:
        """Both gaps of a read between cached pages; bytes within a page count as the page."""
        self.cache.store(KEY, (self.first + 10) * PAGE, bytes(PAGE))
        expected = [(self.first + 2, 2), (self.first + 6, 4)]
        self.assertEqual(self.gaps(self.first + 4, 2 * PAGE), expected)
        self.assertEqual(self.gaps(self.first + 4, PAGE + 1), expected)

    def test_start(self) -> None:
        """Nothing lies before the start of an image, and other images do not count."""
        self.assertEqual(self.gaps(0), [])
        self.assertEqual(self.reads.gaps((2, 1), (self.first + 4) * PAGE, PAGE), [])


class PagesTests(SynchronousTestCase):
    """The whole blocks of a read."""

    def test_whole_blocks(self) -> None:
        """Each block of which there is a page is there in full, as far as the image goes."""
        pages = {0: 0b10 | 1 << 3 * BLOCK_PAGES, 1: 0b1}
        whole = ALL_PAGES | ALL_PAGES << 3 * BLOCK_PAGES
        self.assertEqual(whole_blocks(pages, 8 * EXTENT), {0: whole, 1: ALL_PAGES})
        self.assertEqual(whole_blocks(pages, EXTENT + PAGE + 1), {0: whole, 1: 0b11})
