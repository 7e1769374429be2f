"""
The multicast queue: one entry for each range that clients miss (paper, section 4, steps 3 and 4).

A request joins the entries that already cover its range, whether queued or being sent; only the
rest of the range becomes new entries. Any number of clients in lockstep thus cost one transfer.
"""

import itertools
from collections import deque
from collections.abc import Iterable
from errno import EBUSY

from attrs import define, field

from mufs.cache.server.sent import (
    MAX_REPAIR_CREDIT,
    BlockKey,
    IReader,
    SentTransfer,
    SentWindow,
    Share,
)
from mufs.interfaces import IImage
from mufs.wire.channel import Occasion, Priority, Read
from mufs.wire.pages import BLOCK, BLOCK_PAGES, PAGE, byte_range, runs, split_into_blocks
from mufs.wire.segments import max_in_group, not_restored

Readers = dict[IReader, dict[int, None]]
"""Clients, each with the tags of its requests in order of arrival."""

MAX_FOLLOWING_PAGES = 7 * BLOCK_PAGES
"""Consecutive queued pages that are announced to the disk together with a block."""

MAX_TAGS = 64
"""How many requests of one client may wait for the same entry."""

ITEM_COST = 16 * 1024
"""Fixed cost per item sent, in bytes."""

SCAVENGER = len(Priority)
"""
The service class below all priorities (RFC 3662): items that only greedy hosts wait for, and
repairs beyond a host's repair credit.
"""

SERVICE_CLASSES: tuple[int, ...] = (*Priority, SCAVENGER)
"""All service classes, the most urgent first."""


@define(eq=False)
class Entry:
    """
    A run of pages of one block to be read, sealed and sent.

    @ivar queued_in: the service class that it is queued in, C{None} once it was taken.
    @ivar readers: who waits for it.
    @ivar service_class: the service class that it was taken from.
    """

    image: IImage
    block: int
    first: int
    count: int
    queued_in: int | None
    readers: Readers = field(factory=dict)
    service_class: int = SCAVENGER

    @property
    def size(self) -> int:
        """Bytes that each reader waits for."""
        return self.count * PAGE

    @property
    def cost(self) -> int:
        """What it costs the server and its link, in bytes."""
        return ITEM_COST + self.size

    @property
    def pages(self) -> int:
        """The run as a set of pages."""
        return ((1 << self.count) - 1) << self.first

    @property
    def byte_range(self) -> tuple[int, int]:
        """Its offset and length in the image, in bytes."""
        return byte_range(self.block * BLOCK, self.first, self.count, self.image.attributes.size)

    @property
    def key(self) -> BlockKey:
        """The block that it is a part of."""
        return self.image.image, self.image.generation, self.block


@define(eq=False)
class Resend:
    """
    A transfer to be repaired, either by the missing segments or by parity. As many parity
    segments as the reader with the most losses needs are enough for all readers.

    @ivar missing: bitmap of the segments that at least one reader misses.
    @ivar max_missing: how many parity segments of each group the reader with the most losses needs.
    @ivar parity: how many parity segments of each group to send; 0 to send the missing segments.
    @ivar is_repeat: whether nothing was lost: all who wait came too late, or kept nothing of it.
    """

    transfer: SentTransfer
    queued_in: int | None
    missing: int = 0
    max_missing: int = 0
    parity: int = 0
    readers: Readers = field(factory=dict)
    service_class: int = SCAVENGER
    is_repeat: bool = True

    @property
    def segments(self) -> int:
        """How many segments will be sent."""
        return self.parity * self.transfer.groups or self.missing.bit_count()

    @property
    def size(self) -> int:
        """Bytes that each reader waits for: the whole transfer."""
        return self.transfer.descriptor.total

    @property
    def cost(self) -> int:
        """What it costs the server and its link, in bytes."""
        return ITEM_COST + self.segments * int(self.transfer.rows.shape[1])


