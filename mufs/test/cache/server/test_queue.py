"""The multicast queue: one transfer for what several clients miss."""

import itertools
from functools import reduce
from operator import or_
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.items import SCAVENGER, Entry, Resend
from mufs.cache.server.queue import MulticastQueue
from mufs.cache.server.sent import (
    INITIAL_REPAIR_CREDIT,
    MAX_BYTES_AWAITED,
    SentTransfer,
    SentWindow,
)
from mufs.test.support.doubles import ImageInMemory, RecordingReader, make_sent
from mufs.test.support.properties import examples
from mufs.wire.channel import Occasion, Priority, Read
from mufs.wire.pages import (
    BLOCK,
    BLOCK_PAGES,
    EXTENT,
    EXTENT_PAGES,
    PAGE,
    split_into_extents,
)
from mufs.wire.parity import MAX_PARITY

BLOCKED, AHEAD, BACKGROUND = Priority


def waiting(item: Entry | Resend) -> list[tuple[object, list[int]]]:
    """The readers that wait for an item, each with the tags of its requests."""
    return [(reader, list(tags)) for reader, tags in item.readers.items()]


class QueueTestCase(SynchronousTestCase):
    """Has a queue, an image and some clients."""

    def setUp(self) -> None:
        """Begin with nothing queued and nothing sent."""
        self.window = SentWindow()
        self.queue = MulticastQueue(self.window)
        self.image = ImageInMemory(bytes(4 * EXTENT))
        self.a, self.b, self.c = (RecordingReader(name) for name in "abc")
        self.transfers = 0

    def ask(
        self,
        reader: RecordingReader,
        tag: int,
        offset: int,
        length: int = PAGE,
        priority: Priority = BLOCKED,
    ) -> None:
        """A client asks for a range of the image."""
        self.queue.request(reader, self.image, Read(tag, 1, offset, length, priority))

    def send(self, item: Entry | Resend | None) -> SentTransfer:
        """Do what the controller does with an entry."""
        assert isinstance(item, Entry)
        self.transfers += 1
        transfer = make_sent(self.transfers, item.image, *item.byte_range)
        self.window.add(transfer)
        self.queue.done(item)
        for reader, tags in item.readers.items():
            for tag in tags:
                reader.sent(tag, transfer, Occasion.NOW)
        return transfer

    def take_all(self) -> list[str]:
        """The readers and tags that wait for each entry, in the order of sending."""
        taken = []
        while (item := self.queue.take()) is not None:
            tags = [
                f"{reader.name}{tag}"
                for reader, tags in item.readers.items()
                if isinstance(reader, RecordingReader)
                for tag in tags
            ]
            taken.append(" ".join(tags))
        return taken


