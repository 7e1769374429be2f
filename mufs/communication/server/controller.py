"""The multicast controller: takes items from the queue and sends them (paper, section 5.3)."""

from collections.abc import Callable, Container
from errno import EIO

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from mufs.cache.server.items import Entry, Readers, Resend
from mufs.cache.server.queue import MulticastQueue
from mufs.cache.server.sent import IReader, SentTransfer, SentWindow
from mufs.communication.server.disk_reads import DiskReads, Reading
from mufs.communication.server.key_rotation import KeyRotation
from mufs.communication.server.output import ISegmentOutput
from mufs.communication.server.pacing import Pace
from mufs.communication.server.packer import Packer
from mufs.communication.server.scavenger import ScavengerSchedule
from mufs.communication.server.sender import Sender
from mufs.interfaces import IImage
from mufs.wire.channel import Occasion, Priority, Read, Repair
from mufs.wire.packing import Packed
from mufs.wire.pages import BLOCK
from mufs.wire.sealing import Keys
from mufs.wire.segments import SEGMENT, max_in_group

REPAIR_INTERVAL = 0.01
"""
Seconds between two repairs of a transfer: in that time more clients report what they miss, and
their repairs are merged.
"""


TURN_SECONDS = 0.002
"""Seconds of sending after which what came meanwhile is looked at, if nothing else had it wait."""