class MulticastQueue:
    """
    What is to be sent, in service classes: blocked readers first, then read-ahead, then
    background. Within a class the host that was served least comes first; among hosts served
    equally, the oldest request. The cost of an item that several hosts wait for is divided among
    them, so a host with requests of its own does not get half of the link beside many hosts that
    share theirs. A host does not accumulate credit while it has nothing queued.

    An item that only greedy hosts wait for moves to the scavenger class when its turn comes.

    @ivar requests: how many requests arrived.
    @ivar merged: how many of them were covered by existing entries and transfers.
    """

    def __init__(self, window: SentWindow) -> None:
        self._window = window
        self._classes: dict[int, dict[Share, deque[tuple[int, Entry | Resend]]]] = {
            service_class: {} for service_class in SERVICE_CLASSES
        }
        self._numbers = itertools.count(1)
        self._served = 0.0
        self._entries: dict[BlockKey, list[Entry]] = {}
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
        for block, wanted in split_into_blocks(read.offset, read.length):
            key = (image.image, image.generation, block)
            for entry in self._entries.get(key, ()):
                if wanted & entry.pages:
                    wanted &= ~entry.pages
                    self._join(entry, reader, read.tag, read.priority)
            for transfer in self._window.of_block(key):
                if wanted & transfer.pages:
                    wanted &= ~transfer.pages
                    # The reader may have received it and evicted it since: not a loss.
                    transfer.audience.discard(reader)
                    # Enough to be sent the whole transfer, and to have it repaired once.
                    _add_repair_credit(reader.share, 2 * transfer.descriptor.total)
                    reader.sent(read.tag, transfer, Occasion.BEFORE)
            for first, count in runs(wanted):
                merged = False
                entry = Entry(image, block, first, count, read.priority)
                self._entries.setdefault(key, []).append(entry)
                self._put(entry, reader, read.priority)
                self._join(entry, reader, read.tag, read.priority)
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
        missing &= (1 << len(transfer.rows)) - 1
        if not missing:
            return
        within_credit = reader.share.charge_repair(transfer.bytes_in(missing))
        service_class: int = priority if within_credit else SCAVENGER
        number = transfer.descriptor.transfer
        under_way = self._under_way
        if under_way is not None and under_way.transfer is transfer:
            if under_way.parity:
                coming = dict.fromkeys(range(transfer.groups), under_way.parity)
                missing = not_restored(missing, len(transfer.rows), coming)
            else:
                missing &= ~under_way.missing
            if not missing:
                self._join(under_way, reader, tag, service_class)
                return
        resend = self._resends.get(number)
        if resend is None:
            resend = self._resends[number] = Resend(transfer, service_class)
            self._put(resend, reader, service_class)
        resend.is_repeat &= not is_loss
        resend.missing |= missing
        resend.max_missing = max(resend.max_missing, max_in_group(missing, len(transfer.rows)))
        self._join(resend, reader, tag, service_class)

    def take(self, classes: Iterable[int] = SERVICE_CLASSES) -> Entry | Resend | None:
        """
        Take the next item to be sent. Readers can join an entry until L{done} is called for it.
        A resend accepts more segments until L{begin}, and readers until L{resent}; no other
        resend may be taken before that.

        @param classes: service classes to take from, in this order.
        """
        for service_class in classes:
            shares = self._classes[service_class]
            while shares:
                share = min(shares, key=lambda each: (each.served, shares[each][0][0]))
                number, item = shares[share].popleft()
                if not shares[share]:
                    del shares[share]
                if item.queued_in != service_class:
                    continue
                if service_class != SCAVENGER and item.readers and _is_greedy(item):
                    item.queued_in = SCAVENGER
                    self._classes[SCAVENGER].setdefault(share, deque()).append((number, item))
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
        image, generation, block = entry.key
        end, pages = entry.first + entry.count, 0
        while pages < MAX_FOLLOWING_PAGES:
            if end == BLOCK_PAGES:
                block, end = block + 1, 0
            for each in self._entries.get((image, generation, block), ()):
                if each.queued_in is not None and each.first == end:
                    end += each.count
                    pages += each.count
                    break
            else:
                break
        return pages

    def forget(self, reader: IReader) -> None:
        """Remove a client that disconnected; items that nobody else waits for are not sent."""
        waited: list[Entry | Resend] = [*self._resends.values()]
        waited += (entry for entries in self._entries.values() for entry in entries)
        if self._under_way is not None:
            waited.append(self._under_way)
        for item in waited:
            tags = item.readers.pop(reader, ())
            reader.share.waiting -= item.size * len(tags)

    def __len__(self) -> int:
        return sum(map(len, self._entries.values())) + len(self._resends)

    def _join(self, item: Entry | Resend, reader: IReader, tag: int, service_class: int) -> None:
        tags = item.readers.setdefault(reader, {})
        if tag in tags:
            pass
        elif len(tags) >= MAX_TAGS:
            reader.failed(tag, OSError(EBUSY, "asked for too often at a time"))
            return
        else:
            tags[tag] = None
            reader.share.waiting += item.size
        if item.queued_in is not None and service_class < item.queued_in:
            item.queued_in = service_class
            self._put(item, reader, service_class)

    def _put(self, item: Entry | Resend, reader: IReader, service_class: int) -> None:
        share = reader.share
        share.served = max(share.served, self._served)
        numbered = (next(self._numbers), item)
        self._classes[service_class].setdefault(share, deque()).append(numbered)

    def _charge(self, share: Share, item: Entry | Resend) -> None:
        """Charge an item, taken from the queue of C{share}, to all hosts that wait for it."""
        self._served = max(self._served, share.served)
        shares = {reader.share for reader in item.readers}
        for each in shares:
            each.served = max(each.served, self._served) + item.cost / len(shares)

    def _stop_waiting(self, item: Entry | Resend) -> None:
        """Subtract an item from what its readers' hosts wait for."""
        for reader, tags in item.readers.items():
            reader.share.waiting -= item.size * len(tags)


def _is_greedy(item: Entry | Resend) -> bool:
    return all(reader.share.is_greedy for reader in item.readers)


def _add_repair_credit(share: Share, size: int) -> None:
    """Add repair credit for C{size} bytes that were sent to a host."""
    share.repair_credit = min(share.repair_credit + size, MAX_REPAIR_CREDIT)
