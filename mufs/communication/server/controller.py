"""The multicast controller: takes from the queue, seals, cuts, paces (paper, section 5.3)."""

from collections import deque
from collections.abc import Callable, Container
from errno import EIO
from typing import Any

import numpy
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from mufs.cache.server.queue import LAST, Entry, MulticastQueue, Readers, Resend
from mufs.cache.server.sent import IReader, SentTransfer, SentWindow
from mufs.communication.server.output import MAX_TRAIN, ISegmentOutput
from mufs.communication.server.pacing import Pace
from mufs.interfaces import IImage
from mufs.wire.channel import Occasion, Priority, Read, Repair
from mufs.wire.pages import PAGE, byte_range
from mufs.wire.sealing import Keys, seal
from mufs.wire.segments import (
    ANNOUNCEMENT,
    HEADER,
    SEGMENT,
    Descriptor,
    cut,
    number_count,
    segment_count,
)

AHEAD = 4
"""How many entries are read from disk while another is sent."""

SLOW = 0.1
"""Seconds after which an image that is still being read keeps no other from being read."""

MOST_MENDED = 94
"""Segments that are sent again, for readers that wait, before the next transfer has its turn."""

MERGING = 0.01
"""
Seconds from one repair of a transfer to the next, while there is none other to send: the more
clients have reported then what they lack, the less is sent for each.
"""

KEY_AHEAD = 0.01
"""Seconds that new keys have for their way to the clients before they are needed."""

KEY_LEAST = 1.0
"""Seconds for which keys are used at least, however many clients are expelled."""

LAST_PART = 40
"""The last line of the queue gets one such part of the time while others are served."""

ALONE = 1.0
"""Seconds since anybody else was served, after which the last line gets all there is."""

Reading = Callable[[IImage, int, int, int], "Deferred[bytes]"]
"""Reads from an image: offset, length, and how many bytes after that will be asked for soon."""