class MulticastController:
    """
    Sends what the queue holds to the group, one transfer after the other.

    @ivar transfers: how many were sent.
    @ivar segments_sent: their segments, also of those that were repeated as a whole for who had
        not waited for them, but not repairs.
    @ivar segments_repaired: segments sent again, by multicast or over TCP, and parity segments
        sent instead of them.
    @ivar parity_sent: parity segments sent along with transfers.
    @ivar keys_replaced: called when there are new keys, before anything is sealed with them.
    """

    _log = Logger()

    def __init__(
        self,
        queue: MulticastQueue,
        window: SentWindow,
        *,
        keys: Keys,
        pace: Pace,
        read: Reading,
        packer: Packer,
        clock: IReactorTime,
        segment: int = SEGMENT,
    ) -> None:
        """
        @param read: reads from an image, outside the reactor's thread.
        @param packer: packs what is sent.
        """

        def read_packed(
            image: IImage, offset: int, length: int, following: int
        ) -> "Deferred[Packed]":
            reading = read(image, offset, length, following)
            return reading.addCallback(lambda data: packer.pack(image, data, sender.size.cost))

        self._sender = sender = Sender(keys, pace, clock, segment=segment)
        self._queue = queue
        self._window = window
        self._clock = clock
        self.pace = pace
        self.keys_replaced: Callable[[], None] = lambda: None
        self._key_rotation = KeyRotation(keys, window, clock, announce=lambda: self.keys_replaced())
        self._reads = DiskReads(read_packed, clock, wake=self._wake, failed=self._drop)
        self._scavenger = ScavengerSchedule(queue, pace, clock, wake=self._wake)
        self._idle = True
        self._sending: Deferred[None] = succeed(None)
        self.transfers = 0
        self.segments_sent = 0
        self.segments_repaired = 0
        self.parity_sent = 0

    @property
    def segment(self) -> int:
        """Bytes of data in a segment."""
        return self._sender.segment

    @property
    def bytes_multicast(self) -> int:
        """Bytes of all datagrams so far."""
        return self._sender.bytes_multicast

    @property
    def output(self) -> ISegmentOutput | None:
        """Where datagrams go; C{None} while there is no group to send to."""
        return self._sender.output

    @output.setter
    def output(self, output: ISegmentOutput | None) -> None:
        self._sender.output = output

    def request(self, reader: IReader, image: IImage, read: Read) -> None:
        """Answer a READ by multicast; its range must lie within the image."""
        self._queue.request(reader, image, read)
        self._wake()

    def repair(
        self, reader: IReader, repair: Repair, images: Container[tuple[int, int]] | None = None
    ) -> SentTransfer | None:
        """
        Answer a REPAIR by multicast, or leave it to TCP.

        @param images: the images that the reader may ask for, as image and generation; C{None}
            for all.
        @return: the transfer; C{None} when it is no longer held, or not for this reader.
        """
        transfer = self._window.get(repair.transfer)
        if transfer is None or (images is not None and transfer.extent[:2] not in images):
            return None
        if repair.attempt == 1:
            was_awaited = reader in transfer.audience
            if was_awaited:
                transfer.audience.discard(reader)
                self.pace.lost(
                    reader.share,
                    repair.missing.bit_count(),
                    sent=transfer.count,
                    in_group=max_in_group(repair.missing, transfer.count),
                    interval=transfer.interval,
                )
            self._queue.repair(
                reader,
                transfer,
                tag=repair.tag,
                missing=repair.missing,
                priority=Priority.BLOCKED if repair.tag else Priority.AHEAD,
                is_loss=was_awaited or repair.missing.bit_count() < transfer.count,
            )
            self._wake()
        return transfer

    def forget(self, reader: IReader) -> None:
        """Remove a client that disconnected."""
        self._queue.forget(reader)

    def expelled(self) -> None:
        """A client was expelled: replace the keys, which it knows."""
        self._key_rotation.expelled()

    def stop(self) -> None:
        """Send nothing more."""
        self._key_rotation.stop()
        self._sending.cancel()
        self._idle = False  # so that reads that end later do not wake it
        self._scavenger.stop()
        self._reads.stop()

    def _wake(self) -> None:
        if self._idle:
            self._idle = False
            self._sending = ensureDeferred(self._run())
            self._sending.addErrback(lambda failure: failure.trap(CancelledError))
            self._sending.addErrback(lambda failure: self._log.failure("cannot send", failure))

    async def _run(self) -> None:
        """Send until nothing is ready, repairs first: as much in a row as a transfer may have."""
        try:
            # Not within the turn of the client that asked first: others may have asked as well.
            await deferLater(self._clock, 0)
            repaired, turn_began = 0, self._clock.seconds()
            while True:
                if self._clock.seconds() - turn_began > TURN_SECONDS:
                    await deferLater(self._clock, 0)
                    turn_began = self._clock.seconds()
                resend = self._prepare()
                early = 0.0 if resend is None else self._merge_time(resend)
                most = max(BLOCK, self._sender.size.limit)
                repairs_wait = resend is None or early > 0 or repaired * self.segment >= most
                if self._reads.ready and repairs_wait:
                    entry, packed = self._reads.pop()
                    began = self._clock.seconds()
                    await self._send(entry, packed)
                    self._scavenger.charge_sent(entry, began)
                    repaired = 0
                elif early > 0:
                    await deferLater(self._clock, early)
                elif resend is None:
                    self._scavenger.schedule()
                    break
                if resend is not None:
                    began = self._clock.seconds()
                    await self._resend(resend)
                    self._scavenger.charge_sent(resend, began)
                    repaired += resend.segments
        finally:
            self._idle = True

    def _merge_time(self, resend: Resend) -> float:
        """Seconds for which a repair can wait for others of its transfer to be merged with it."""
        return resend.transfer.repaired_at + REPAIR_INTERVAL - self._clock.seconds()

    def _prepare(self) -> Resend | None:
        """Begin to read the next entries, up to the next repair, which needs no reading."""
        while self._reads.has_room:
            classes = self._scavenger.classes(self._reads.is_idle)
            item = self._queue.take(classes, self._sender.size.limit)
            if item is not None:
                self._scavenger.note_dequeued(item)
            if item is None or isinstance(item, Resend):
                return item
            self._reads.begin(item, self._queue.following(item))
        return None

    async def _send(self, entry: Entry, packed: Packed) -> None:
        try:
            await self._key_rotation.prepare()
            transfer = self._sender.seal(entry, packed)
            parity = min(self.pace.parity, transfer.parity_left)
            await self._sender.write(transfer, (1 << transfer.count) - 1, parity)
        except CancelledError:
            raise
        except Exception:
            self._drop(entry, Failure())
            return
        self.transfers += 1
        self.segments_sent += transfer.count
        self.parity_sent += parity * transfer.groups
        if self._key_rotation.is_current(transfer):
            self._window.add(transfer)
        self._queue.done(entry)
        transfer.audience.update(entry.readers)
        _tell(entry.readers, transfer, Occasion.NOW)
        hosts = {reader.share for reader in transfer.audience}
        transfer.interval = self.pace.sent(hosts, transfer.count)

    async def _resend(self, resend: Resend) -> None:
        self._queue.begin(resend)
        try:
            segments = 0 if resend.parity else resend.missing
            await self._sender.write(resend.transfer, segments, resend.parity)
        except CancelledError:
            raise
        except Exception:
            self._queue.resent()
            self._fail(resend.readers, Failure())
            return
        if resend.is_repeat:
            self.segments_sent += resend.segments
        else:
            self.segments_repaired += resend.segments
        resend.transfer.repaired_at = self._clock.seconds()
        self._queue.resent()
        _tell(resend.readers, resend.transfer, Occasion.REPAIR)

    def _drop(self, entry: Entry, failure: Failure) -> None:
        """Close an entry that cannot be read or sent."""
        self._queue.done(entry)
        self._fail(entry.readers, failure)

    def _fail(self, readers: Readers, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, OSError):
            self._log.failure("cannot send a transfer", failure)
            error = OSError(EIO, "the server failed")
        for reader, tags in readers.items():
            for tag in tags:
                reader.failed(tag, error)


def _tell(readers: Readers, transfer: SentTransfer, occasion: Occasion) -> None:
    for reader, tags in readers.items():
        for tag in tags:
            if tag:
                reader.sent(tag, transfer, occasion)
