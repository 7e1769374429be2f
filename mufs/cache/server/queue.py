"""
The multicast queue: what clients miss, one entry for a range (paper, section 4, steps 3 and 4).

A request joins the entries that already cover what it asks for, queued or on their way; only
the rest becomes entries of its own. So any number of clients in lockstep cost one transfer.
"""

import itertools
from collections import deque
from collections.abc import Iterable
from errno import EBUSY

from attrs import define, field

from mufs.cache.server.sent import GREEDY, BlockKey, IReader, SentTransfer, SentWindow, Share
from mufs.interfaces import IImage
from mufs.wire.channel import Occasion, Priority
from mufs.wire.pages import PAGE, PAGES, runs, split_into_blocks

Readers = dict[IReader, dict[int, None]]
"""Clients, and the tags that each asked under, in the order in which they came."""


MOST_FOLLOWING = 7 * PAGES
"""Pages in a row that are worth to be read together with a block."""

MAX_TAGS = 64
"""How often a client may have asked for the same entry before it is answered."""

EACH = 16 * 1024
"""Bytes more that are worth the work for whatever is sent, be it one page."""

LAST = len(Priority)
"""
The line behind all priorities: for what greedy hosts alone wait for, and for repairs of more than
was sent.
"""


@define(eq=False)
class Entry:
    """
    A run of pages of one block to be read, sealed and sent.

    @ivar readers: who waits for it.
    @ivar queued: the line that it is in, C{None} once it was taken.
    @ivar line: the one that it was taken from.
    """

    image: IImage
    block: int
    first: int
    count: int
    queued: int | None
    readers: Readers = field(factory=dict)
    line: int = LAST

    @property
    def size(self) -> int:
        """Bytes that each reader waits for."""
        return self.count * PAGE

    @property
    def cost(self) -> int:
        """What it costs the server and its link, in bytes."""
        return EACH + self.size

    @property
    def pages(self) -> int:
        """The run as a set of pages."""
        return ((1 << self.count) - 1) << self.first

    @property
    def key(self) -> BlockKey:
        """The block that it is a part of."""
        return self.image.image, self.image.generation, self.block


@define(eq=False)
class Resend:
    """
    A transfer to be mended: by all segments that its readers miss, each once, or by parity, of
    which as many segments serve all readers as the one needs that misses most.

    @ivar missing: bitmap of the segments that some reader misses.
    @ivar most: how many a reader misses at the most.
    @ivar parity: how many parity segments to send; 0 for the segments that are missing.
    """

    transfer: SentTransfer
    queued: int | None
    missing: int = 0
    most: int = 0
    parity: int = 0
    readers: Readers = field(factory=dict)
    line: int = LAST

    @property
    def segments(self) -> int:
        """How many segments will be sent."""
        return self.parity or self.missing.bit_count()

    @property
    def size(self) -> int:
        """Bytes that each reader waits for: those of the transfer."""
        return self.transfer.descriptor.total

    @property
    def cost(self) -> int:
        """What it costs the server and its link, in bytes."""
        return EACH + self.segments * int(self.transfer.rows.shape[1])


