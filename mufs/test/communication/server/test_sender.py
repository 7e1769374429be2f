"""Transfers on their way out: how they are sealed, cut into datagrams and paced."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.items import Entry
from mufs.cache.server.sent import SentTransfer
from mufs.communication.server.output import MAX_TRAIN
from mufs.communication.server.pacing import Pace
from mufs.communication.server.sender import Sender, seal_transfer, trains
from mufs.test.support.doubles import ImageInMemory, RecordingOutput, make_sent
from mufs.test.support.properties import examples, packets_of
from mufs.wire.packing import Encoding
from mufs.wire.pages import BLOCK, PAGE
from mufs.wire.sealing import Keys, unseal
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    HEADER,
    REPAIRED,
    SEGMENT,
    Descriptor,
    cut,
    parse,
)

CONTENT = b"".join(b"%07d\n" % number for number in range((2 * BLOCK + PAGE) // 8))
STRIDE = HEADER.size + SEGMENT


class TrainTests(SynchronousTestCase):
    """Segments, back to back in trains."""

    @examples(100)
    @given(st.integers(1, 30_000), st.data(), st.integers(1, 50))
    def test_any_segments(self, total: int, data: st.DataObject, most: int) -> None:
        """Exactly the chosen segments are in the trains, in order, at most so many in each."""
        transfer = make_sent(1, ImageInMemory(CONTENT), 0, total, first=0xFFFFFFF0, segment=100)
        count = transfer.count
        segments = data.draw(st.integers(1, (1 << count) - 1))
        found = packets_of(trains(transfer, segments, most))
        packets = packets_of(cut(0xFFFFFFF0, CONTENT[:total], 100))
        chosen = [packet for i, packet in enumerate(packets) if segments >> i & 1]
        self.assertEqual(b"".join(found), b"".join(chosen))
        for train in found[:-1]:
            self.assertEqual(len(train), most * (HEADER.size + 100))
        self.assertLessEqual(len(found[-1]), most * (HEADER.size + 100))


class SealTests(SynchronousTestCase):
    """Transfers made from bytes of an image."""

    def test_seal(self) -> None:
        """A transfer is sealed with the key of its generation; the descriptor has its tag."""
        keys = Keys(bytes(32))
        descriptor = Descriptor(1, 2, 5, 6, 0, PAGE)
        transfer = seal_transfer(keys, descriptor, CONTENT[:PAGE], segment=SEGMENT)
        d = transfer.descriptor
        sealed = bytes(transfer.sealed) + d.tag
        self.assertEqual(unseal(keys.cipher(5, 6), d, sealed), CONTENT[:PAGE])


class SenderTests(SynchronousTestCase):
    """A sender with a group that records what it receives."""

    def setUp(self) -> None:
        """Create a sender that is hardly held back."""
        self.clock = Clock()
        self.image = ImageInMemory(CONTENT)
        self.start(1e12)

    def start(self, rate: float) -> None:
        """Create a sender with a rate in bits per second."""
        pace = Pace(self.clock, floor=rate, ceiling=rate, start=rate)
        self.sender = Sender(Keys(bytes(32)), pace, self.clock, segment=SEGMENT)
        self.output = self.sender.output = RecordingOutput()

    def seal(self, block: int, pages: int) -> SentTransfer:
        """Make a transfer of the first pages of a block."""
        entry = Entry(self.image, 0, 32 * block, pages, None)
        return self.sender.seal(entry, (Encoding.PLAIN, self.image.read(*entry.byte_range)))

    def write(
        self, transfer: SentTransfer, segments: int | None = None, parity: int = 0
    ) -> "Deferred[None]":
        """Write a transfer, by default all of it."""
        if segments is None:
            segments = (1 << transfer.count) - 1
        writing = ensureDeferred(self.sender.write(transfer, segments, parity))
        self.clock.pump([0.001] * 3)
        return writing

    def sent(self) -> tuple[list[int], list[int]]:
        """The phases of the control packets, and the numbers of the segments that were sent."""
        phases: list[int] = []
        numbers: list[int] = []
        for packet in parse(b"".join(self.output.written)):
            if len(packet) == 2:
                phases.append(packet[0])
            else:
                first, _, rows = packet
                numbers += range(first, first + len(rows))
        return phases, numbers

    def test_numbers(self) -> None:
        """Transfers and segments are numbered on; parity has numbers of its own."""
        found = [self.seal(block, 32).descriptor for block in (0, 1)]
        self.assertEqual([each.transfer for each in found], [1, 2])
        self.assertEqual(found[0].first, 0)
        self.assertGreater(found[1].first, 94)

    def test_end_of_image(self) -> None:
        """The last block of an image is as long as the rest of it."""
        self.image = ImageInMemory(CONTENT[: BLOCK + 100])
        descriptor = self.seal(1, 32).descriptor
        self.assertEqual((descriptor.offset, descriptor.total), (BLOCK, 100))

    def test_datagrams(self) -> None:
        """The completion shares the datagram of the last segment if it fits into it."""
        for pages, alone in (1, False), (14, True), (32, False):
            self.output.written.clear()
            self.successResultOf(self.write(self.seal(0, pages)))
            datagrams = [
                train[at : at + STRIDE]
                for train in self.output.written
                for at in range(0, len(train), STRIDE)
            ]
            announcement, *_, last = [list(parse(datagram)) for datagram in datagrams]
            self.assertEqual([packet[0] for packet in announcement], [ANNOUNCEMENT])
            self.assertEqual(len(last), 1 if alone else 2)
            self.assertEqual(last[-1][0], COMPLETION)

    def test_runs(self) -> None:
        """Several trains are written together only where the rate makes that a moment."""
        train = MAX_TRAIN * STRIDE
        for rate, together in (1e12, True), (1e8, False):
            self.start(rate)
            writing = self.write(self.seal(0, 32))
            while not writing.called:
                self.clock.advance(0.001)
            self.assertEqual(max(map(len, self.output.written)) > train, together)
            self.assertEqual(self.sent(), ([ANNOUNCEMENT, COMPLETION], list(range(94))))

    def test_part(self) -> None:
        """Some segments of a transfer end with a completion that says so."""
        self.successResultOf(self.write(self.seal(0, 32), 1 << 3 | 1 << 93))
        self.assertEqual(self.sent(), ([ANNOUNCEMENT, REPAIRED], [3, 93]))

    def test_parity(self) -> None:
        """Parity follows the segments, and is never sent twice."""
        transfer = self.seal(0, 1)
        self.successResultOf(self.write(transfer, parity=2))
        self.successResultOf(self.write(transfer, 0, parity=1))
        self.assertEqual(
            self.sent(),
            ([ANNOUNCEMENT, COMPLETION, ANNOUNCEMENT, REPAIRED], [0, 1, 2, 3, 4, 5]),
        )

    def test_full(self) -> None:
        """While the send buffer is full, writing waits; the rest follows in order."""
        self.output.room = 0
        writing = self.write(self.seal(0, 32))
        while not writing.called:
            self.assertEqual(self.output.room, 0)
            self.output.drain(5000)
            self.clock.advance(0.001)
        self.assertEqual(self.sent(), ([ANNOUNCEMENT, COMPLETION], list(range(94))))
        self.assertEqual(self.sender.bytes_multicast, sum(map(len, self.output.written)))

    def test_paced(self) -> None:
        """Writing takes as long as the rate implies."""
        self.start(1e6)
        writing = self.write(self.seal(0, 32))
        while not writing.called:
            self.clock.advance(0.01)
        expected = self.sender.bytes_multicast * 8 / 1e6
        self.assertLess(abs(self.clock.seconds() - expected), 0.6)

    def test_no_output(self) -> None:
        """Without a group to send to, writing ends all the same."""
        self.sender.output = None
        self.successResultOf(self.write(self.seal(0, 32)))
        self.assertEqual(self.output.written, [])
