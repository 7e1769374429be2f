"""What a read that the cache cannot answer asks for, and what answers it."""

import errno
from itertools import count

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.filesystem.client.coalescer import (
    MAX_BYTES_IN_FLIGHT,
    TCP_DELAY,
    URGENT_DELAY,
    ReadCoalescer,
)
from mufs.filesystem.client.deliveries import Deliveries
from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.in_flight import IFiller
from mufs.filesystem.client.readahead import ReadAheadWindow, SequenceDetector
from mufs.test.support.doubles import make_attributes
from mufs.wire.channel import Data, Framer, Occasion, Priority, ProtocolError, Read, Sent, Type
from mufs.wire.pages import BLOCK, PAGE
from mufs.wire.segments import Descriptor

CONTENT = bytes(range(256)) * (64 * BLOCK // 256) + b"the end"


@implementer(IFiller)
class Filler:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def received(self, block: int, length: int) -> None:
        """See L{IFiller.received}."""
        self.events.append((block, length))

    def failed(self, error: OSError) -> None:
        """See L{IFiller.failed}."""
        self.events.append(error.errno)

    def resumed(self) -> None:
        """See L{IFiller.resumed}."""
        self.events.append("resumed")


class CoalescerTestCase(SynchronousTestCase):
    """A coalescer by itself: its packets are kept, and the test answers them."""

    def setUp(self) -> None:
        """Open an image, with a connection."""
        self.clock = Clock()
        self.cache = BlockCache(128 * BLOCK)
        self.health = MulticastHealth(self.clock)
        self.window = ReadAheadWindow(self.clock, 64 * BLOCK)
        self.packets: list[bytes] = []
        self.deliveries = Deliveries()
        self.coalescer = ReadCoalescer(
            self.cache,
            self.health,
            self.window,
            self.deliveries,
            clock=self.clock,
            send=self.packets.append,
            new_tag=count(1).__next__,
        )
        self.image = self.make_image()

    def make_image(self, handle: int = 5) -> OpenImage:
        """Open the image once more."""
        detector = SequenceDetector(len(CONTENT), self.window)
        return OpenImage(b"image", (1, 1), make_attributes(len(CONTENT)), detector, handle)

    def read(
        self, offset: int, length: int = PAGE, image: OpenImage | None = None
    ) -> "tuple[Deferred[int], bytearray]":
        """Begin a read; what it ends with, and the bytes that it fills."""
        target = bytearray(length)
        done = self.coalescer.read(image or self.image, offset, memoryview(target))
        return done, target

    def sent(self) -> list[Read]:
        """The READs sent since the last call."""
        packets = [each for packet in self.packets for each in Framer().feed(packet)]
        self.packets.clear()
        self.assertEqual({kind for kind, _, _ in packets} - {Type.READ}, set())
        return [Read.parse(offset, body) for _, offset, body in packets]

    def deliver(self, offset: int, length: int) -> None:
        """Have a transfer of the group come."""
        content = CONTENT[offset : offset + length]
        self.coalescer.delivered(Descriptor(1, 0, 1, 1, offset, len(content)), content)

    def answer(self, offset: int, length: int) -> None:
        """Have bytes come over TCP."""
        self.coalescer.data(Data(1, 1, offset, CONTENT[offset : offset + length]))

    def assert_read(self, reading: "tuple[Deferred[int], bytearray]", offset: int) -> None:
        """A read ended with all of its bytes."""
        done, target = reading
        self.assertEqual(self.successResultOf(done), len(target))
        self.assertEqual(target, CONTENT[offset : offset + len(target)])

    def assert_nothing_left(self) -> None:
        """No request, read or timer is left."""
        table = self.coalescer.in_flight
        self.assertEqual((table.requests, table.requested, table.waiting), ({}, {}, {}))
        self.clock.advance(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def figures(self) -> tuple[int, int]:
        """Reads that joined others, and misses, that have ended."""
        return self.deliveries.joined.total, self.deliveries.misses.total


class ReadTests(CoalescerTestCase):
    """Reads that are answered."""

    def test_miss(self) -> None:
        """What is missing is asked for by multicast, at the priority of who waits for it."""
        reading = self.read(BLOCK + PAGE, 2 * PAGE)
        self.assertEqual(self.sent(), [Read(1, 5, BLOCK + PAGE, 2 * PAGE, Priority.BLOCKED, False)])
        self.assertNoResult(reading[0])
        self.deliver(BLOCK + PAGE, 2 * PAGE)
        self.assert_read(reading, BLOCK + PAGE)
        self.assertEqual(self.figures(), (0, 1))
        self.assertEqual(self.coalescer.bytes_requested, 2 * PAGE)

    def test_across_blocks(self) -> None:
        """A transfer of several blocks answers what each of them is waited for."""
        readings = [(self.read(offset, BLOCK), offset) for offset in (PAGE, 2 * BLOCK)]
        self.deliver(0, 4 * BLOCK)
        for reading, offset in readings:
            self.assert_read(reading, offset)
        self.assertEqual(self.cache.held, 4 * BLOCK)
        self.assertEqual(self.coalescer.bytes_overheard, BLOCK)
        self.assert_nothing_left()

    def test_joined(self) -> None:
        """What is on its way already is waited for, and not asked for again."""
        first, second = self.read(0, 2 * PAGE), self.read(PAGE, PAGE)
        self.assertEqual(len(self.sent()), 1)
        self.deliver(PAGE, PAGE)
        self.assert_read(second, PAGE)
        self.assertNoResult(first[0])
        self.deliver(0, PAGE)
        self.assert_read(first, 0)
        self.assertEqual(self.figures(), (1, 1))
        self.assert_nothing_left()

    def test_partly(self) -> None:
        """Only the pages that are neither cached nor on their way are asked for."""
        self.cache.store(self.image.key, 0, CONTENT[:PAGE])
        self.read(PAGE, PAGE)
        self.sent()
        reading = self.read(0, 4 * PAGE)
        ranges = [(each.offset, each.length) for each in self.sent()]
        self.assertEqual(ranges, [(2 * PAGE, 2 * PAGE)])
        self.deliver(PAGE, 3 * PAGE)
        self.assert_read(reading, 0)
        self.assertEqual(self.figures(), (0, 2))

    def test_two_blocks(self) -> None:
        """A read over two blocks is one READ, and ends with the last of its pages."""
        reading = self.read(BLOCK - PAGE, 2 * PAGE)
        (request,) = self.sent()
        self.assertEqual((request.offset, request.length), (BLOCK - PAGE, 2 * PAGE))
        self.deliver(BLOCK, BLOCK)
        self.assertNoResult(reading[0])
        self.deliver(0, BLOCK)
        self.assert_read(reading, BLOCK - PAGE)
        self.assert_nothing_left()

    def test_end(self) -> None:
        """A read ends with the image, and one beyond that is empty."""
        reading, beyond = self.read(64 * BLOCK, PAGE), self.read(65 * BLOCK, PAGE)
        self.assertEqual(self.successResultOf(beyond[0]), 0)
        (request,) = self.sent()
        self.assertEqual(request.length, 7)
        self.answer(64 * BLOCK, PAGE)
        self.assertEqual(self.successResultOf(reading[0]), 7)
        self.assertEqual(reading[1][:7], b"the end")

    def test_overheard(self) -> None:
        """What nobody asked for is kept, and counted; it answers the next read."""
        self.deliver(0, BLOCK)
        self.assertEqual(self.coalescer.bytes_overheard, BLOCK)
        self.assert_read(self.read(PAGE), PAGE)
        self.assertEqual(self.sent(), [])

    def test_part_of_a_page(self) -> None:
        """Bytes over TCP that end within a page are an error of the server."""
        self.read(0)
        data = Data(1, 1, 0, CONTENT[: PAGE - 1])
        self.assertRaises(ProtocolError, self.coalescer.data, data)

    def test_too_much_ahead(self) -> None:
        """Nothing is read ahead beyond what may be in flight; a read is asked for all the same."""
        self.coalescer.prefetch(self.image, 0, 60 * BLOCK)
        self.coalescer.prefetch(self.image, 60 * BLOCK, MAX_BYTES_IN_FLIGHT - 59 * BLOCK)
        self.assertEqual([each.length for each in self.sent()], [60 * BLOCK])
        self.assertEqual(self.coalescer.pending, 60 * BLOCK)
        self.read(63 * BLOCK)
        self.assertEqual(len(self.sent()), 1)

    def test_background(self) -> None:
        """A read does not wait for what was only requested in the background."""
        self.coalescer.fill(self.image, {0: 0b11})
        reading = self.read(0)
        self.assertEqual(
            [each.priority for each in self.sent()], [Priority.BACKGROUND, Priority.BLOCKED]
        )
        self.deliver(0, 2 * PAGE)
        self.assert_read(reading, 0)
        self.assert_nothing_left()

    def test_cancelled(self) -> None:
        """A read that is given up takes its request along; who waits for the same asks again."""
        first, second = self.read(0), self.read(0)
        self.sent()
        first[0].cancel()
        self.failureResultOf(first[0], CancelledError)
        self.assertEqual([each.offset for each in self.sent()], [0])
        self.deliver(0, PAGE)
        self.assert_read(second, 0)
        self.assertEqual(first[1], bytes(PAGE))
        self.assert_nothing_left()

    def test_wanted(self) -> None:
        """A transfer is wanted as long as its request lacks some of it."""
        self.read(0, 2 * PAGE)
        wanted = Sent(1, 7, 0, PAGE, PAGE, Occasion.NOW)
        self.assertTrue(self.coalescer.is_wanted(wanted))
        self.deliver(PAGE, PAGE)
        self.assertFalse(self.coalescer.is_wanted(wanted))
        self.assertTrue(self.coalescer.is_wanted(Sent(1, 7, 0, 0, BLOCK, Occasion.NOW)))
        self.assertFalse(self.coalescer.is_wanted(Sent(2, 7, 0, 0, BLOCK, Occasion.NOW)))


class AgainTests(CoalescerTestCase):
    """What is asked for once more."""

    def test_urgent(self) -> None:
        """A read that waits for read-ahead for too long has its pages sent before the rest."""
        self.coalescer.prefetch(self.image, 0, 2 * BLOCK)
        self.sent()
        reading = self.read(BLOCK)
        self.assertEqual(self.sent(), [])
        self.clock.pump([URGENT_DELAY / 4] * 3)
        self.assertEqual(self.sent(), [])
        self.clock.pump([URGENT_DELAY / 4] * 3)
        (request,) = self.sent()
        self.assertEqual(
            (request.offset, request.length, request.priority, request.over_tcp),
            (BLOCK, PAGE, Priority.BLOCKED, False),
        )
        self.deliver(0, BLOCK)
        self.deliver(BLOCK, BLOCK)
        self.assert_read(reading, BLOCK)
        self.assert_nothing_left()

    def test_over_tcp(self) -> None:
        """A read that waits three seconds longer is asked for over TCP, once."""
        reading = self.read(0)
        self.sent()
        self.clock.pump([0.05] * round(TCP_DELAY / 0.05))
        self.assertEqual(self.sent(), [])
        self.clock.pump([0.05] * 4)
        (request,) = self.sent()
        self.assertEqual((request.offset, request.length, request.over_tcp), (0, PAGE, True))
        self.clock.pump([0.05] * round(2 * TCP_DELAY / 0.05))
        self.assertEqual(self.sent(), [])
        self.answer(0, PAGE)
        self.assert_read(reading, 0)
        self.assertEqual(self.coalescer.bytes_over_tcp, PAGE)
        self.assert_nothing_left()

    def test_no_multicast(self) -> None:
        """While multicast does not work, requests ask for TCP at once."""
        self.health.unavailable("no group")
        self.read(0)
        self.assertEqual([each.over_tcp for each in self.sent()], [True])

    def test_retry(self) -> None:
        """An expired transfer is asked for again by what its request still lacks."""
        reading = self.read(0, 2 * PAGE)
        self.sent()
        self.deliver(0, PAGE)
        self.coalescer.retry(1, over_tcp=True)
        self.coalescer.retry(1, over_tcp=True)
        self.assertEqual(self.sent(), [Read(2, 5, PAGE, PAGE, Priority.BLOCKED, True)])
        self.answer(PAGE, PAGE)
        self.assert_read(reading, 0)
        self.assert_nothing_left()

    def test_retry_closed(self) -> None:
        """If the image that the request was made by is closed, another reader's is used."""
        other = self.make_image(6)
        self.coalescer.prefetch(self.image, 0, 2 * PAGE)
        reading = self.read(0, PAGE, other)
        self.sent()
        self.image.server_handle = None
        self.coalescer.retry(1, over_tcp=False)
        self.assertEqual([(each.handle, each.length) for each in self.sent()], [(6, PAGE)])
        self.deliver(0, PAGE)
        self.assert_read(reading, 0)

    def test_reconnect(self) -> None:
        """Reads wait for the next connection, where they are asked for by the new handle."""
        reading, cut = self.read(0), self.read(BLOCK)
        self.sent()
        self.coalescer.interrupted()
        self.image.server_handle = None
        late = self.read(2 * BLOCK)
        self.clock.pump([0.05] * 80)
        self.assertEqual(self.sent(), [])
        self.image.server_handle = 9
        self.coalescer.resume(self.image)
        self.assertEqual(
            [(each.handle, each.offset) for each in self.sent()],
            [(9, 0), (9, BLOCK), (9, 2 * BLOCK)],
        )
        for number, each in enumerate((reading, cut, late)):
            self.deliver(number * BLOCK, BLOCK)
            self.assert_read(each, number * BLOCK)
        self.assertEqual(self.figures(), (0, 3))
        self.assert_nothing_left()

    def test_reconnect_stale(self) -> None:
        """Reads of an image that has changed meanwhile fail then, and those of others do not."""
        other = self.make_image(6)
        reading, kept = self.read(0), self.read(BLOCK, PAGE, other)
        self.coalescer.interrupted()
        self.image.stale = True
        self.coalescer.resume(self.image)
        error = self.failureResultOf(reading[0], OSError).value
        self.assertEqual(error.errno, errno.ESTALE)
        self.assertNoResult(kept[0])


class FailureTests(CoalescerTestCase):
    """Requests that the server cannot answer."""

    def test_alone(self) -> None:
        """
        A failed request is made again over TCP for each of its readers alone; by that, each fails
        by itself.
        """
        self.coalescer.prefetch(self.image, 0, BLOCK)
        first, second = self.read(0), self.read(PAGE)
        self.sent()
        self.coalescer.failed(1, OSError(errno.EIO, "bad sector"))
        requests = self.sent()
        self.assertEqual(
            [(each.offset, each.length, each.over_tcp) for each in requests],
            [(0, PAGE, True), (PAGE, PAGE, True)],
        )
        self.coalescer.failed(requests[0].tag, OSError(errno.EIO, "bad sector"))
        error = self.failureResultOf(first[0], OSError).value
        self.assertEqual(error.errno, errno.EIO)
        self.assertNoResult(second[0])
        self.answer(PAGE, PAGE)
        self.assert_read(second, PAGE)
        self.assert_nothing_left()

    def test_stale(self) -> None:
        """ESTALE is final for all readers of that generation."""
        first, second = self.read(0), self.read(0)
        self.coalescer.failed(1, OSError(errno.ESTALE, "changed"))
        for done, _ in (first, second):
            error = self.failureResultOf(done, OSError).value
            self.assertEqual(error.errno, errno.ESTALE)
        self.assertTrue(self.image.stale)
        self.assert_nothing_left()

    def test_unknown(self) -> None:
        """The failure of a request that is no longer in flight concerns nobody."""
        reading = self.read(0)
        self.coalescer.failed(77, OSError(errno.EIO, "bad sector"))
        self.assertNoResult(reading[0])

    def test_filler(self) -> None:
        """A filler learns what comes of its image, and of failures and new connections."""
        filler = Filler()
        self.coalescer.fillers[self.image] = filler
        self.coalescer.fill(self.image, {0: 0b1, 1: 0b1})
        tags = [each.tag for each in self.sent()]
        self.deliver(0, PAGE)
        self.coalescer.delivered(Descriptor(1, 0, 2, 1, 0, PAGE), bytes(PAGE))
        self.coalescer.failed(tags[1], OSError(errno.EIO, "bad sector"))
        self.coalescer.resume(self.image)
        self.assertEqual(filler.events, [(0, PAGE), errno.EIO, "resumed"])