class MulticastQueue:
    """
    What is to be sent. Blocked readers come first, then read-ahead, then background; within each
    comes first the host that least was sent for, and of those who share what they are sent what
    was asked for first. What several hosts wait for counts as so much less for each, so that a
    host with wishes of its own does not get half of the link beside many that want the same. Who
    has nothing queued for a while does not save up.

    What is waited for by greedy hosts alone goes to a last line, as soon as its turn comes.

    @ivar requests: how many came.
    @ivar merged: how many of them caused no entry of their own.
    """

    def __init__(self, window: SentWindow) -> None:
        self._window = window
        self._lines: dict[int, dict[Share, deque[tuple[int, Entry | Resend]]]] = {
            priority: {} for priority in (*Priority, LAST)
        }
        self._numbers = itertools.count(1)
        self._served = 0.0
        self._entries: dict[BlockKey, list[Entry]] = {}
        self._resends: dict[int, Resend] = {}
        self._under_way: Resend | None = None
        self.requests = 0
        self.merged = 0

    def request(
        self,
        reader: IReader,
        tag: int,
        image: IImage,
        offset: int,
        length: int,
        priority: Priority,
    ) -> None:
        """
        Queue what nobody else caused to be sent yet, and tell the reader what was sent already.

        @param offset: in bytes; with C{length} within the image.
        """
        self.requests += 1
        merged = True
        for block, wanted in split_into_blocks(offset, length):
            key = (image.image, image.generation, block)
            for entry in self._entries.get(key, ()):
                if wanted & entry.pages:
                    wanted &= ~entry.pages
                    self._join(entry, reader, tag, priority)
            for transfer in self._window.of_block(key):
                if wanted & transfer.pages:
                    wanted &= ~transfer.pages
                    # It may have had it, and let it go since: what it misses now is no loss.
                    transfer.audience.discard(reader)
                    # To be sent for it at all, and again as if it had waited with the others.
                    _allow(reader.share, 2 * transfer.descriptor.total)
                    reader.sent(tag, transfer, Occasion.BEFORE)
            for first, count in runs(wanted):
                merged = False
                entry = Entry(image, block, first, count, priority)
                self._entries.setdefault(key, []).append(entry)
                self._put(entry, reader, priority)
                self._join(entry, reader, tag, priority)
        self.merged += merged

    def repair(
        self, reader: IReader, tag: int, transfer: SentTransfer, missing: int, priority: Priority
    ) -> None:
        """Queue the segments in the bitmap C{missing}, with those that others miss of it."""
        missing &= (1 << len(transfer.rows)) - 1
        if not missing:
            return
        line: int = priority if reader.share.may_mend(transfer.bytes_in(missing)) else LAST
        number = transfer.descriptor.transfer
        under_way = self._under_way
        if under_way is not None and under_way.transfer is transfer:
            if under_way.parity:
                missing = _highest(missing, missing.bit_count() - under_way.parity)
            else:
                missing &= ~under_way.missing
            if not missing:
                self._join(under_way, reader, tag, line)
                return
        resend = self._resends.get(number)
        if resend is None:
            resend = self._resends[number] = Resend(transfer, line)
            self._put(resend, reader, line)
        resend.missing |= missing
        resend.most = max(resend.most, missing.bit_count())
        self._join(resend, reader, tag, line)

    def take(self, lines: Iterable[int] = (*Priority, LAST)) -> Entry | Resend | None:
        """
        The next to be sent. An entry stays open to be joined until L{done} is told of it; a
        resend grows until L{begin} is, and can be joined until L{resent} is: another is not
        taken before.

        @param lines: which may have their turn, the first one first.
        """
        for priority in lines:
            line = self._lines[priority]
            while line:
                share = min(line, key=lambda each: (each.served, line[each][0][0]))
                number, item = line[share].popleft()
                if not line[share]:
                    del line[share]
                if item.queued != priority:
                    continue
                if priority != LAST and item.readers and _is_greedy(item):
                    item.queued = LAST
                    self._lines[LAST].setdefault(share, deque()).append((number, item))
                    continue
                item.queued = None
                item.line = priority
                if item.readers:
                    self._charge(share, item)
                    return item
                if isinstance(item, Resend):
                    self.begin(item)
                    self.resent()
                else:
                    self.done(item)
        return None

    @property
    def has_last(self) -> bool:
        """Whether something waits in the last line."""
        return bool(self._lines[LAST])

    def is_for_others(self, item: Entry | Resend) -> bool:
        """Whether somebody waits for it whose host has nothing in the last line."""
        return any(reader.share not in self._lines[LAST] for reader in item.readers)

    def begin(self, resend: Resend) -> None:
        """A L{Resend} that was taken is being sent: it grows no longer."""
        del self._resends[resend.transfer.descriptor.transfer]
        if resend.most < resend.missing.bit_count() and resend.most <= resend.transfer.parity_left:
            resend.parity = resend.most
        self._under_way = resend

    def resent(self) -> None:
        """The L{Resend} taken last was sent, or cannot be."""
        if self._under_way is not None:
            self._settle(self._under_way)
        self._under_way = None

    def done(self, entry: Entry) -> None:
        """Close an entry: it was sent, or cannot be."""
        self._settle(entry)
        for reader in entry.readers:
            _allow(reader.share, entry.size)
        same = self._entries[entry.key]
        same.remove(entry)
        if not same:
            del self._entries[entry.key]

    def following(self, entry: Entry) -> int:
        """How many pages after those of an entry are queued as well, in a row."""
        image, generation, block = entry.key
        end, pages = entry.first + entry.count, 0
        while pages < MOST_FOLLOWING:
            if end == PAGES:
                block, end = block + 1, 0
            for each in self._entries.get((image, generation, block), ()):
                if each.queued is not None and each.first == end:
                    end += each.count
                    pages += each.count
                    break
            else:
                break
        return pages

    def forget(self, reader: IReader) -> None:
        """The client has gone: what it alone waited for is not sent."""
        waited: list[Entry | Resend] = [*self._resends.values()]
        waited += (entry for entries in self._entries.values() for entry in entries)
        if self._under_way is not None:
            waited.append(self._under_way)
        for item in waited:
            tags = item.readers.pop(reader, ())
            reader.share.waiting -= item.size * len(tags)

    def __len__(self) -> int:
        return sum(map(len, self._entries.values())) + len(self._resends)

    def _join(self, item: Entry | Resend, reader: IReader, tag: int, line: int) -> None:
        tags = item.readers.setdefault(reader, {})
        if tag in tags:
            pass
        elif len(tags) >= MAX_TAGS:
            reader.failed(tag, OSError(EBUSY, "asked for too often at a time"))
            return
        else:
            tags[tag] = None
            reader.share.waiting += item.size
        if item.queued is not None and line < item.queued:
            item.queued = line
            self._put(item, reader, line)

    def _put(self, item: Entry | Resend, reader: IReader, line: int) -> None:
        share = reader.share
        share.served = max(share.served, self._served)
        self._lines[line].setdefault(share, deque()).append((next(self._numbers), item))

    def _charge(self, share: Share, item: Entry | Resend) -> None:
        """Something is sent, in the turn of that host, and counts for all who wait for it."""
        self._served = max(self._served, share.served)
        shares = {reader.share for reader in item.readers}
        for each in shares:
            each.served = max(each.served, self._served) + item.cost / len(shares)

    def _settle(self, item: Entry | Resend) -> None:
        """Nobody waits for this any longer."""
        for reader, tags in item.readers.items():
            reader.share.waiting -= item.size * len(tags)


def _is_greedy(item: Entry | Resend) -> bool:
    return all(reader.share.is_greedy for reader in item.readers)


def _allow(share: Share, size: int) -> None:
    """A host was told of so many bytes: if they were lost, they may be sent again for it."""
    share.mendable = min(share.mendable + size, GREEDY)


def _highest(mask: int, count: int) -> int:
    """The so many highest of the bits that are set."""
    for _ in range(mask.bit_count() - count):
        mask &= mask - 1
    return mask
