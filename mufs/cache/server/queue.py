"""
The multicast queue: one entry for each range that clients miss (paper, section 4, steps 3 and 4).

A request joins the entries that already cover its range, whether queued or being sent; only the
rest of the range becomes new entries. Any number of clients in lockstep thus cost one transfer.
"""

import itertools
from collections.abc import Iterable
from errno import EBUSY
from functools import reduce
from heapq import heappop, heappush
from operator import or_

from mufs.cache.server.items import SCAVENGER, SERVICE_CLASSES, Entry, Resend
from mufs.cache.server.sent import (
    MAX_REPAIR_CREDIT,
    ExtentKey,
    IReader,
    SentTransfer,
    SentWindow,
    Share,
)
from mufs.interfaces import IImage
from mufs.wire.channel import Occasion, Priority, Read
from mufs.wire.pages import BLOCK, BLOCK_PAGES, EXTENT, EXTENT_PAGES, runs, split_into_extents
from mufs.wire.segments import max_in_group, not_restored

MAX_FOLLOWING_PAGES = EXTENT_PAGES
"""Consecutive queued pages that are announced to the disk together with an entry."""

MAX_TAGS = 64
"""How many requests of one client may wait for the same entry."""

Queued = list[tuple[int, int, Entry | Resend]]
"""A heap of items: their numbers in order of request, and their first pages."""