class MergingTests(QueueTestCase):
    """Ranges that are requested more than once."""

    def test_lockstep(self) -> None:
        """Many clients that request the same range cause one entry, and each is notified."""
        readers = [RecordingReader() for _ in range(100)]
        for tag, reader in enumerate(readers):
            self.ask(reader, tag, 0, BLOCK)
        self.assertEqual((self.queue.requests, self.queue.merged), (100, 99))
        transfer = self.send(self.queue.take())
        self.assertIsNone(self.queue.take())
        self.assertEqual(
            [reader.told for reader in readers],
            [[(tag, transfer, Occasion.NOW)] for tag in range(100)],
        )

    def test_in_flight(self) -> None:
        """An entry that was taken can still be joined, until it is done."""
        self.ask(self.a, 1, 0)
        entry = self.queue.take()
        self.ask(self.b, 2, 0)
        self.assertIsNone(self.queue.take())
        transfer = self.send(entry)
        self.assertEqual(self.b.told, [(2, transfer, Occasion.NOW)])

    def test_raised_in_flight(self) -> None:
        """Who is blocked makes an entry that was taken more urgent, unless he is greedy."""
        self.ask(self.a, 1, 0, priority=AHEAD)
        entry = self.queue.take()
        assert entry is not None
        self.b.share.waiting = MAX_BYTES_AWAITED
        self.ask(self.b, 1, 0)
        self.assertEqual(entry.service_class, AHEAD)
        self.ask(self.a, 2, 0)
        self.assertEqual(entry.service_class, BLOCKED)
        self.ask(self.c, 1, 0, priority=BACKGROUND)
        self.assertEqual(entry.service_class, BLOCKED)

    def test_only_the_rest(self) -> None:
        """A range that overlaps queued entries adds only the remaining pages."""
        self.ask(self.a, 1, 2 * PAGE, 2 * PAGE)
        self.ask(self.b, 2, 0, 6 * PAGE)
        self.ask(self.c, 3, 2 * PAGE + 5, 10)
        found = []
        while isinstance(entry := self.queue.take(), Entry):
            found.append((entry.first, entry.count, waiting(entry)))
        self.assertCountEqual(
            found,
            [
                (2, 2, [(self.a, [1]), (self.b, [2]), (self.c, [3])]),
                (0, 2, [(self.b, [2])]),
                (4, 2, [(self.b, [2])]),
            ],
        )
        self.assertEqual((self.queue.requests, self.queue.merged), (3, 1))

    def test_extents(self) -> None:
        """A range over several extents becomes one entry per extent."""
        self.ask(self.a, 1, EXTENT - 1, EXTENT + 2)
        found = []
        while isinstance(entry := self.queue.take(), Entry):
            found.append((entry.extent, entry.first, entry.count))
        self.assertEqual(found, [(0, 255, 1), (1, 0, 256), (2, 0, 1)])

    def test_following(self) -> None:
        """The pages after an entry that are queued are counted, until they are taken."""
        self.ask(self.a, 1, 2 * PAGE, 2 * EXTENT + PAGE)
        self.ask(self.b, 2, 2 * EXTENT + 5 * PAGE, EXTENT)
        expected = [EXTENT_PAGES, 5, 0, 3, 0]
        for following in expected:
            entry = self.queue.take()
            assert isinstance(entry, Entry)
            self.assertEqual(self.queue.following(entry), following)

    def test_generations(self) -> None:
        """The same range of another generation is another entry."""
        other = ImageInMemory(bytes(BLOCK), generation=2)
        self.ask(self.a, 1, 0)
        self.queue.request(self.b, other, Read(2, 1, 0, PAGE, BLOCKED))
        self.assertEqual(self.take_all(), ["a1", "b2"])

    def test_told_once(self) -> None:
        """A request whose tag is already waiting for an entry is notified once."""
        self.ask(self.a, 1, 0, 2 * PAGE)
        self.ask(self.a, 1, PAGE, PAGE)
        self.assertEqual(self.take_all(), ["a1"])


