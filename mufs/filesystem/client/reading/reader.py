"""What connects L{ReadCore} with the reactor: reads as Deferreds, packets, and its one timer."""

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import Interface

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.timer import Timer
from mufs.filesystem.client.images import OpenImage, stale
from mufs.filesystem.client.reading.core import ReadCore
from mufs.filesystem.client.reading.in_flight import WaitingRead
from mufs.wire.channel import Data, Priority
from mufs.wire.pages import EXTENT, ImageKey
from mufs.wire.segments import Descriptor


class IFiller(Interface):
    """Learns what arrives of an image, and what becomes of its calls of L{Reader.fill}."""

    def received(extent: int, length: int) -> None:
        """C{length} bytes of an extent came, whoever requested them."""

    def failed(error: OSError) -> None:
        """The server cannot answer what was asked for."""

    def resumed() -> None:
        """The connection was replaced; what was requested over the last one is lost."""


class Reader:
    """
    Reads images: from the cache in any thread, and by way of the server in the reactor's.

    It decides nothing: it tells the core what happens and when, and does what that says.

    @ivar fillers: what fills the cache, by open image.
    """

    def __init__(
        self,
        core: ReadCore,
        cache: BlockCache,
        clock: IReactorTime,
        *,
        send: Callable[[bytes], None],
    ) -> None:
        """@param send: writes packets to the request channel."""
        self._core = core
        self._cache = cache
        self._clock = clock
        self._send = send
        self._results: dict[WaitingRead, Deferred[int]] = {}
        self._timer = Timer(clock, self)
        self.fillers: dict[OpenImage, IFiller] = {}

    def read_cached(
        self,
        opened: OpenImage,
        offset: int,
        target: memoryview,
        *,
        cross: Callable[..., object],
    ) -> int | None:
        """
        Fill C{target} with the bytes at C{offset} if all of them are in the cache; from any thread.

        @param cross: makes a call in the reactor's thread, if something has to be read ahead.
        @return: the number of bytes, less at the end of the image; C{None} if some are missing.
        """
        if opened.stale:
            raise stale()
        opened.was_read = True
        core, seconds = self._core, self._clock.seconds
        began = seconds()
        length = len(target)
        left = opened.attributes.size - offset
        if left < length:
            length = max(0, left)
            target = target[:length]
        if not self._cache.read(opened.key, offset, target):
            return None
        deliveries = core.deliveries
        deliveries.note(deliveries.hits, seconds() - began, length)
        ahead = core.ahead_of_hit(opened, offset, length)
        if ahead is not None:
            cross(self.prefetch, opened, *ahead)
        return length

    def read(self, opened: OpenImage, offset: int, target: memoryview) -> "Deferred[int]":
        """
        Answer what L{read_cached} could not.

        @return: the number of bytes, less at the end of the image; fails with C{OSError}; may be
            cancelled.
        @raise OSError: when the image is stale.
        """
        waiting = self._core.read(opened, offset, target, self._clock.seconds())
        result: Deferred[int] = Deferred(lambda _: self._give_up(waiting))
        self._results[waiting] = result
        self._act()
        return result

    def prefetch(
        self, opened: OpenImage, offset: int, length: int, *, priority: Priority = Priority.AHEAD
    ) -> None:
        """See L{ReadCore.prefetch}."""
        self._core.prefetch(opened, offset, length, priority=priority)
        self._act()

    def fill(self, opened: OpenImage, wanted: dict[int, int]) -> None:
        """See L{ReadCore.fill}."""
        self._core.fill(opened, wanted)
        self._act()

    def delivered(self, descriptor: Descriptor, data: bytes | memoryview, zeros: int = 0) -> None:
        """See L{ReadCore.delivered}."""
        self._core.delivered(descriptor, data, self._clock.seconds(), zeros=zeros)
        self._act()
        key = descriptor.image, descriptor.generation
        self._tell_fillers(key, descriptor.offset, len(data))

    def data(self, data: Data) -> None:
        """See L{ReadCore.data}."""
        was_asked_for = self._core.data(data, self._clock.seconds())
        self._act()
        if was_asked_for:
            self._tell_fillers((data.image, data.generation), data.offset, len(data.payload))

    def expired(self, tag: int) -> None:
        """See L{ReadCore.expired}."""
        self._core.expired(tag)
        self._act()

    def lost(self, tag: int) -> None:
        """See L{ReadCore.lost}."""
        self._core.lost(tag)
        self._act()

    def failed(self, tag: int, error: OSError) -> None:
        """See L{ReadCore.failed}."""
        opened = self._core.failed(tag, error, self._clock.seconds())
        self._act()
        if opened in self.fillers:
            self.fillers[opened].failed(error)

    def resume(self, opened: OpenImage) -> None:
        """See L{ReadCore.resume}."""
        self._core.resume(opened, self._clock.seconds())
        self._act()
        if opened in self.fillers:
            self.fillers[opened].resumed()

    @property
    def due(self) -> float | None:
        """See L{ReadCore.due}."""
        return self._core.due

    def check(self, now: float) -> None:
        """See L{ReadCore.check_overdue}."""
        self._core.check_overdue(now)
        self._act()

    def _give_up(self, waiting: WaitingRead) -> None:
        if self._results.pop(waiting, None) is not None:
            self._core.give_up(waiting, self._clock.seconds())
            self._act()

    def _tell_fillers(self, key: ImageKey, offset: int, length: int) -> None:
        for opened, filler in list(self.fillers.items()):
            if opened.key == key:
                filler.received(offset // EXTENT, length)

    def _act(self) -> None:
        """Send what is to be sent, end the reads that have ended, and set the timer."""
        core = self._core
        if requests := core.requests.take():
            self._send(b"".join([request.encode() for request in requests]))
        if core.ended:
            ended, core.ended = core.ended, []
            results = [(self._results.pop(waiting), result) for waiting, result in ended]
            for done, result in results:
                # What an earlier one called back may have cancelled it.
                if not done.called:
                    done.callback(result) if isinstance(result, int) else done.errback(result)
        self._timer.set()