class MulticastQueue:
    """
    What is to be sent, in service classes: blocked readers first, then read-ahead, then
    background. Within a class the host that was served least comes first; among hosts served
    equally, the oldest request. The cost of an item that several hosts wait for is divided among
    them, so a host with requests of its own does not get half of the link beside many hosts that
    share theirs. A host does not accumulate credit while it has nothing queued.

    When its turn comes, an entry is cut to the largest transfer that its readers and the link can
    take. Of an entry that a more urgent request joins, only the blocks are raised that it is for.

    An item that only greedy hosts wait for moves to the scavenger class when its turn comes.

    @ivar requests: how many requests arrived.
    @ivar merged: how many of them were covered by existing entries and transfers.
    """

    def __init__(self, window: SentWindow) -> None:
        self._window = window
        self._classes: dict[int, dict[Share, Queued]] = {
            service_class: {} for service_class in SERVICE_CLASSES
        }
        self._numbers = itertools.count(1)
        self._served = 0.0
        self._entries: dict[ExtentKey, list[Entry]] = {}
        self._resends: dict[int, Resend] = {}
        self._under_way: Resend | None = None
        self.requests = 0
        self.merged = 0

    def request(self, reader: IReader, image: IImage, read: Read) -> None:
        """
        Queue the pages that are neither queued nor sent, and tell the reader which transfers
        already carried some of the others.

        @param read: its range must lie within the image.
        """
        self.requests += 1
        merged = True
        for extent, wanted in split_into_extents(read.offset, read.length):
            key = (image.image, image.generation, extent)
            for entry in tuple(self._entries.get(key, ())):
                if common := wanted & entry.pages:
                    wanted &= ~common
                    if entry.queued_in is not None and read.priority < entry.queued_in:
                        entry = self._isolate(entry, common)
                    self._join(entry, reader, read.tag, read.priority, common)
            for transfer in self._window.of_extent(key):
                if not wanted:
                    break
                # One that is too large for it would be lost in part again and again.
                if wanted & transfer.pages and transfer.descriptor.total <= reader.max_transfer:
                    wanted &= ~transfer.pages
                    # The reader may have received it and evicted it since: not a loss.
                    transfer.audience.discard(reader)
                    # Enough to be sent the whole transfer, and to have it repaired once.
                    _add_repair_credit(reader.share, 2 * transfer.descriptor.total)
                    reader.sent(read.tag, transfer, Occasion.BEFORE)
            for first, count in runs(wanted):
                merged = False
                entry = Entry(image, extent, first, count, read.priority)
                self._entries.setdefault(key, []).append(entry)
                self._put(entry, reader, read.priority)
                self._join(entry, reader, read.tag, read.priority, entry.pages)
        self.merged += merged

    def repair(
        self,
        reader: IReader,
        transfer: SentTransfer,
        *,
        tag: int,
        missing: int,
        priority: Priority,
        is_loss: bool = True,
    ) -> None:
        """
        Queue segments of a transfer to be sent again, merged with those that others miss.

        @param tag: of the read that waits for them, 0 if the transfer was overheard.
        @param missing: bitmap of the segments.
        @param is_loss: whether they were lost on their way to the reader.
        """
        missing &= (1 << transfer.count) - 1
        if not missing:
            return
        wanted = missing
        within_credit = reader.share.charge_repair(transfer.bytes_in(missing))
        service_class: int = priority if within_credit else SCAVENGER
        number = transfer.descriptor.transfer
        under_way = self._under_way
        if under_way is not None and under_way.transfer is transfer:
            if under_way.parity:
                coming = dict.fromkeys(range(transfer.groups), under_way.parity)
                missing = not_restored(missing, transfer.count, coming)
            else:
                missing &= ~under_way.missing
            if not missing:
                self._join(under_way, reader, tag, service_class, wanted)
                return
        resend = self._resends.get(number)
        if resend is None:
            resend = self._resends[number] = Resend(transfer, service_class)
            self._put(resend, reader, service_class)
        resend.is_repeat &= not is_loss
        resend.missing |= missing
        resend.max_missing = max(resend.max_missing, max_in_group(missing, transfer.count))
        self._join(resend, reader, tag, service_class, wanted)

    def take(
        self, classes: Iterable[int] = SERVICE_CLASSES, max_transfer: int = EXTENT
    ) -> Entry | Resend | None:
        """
        Take the next item to be sent. Readers can join an entry until L{done} is called for it.
        A resend accepts more segments until L{begin}, and readers until L{resent}; no other
        resend may be taken before that.

        @param classes: service classes to take from, in this order.
        @param max_transfer: bytes of an entry at most, beyond a block; the rest stays queued in
            its place.
        """
        for service_class in classes:
            shares = self._classes[service_class]
            while shares:
                share = min(shares, key=lambda each: (each.served, shares[each][0][0]))
                number, order, item = heappop(shares[share])
                if not shares[share]:
                    del shares[share]
                if item.queued_in != service_class:
                    continue
                if isinstance(item, Entry) and item.readers:
                    self._cut(item, max_transfer)
                if service_class != SCAVENGER and item.readers and _is_greedy(item):
                    item.queued_in = SCAVENGER
                    heappush(self._classes[SCAVENGER].setdefault(share, []), (number, order, item))
                    continue
                item.queued_in = None
                item.service_class = service_class
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
    def has_scavenger_items(self) -> bool:
        """Whether anything is queued in the scavenger class."""
        return bool(self._classes[SCAVENGER])

    def is_for_others(self, item: Entry | Resend) -> bool:
        """Whether a host that has nothing in the scavenger class waits for an item."""
        scavengers = self._classes[SCAVENGER]
        return any(reader.share not in scavengers for reader in item.readers)

    def begin(self, resend: Resend) -> None:
        """Fix which segments of a resend that was taken go out, and whether as parity."""
        del self._resends[resend.transfer.descriptor.transfer]
        fewest, transfer = resend.max_missing, resend.transfer
        saves = fewest * transfer.groups < resend.missing.bit_count()
        if saves and fewest <= transfer.parity_left:
            resend.parity = fewest
        self._under_way = resend

    def resent(self) -> None:
        """Close the resend that was begun last: it was sent, or cannot be sent."""
        if self._under_way is not None:
            self._stop_waiting(self._under_way)
        self._under_way = None

    def done(self, entry: Entry) -> None:
        """Close an entry: it was sent, or cannot be sent."""
        self._stop_waiting(entry)
        for reader in entry.readers:
            _add_repair_credit(reader.share, entry.size)
        same = self._entries[entry.key]
        same.remove(entry)
        if not same:
            del self._entries[entry.key]

    def following(self, entry: Entry) -> int:
        """How many consecutive pages after an entry are queued as well."""
        image, generation, extent = entry.key
        end, pages = entry.end, 0
        while pages < MAX_FOLLOWING_PAGES:
            if end == EXTENT_PAGES:
                extent, end = extent + 1, 0
            for each in self._entries.get((image, generation, extent), ()):
                if each.queued_in is not None and each.first == end:
                    end += each.count
                    pages += each.count
                    break
            else:
                break
        return pages

    def forget(self, reader: IReader) -> None:
        """Remove a client that disconnected; items that nobody else waits for are not sent."""
        self._window.forget(reader)
        waited: list[Entry | Resend] = [*self._resends.values()]
        waited += (entry for entries in self._entries.values() for entry in entries)
        if self._under_way is not None:
            waited.append(self._under_way)
        for item in waited:
            for wanted in item.readers.pop(reader, {}).values():
                reader.share.waiting -= item.bytes_in(wanted)

    def __len__(self) -> int:
        return sum(map(len, self._entries.values())) + len(self._resends)

    def _join(
        self, item: Entry | Resend, reader: IReader, tag: int, service_class: int, wanted: int
    ) -> None:
        """@param wanted: bitmap of the pages, or segments, that the request waits for."""
        tags = item.readers.setdefault(reader, {})
        before = tags.get(tag, 0)
        if not before and len(tags) >= MAX_TAGS:
            reader.failed(tag, OSError(EBUSY, "asked for too often at a time"))
            return
        tags[tag] = before | wanted
        reader.share.waiting += item.bytes_in(before | wanted) - item.bytes_in(before)
        if item.queued_in is None:
            # It may still wait for others that were taken after it.
            if service_class < item.service_class and not reader.share.is_greedy:
                item.service_class = service_class
        elif service_class < item.queued_in:
            item.queued_in = service_class
            self._put(item, reader, service_class)

    def _put(self, item: Entry | Resend, reader: IReader, service_class: int) -> None:
        share = reader.share
        share.served = max(share.served, self._served)
        item.place = share, next(self._numbers)
        self._push(item, service_class)

    def _push(self, item: Entry | Resend, service_class: int) -> None:
        share, number = item.place
        order = item.first if isinstance(item, Entry) else 0
        heappush(self._classes[service_class].setdefault(share, []), (number, order, item))

    def _isolate(self, entry: Entry, pages: int) -> Entry:
        """Cut a queued entry so that one of its parts has the blocks of these pages, no others."""
        first = ((pages & -pages).bit_length() - 1) // BLOCK_PAGES * BLOCK_PAGES
        end = -(-pages.bit_length() // BLOCK_PAGES) * BLOCK_PAGES
        if end < entry.end:
            self._split(entry, end)
        return self._split(entry, first) if first > entry.first else entry

    def _cut(self, entry: Entry, most: int) -> None:
        """Cut a queued entry to what its readers wait for and can take, and to C{most} bytes."""
        pages = 0
        for reader, tags in entry.readers.items():
            most = min(most, reader.max_transfer)
            pages = reduce(or_, tags.values(), pages)
        entry.first = (pages & -pages).bit_length() - 1
        entry.count = pages.bit_length() - entry.first
        end = (entry.first // BLOCK_PAGES + max(1, most // BLOCK)) * BLOCK_PAGES
        if end < entry.end:
            self._split(entry, end)

    def _split(self, entry: Entry, page: int) -> Entry:
        """Cut a queued entry before a page: the rest, which is queued in the same place."""
        assert entry.queued_in is not None
        rest = Entry(entry.image, entry.extent, page, entry.end - page, entry.queued_in)
        rest.place = entry.place
        entry.count -= rest.count
        pages, readers = rest.pages, entry.readers
        entry.readers = {}
        for reader, tags in readers.items():
            for tag, wanted in tags.items():
                for part, its in ((entry, wanted & ~pages), (rest, wanted & pages)):
                    if its:
                        part.readers.setdefault(reader, {})[tag] = its
        self._entries[entry.key].append(rest)
        self._push(rest, entry.queued_in)
        return rest

    def _charge(self, share: Share, item: Entry | Resend) -> None:
        """Charge an item, taken from the queue of C{share}, to all hosts that wait for it."""
        self._served = max(self._served, share.served)
        shares = {reader.share for reader in item.readers}
        for each in shares:
            each.served = max(each.served, self._served) + item.cost / len(shares)

    def _stop_waiting(self, item: Entry | Resend) -> None:
        """Subtract an item from what its readers' hosts wait for."""
        for reader, tags in item.readers.items():
            reader.share.waiting -= sum(map(item.bytes_in, tags.values()))


def _is_greedy(item: Entry | Resend) -> bool:
    return all(reader.share.is_greedy for reader in item.readers)


def _add_repair_credit(share: Share, size: int) -> None:
    """Add repair credit for C{size} bytes that were sent to a host."""
    share.repair_credit = min(share.repair_credit + size, MAX_REPAIR_CREDIT)