class CutTests(QueueTestCase):
    """Entries that are larger than a transfer may be."""

    def take(self, most: int = EXTENT) -> tuple[int, int, list[tuple[object, list[int]]]]:
        """The first page, the number of pages, and the readers of the next entry, which is sent."""
        entry = self.queue.take(max_transfer=most)
        assert isinstance(entry, Entry)
        self.send(entry)
        return entry.first, entry.count, waiting(entry)

    def test_limit(self) -> None:
        """An entry is cut when its turn comes; the rest keeps its place and its readers."""
        self.ask(self.a, 1, 3 * PAGE, EXTENT - 3 * PAGE)
        self.ask(self.a, 2, EXTENT)
        self.assertEqual(self.take(0), (3, 29, [(self.a, [1])]))
        self.assertEqual(self.take(3 * BLOCK - 1), (32, 64, [(self.a, [1])]))
        self.assertEqual(self.take(), (96, 160, [(self.a, [1])]))
        self.assertEqual(self.take(), (0, 1, [(self.a, [2])]))
        self.assertEqual((self.a.share.waiting, len(self.queue)), (0, 0))

    def test_receive_buffers(self) -> None:
        """A transfer is no larger than the smallest that one of those who wait for it can take."""
        self.a.max_transfer, self.b.max_transfer = 2 * BLOCK, BLOCK
        self.ask(self.a, 1, 0, EXTENT)
        self.ask(self.b, 2, BLOCK, BLOCK)
        self.ask(self.c, 3, 0, EXTENT)
        sizes = []
        while len(self.queue):
            sizes.append(self.take()[1] // BLOCK_PAGES)
        self.assertEqual(sizes, [1, 1, 2, 2, 2])

    def test_own_part(self) -> None:
        """A request waits only for the transfers that carry something of what it asked for."""
        self.ask(self.a, 1, 0, EXTENT)
        self.ask(self.b, 2, 3 * BLOCK + PAGE, PAGE)
        self.assertEqual(self.b.share.waiting, PAGE)
        readers = [self.take(BLOCK)[2] for _ in range(8)]
        self.assertEqual(readers.count([(self.a, [1])]), 7)
        self.assertEqual(readers[3], [(self.a, [1]), (self.b, [2])])
        self.assertEqual(self.b.share.waiting, 0)

    def test_late(self) -> None:
        """A request that comes while a part is sent joins that part and the rest."""
        self.ask(self.a, 1, 0, EXTENT)
        first = self.queue.take(max_transfer=4 * BLOCK)
        self.ask(self.b, 2, 3 * BLOCK, 2 * BLOCK)
        sent = [self.send(first), self.send(self.queue.take(max_transfer=4 * BLOCK))]
        for told in (self.a.told, self.b.told):
            self.assertEqual([transfer for _, transfer, _ in told], sent)

    def test_raised(self) -> None:
        """Of an entry, only the blocks are raised that the more urgent request is for."""
        self.ask(self.a, 1, 0, EXTENT, priority=AHEAD)
        self.ask(self.b, 2, 3 * BLOCK + PAGE, BLOCK)
        self.assertEqual(self.take(), (96, 64, [(self.a, [1]), (self.b, [2])]))
        self.assertEqual(self.take(), (0, 96, [(self.a, [1])]))
        self.assertEqual(self.take(), (160, 96, [(self.a, [1])]))

    def test_left(self) -> None:
        """What only a client that left waited for is not sent with the rest."""
        self.ask(self.a, 1, 0, EXTENT)
        self.ask(self.b, 2, BLOCK, PAGE)
        self.queue.forget(self.a)
        self.assertEqual(self.take(), (32, 1, [(self.b, [2])]))


class WindowTests(QueueTestCase):
    """Ranges that were sent recently."""

    def test_before(self) -> None:
        """A request for a range that was just sent is told at once which transfer carried it."""
        self.ask(self.a, 1, 0, BLOCK)
        transfer = self.send(self.queue.take())
        self.ask(self.b, 2, PAGE, PAGE)
        self.assertEqual(self.b.told, [(2, transfer, Occasion.BEFORE)])
        self.assertIsNone(self.queue.take())
        self.assertEqual(self.queue.merged, 1)

    def test_left(self) -> None:
        """The transfers held keep nothing of a client that has left."""
        self.ask(self.a, 1, 0, BLOCK)
        transfer = self.send(self.queue.take())
        transfer.audience.update([self.a, self.b])
        self.queue.forget(self.a)
        self.assertEqual(transfer.audience, {self.b})

    def test_before_and_too_large(self) -> None:
        """One that was too large for a client's receive buffer is sent to it in parts."""
        self.ask(self.a, 1, 0, EXTENT)
        self.send(self.queue.take())
        self.b.max_transfer = BLOCK
        self.ask(self.b, 1, BLOCK + PAGE, PAGE)
        self.assertEqual(self.b.told, [])
        entry = self.queue.take()
        assert isinstance(entry, Entry)
        self.assertEqual(entry.byte_range, (BLOCK + PAGE, PAGE))

    def test_no_longer_audience(self) -> None:
        """A client that requests what was sent to it leaves the audience: it reports no loss."""
        transfer = make_sent(1, self.image, 0, BLOCK)
        transfer.audience = {self.a, self.b}
        self.window.add(transfer)
        self.ask(self.a, 1, 0)
        self.assertEqual(transfer.audience, {self.b})

    def test_newest(self) -> None:
        """Of two transfers that carried a range, the reader is told of the newer one only."""
        for number in (1, 2):
            self.window.add(make_sent(number, self.image, 0, BLOCK))
        self.ask(self.b, 2, 0, PAGE)
        self.assertEqual([told[1].descriptor.transfer for told in self.b.told], [2])

    def test_in_part(self) -> None:
        """The part of a range that was not sent is queued."""
        transfer = make_sent(1, self.image, PAGE, PAGE)
        self.window.add(transfer)
        self.ask(self.b, 2, 0, 3 * PAGE)
        self.assertEqual(self.b.told, [(2, transfer, Occasion.BEFORE)])
        self.assertEqual(self.take_all(), ["b2", "b2"])

    def test_other_generation(self) -> None:
        """A transfer of another generation does not answer a request."""
        self.window.add(make_sent(1, ImageInMemory(bytes(BLOCK), generation=2), 0, BLOCK))
        self.ask(self.b, 2, 0)
        self.assertEqual((self.b.told, self.take_all()), ([], ["b2"]))


class OrderTests(QueueTestCase):
    """The order of sending."""

    def test_priorities(self) -> None:
        """Blocked readers come before read-ahead, and read-ahead before background."""
        self.ask(self.a, 1, 0 * PAGE, priority=BACKGROUND)
        self.ask(self.a, 2, 1 * PAGE, priority=AHEAD)
        self.ask(self.a, 3, 2 * PAGE, priority=BLOCKED)
        self.ask(self.b, 4, 3 * PAGE, priority=AHEAD)
        self.assertEqual(self.take_all(), ["a3", "b4", "a2", "a1"])

    def test_fairness(self) -> None:
        """A client with many requests does not delay clients with few."""
        for tag in range(1, 5):
            self.ask(self.a, tag, tag * PAGE)
        self.ask(self.b, 5, 5 * PAGE)
        self.ask(self.c, 6, 6 * PAGE)
        self.ask(self.c, 7, 7 * PAGE)
        self.assertEqual(self.take_all(), ["a1", "b5", "c6", "a2", "c7", "a3", "a4"])

    def test_shared(self) -> None:
        """Entries that the same clients wait for are sent in order of request."""
        for tag, (first, second) in enumerate([(self.a, self.b), (self.b, self.a)] * 2, 1):
            self.ask(first, tag, tag * PAGE)
            self.ask(second, tag + 10, tag * PAGE)
        self.ask(self.a, 5, 5 * PAGE)
        self.ask(self.b, 15, 5 * PAGE)
        expected = ["a1 b11", "b2 a12", "a3 b13", "b4 a14", "a5 b15"]
        self.assertEqual(self.take_all(), expected)

    def test_raising(self) -> None:
        """An entry read ahead comes first once a reader is blocked on it, and is sent once."""
        self.ask(self.a, 1, 1 * PAGE, priority=AHEAD)
        self.ask(self.a, 2, 2 * PAGE, priority=AHEAD)
        self.ask(self.a, 3, 3 * PAGE, priority=AHEAD)
        self.ask(self.b, 4, 3 * PAGE, priority=BLOCKED)
        self.assertEqual(self.take_all(), ["a3 b4", "a1", "a2"])
        self.assertEqual((self.queue.requests, self.queue.merged), (4, 1))

    def test_not_lowering(self) -> None:
        """An entry that a reader is blocked on keeps its priority when it is also read ahead."""
        self.ask(self.a, 1, PAGE, priority=BLOCKED)
        self.ask(self.b, 2, PAGE, priority=BACKGROUND)
        self.ask(self.c, 3, 2 * PAGE, priority=AHEAD)
        self.assertEqual(self.take_all(), ["a1 b2", "c3"])


class ShareTests(QueueTestCase):
    """What a client gets beside others with other requests, or with too many."""

    def take_sizes(self, count: int) -> dict[str, int]:
        """Pages of the next C{count} entries, by the names of the clients that wait for them."""
        pages: dict[str, int] = {}
        for _ in range(count):
            entry = self.queue.take(Priority, BLOCK)
            assert isinstance(entry, Entry)
            who = "".join(r.name for r in entry.readers if isinstance(r, RecordingReader))
            pages[who] = pages.get(who, 0) + entry.count
            self.send(entry)
        return pages

    def large(self, blocks: int) -> ImageInMemory:
        return ImageInMemory(bytes(blocks * BLOCK), image=9)

    def test_bytes(self) -> None:
        """Clients get equal bytes, not equal transfers; each transfer also has a fixed cost."""
        for page in range(0, 6 * BLOCK_PAGES, 2):
            self.ask(self.a, 1, page * PAGE)
        self.queue.request(self.b, self.large(16), Read(1, 1, 0, 16 * BLOCK, BLOCKED))
        pages = self.take_sizes(30)
        self.assertLess(pages["b"] + 4 * 30, 2 * (pages["a"] * 5))
        self.assertGreater(pages["b"], pages["a"])

    def test_shared_costs_less(self) -> None:
        """A client with its own requests gets one share, not half, beside clients in lockstep."""
        for reader in (self.a, self.b):
            self.ask(reader, 1, 0, 8 * BLOCK)
        self.queue.request(self.c, self.large(16), Read(1, 1, 0, 16 * BLOCK, BLOCKED))
        self.assertEqual(self.take_sizes(9), {"ab": 6 * BLOCK_PAGES, "c": 3 * BLOCK_PAGES})

    def test_one_host(self) -> None:
        """All connections of a host have one share together."""
        self.b.share = self.a.share
        for number, reader in enumerate((self.a, self.b, self.c)):
            self.ask(reader, 1, number * 2 * BLOCK, 2 * BLOCK)
        self.assertEqual(self.take_sizes(4), {"a": 2 * BLOCK_PAGES, "c": 2 * BLOCK_PAGES})

    def test_nothing_saved_up(self) -> None:
        """A client that requested nothing for a while accumulates no credit."""
        self.ask(self.a, 1, 0, 6 * BLOCK)
        self.take_sizes(6)
        self.queue.request(self.b, self.large(8), Read(1, 1, 0, 8 * BLOCK, BLOCKED))
        self.ask(self.a, 2, 6 * BLOCK, 2 * BLOCK)
        self.assertEqual(self.take_sizes(4), {"b": 3 * BLOCK_PAGES, "a": BLOCK_PAGES})

    def test_greedy(self) -> None:
        """Entries that only a greedy client waits for come last; shared ones keep their turn."""
        large = self.large(MAX_BYTES_AWAITED // BLOCK + 4)
        size = large.attributes.size
        self.queue.request(self.a, large, Read(1, 1, 0, size, BLOCKED))
        self.queue.request(self.c, large, Read(3, 1, 5 * BLOCK, PAGE, BACKGROUND))
        self.ask(self.b, 2, 0, BLOCK, BACKGROUND)
        self.assertEqual(self.take_sizes(2), {"b": BLOCK_PAGES, "ac": BLOCK_PAGES})
        self.assertIsNone(self.queue.take(Priority))
        self.assertTrue(self.queue.has_scavenger_items)
        entry = self.queue.take()
        assert isinstance(entry, Entry)
        self.assertEqual(entry.service_class, SCAVENGER)
        self.assertFalse(self.queue.is_for_others(entry))
        self.send(entry)
        self.queue.forget(self.a)
        self.assertIsNone(self.queue.take())
        self.assertEqual((self.a.share.waiting, len(self.queue)), (0, 0))

    def test_greedy_until_it_was_sent(self) -> None:
        """A client is no longer greedy once enough was sent to it."""
        large = self.large(MAX_BYTES_AWAITED // BLOCK + 1)
        self.queue.request(self.a, large, Read(1, 1, 0, large.attributes.size, BLOCKED))
        while (entry := self.queue.take()) is not None:
            self.send(entry)
        self.assertEqual(self.a.share.waiting, 0)
        self.ask(self.a, 2, 0)
        self.assertEqual(self.take_sizes(1), {"a": 1})

    def test_raised(self) -> None:
        """An entry that others request as well leaves the scavenger class."""
        large = self.large(MAX_BYTES_AWAITED // BLOCK + 1)
        self.queue.request(self.a, large, Read(1, 1, 0, large.attributes.size, BLOCKED))
        self.assertIsNone(self.queue.take(Priority))
        self.queue.request(self.b, large, Read(2, 1, 7 * BLOCK, PAGE, AHEAD))
        self.assertEqual(self.take_sizes(1), {"ab": BLOCK_PAGES})

    def test_repairs(self) -> None:
        """Repairs beyond a host's credit are in the scavenger class; transfers sent add credit."""
        everything = (1 << 94) - 1
        transfers = [make_sent(n, self.image, n % 8 * BLOCK, BLOCK) for n in range(12)]
        for transfer in transfers:
            self.queue.repair(self.a, transfer, tag=1, missing=everything, priority=BLOCKED)
        first = 0
        while self.queue.take(Priority) is not None:
            first += 1
        self.assertEqual(first, INITIAL_REPAIR_CREDIT // BLOCK)
        self.window.add(transfers[11])
        self.ask(self.b, 1, 3 * BLOCK, BLOCK)
        self.b.share.repair_credit -= INITIAL_REPAIR_CREDIT
        self.queue.repair(self.b, transfers[11], tag=1, missing=1, priority=BLOCKED)
        resend = self.queue.take(Priority)
        assert isinstance(resend, Resend)
        self.assertEqual(waiting(resend), [(self.a, [1]), (self.b, [1])])


class ForgetTests(QueueTestCase):
    """Clients that disconnect."""

    def test_alone(self) -> None:
        """An entry that only a disconnected client waited for is not sent."""
        self.ask(self.a, 1, 0, 3 * BLOCK)
        self.ask(self.b, 2, BLOCK)
        self.queue.forget(self.a)
        self.assertEqual(self.take_all(), ["b2"])

    def test_joined_again(self) -> None:
        """An entry that all clients left is sent if it is requested again."""
        self.ask(self.a, 1, 0)
        self.queue.forget(self.a)
        self.ask(self.b, 2, 0)
        self.assertEqual(self.take_all(), ["b2"])

    def test_asked_anew(self) -> None:
        """An entry that was dropped because nobody waited for it can be requested again."""
        self.ask(self.a, 1, 0)
        self.queue.forget(self.a)
        self.assertIsNone(self.queue.take())
        self.assertEqual(len(self.queue), 0)
        self.ask(self.b, 2, 0)
        self.assertEqual(self.take_all(), ["b2"])

    def test_in_flight(self) -> None:
        """A client that disconnects while its entry is sent is not notified."""
        self.ask(self.a, 1, 0)
        entry = self.queue.take()
        self.queue.forget(self.a)
        self.send(entry)
        self.assertEqual(self.a.told, [])

    def test_repairs(self) -> None:
        """Segments that only a disconnected client misses are not sent again."""
        transfer = make_sent(1, self.image, 0, BLOCK)
        self.queue.repair(self.a, transfer, tag=1, missing=1, priority=BLOCKED)
        self.queue.forget(self.a)
        self.assertIsNone(self.queue.take())
        self.queue.repair(self.b, transfer, tag=2, missing=2, priority=BLOCKED)
        self.assertEqual(self.take_all(), ["b2"])


class RepairTests(QueueTestCase):
    """Segments sent again."""

    def setUp(self) -> None:
        """Have one whole block sent."""
        super().setUp()
        self.transfer = make_sent(1, self.image, 0, BLOCK)

    def repair(self, reader: RecordingReader, tag: int, missing: int) -> None:
        """A client reports missing segments."""
        priority = BLOCKED if tag else AHEAD
        self.queue.repair(reader, self.transfer, tag=tag, missing=missing, priority=priority)

    def test_merged(self) -> None:
        """Segments that several clients miss are sent again once."""
        self.repair(self.a, 1, 0b0110)
        self.repair(self.b, 2, 0b1100)
        resend = self.queue.take()
        assert isinstance(resend, Resend)
        self.queue.begin(resend)
        self.assertEqual(resend.missing, 0b1110)
        self.assertEqual((resend.parity, resend.segments), (2, 2))
        self.assertEqual(waiting(resend), [(self.a, [1]), (self.b, [2])])
        self.assertIsNone(self.queue.take())
        self.assertEqual(len(self.queue), 0)

    def test_same_segments(self) -> None:
        """If there are no more missing segments than parity would need, they are sent."""
        self.repair(self.a, 1, 0b0110)
        self.repair(self.b, 2, 0b0100)
        resend = self.queue.take()
        assert isinstance(resend, Resend)
        self.queue.begin(resend)
        self.assertEqual((resend.missing, resend.parity, resend.segments), (0b0110, 0, 2))

    def test_parity_used_up(self) -> None:
        """When a transfer has no parity left, the missing segments are sent."""
        self.transfer.parity = MAX_PARITY - 1
        for missing, parity in (((0b0011, 0b1100), 0), ((0b01, 0b10), 1)):
            for reader, each in zip((self.a, self.b), missing, strict=True):
                self.repair(reader, 1, each)
            resend = self.queue.take()
            assert isinstance(resend, Resend)
            self.queue.begin(resend)
            self.assertEqual(resend.parity, parity)
            self.queue.resent()

    def test_parity_under_way(self) -> None:
        """A client joins the parity being sent, and gets what it needs beyond that later."""
        self.repair(self.a, 1, 0b0011)
        self.repair(self.b, 2, 0b1100)
        under_way = self.queue.take()
        assert isinstance(under_way, Resend)
        self.queue.begin(under_way)
        self.assertEqual(under_way.parity, 2)
        self.repair(self.c, 3, 0b110000)
        self.assertEqual(waiting(under_way)[-1], (self.c, [3]))
        self.repair(self.c, 4, 0b1110001)
        self.queue.resent()
        rest = self.queue.take()
        assert isinstance(rest, Resend)
        self.queue.begin(rest)
        self.assertEqual((rest.segments, waiting(rest)), (2, [(self.c, [4])]))

    def test_while_sent(self) -> None:
        """Segments reported missing while they are sent again are not queued again."""
        self.repair(self.a, 1, 0b01)
        first = self.queue.take()
        assert isinstance(first, Resend)
        self.queue.begin(first)
        self.repair(self.b, 2, 0b11)
        self.repair(self.a, 3, 0b01)
        self.assertEqual(waiting(first), [(self.a, [1, 3])])
        self.queue.resent()
        second = self.queue.take()
        assert isinstance(second, Resend)
        self.queue.begin(second)
        self.assertEqual((second.missing, waiting(second)), (0b10, [(self.b, [2])]))

    def test_after_sent(self) -> None:
        """Segments reported missing after they were sent again are sent once more."""
        self.repair(self.a, 1, 0b01)
        first = self.queue.take()
        assert isinstance(first, Resend)
        self.queue.begin(first)
        self.queue.resent()
        self.repair(self.b, 2, 0b01)
        second = self.queue.take()
        assert isinstance(second, Resend)
        self.queue.begin(second)
        self.assertEqual((second.missing, waiting(second)), (0b01, [(self.b, [2])]))

    def test_no_such_segments(self) -> None:
        """Bits beyond the last segment are ignored."""
        self.repair(self.a, 1, 1 << 94)
        self.assertIsNone(self.queue.take())
        self.repair(self.a, 1, -1 & (1 << 200) - 1)
        resend = self.queue.take()
        assert isinstance(resend, Resend)
        self.queue.begin(resend)
        self.assertEqual(resend.missing, (1 << 94) - 1)

    def test_raising(self) -> None:
        """A repair of an overheard transfer is raised once a reader is blocked on it."""
        self.repair(self.a, 0, 0b1)
        self.ask(self.b, 1, 5 * BLOCK)
        self.ask(self.b, 2, 6 * BLOCK)
        self.repair(self.c, 3, 0b1)
        self.assertEqual(self.take_all(), ["b1", "a0 c3", "b2"])


REQUESTS = st.tuples(
    st.just("ask"),
    st.integers(0, 2),
    st.integers(0, 2 * EXTENT - 1),
    st.one_of(st.integers(1, 2 * PAGE), st.integers(1, EXTENT + PAGE)),
    st.sampled_from(Priority),
)
"""Which reader, offset, length and priority."""

SENDING = st.sampled_from(
    [("take", EXTENT), ("take", 3 * BLOCK), ("take", 0), ("send",), ("send",), ("send",)]
)
LEAVING = st.tuples(st.just("forget"), st.integers(0, 2))


class PropertyTests(QueueTestCase):
    """Any requests, while entries are sent and clients disconnect."""

    @examples(200)
    @given(st.lists(st.one_of(REQUESTS, SENDING, LEAVING), max_size=40))
    def test_any_requests(self, steps: list[tuple[Any, ...]]) -> None:
        """
        The transfers that a request is told of carry its whole range; no page is sent twice, and
        no transfer is larger than its readers can take.
        """
        self.setUp()
        readers = [self.a, self.b, self.c]
        self.b.max_transfer = 2 * BLOCK
        tags = itertools.count(1)
        asked: list[tuple[RecordingReader, int, int, int]] = []
        flying: list[Entry | Resend] = []
        for step, *args in [*steps, *[("take", EXTENT), ("send",)] * 200]:
            if step == "ask":
                which, offset, length, priority = args
                length = min(length, 2 * EXTENT - offset)
                asked.append((readers[which], next(tags), offset, length))
                self.ask(*asked[-1], priority)
            elif step == "take" and (entry := self.queue.take(max_transfer=args[0])) is not None:
                assert isinstance(entry, Entry)
                most = min([max(BLOCK, *args), *(each.max_transfer for each in entry.readers)])
                self.assertLessEqual(entry.size, most)
                flying.append(entry)
            elif step == "send" and flying:
                self.send(flying.pop(0))
            elif step == "forget":
                gone = readers[args[0]]
                self.queue.forget(gone)
                asked = [each for each in asked if each[0] is not gone]
        self.assertEqual((len(self.queue), flying), (0, []))
        self.assertEqual([reader.share.waiting for reader in readers], [0, 0, 0])
        for reader, tag, offset, length in asked:
            told = reader.pages_told(tag)
            for extent, pages in split_into_extents(offset, length):
                self.assertEqual(pages & ~told.get(extent, 0), 0)
            wanted = dict(split_into_extents(offset, length))
            for each, transfer, _ in reader.told:
                if each == tag:
                    self.assertTrue(transfer.pages & wanted.get(transfer.extent[2], 0))
        for extent in range(2):
            carried = [transfer.pages for transfer in self.window.of_extent((1, 1, extent))]
            self.assertEqual(sum(carried), reduce(or_, carried, 0))

    @examples(100)
    @given(st.lists(REQUESTS, max_size=20))
    def test_urgency(self, requests: list[tuple[Any, ...]]) -> None:
        """More urgent pages are sent before less urgent ones, each once."""
        self.setUp()
        wanted: dict[tuple[int, int], Priority] = {}
        for tag, (_, which, offset, length, priority) in enumerate(requests, 1):
            length = min(length, 2 * EXTENT - offset)
            self.ask([self.a, self.b, self.c][which], tag, offset, length, priority)
            for page in range(offset // PAGE, -(-(offset + length) // PAGE)):
                place = divmod(page, EXTENT_PAGES)
                wanted[place] = min(priority, wanted.get(place, BACKGROUND))
        urgencies, pages = [], []
        while isinstance(entry := self.queue.take(), Entry):
            places = [(entry.extent, entry.first + i) for i in range(entry.count)]
            urgencies.append(min(wanted[place] for place in places))
            pages += places
        self.assertEqual(urgencies, sorted(urgencies))
        self.assertCountEqual(pages, wanted)