class MulticastController:
    """
    Carries what the queue holds to the group, one transfer after the other.

    @ivar output: where to; C{None} as long as nobody could hear it.
    @ivar transfers: how many went out.
    @ivar segments_sent: their segments, without those sent again.
    @ivar segments_repaired: segments sent again, by multicast or over TCP, and parity segments
        in their place.
    @ivar parity_sent: parity segments sent along with transfers.
    @ivar bytes_multicast: bytes of all datagrams.
    @ivar keys_replaced: called when there are new keys, before anything is sealed with them.
    """

    _log = Logger()

    def __init__(
        self,
        queue: MulticastQueue,
        window: SentWindow,
        keys: Keys,
        pace: Pace,
        read: Reading,
        clock: IReactorTime,
        segment: int = SEGMENT,
    ) -> None:
        """@param read: reads from an image, outside the reactor's thread."""
        self._queue = queue
        self._window = window
        self._keys = keys
        self._pace = pace
        self._read = read
        self._clock = clock
        self.segment = segment
        self.output: ISegmentOutput | None = None
        self.keys_replaced: Callable[[], None] = lambda: None
        self._replacing: IDelayedCall | None = None
        self._keys_needed_at = 0.0
        self._reading: dict[Entry, float] = {}
        self._slow: set[IImage] = set()
        self._watch: IDelayedCall | None = None
        self._ready: deque[tuple[Entry, bytes]] = deque()
        self._idle = True
        self._others_at = float("-inf")
        self._last_at = float("-inf")
        self._later: IDelayedCall | None = None
        self._sending: Deferred[None] = succeed(None)
        self._next_segment = 0
        self.transfers = 0
        self.segments_sent = 0
        self.segments_repaired = 0
        self.parity_sent = 0
        self.bytes_multicast = 0

    @property
    def pace(self) -> Pace:
        """How fast it sends."""
        return self._pace

    def request(self, reader: IReader, image: IImage, read: Read) -> None:
        """Answer a READ by multicast; its range must lie within the image."""
        self._queue.request(reader, read.tag, image, read.offset, read.length, read.priority)
        self._wake()

    def repair(
        self, reader: IReader, repair: Repair, images: Container[tuple[int, int]] | None = None
    ) -> SentTransfer | None:
        """
        Answer a REPAIR by multicast, or leave it to TCP.

        @param images: those that the reader may ask for, if not all: image and generation.
        @return: the transfer, C{None} when it is no longer held, or not for the reader.
        """
        transfer = self._window.get(repair.transfer)
        if transfer is None or (images is not None and transfer.block[:2] not in images):
            return None
        if repair.attempt == 1:
            if reader in transfer.audience:
                transfer.audience.discard(reader)
                lost, sent = repair.missing.bit_count(), len(transfer.rows)
                self._pace.lost(reader.share, lost, sent, transfer.interval)
            priority = Priority.BLOCKED if repair.tag else Priority.AHEAD
            self._queue.repair(reader, repair.tag, transfer, repair.missing, priority)
            self._wake()
        return transfer

    def forget(self, reader: IReader) -> None:
        """The client has gone."""
        self._queue.forget(reader)

    def expelled(self) -> None:
        """A client was sent away: what is sealed from now on is not for it."""
        if self._replacing is None:
            rest = max(0.0, self._keys.since + KEY_LEAST - self._clock.seconds())
            self._replacing = self._clock.callLater(
                rest, self._replace_keys, "a client was expelled"
            )

    def stop(self) -> None:
        """Send nothing more."""
        if self._replacing is not None:
            self._replacing.cancel()
        self._sending.cancel()
        self._idle = False  # so that what is still being read begins nothing
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _wake(self) -> None:
        if self._idle:
            self._idle = False
            self._sending = ensureDeferred(self._run())
            self._sending.addErrback(lambda failure: failure.trap(CancelledError))
            self._sending.addErrback(lambda failure: self._log.failure("cannot send", failure))

    async def _run(self) -> None:
        try:
            mended = 0
            while True:
                resend = self._prepare()
                early = 0.0 if resend is None else self._too_early(resend)
                if self._ready and (resend is None or early > 0 or mended >= MOST_MENDED):
                    entry, data = self._ready.popleft()
                    began = self._clock.seconds()
                    await self._send(entry, data)
                    self._went(entry, began)
                    mended = 0
                elif early > 0:
                    await deferLater(self._clock, early)
                elif resend is None:
                    self._come_back()
                    break
                if resend is not None:
                    began = self._clock.seconds()
                    await self._resend(resend)
                    self._went(resend, began)
                    mended += resend.segments
        finally:
            self._idle = True

    def _too_early(self, resend: Resend) -> float:
        """How many seconds the transfer was mended too recently to be mended again."""
        return resend.transfer.mended + MERGING - self._clock.seconds()

    def _prepare(self) -> Resend | None:
        """Have the next entries read; stop at segments to be sent again, which are ready."""
        while len(self._ready) + self._quick() < AHEAD:
            item = self._queue.take(self._lines())
            if item is not None:
                self._took(item)
            if item is None or isinstance(item, Resend):
                return item
            self._begin(item)
        return None

    def _lines(self) -> tuple[int, ...]:
        """Which lines of the queue have their turn now."""
        now = self._clock.seconds()
        if now >= self._others_at + ALONE:
            return (*Priority, LAST)
        # One at a time, so that none of the others has to wait for more than that.
        if now >= self._last_at and not self._ready and not self._quick():
            return (LAST, *Priority)
        return tuple(Priority)

    def _took(self, item: Entry | Resend) -> None:
        if item.line != LAST and self._queue.is_for_others(item):
            self._others_at = self._clock.seconds()

    def _went(self, item: Entry | Resend, began: float) -> None:
        """Something was sent: if from the last line, that has to wait for as long as this took."""
        if item.line == LAST:
            now = self._clock.seconds()
            took = max(now - began, item.cost * 8 / self._pace.rate)
            self._last_at = now + LAST_PART * took

    def _come_back(self) -> None:
        """Nothing is left but what may be in the last line: see to it when it is its turn."""
        if self._queue.has_last and self._later is None:
            turn = min(self._last_at, self._others_at + ALONE) - self._clock.seconds()
            self._later = self._clock.callLater(max(0.001, turn), self._see_to_last)

    def _see_to_last(self) -> None:
        self._later = None
        self._wake()

    def _quick(self) -> int:
        """How many entries are being read of images that are not slow."""
        return sum(entry.image not in self._slow for entry in self._reading)

    def _begin(self, entry: Entry) -> None:
        """Have an entry read; it is sent in its turn once it was."""
        image, (offset, length) = entry.image, _range(entry)
        more = PAGE * self._queue.following(entry)
        end = min(offset + length + more, image.attributes.size)
        self._reading[entry] = self._clock.seconds()
        if self._watch is None:
            self._watch = self._clock.callLater(SLOW, self._look)
        reading = self._read(image, offset, length, end - offset - length)
        reading.addCallbacks(self._was_read, self._unreadable, (entry,), {}, (entry,))

    def _was_read(self, data: bytes, entry: Entry) -> None:
        del self._reading[entry]
        # What somebody waits for goes before what was read earlier, but is less urgent.
        later = sum(each.line > entry.line for each, _ in self._ready)
        self._ready.insert(len(self._ready) - later, (entry, data))
        self._wake()

    def _unreadable(self, failure: Failure, entry: Entry) -> None:
        del self._reading[entry]
        self._queue.done(entry)
        self._fail(entry, failure)
        self._wake()

    def _look(self) -> None:
        """See which images are slow: what is read of others goes past them."""
        late = self._clock.seconds() - SLOW
        self._slow = {entry.image for entry, begun in self._reading.items() if begun <= late}
        self._watch = self._clock.callLater(SLOW, self._look) if self._reading else None
        self._wake()

    def _seal(self, entry: Entry, data: bytes) -> SentTransfer:
        """Seal with the keys of this moment."""
        image, (offset, length) = entry.image, _range(entry)
        number = self._keys.next_transfer(length)
        descriptor = Descriptor(
            number, self._next_segment, image.image, image.generation, offset, length
        )
        self._next_segment = (
            self._next_segment + number_count(segment_count(length, self.segment))
        ) & 0xFFFFFFFF
        return seal_transfer(self._keys, descriptor, data, self.segment)

    def _replace_keys(self, why: str) -> None:
        """
        Take new keys. What was sealed with those before is held no longer: who lacks some of it
        asks anew, as clients soon forget these keys.
        """
        if self._replacing is not None and self._replacing.active():
            self._replacing.cancel()
        self._replacing = None
        self._keys.replace()
        self._window.clear()
        self._log.info("new keys: {why}", why=why)
        self._keys_needed_at = self._clock.seconds() + KEY_AHEAD
        self.keys_replaced()

    async def _let_keys_go_ahead(self) -> None:
        """Replace the keys if they were used for long, and let clients have them first."""
        why = self._keys.due()
        if why is not None:
            self._replace_keys(why)
        early = self._keys_needed_at - self._clock.seconds()
        if early > 0:
            await deferLater(self._clock, early)

    async def _send(self, entry: Entry, data: bytes) -> None:
        try:
            await self._let_keys_go_ahead()
            transfer = self._seal(entry, data)
            parity = min(self._pace.parity, transfer.parity_left)
            await self._write(transfer, (1 << len(transfer.rows)) - 1, parity)
        except CancelledError:
            raise
        except Exception:
            self._queue.done(entry)
            self._fail(entry, Failure())
            return
        self.transfers += 1
        self.segments_sent += len(transfer.rows)
        self.parity_sent += parity
        if transfer.descriptor.epoch == self._keys.epoch.number:
            self._window.add(transfer)
        self._queue.done(entry)
        transfer.audience.update(entry.readers)
        _tell(entry.readers, transfer, Occasion.NOW)
        hosts = {reader.share for reader in transfer.audience}
        transfer.interval = self._pace.sent(hosts, len(transfer.rows))

    async def _resend(self, resend: Resend) -> None:
        self._queue.begin(resend)
        try:
            segments = 0 if resend.parity else resend.missing
            await self._write(resend.transfer, segments, resend.parity)
        except CancelledError:
            raise
        except Exception:
            self._queue.resent()
            self._fail(resend, Failure())
            return
        self.segments_repaired += resend.segments
        resend.transfer.mended = self._clock.seconds()
        self._queue.resent()
        _tell(resend.readers, resend.transfer, Occasion.REPAIR)

    def _fail(self, item: Entry | Resend, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, OSError):
            self._log.failure("cannot send a transfer", failure)
            error = OSError(EIO, "the server failed")
        for reader, tags in item.readers.items():
            for tag in tags:
                reader.failed(tag, error)

    async def _write(self, transfer: SentTransfer, segments: int, parity: int) -> None:
        await self._out(transfer.control(ANNOUNCEMENT))
        pieces: list[bytes | memoryview] = []
        if segments:
            pieces += trains(transfer, segments)
        if parity:
            pieces += _trains(transfer.make_parity(parity))
        completion = transfer.completion(segments)
        # The last segment mostly is a short one, and leaves room in its datagram.
        last = len(pieces[-1]) % (HEADER.size + self.segment)
        if 0 < last <= self.segment + HEADER.size - len(completion):
            pieces[-1] = b"".join((pieces[-1], completion))
        else:
            pieces.append(completion)
        for piece in pieces:
            await self._out(piece)

    async def _out(self, packets: bytes | memoryview) -> None:
        delay = self._pace.delay(len(packets))
        if delay > 0:
            await deferLater(self._clock, delay)
        left = packets
        while self.output is not None:
            left = left[self.output.write(left) :]
            if not left:
                break
            self._pace.blocked()
            await self.output.writable()
        self.bytes_multicast += len(packets)


