"""File data over TCP: for a client that multicast does not reach."""

from collections import deque
from collections.abc import Callable
from errno import EIO

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mufs.cache.server.sent import SentTransfer, Share
from mufs.communication.server.disk_reads import Reading
from mufs.communication.server.pacing import Pace
from mufs.communication.server.sender import trains
from mufs.interfaces import IImage
from mufs.wire.channel import DATA_OVERHEAD, Data, Priority, Read, Type, pack_tagged
from mufs.wire.pages import BLOCK
from mufs.wire.segments import ANNOUNCEMENT

DATA_SIZE = BLOCK // 2
"""Bytes of an image in one DATA packet: whole pages, so that each can be kept as it comes."""

MULTICAST_WEIGHT = 40
"""Bytes of multicast for each byte of one client, while multicast fills the server's link."""

MAX_CREDIT = 4 * DATA_SIZE
"""Bytes of its unused share that a client may be sent at once."""

RETRY_DELAY = 0.01
"""Seconds after which a client that has used up its share is checked again."""


class UnicastReads:
    """
    Sends file data to one client over TCP.

    Its reads are answered C{DATA_SIZE} bytes of each image in turn, as fast as the client takes
    them. While multicast, which serves all clients, fills the server's link, the client gets a
    small share of what is multicast; a greedy client gets no more than that while anything is
    multicast.

    @ivar bytes_sent: file bytes, without the zeros that were left out, and segments with their
        headers, so far.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        pace: Pace,
        *,
        read: Reading,
        write: Callable[[bytes], None],
        failed: Callable[[int, OSError], None],
        share: Share,
    ) -> None:
        """
        @param pace: of multicast.
        @param write: sends packets to the client; C{failed} answers the read of a tag.
        @param share: of the client's host: what waits here counts there.
        """
        self._clock = clock
        self._pace = pace
        self._read = read
        self._write = write
        self._failed = failed
        self._share = share
        self._queues: dict[Priority, dict[IImage, deque[Read]]] = {p: {} for p in Priority}
        self._reading: set[IImage] = set()
        self._is_starting = False
        self._is_throttled = False
        self._is_paused = False
        self._next_allowed = 0
        self.bytes_sent = 0

    def request(self, image: IImage, read: Read) -> None:
        """Answer C{read}; its range must lie within the image."""
        self._queues[read.priority].setdefault(image, deque()).append(read)
        self._share.waiting += read.length
        self._start_reads()

    def send_segments(self, transfer: SentTransfer, missing: int, tag: int) -> int:
        """
        Send segments of a transfer as they were multicast, if the client's share allows that: one
        that gets none may read over TCP, which waits for it.

        @param missing: which segments, as a bitmap.
        @return: how many were sent.
        """
        missing &= (1 << transfer.count) - 1
        count = missing.bit_count()
        # As much as is read at a time may always be sent, more only within the client's share.
        size = count * transfer.segment
        allowed = size <= DATA_SIZE or self.charge(size)
        if not allowed or self._is_paused:
            return 0
        if not self._share.charge_repair(transfer.bytes_in(missing)):
            return 0
        packets = [transfer.control(ANNOUNCEMENT)]
        if missing:
            packets += map(bytes, trains(transfer, missing))
        packets.append(transfer.completion(missing))
        for each in packets:
            self._write(pack_tagged(Type.SEGMENTS, tag, each))
            self.bytes_sent += len(each)
        return count

    def charge(self, size: int) -> bool:
        """Whether this many bytes may be sent to the client now; if so, they are charged."""
        multicast, start = self._pace.bytes, self._pace.bytes
        if self._pace.is_full or (self._share.is_greedy and self._pace.is_sending):
            if multicast < self._next_allowed:
                return False
            start = max(self._next_allowed, multicast - MULTICAST_WEIGHT * MAX_CREDIT)
        self._next_allowed = start + MULTICAST_WEIGHT * size
        return True

    def pause(self) -> None:
        """Send nothing while the connection's buffer is full."""
        self._is_paused = True

    def resume(self) -> None:
        """The connection has room again."""
        self._is_paused = False
        self._start_reads()

    def stop(self) -> None:
        """Forget what was asked for: the connection is gone."""
        self._is_paused = True
        for images in self._queues.values():
            for queue in images.values():
                self._share.waiting -= sum(read.length for read in queue)
            images.clear()

    def _start_reads(self) -> None:
        # A read that is answered at once calls this again: that must not recurse.
        if not self._is_starting:
            self._is_starting = True
            try:
                while self._start_next():
                    pass
            finally:
                self._is_starting = False

    def _start_next(self) -> bool:
        """Start to read of the next image, in order of priority; whether there was one."""
        if not (self._is_paused or self._is_throttled):
            for images in self._queues.values():
                image = next((image for image in images if image not in self._reading), None)
                if image is not None:
                    self._start_read(images, image)
                    return True
        return False

    def _start_read(self, images: dict[IImage, deque[Read]], image: IImage) -> None:
        """Read the next part of an image of which none is being read."""
        queue = images[image]
        read = queue[0]
        length = min(read.length, DATA_SIZE - read.offset % DATA_SIZE)
        if not self.charge(length):
            self._is_throttled = True
            self._clock.callLater(RETRY_DELAY, self._unthrottle)
            return
        del images[image], queue[0]
        self._share.waiting -= length
        if length < read.length:
            queue.appendleft(evolve(read, offset=read.offset + length, length=read.length - length))
        if queue:
            images[image] = queue  # behind the other images
        self._reading.add(image)
        reading: Deferred[memoryview] = self._read(image, read.offset, length, read.length - length)
        reading.addCallback(self._send, image, read.offset)
        reading.addErrback(self._error, read, images, image)
        reading.addBoth(self._done, image)

    def _send(self, data: memoryview, image: IImage, offset: int) -> None:
        packet = Data(image.image, image.generation, offset, bytes(data)).encode()
        self.bytes_sent += len(packet) - DATA_OVERHEAD
        self._write(packet)

    def _error(
        self, failure: Failure, read: Read, images: dict[IImage, deque[Read]], image: IImage
    ) -> None:
        error = failure.value
        if not isinstance(error, OSError):
            self._log.failure("cannot read an image", failure)
            error = OSError(EIO, "the server failed")
        queue = images.get(image)
        if queue and queue[0].tag == read.tag:
            self._share.waiting -= queue.popleft().length
            if not queue:
                del images[image]
        self._failed(read.tag, error)

    def _done(self, _: object, image: IImage) -> None:
        self._reading.discard(image)
        self._start_reads()

    def _unthrottle(self) -> None:
        self._is_throttled = False
        self._start_reads()
