"""Reads answered over TCP: for a client that multicast does not reach."""

from collections import deque
from collections.abc import Callable
from errno import EIO

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mufs.cache.server.sent import Share
from mufs.communication.server.disk_reads import Reading
from mufs.communication.server.pacing import Pace
from mufs.interfaces import IImage
from mufs.wire.channel import Data, Priority, Read
from mufs.wire.pages import BLOCK

PIECE = BLOCK // 2
"""Bytes in one DATA packet: whole pages, so that each can be kept as it comes."""

SHARE = 40
"""Bytes of multicast for each byte of one client's, while multicast fills the server's link."""

CREDIT = 4 * PIECE
"""Bytes that a client may have at once of the share that it did not take."""

LOOK = 0.01
"""Seconds until a client that has had its share looks whether it may go on."""


class UnicastReads:
    """
    The reads of one client, answered one piece of each image after the other, as fast as it takes
    them; but while multicast, that serves all, fills the server's link, a small share of what is
    multicast. A greedy client gets no more than that while anything is multicast.

    @ivar bytes_sent: file bytes so far.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        pace: Pace,
        read: Reading,
        write: Callable[[bytes], None],
        failed: Callable[[int, OSError], None],
        share: Share,
    ) -> None:
        """
        @param pace: of multicast.
        @param share: of the client's host: what waits here counts there.
        """
        self._clock = clock
        self._pace = pace
        self._read = read
        self._write = write
        self._failed = failed
        self._share = share
        self._lines: dict[Priority, dict[IImage, deque[Read]]] = {p: {} for p in Priority}
        self._reading: set[IImage] = set()
        self._beginning = False
        self._resting = False
        self._paused = False
        self._due = 0
        self.bytes_sent = 0

    def request(self, image: IImage, read: Read) -> None:
        """Answer C{read}; its range must lie within the image."""
        self._lines[read.priority].setdefault(image, deque()).append(read)
        self._share.waiting += read.length
        self._next()

    def pause(self, paused: bool) -> None:
        """Stop while the connection's buffer is full, go on when it is not."""
        self._paused = paused
        if not paused:
            self._next()

    def stop(self) -> None:
        """Forget what was asked: the connection is gone."""
        self._paused = True
        for images in self._lines.values():
            for line in images.values():
                self._share.waiting -= sum(read.length for read in line)
            images.clear()

    def _next(self) -> None:
        # What is read at once leads back to here: it shall not lead deeper and deeper.
        if not self._beginning:
            self._beginning = True
            try:
                self._begin_all()
            finally:
                self._beginning = False

    def _begin_all(self) -> None:
        while not (self._paused or self._resting):
            for images in self._lines.values():
                image = next((image for image in images if image not in self._reading), None)
                if image is not None:
                    self._begin(images, image)
                    break
            else:
                return

    def _begin(self, images: dict[IImage, deque[Read]], image: IImage) -> None:
        """Read the next piece of an image, of which none is being read."""
        line = images[image]
        read = line[0]
        length = min(read.length, PIECE - read.offset % PIECE)
        if not self.take(length):
            self._resting = True
            self._clock.callLater(LOOK, self._rested)
            return
        del images[image], line[0]
        self._share.waiting -= length
        if length < read.length:
            line.appendleft(evolve(read, offset=read.offset + length, length=read.length - length))
        if line:
            images[image] = line  # behind the other images
        self._reading.add(image)
        reading: Deferred[bytes] = self._read(image, read.offset, length, read.length - length)
        reading.addCallback(self._send, image, read.offset)
        reading.addErrback(self._error, read, images, image)
        reading.addBoth(self._done, image)

    def take(self, size: int) -> bool:
        """Whether so many bytes may go to this client now; if so, they count."""
        multicast, start = self._pace.bytes, self._pace.bytes
        if self._pace.is_full or (self._share.is_greedy and self._pace.is_sending):
            if multicast < self._due:
                return False
            start = max(self._due, multicast - SHARE * CREDIT)
        self._due = start + SHARE * size
        return True

    def _send(self, data: bytes, image: IImage, offset: int) -> None:
        self.bytes_sent += len(data)
        self._write(Data(image.image, image.generation, offset, data).encode())

    def _error(
        self, failure: Failure, read: Read, images: dict[IImage, deque[Read]], image: IImage
    ) -> None:
        error = failure.value
        if not isinstance(error, OSError):
            self._log.failure("cannot read an image", failure)
            error = OSError(EIO, "the server failed")
        line = images.get(image)
        if line and line[0].tag == read.tag:
            self._share.waiting -= line.popleft().length
            if not line:
                del images[image]
        self._failed(read.tag, error)

    def _done(self, _: object, image: IImage) -> None:
        self._reading.discard(image)
        self._next()

    def _rested(self) -> None:
        self._resting = False
        self._next()
