"""The reader, which carries out in the reactor what the core says."""

import errno
from collections.abc import Callable
from itertools import count

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.reading.core import ReadCore
from mufs.filesystem.client.reading.overdue import TCP_DELAY, URGENT_DELAY
from mufs.filesystem.client.reading.reader import IFiller, Reader
from mufs.filesystem.client.reading.sequences import MIN_SEQUENTIAL_BYTES, SequenceDetector
from mufs.test.support.doubles import make_attributes
from mufs.wire.channel import Data, Framer, Read
from mufs.wire.pages import BLOCK, EXTENT, PAGE
from mufs.wire.segments import Descriptor

CONTENT = bytes(range(256)) * (16 * EXTENT // 256)


@implementer(IFiller)
class Filler:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def received(self, extent: int, length: int) -> None:
        """See L{IFiller.received}."""
        self.events.append((extent, length))

    def failed(self, error: OSError) -> None:
        """See L{IFiller.failed}."""
        self.events.append(error.errno)

    def resumed(self) -> None:
        """See L{IFiller.resumed}."""
        self.events.append("resumed")


class ReaderTests(SynchronousTestCase):
    """A reader whose packets are kept, and answered by the test."""

    def setUp(self) -> None:
        """Open an image, with a connection."""
        self.clock = Clock()
        self.cache = BlockCache(16 * EXTENT)
        self.packets: list[bytes] = []
        health = MulticastHealth(self.clock)
        self.core = ReadCore(self.cache, health, 8 * EXTENT, new_tag=count(1).__next__)
        self.reader = Reader(self.core, self.cache, self.clock, send=self.packets.append)
        detector = SequenceDetector(len(CONTENT))
        self.image = OpenImage(b"image", (1, 1), make_attributes(len(CONTENT)), detector, 5)
        self.crossed: list[tuple[object, ...]] = []

    def read(self, offset: int, length: int = PAGE) -> "tuple[Deferred[int], bytearray]":
        """Begin a read; what it ends with, and the bytes that it fills."""
        target = bytearray(length)
        return self.reader.read(self.image, offset, memoryview(target)), target

    def read_cached(self, offset: int, length: int = PAGE) -> bytes | None:
        """Read from the cache."""
        target = bytearray(length)
        read = self.reader.read_cached

        def cross(function: Callable[..., None], *args: object) -> None:
            self.assertEqual(function, self.reader.prefetch)
            self.crossed.append(args[1:])

        found = read(self.image, offset, memoryview(target), cross=cross)
        return None if found is None else bytes(target[:found])

    def deliver(self, offset: int, length: int) -> None:
        """Have a transfer of the group come."""
        content = CONTENT[offset : offset + length]
        self.reader.delivered(Descriptor(1, 0, 1, 1, offset, len(content)), content)

    def sent(self) -> list[Read]:
        """The READs sent since the last call."""
        packets = [each for packet in self.packets for each in Framer().feed(packet)]
        self.packets.clear()
        return [Read.parse(offset, body) for _, offset, body in packets]

    def test_miss(self) -> None:
        """A read has a result when its bytes have come, and no timer is left then."""
        done, target = self.read(PAGE)
        self.assertNoResult(done)
        self.assertEqual(len(self.sent()), 1)
        self.deliver(0, EXTENT)
        self.assertEqual(self.successResultOf(done), PAGE)
        self.assertEqual(target, CONTENT[PAGE : 2 * PAGE])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_write(self) -> None:
        """What one call asks for is written in one piece."""
        for number in range(MIN_SEQUENTIAL_BYTES // BLOCK):
            self.read(number * BLOCK, BLOCK)
        self.assertEqual(len(self.packets), MIN_SEQUENTIAL_BYTES // BLOCK)
        self.assertEqual(len(self.sent()), MIN_SEQUENTIAL_BYTES // BLOCK + 1)

    def test_failure(self) -> None:
        """One that fails fails with the error; a stale image fails at once."""
        done, _ = self.read(0)
        (request,) = self.sent()
        self.reader.failed(request.tag, OSError(errno.ESTALE, "changed"))
        error = self.failureResultOf(done, OSError).value
        self.assertEqual(error.errno, errno.ESTALE)
        self.assertRaises(OSError, self.read, 0)
        self.assertRaises(OSError, self.read_cached, 0)

    def test_cancelled(self) -> None:
        """A read that is cancelled is no longer waited for."""
        done, target = self.read(0)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.deliver(0, EXTENT)
        self.assertEqual(target, bytes(PAGE))
        self.assertEqual(self.core.in_flight.waiting, {})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled_by_other(self) -> None:
        """One that is cancelled by what another one calls back ends as cancelled."""
        first, second = self.read(0)[0], self.read(PAGE)[0]
        first.addCallback(lambda _: second.cancel())
        self.deliver(0, EXTENT)
        self.successResultOf(first)
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.core.deliveries.reads_and_hits, (2, 0))

    def test_overdue(self) -> None:
        """One timer hurries each read in its time."""
        self.read(0)
        self.clock.advance(0.05)
        self.read(64 * BLOCK)
        self.sent()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.pump([0.05] * round((TCP_DELAY + 2 * URGENT_DELAY) / 0.05))
        self.assertEqual([each.offset for each in self.sent()], [0, 64 * BLOCK])
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_overdue_earlier(self) -> None:
        """A new read that is overdue before one that waits already has the timer set earlier."""
        self.read(0)
        self.clock.advance(2 * URGENT_DELAY)
        self.reader.prefetch(self.image, 64 * BLOCK, BLOCK)
        self.read(64 * BLOCK)
        self.sent()
        self.clock.advance(URGENT_DELAY)
        self.assertEqual([each.offset for each in self.sent()], [64 * BLOCK])

    def test_hit(self) -> None:
        """What is cached is read in any thread, up to the end of the image, and counted."""
        self.assertIsNone(self.read_cached(0))
        self.assertTrue(self.image.was_read)
        end = len(CONTENT) - PAGE
        self.deliver(end, PAGE)
        self.assertEqual(self.read_cached(end, 2 * PAGE), CONTENT[end:])
        self.assertEqual(self.read_cached(end + 2 * PAGE), b"")
        self.assertEqual(self.core.deliveries.reads_and_hits, (2, 2))
        self.assertEqual((self.packets, self.crossed), ([], []))

    def test_hits_in_sequence(self) -> None:
        """Hits cross into the reactor only to have something read ahead that is not cached."""
        self.deliver(0, EXTENT)
        for offset in range(0, EXTENT, BLOCK):
            self.read_cached(offset, BLOCK)
        self.assertEqual(self.crossed, [(EXTENT, BLOCK), (EXTENT + BLOCK, BLOCK)])

    def test_filler(self) -> None:
        """A filler learns what comes of its image, and of failures and new connections."""
        filler = Filler()
        self.reader.fillers[self.image] = filler
        self.reader.fill(self.image, {0: 0b1})
        self.reader.fill(self.image, {1: 0b1})
        self.sent()
        self.deliver(0, PAGE)
        self.reader.data(Data(1, 1, 2 * EXTENT, CONTENT[:PAGE]))
        self.reader.data(Data(1, 1, EXTENT, CONTENT[:PAGE]))
        self.reader.delivered(Descriptor(1, 0, 2, 1, 0, PAGE), bytes(PAGE))
        self.assertEqual(filler.events, [(0, PAGE), (1, PAGE)])
        self.reader.fill(self.image, {3: 0b1})
        (request,) = self.sent()
        self.reader.failed(request.tag, OSError(errno.EIO, "bad sector"))
        self.reader.resume(self.image)
        self.assertEqual(filler.events[2:], [errno.EIO, "resumed"])
