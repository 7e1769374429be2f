"""
The multicast queue: what clients miss, one entry for a range (paper, section 4, steps 3 and 4).

A request joins the entries that already cover what it asks for, queued or on their way; only
the rest becomes entries of its own. So any number of clients in lockstep cost one transfer.
"""

import itertools
from collections import deque
from errno import EBUSY

from attrs import define, field

from mufs.cache.server.sent import BlockKey, IReader, SentTransfer, SentWindow
from mufs.interfaces import IImage
from mufs.wire.channel import Occasion, Priority
from mufs.wire.pages import PAGES, pieces, runs

Readers = dict[IReader, dict[int, None]]
"""Clients, and the tags that each asked under, in the order in which they came."""


MOST_FOLLOWING = 7 * PAGES
"""Pages in a row that are worth to be read together with a block."""

MAX_TAGS = 64
"""How often a client may have asked for the same entry before it is answered."""


@define(eq=False)
class Entry:
    """
    A run of pages of one block to be read, sealed and sent.

    @ivar readers: who waits for it.
    @ivar queued: the priority it is queued at, C{None} once it was taken.
    """

    image: IImage
    block: int
    first: int
    count: int
    queued: Priority | None
    readers: Readers = field(factory=dict)

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
    queued: Priority | None
    missing: int = 0
    most: int = 0
    parity: int = 0
    readers: Readers = field(factory=dict)

    @property
    def segments(self) -> int:
        """How many segments will be sent."""
        return self.parity or self.missing.bit_count()


class MulticastQueue:
    """
    What is to be sent. Blocked readers come first, then read-ahead, then background; within
    each comes first who was sent nothing for longest, and of those who share what they are sent
    what was asked for first.

    @ivar requests: how many came.
    @ivar merged: how many of them caused no entry of their own.
    """

    def __init__(self, window: SentWindow) -> None:
        self._window = window
        self._lines: dict[Priority, dict[IReader, deque[tuple[int, Entry | Resend]]]] = {
            priority: {} for priority in Priority
        }
        self._numbers = itertools.count(1)
        self._served: dict[IReader, int] = {}
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
        for block, wanted in pieces(offset, length):
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
                    reader.sent(tag, transfer, Occasion.BEFORE)
            for first, count in runs(wanted):
                merged = False
                entry = Entry(image, block, first, count, priority, {reader: {tag: None}})
                self._entries.setdefault(key, []).append(entry)
                self._put(entry, reader, priority)
        self.merged += merged

    def repair(
        self, reader: IReader, tag: int, transfer: SentTransfer, missing: int, priority: Priority
    ) -> None:
        """Queue the segments in the bitmap C{missing}, with those that others miss of it."""
        missing &= (1 << len(transfer.rows)) - 1
        if not missing:
            return
        number = transfer.descriptor.transfer
        under_way = self._under_way
        if under_way is not None and under_way.transfer is transfer:
            if under_way.parity:
                missing = _highest(missing, missing.bit_count() - under_way.parity)
            else:
                missing &= ~under_way.missing
            if not missing:
                self._join(under_way, reader, tag, priority)
                return
        resend = self._resends.get(number)
        if resend is None:
            resend = self._resends[number] = Resend(transfer, priority)
            self._put(resend, reader, priority)
        resend.missing |= missing
        resend.most = max(resend.most, missing.bit_count())
        self._join(resend, reader, tag, priority)

    def take(self) -> Entry | Resend | None:
        """
        The next to be sent. An entry stays open to be joined until L{done} is told of it; a
        resend grows until L{begin} is, and can be joined until L{resent} is: another is not
        taken before.
        """
        for priority, line in self._lines.items():
            while line:
                reader = min(line, key=lambda each: (self._served.get(each, 0), line[each][0][0]))
                _, item = line[reader].popleft()
                if not line[reader]:
                    del line[reader]
                if item.queued != priority:
                    continue
                item.queued = None
                if item.readers:
                    self._served.update(dict.fromkeys(item.readers, next(self._numbers)))
                    return item
                if isinstance(item, Resend):
                    self.begin(item)
                    self.resent()
                else:
                    self.done(item)
        return None

    def begin(self, resend: Resend) -> None:
        """A L{Resend} that was taken is being sent: it grows no longer."""
        del self._resends[resend.transfer.descriptor.transfer]
        if resend.most < resend.missing.bit_count() and resend.most <= resend.transfer.parity_left:
            resend.parity = resend.most
        self._under_way = resend

    def resent(self) -> None:
        """The L{Resend} taken last was sent, or cannot be."""
        self._under_way = None

    def done(self, entry: Entry) -> None:
        """Close an entry: it was sent, or cannot be."""
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
        for entries in self._entries.values():
            for entry in entries:
                entry.readers.pop(reader, None)
        for resend in self._resends.values():
            resend.readers.pop(reader, None)
        self._served.pop(reader, None)

    def __len__(self) -> int:
        return sum(map(len, self._entries.values())) + len(self._resends)

    def _join(
        self, item: Entry | Resend, reader: IReader, tag: int, priority: Priority
    ) -> None:
        tags = item.readers.setdefault(reader, {})
        if len(tags) >= MAX_TAGS and tag not in tags:
            reader.failed(tag, OSError(EBUSY, "asked for too often at a time"))
            return
        tags[tag] = None
        if item.queued is not None and priority < item.queued:
            item.queued = priority
            self._put(item, reader, priority)

    def _put(self, item: Entry | Resend, reader: IReader, priority: Priority) -> None:
        self._lines[priority].setdefault(reader, deque()).append((next(self._numbers), item))


def _highest(mask: int, count: int) -> int:
    """The so many highest of the bits that are set."""
    for _ in range(mask.bit_count() - count):
        mask &= mask - 1
    return mask
