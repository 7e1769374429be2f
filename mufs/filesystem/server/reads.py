"""Reads of image files, outside the reactor's thread wherever they may take time."""

from collections.abc import Callable
from errno import ESTALE
from typing import Any
from weakref import WeakKeyDictionary

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredSemaphore, succeed
from twisted.python.failure import Failure

from mufs.interfaces import IImage
from mufs.wire.pages import BLOCK

MOST = 1024 * 1024
"""Bytes read at once: a crossing into another thread costs more than to read 128 KiB."""

SHORT = BLOCK
"""Bytes, at the most, that are read in the reactor's thread where that takes no waiting."""

MAX_RUNS = 16
"""Runs held of which a part was not asked for yet."""

MAX_THREADS = 4
"""Reads of one image at a time: one that hangs leaves threads to the others."""


@define(eq=False)
class _Run:
    """
    Bytes of an image from C{offset} to C{end}; C{result} is C{None} until they were read.

    @ivar left: how many of them nobody has asked for yet.
    """

    image: IImage
    offset: int
    end: int
    left: int = field(init=False)
    result: bytes | None = None
    waiting: list[tuple[Deferred[bytes], int, int]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.left = self.end - self.offset

    def part(self, offset: int, length: int) -> "Deferred[bytes]":
        start = offset - self.offset
        if self.result is not None:
            return succeed(self.result[start : start + length])
        asked: Deferred[bytes] = Deferred()
        self.waiting.append((asked, start, length))
        return asked

    def done(self, result: bytes) -> None:
        self.result = result
        for asked, start, length in self.waiting:
            asked.callback(result[start : start + length])


class Reads:
    """
    Reads what is asked for, and with it what will be asked for next.

    @ivar image_reads: how often, and C{image_read_bytes} how much, files were read: the read
        times of table V.
    """

    def __init__(self, in_thread: Callable[..., "Deferred[Any]"]) -> None:
        """@param in_thread: calls a function outside the reactor's thread."""
        self._in_thread = in_thread
        self._runs: list[_Run] = []
        self._turns: WeakKeyDictionary[IImage, DeferredSemaphore] = WeakKeyDictionary()
        self.image_reads = 0
        self.image_read_bytes = 0

    def __call__(self, image: IImage, offset: int, length: int, more: int) -> "Deferred[bytes]":
        """
        The bytes at C{offset}.

        @param more: how many bytes after them will be asked for soon, as far as is known.
        @return: fails with C{OSError}.
        """
        for run in self._runs:
            if run.image is image and run.offset <= offset <= offset + length <= run.end:
                return self._part(run, offset, length)
        size = max(length, min(length + more, MOST))
        run = _Run(image, offset, offset + size)
        self._runs.append(run)
        del self._runs[:-MAX_RUNS]
        part = self._part(run, offset, length)
        turns = self._turns.setdefault(image, DeferredSemaphore(MAX_THREADS))
        # Of an image that hangs not even the cache is looked at: the system might wait after all.
        quick = size <= SHORT and turns.tokens == MAX_THREADS
        data = image.read_at_once(offset, size) if quick else None
        if data is None:
            reading = turns.run(self._in_thread, image.read, offset, size)
            reading.addCallbacks(self._done, self._failed, (run,), {}, (run,))
        else:
            self._done(data, run)
        return part

    def _part(self, run: _Run, offset: int, length: int) -> "Deferred[bytes]":
        run.left -= length
        if run.left <= 0:
            self._forget(run)
        return run.part(offset, length)

    def _done(self, data: bytes, run: _Run) -> None:
        self.image_reads += 1
        self.image_read_bytes += len(data)
        run.done(data)

    def _failed(self, failure: Failure, run: _Run) -> None:
        """What cannot be read together is read part by part: a bad sector fails its own alone."""
        self._forget(run)
        stale = getattr(failure.value, "errno", None) == ESTALE
        for asked, start, length in run.waiting:
            if stale or length == run.end - run.offset:
                asked.errback(failure)
            else:
                self(run.image, run.offset + start, length, 0).chainDeferred(asked)

    def _forget(self, run: _Run) -> None:
        if run in self._runs:
            self._runs.remove(run)
