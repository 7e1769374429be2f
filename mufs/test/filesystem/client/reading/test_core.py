"""What a read that the cache cannot answer asks for, and what answers it."""

import errno
from itertools import count

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.reading.core import MAX_WINDOW, ReadCore
from mufs.filesystem.client.reading.in_flight import WaitingRead
from mufs.filesystem.client.reading.overdue import TCP_DELAY, URGENT_DELAY
from mufs.filesystem.client.reading.random_reads import WHOLE_BLOCK_WARMUP_READS
from mufs.filesystem.client.reading.requests import MAX_BYTES_IN_FLIGHT
from mufs.filesystem.client.reading.sequences import MIN_SEQUENTIAL_BYTES, SequenceDetector
from mufs.test.support.doubles import make_attributes
from mufs.wire.channel import Data, Occasion, Priority, ProtocolError, Read, Sent
from mufs.wire.pages import BLOCK, EXTENT, EXTENT_PAGES, PAGE
from mufs.wire.segments import Descriptor

CONTENT = bytes(range(256)) * (64 * BLOCK // 256) + b"the end"


class CoreTestCase(SynchronousTestCase):
    """A core by itself: the test sends what it asks for, and has the time."""

    def setUp(self) -> None:
        """Open an image, with a connection, on a path that is too slow for whole blocks."""
        self.now = 0.0
        self.cache = BlockCache(128 * BLOCK)
        self.health = MulticastHealth(Clock())
        self.core = self.make_core()
        for _ in range(WHOLE_BLOCK_WARMUP_READS):
            self.core._random_reads.wants_block()
            self.core._random_reads.block_arrived(1.0)
        self.image = self.make_image()

    def make_core(self) -> ReadCore:
        """A core that knows nothing of the path yet."""
        return ReadCore(self.cache, self.health, 64 * BLOCK, new_tag=count(1).__next__)

    def make_image(self, handle: int = 5) -> OpenImage:
        """Open the image once more."""
        detector = SequenceDetector(len(CONTENT))
        return OpenImage(b"image", (1, 1), make_attributes(len(CONTENT)), detector, handle)

    def read(self, offset: int, length: int = PAGE, image: OpenImage | None = None) -> WaitingRead:
        """Begin a read."""
        target = memoryview(bytearray(length))
        return self.core.read(image or self.image, offset, target, self.now)

    def sent(self) -> list[Read]:
        """The READs to be sent since the last call."""
        return self.core.requests.take()

    def ranges(self) -> list[tuple[int, int]]:
        """The ranges of these."""
        return [(each.offset, each.length) for each in self.sent()]

    def pass_time(self, seconds: float) -> None:
        """Have time pass, as a timer of the core sees it."""
        end = self.now + seconds
        while (due := self.core.due) is not None and due <= end:
            self.now = due
            self.core.check_overdue(self.now)
        self.now = end

    def deliver(self, offset: int, length: int) -> None:
        """Have a transfer of the group come."""
        content = CONTENT[offset : offset + length]
        self.core.delivered(Descriptor(1, 0, 1, 1, offset, len(content)), content, self.now)

    def answer(self, offset: int, length: int) -> None:
        """Have bytes come over TCP."""
        self.core.data(Data(1, 1, offset, CONTENT[offset : offset + length]), self.now)

    def assert_ended(self, *reads: WaitingRead) -> None:
        """These reads, and no others, have ended since the last call, with all of their bytes."""
        ended, self.core.ended = self.core.ended, []
        self.assertEqual(ended, [(read, len(read.target)) for read in reads])
        for read in reads:
            end = read.offset + len(read.target)
            self.assertEqual(read.target, CONTENT[read.offset : end])

    def assert_failed(self, number: int, *reads: WaitingRead) -> None:
        """These reads, and no others, have failed since the last call, with this errno."""
        ended, self.core.ended = self.core.ended, []
        errors = [(read, getattr(error, "errno", None)) for read, error in ended]
        self.assertEqual(errors, [(read, number) for read in reads])

    def assert_nothing_left(self) -> None:
        """No request or read is left, and nothing is due."""
        table = self.core.in_flight
        self.assertEqual((table.requests, table.requested, table.waiting), ({}, {}, {}))
        self.assertEqual(table.pending, 0)
        self.assertIsNone(self.core.due)

    def figures(self) -> tuple[int, int]:
        """Reads that joined others, and misses, that have ended."""
        return self.core.deliveries.joined.total, self.core.deliveries.misses.total


class ReadTests(CoreTestCase):
    """Reads that are answered."""

    def test_miss(self) -> None:
        """What is missing is asked for by multicast, at the priority of who waits for it."""
        reading = self.read(BLOCK + PAGE, 2 * PAGE)
        self.assertEqual(self.sent(), [Read(1, 5, BLOCK + PAGE, 2 * PAGE, Priority.BLOCKED, False)])
        self.assert_ended()
        self.deliver(BLOCK + PAGE, 2 * PAGE)
        self.assert_ended(reading)
        self.assertEqual(self.figures(), (0, 1))
        self.assertEqual(self.core.requests.bytes_requested, 2 * PAGE)
        self.assert_nothing_left()

    def test_joined(self) -> None:
        """What is on its way already is waited for, and not asked for again."""
        first, second = self.read(0, 2 * PAGE), self.read(PAGE, PAGE)
        self.assertEqual(len(self.sent()), 1)
        self.deliver(PAGE, PAGE)
        self.assert_ended(second)
        self.deliver(0, PAGE)
        self.assert_ended(first)
        self.assertEqual(self.figures(), (1, 1))
        self.assert_nothing_left()

    def test_partly(self) -> None:
        """Only the pages that are neither cached nor on their way are asked for."""
        self.cache.store(self.image.key, 0, CONTENT[:PAGE])
        first = self.read(PAGE, PAGE)
        self.sent()
        second = self.read(0, 4 * PAGE)
        self.assertEqual(self.ranges(), [(2 * PAGE, 2 * PAGE)])
        self.deliver(PAGE, 3 * PAGE)
        self.assert_ended(first, second)
        self.assertEqual(self.figures(), (0, 2))

    def test_damaged(self) -> None:
        """What the cache turns out not to have in spite of its index is asked for, as well."""
        self.cache.store(self.image.key, 0, CONTENT[: 2 * PAGE])
        self.patch(self.cache, "read", lambda *_: False)
        reading = self.read(0, 3 * PAGE)
        self.assertEqual(self.ranges(), [(0, 3 * PAGE)])
        self.assertEqual(self.cache.damaged, 1)
        self.deliver(0, BLOCK)
        self.assert_ended(reading)

    def test_one_step(self) -> None:
        """A read of an extent is one READ, and a transfer of it ends all who wait for some."""
        first, second = self.read(5 * EXTENT, EXTENT), self.read(5 * EXTENT + PAGE)
        self.assertEqual(self.ranges(), [(5 * EXTENT, EXTENT)])
        self.deliver(5 * EXTENT, EXTENT)
        self.assert_ended(first, second)
        self.assert_nothing_left()

    def test_two_extents(self) -> None:
        """A read over two extents is one READ, and ends with the last of its pages."""
        reading = self.read(EXTENT - PAGE, 2 * PAGE)
        self.assertEqual(self.ranges(), [(EXTENT - PAGE, 2 * PAGE)])
        self.deliver(EXTENT, EXTENT)
        self.assert_ended()
        self.deliver(0, EXTENT)
        self.assert_ended(reading)
        self.assert_nothing_left()

    def test_end(self) -> None:
        """A read ends with the image, and one beyond that is empty."""
        reading = self.read(64 * BLOCK, PAGE)
        self.assertEqual(self.ranges(), [(64 * BLOCK, 7)])
        beyond = self.read(65 * BLOCK, PAGE)
        self.assert_ended(beyond)
        self.assertEqual(len(beyond.target), 0)
        self.answer(64 * BLOCK, PAGE)
        self.assert_ended(reading)
        self.assertEqual(bytes(reading.target), b"the end")

    def test_overheard(self) -> None:
        """What nobody asked for is kept, and counted; it answers the next read."""
        self.deliver(0, BLOCK)
        self.assertEqual(self.core.bytes_overheard, BLOCK)
        self.assert_ended(self.read(PAGE))
        self.assertEqual(self.sent(), [])

    def test_part_of_a_page(self) -> None:
        """Bytes over TCP that end within a page are an error of the server."""
        self.read(0)
        data = Data(1, 1, 0, CONTENT[: PAGE - 1])
        self.assertRaises(ProtocolError, self.core.data, data, self.now)

    def test_not_asked_for(self) -> None:
        """Bytes over TCP that nobody asked for are dropped."""
        self.assertFalse(self.core.data(Data(1, 1, 0, CONTENT[:PAGE]), self.now))
        self.assertTrue(self.core.lacks(self.image, 0, PAGE))

    def test_background(self) -> None:
        """A read does not wait for what was only requested in the background."""
        self.core.fill(self.image, {0: 0b11})
        reading = self.read(0)
        self.assertEqual(
            [each.priority for each in self.sent()], [Priority.BACKGROUND, Priority.BLOCKED]
        )
        self.deliver(0, 2 * PAGE)
        self.assert_ended(reading)
        self.assert_nothing_left()

    def test_given_up(self) -> None:
        """A read that is given up takes its request along; who waits for the same asks again."""
        first, second = self.read(0), self.read(0)
        self.sent()
        self.core.give_up(first, self.now)
        self.assertEqual(self.ranges(), [(0, PAGE)])
        self.deliver(0, PAGE)
        self.assert_ended(second)
        self.assertEqual(bytes(first.target), bytes(PAGE))
        self.assertEqual(self.figures(), (1, 1))
        self.assert_nothing_left()

    def test_wanted(self) -> None:
        """A transfer is wanted as long as its request lacks some of it."""
        self.read(0, 2 * PAGE)
        wanted = Sent(1, 7, 0, PAGE, PAGE, Occasion.NOW)
        self.assertTrue(self.core.is_wanted(wanted))
        self.deliver(PAGE, PAGE)
        self.assertFalse(self.core.is_wanted(wanted))
        self.assertTrue(self.core.is_wanted(Sent(1, 7, 0, 0, EXTENT, Occasion.NOW)))
        self.assertFalse(self.core.is_wanted(Sent(2, 7, 0, 0, EXTENT, Occasion.NOW)))

    def test_lag(self) -> None:
        """The longest wait is that of a read that has ended or still waits, and is told once."""
        self.read(0)
        self.pass_time(2.0)
        self.read(BLOCK)
        self.deliver(0, PAGE)
        self.now += 0.5
        self.assertEqual(self.core.take_lag(self.now), 2.0)
        self.assertEqual(self.core.take_lag(self.now), 0.5)


class AheadTests(CoreTestCase):
    """What is asked for beside what a read lacks."""

    def read_on(self, blocks: int) -> None:
        """Read from the start, and have come what each read lacks."""
        for number in range(blocks):
            reading = self.read(number * BLOCK, BLOCK)
            if reading.pages:
                self.deliver(number * BLOCK, BLOCK)
            self.assert_ended(reading)

    def test_sequence(self) -> None:
        """A sequence is read ahead of, once it is long, beside what the read itself lacks."""
        self.read_on(MIN_SEQUENTIAL_BYTES // BLOCK - 1)
        self.sent()
        reading = self.read(MIN_SEQUENTIAL_BYTES - BLOCK, BLOCK)
        self.assertEqual(
            [(each.offset, each.length, each.priority) for each in self.sent()],
            [
                (MIN_SEQUENTIAL_BYTES - BLOCK, BLOCK, Priority.BLOCKED),
                (MIN_SEQUENTIAL_BYTES, BLOCK, Priority.AHEAD),
            ],
        )
        self.deliver(MIN_SEQUENTIAL_BYTES - BLOCK, BLOCK)
        self.assert_ended(reading)

    def test_arrived_meanwhile(self) -> None:
        """A read in sequence whose bytes came before it did has as much read ahead."""
        self.read_on(MIN_SEQUENTIAL_BYTES // BLOCK - 1)
        self.deliver(MIN_SEQUENTIAL_BYTES - BLOCK, BLOCK)
        self.sent()
        self.assert_ended(self.read(MIN_SEQUENTIAL_BYTES - BLOCK, BLOCK))
        self.assertEqual(self.ranges(), [(MIN_SEQUENTIAL_BYTES, BLOCK)])

    def test_whole_block(self) -> None:
        """A read at random asks for its whole block as long as that may be fast."""
        self.core = self.make_core()
        first = self.read(BLOCK + PAGE)
        self.assertEqual(self.ranges(), [(BLOCK, BLOCK)])
        last = self.read(64 * BLOCK + 5, PAGE)
        self.assertEqual(self.ranges(), [(64 * BLOCK, 7)])
        self.deliver(BLOCK, BLOCK)
        self.deliver(64 * BLOCK, BLOCK)
        self.assert_ended(first, last)
        self.assert_nothing_left()

    def test_surroundings(self) -> None:
        """Where it is fast, read after read brings its block; later more than that."""
        self.core = self.make_core()
        lengths = []
        for number in range(WHOLE_BLOCK_WARMUP_READS + 1):
            offset = number * 37 % 63 * BLOCK + PAGE
            self.read(offset)
            self.deliver(offset - PAGE, BLOCK)
            lengths.append([length for _, length in self.ranges()])
        self.assertEqual(lengths[:-1], [[BLOCK]] * WHOLE_BLOCK_WARMUP_READS)
        self.assertGreater(len(lengths[-1]), 1)

    def test_gap(self) -> None:
        """Where it is not, a read brings its pages and a narrow gap to what is cached."""
        self.cache.store(self.image.key, BLOCK, CONTENT[:PAGE])
        self.read(BLOCK + 3 * PAGE)
        self.assertEqual(self.ranges(), [(BLOCK + 3 * PAGE, PAGE), (BLOCK + PAGE, 2 * PAGE)])

    def test_too_much_ahead(self) -> None:
        """Nothing is read ahead beyond what may be in flight; a read is asked for all the same."""
        self.image.attributes = make_attributes(4 * MAX_BYTES_IN_FLIGHT)
        self.core.prefetch(self.image, 0, MAX_BYTES_IN_FLIGHT)
        self.core.prefetch(self.image, MAX_BYTES_IN_FLIGHT, PAGE)
        self.assertEqual(self.ranges(), [(0, MAX_BYTES_IN_FLIGHT)])
        self.assertEqual(self.core.in_flight.pending, MAX_BYTES_IN_FLIGHT)
        self.read(MAX_BYTES_IN_FLIGHT)
        self.assertEqual(self.ranges(), [(MAX_BYTES_IN_FLIGHT, PAGE)])

    def test_window(self) -> None:
        """The window is half the receive buffer, within its limits, and never below a block."""
        for buffer, window in (
            (16 * EXTENT, MAX_WINDOW),
            (64 * EXTENT, MAX_WINDOW),
            (3 * BLOCK, 3 * BLOCK // 2),
            (PAGE, BLOCK),
        ):
            self.core.limit(buffer)
            self.assertEqual(self.core.window, window)
        self.core.prefetch(self.image, 0, 2 * BLOCK)
        self.core.prefetch(self.image, 2 * BLOCK, BLOCK)
        self.assertEqual(self.ranges(), [(0, 2 * BLOCK)])

    def test_small_buffer(self) -> None:
        """With a small receive buffer a large read is asked for in parts that it has room for."""
        self.core.limit(3 * BLOCK // 2)
        reading = self.read(0, 3 * BLOCK)
        self.assertEqual(self.ranges(), [(0, 3 * BLOCK // 2)])
        self.deliver(0, BLOCK)
        self.assertEqual(self.ranges(), [(3 * BLOCK // 2, BLOCK)])
        self.deliver(3 * BLOCK // 2, BLOCK)
        self.assertEqual(self.ranges(), [(5 * BLOCK // 2, BLOCK // 2)])
        self.deliver(5 * BLOCK // 2, BLOCK // 2)
        self.deliver(BLOCK, BLOCK)
        self.assert_ended(reading)
        self.assert_nothing_left()

    def test_many_large_reads(self) -> None:
        """Many large reads at a time ask for a block each once much is on its way, then go on."""
        self.image.attributes = make_attributes(2 * MAX_BYTES_IN_FLIGHT)
        self.core.prefetch(self.image, 0, MAX_BYTES_IN_FLIGHT)
        self.sent()
        offset = MAX_BYTES_IN_FLIGHT + EXTENT
        reading = self.read(offset, EXTENT)
        self.assertEqual(self.ranges(), [(offset, BLOCK)])
        self.core.in_flight.arrived(self.image.key, 0, (1 << EXTENT_PAGES) - 1)
        self.core._arrived(self.image.key, offset, bytes(BLOCK), self.now)
        self.assertEqual(self.ranges(), [(offset + BLOCK, EXTENT - BLOCK)])
        self.core._arrived(self.image.key, offset + BLOCK, bytes(EXTENT - BLOCK), self.now)
        self.assertEqual(reading.pages, {})

    def test_small_buffer_at_random(self) -> None:
        """With one, the blocks of a small read at random are asked for one after the other."""
        self.core = self.make_core()
        self.core.limit(BLOCK)
        offset = 5 * BLOCK - PAGE
        reading = self.read(offset, 2 * PAGE)
        self.assertEqual(self.ranges(), [(4 * BLOCK, BLOCK)])
        self.deliver(4 * BLOCK, BLOCK)
        self.assertEqual(self.ranges(), [(5 * BLOCK, PAGE)])
        self.deliver(5 * BLOCK, BLOCK)
        self.assert_ended(reading)
        self.assert_nothing_left()

    def test_holes_meanwhile(self) -> None:
        """A read asks for the rest of its pages although it is known by then that they are zero."""
        self.core.limit(BLOCK)
        reading = self.read(0, 3 * BLOCK)
        self.assertEqual(self.ranges(), [(0, BLOCK)])
        self.cache.zeros.add_holes(self.image.key, [(BLOCK, 4 * BLOCK)])
        self.deliver(0, BLOCK)
        self.assertEqual(self.ranges(), [(BLOCK, BLOCK)])
        self.deliver(BLOCK, 2 * BLOCK)
        self.assert_ended(reading)
        self.assert_nothing_left()

    def test_not_cached(self) -> None:
        """What is cached is not read ahead, and nothing of a stale or closed image is."""
        self.cache.store(self.image.key, 0, CONTENT[:BLOCK])
        self.core.prefetch(self.image, 0, 2 * BLOCK)
        self.assertEqual(self.ranges(), [(BLOCK, BLOCK)])
        self.image.stale = True
        self.core.prefetch(self.image, 4 * BLOCK, BLOCK)
        closed = self.make_image()
        closed.server_handle = None
        self.core.prefetch(closed, 4 * BLOCK, BLOCK)
        self.assertEqual(self.ranges(), [])

    def test_lacks(self) -> None:
        """A range is lacking if any page of it is, in whichever of its extents."""
        self.cache.store(self.image.key, EXTENT - BLOCK, CONTENT[:BLOCK])
        self.cache.store(self.image.key, EXTENT, CONTENT[:BLOCK])
        self.assertFalse(self.core.lacks(self.image, EXTENT - BLOCK, 2 * BLOCK))
        self.assertTrue(self.core.lacks(self.image, EXTENT - BLOCK - 1, 2 * BLOCK))
        self.assertTrue(self.core.lacks(self.image, EXTENT - BLOCK, 2 * BLOCK + 1))
        pages = (1 << EXTENT_PAGES) - 1
        missing = self.cache.missing_of_extent(self.image.key, 0, pages)
        self.assertEqual(missing, pages >> BLOCK // PAGE)


class AgainTests(CoreTestCase):
    """What is asked for once more."""

    def test_urgent(self) -> None:
        """A read that waits for read-ahead for too long has its pages sent before the rest."""
        self.core.prefetch(self.image, 0, 2 * BLOCK)
        self.sent()
        reading = self.read(BLOCK)
        self.assertEqual(self.sent(), [])
        self.assertEqual(self.core.due, URGENT_DELAY)
        self.pass_time(URGENT_DELAY / 2)
        self.assertEqual(self.sent(), [])
        self.pass_time(URGENT_DELAY / 2)
        (request,) = self.sent()
        self.assertEqual(
            (request.offset, request.length, request.priority, request.over_tcp),
            (BLOCK, PAGE, Priority.BLOCKED, False),
        )
        self.deliver(0, 2 * BLOCK)
        self.assert_ended(reading)
        self.assert_nothing_left()

    def test_over_tcp(self) -> None:
        """A read that waits three seconds longer is asked for over TCP, once."""
        reading = self.read(0)
        self.sent()
        self.pass_time(TCP_DELAY)
        self.assertEqual(self.sent(), [])
        self.pass_time(URGENT_DELAY)
        (request,) = self.sent()
        self.assertEqual((request.offset, request.length, request.over_tcp), (0, PAGE, True))
        self.pass_time(2 * TCP_DELAY)
        self.assertEqual(self.sent(), [])
        self.answer(0, PAGE)
        self.assert_ended(reading)
        self.assertEqual(self.core.bytes_over_tcp, PAGE)
        self.assert_nothing_left()

    def test_no_multicast(self) -> None:
        """While multicast does not work, requests ask for TCP at once."""
        self.health.unavailable("no group")
        self.read(0)
        self.assertEqual([each.over_tcp for each in self.sent()], [True])

    def test_expired(self) -> None:
        """
        An expired transfer is asked for again by what its request still lacks; over TCP if
        multicast does not work.
        """
        reading = self.read(0, 3 * PAGE)
        self.sent()
        self.deliver(0, PAGE)
        self.core.expired(1)
        self.core.expired(1)
        self.assertEqual(self.sent(), [Read(2, 5, PAGE, 2 * PAGE, Priority.BLOCKED, False)])
        self.health.unavailable("no group")
        self.core.expired(2)
        self.assertEqual(self.sent(), [Read(3, 5, PAGE, 2 * PAGE, Priority.BLOCKED, True)])
        self.answer(PAGE, 2 * PAGE)
        self.assert_ended(reading)
        self.assert_nothing_left()

    def test_lost(self) -> None:
        """What multicast cannot bring any more is asked for over TCP."""
        self.read(0)
        self.sent()
        self.core.lost(1)
        self.assertEqual(self.sent(), [Read(2, 5, 0, PAGE, Priority.BLOCKED, True)])

    def test_closed(self) -> None:
        """If the image that the request was made by is closed, another reader's is used."""
        other = self.make_image(6)
        self.core.prefetch(self.image, 0, 2 * PAGE)
        reading = self.read(0, PAGE, other)
        self.sent()
        self.image.server_handle = None
        self.core.expired(1)
        self.assertEqual([(each.handle, each.length) for each in self.sent()], [(6, PAGE)])
        self.deliver(0, PAGE)
        self.assert_ended(reading)

    def test_reconnect(self) -> None:
        """Reads wait for the next connection, where they are asked for by the new handle."""
        reads = [self.read(0), self.read(BLOCK)]
        self.sent()
        self.core.interrupted()
        self.image.server_handle = None
        reads.append(self.read(2 * BLOCK))
        self.pass_time(4.0)
        self.assertEqual(self.sent(), [])
        self.image.server_handle = 9
        self.core.resume(self.image, self.now)
        self.assertEqual(
            [(each.handle, each.offset) for each in self.sent()],
            [(9, 0), (9, BLOCK), (9, 2 * BLOCK)],
        )
        for number, each in enumerate(reads):
            self.deliver(number * BLOCK, BLOCK)
            self.assert_ended(each)
        self.assertEqual(self.figures(), (0, 3))
        self.assert_nothing_left()

    def test_reconnect_stale(self) -> None:
        """Reads of an image that has changed meanwhile fail then, and those of others do not."""
        other = self.make_image(6)
        reading = self.read(0)
        self.read(BLOCK, PAGE, other)
        self.core.interrupted()
        self.image.stale = True
        self.core.resume(self.image, self.now)
        self.assert_failed(errno.ESTALE, reading)
        error = self.assertRaises(OSError, self.read, 0)
        self.assertEqual(error.errno, errno.ESTALE)


class FailureTests(CoreTestCase):
    """Requests that the server cannot answer."""

    def test_alone(self) -> None:
        """
        A failed request is made again over TCP for each of its readers alone; by that, each fails
        by itself.
        """
        self.core.prefetch(self.image, 0, BLOCK)
        first, second = self.read(0), self.read(PAGE)
        self.sent()
        error = OSError(errno.EIO, "bad sector")
        self.assertIs(self.core.failed(1, error, self.now), self.image)
        requests = self.sent()
        self.assertEqual(
            [(each.offset, each.length, each.over_tcp) for each in requests],
            [(0, PAGE, True), (PAGE, PAGE, True)],
        )
        self.core.failed(requests[0].tag, error, self.now)
        self.assert_failed(errno.EIO, first)
        self.answer(PAGE, PAGE)
        self.assert_ended(second)
        self.assert_nothing_left()

    def test_stale(self) -> None:
        """ESTALE is final for all readers of that generation."""
        reads = self.read(0), self.read(0)
        self.core.failed(1, OSError(errno.ESTALE, "changed"), self.now)
        self.assert_failed(errno.ESTALE, *reads)
        self.assertTrue(self.image.stale)
        self.assert_nothing_left()

    def test_unknown(self) -> None:
        """The failure of a request that is no longer in flight concerns nobody."""
        self.read(0)
        self.assertIsNone(self.core.failed(77, OSError(errno.EIO, "bad sector"), self.now))
        self.assert_ended()