def _range(entry: Entry) -> tuple[int, int]:
    """Offset and length in the image."""
    return byte_range(entry.block, entry.first, entry.count, entry.image.attributes.size)


def seal_transfer(keys: Keys, descriptor: Descriptor, data: bytes, segment: int) -> SentTransfer:
    """Make what was read into a transfer ready to go out."""
    d = descriptor
    sealed, tag = seal(keys.cipher(d.image, d.generation), d, data)
    whole = Descriptor(d.transfer, d.first, d.image, d.generation, d.offset, d.total, tag)
    return SentTransfer(whole, cut(d.first, sealed, segment), keys.epoch.control)


def trains(transfer: SentTransfer, segments: int, most: int = MAX_TRAIN) -> list[memoryview]:
    """
    The packets of some segments of a transfer, back to back, at most C{most} in each piece.

    @param segments: bitmap of those to send.
    """
    rows = transfer.rows
    count = len(rows)
    padding = (rows.shape[1] - HEADER.size) * count - transfer.descriptor.total
    if segments != (1 << count) - 1:
        rows = rows[[i for i in range(count) if segments >> i & 1]]
    packets = _trains(rows, most)
    if padding and segments >> (count - 1):
        packets[-1] = packets[-1][:-padding]
    return packets


def _trains(rows: "numpy.ndarray[Any, Any]", most: int = MAX_TRAIN) -> list[memoryview]:
    packets = rows.data.cast("B")
    piece = most * rows.shape[1]
    return [packets[i : i + piece] for i in range(0, len(packets), piece)]


def _tell(readers: Readers, transfer: SentTransfer, occasion: Occasion) -> None:
    for reader, tags in readers.items():
        for tag in tags:
            if tag:
                reader.sent(tag, transfer, occasion)
