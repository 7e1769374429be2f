"""Reads of image files, in other threads unless they are known not to block."""

from collections.abc import Callable
from errno import ESTALE
from typing import Any
from weakref import WeakKeyDictionary

from attrs import define, field
from twisted.internet.defer import (
    Deferred,
    DeferredSemaphore,
    FirstError,
    gatherResults,
    succeed,
)
from twisted.python.failure import Failure

from mufs.interfaces import IImage
from mufs.wire.pages import EXTENT

MAX_READ = EXTENT
"""
Bytes that are read at once, between two multiples of them; in the reactor's thread if that does not
block.
"""

MAX_RUNS = 16
"""Runs held of which a part has not been requested yet."""

MAX_THREADS = 4
"""Concurrent reads of one image: if it hangs, threads remain for other images."""


@define(eq=False)
class _Run:
    """
    Bytes of an image from C{offset} to C{end}; C{result} is C{None} until they are read.

    @ivar left: number of bytes that have not been requested yet.
    @ivar waiting: requests for parts: result, start within the run, length.
    """

    image: IImage
    offset: int
    end: int
    left: int = field(init=False)
    result: memoryview | None = None
    waiting: list[tuple[Deferred[memoryview], int, int]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.left = self.end - self.offset

    def part(self, offset: int, length: int) -> "Deferred[memoryview]":
        start = offset - self.offset
        if self.result is not None:
            return succeed(self.result[start : start + length])
        part: Deferred[memoryview] = Deferred()
        self.waiting.append((part, start, length))
        return part

    def done(self, data: bytes | memoryview) -> None:
        self.result = result = memoryview(data)
        for part, start, length in self.waiting:
            part.callback(result[start : start + length])


class Reads:
    """
    Reads what is requested, together with what will be requested next.

    @ivar image_reads: number of reads of files (the read times of table V).
    @ivar image_read_bytes: bytes read.
    """

    def __init__(self, in_thread: Callable[..., "Deferred[Any]"]) -> None:
        """@param in_thread: calls a function outside the reactor's thread."""
        self._in_thread = in_thread
        self._runs: list[_Run] = []
        self._turns: WeakKeyDictionary[IImage, DeferredSemaphore] = WeakKeyDictionary()
        self.image_reads = 0
        self.image_read_bytes = 0

    def __call__(
        self, image: IImage, offset: int, length: int, more: int
    ) -> "Deferred[memoryview]":
        """
        The bytes at C{offset}.

        @param more: number of bytes after them that will be requested soon, if known.
        @return: fails with C{OSError}.
        """
        for run in self._runs:
            if run.image is image and run.offset <= offset < run.end:
                here = min(length, run.end - offset)
                part = self._part(run, offset, here)
                if here < length:
                    return _join(part, self(image, run.end, length - here, more))
                return part
        size = max(length, min(length + more, MAX_READ - offset % MAX_READ))
        run = _Run(image, offset, offset + size)
        self._runs.append(run)
        del self._runs[:-MAX_RUNS]
        part = self._part(run, offset, length)
        turns = self._turns.setdefault(image, DeferredSemaphore(MAX_THREADS))
        # While other reads of the image are pending, its file may hang, and any read may block.
        quick = size <= MAX_READ and turns.tokens == MAX_THREADS
        data = image.read_at_once(offset, size) if quick else None
        if data is None:
            reading = turns.run(self._in_thread, image.read, offset, size)
            reading.addCallbacks(self._done, self._failed, (run,), {}, (run,))
        else:
            self._done(data, run)
        return part

    def _part(self, run: _Run, offset: int, length: int) -> "Deferred[memoryview]":
        run.left -= length
        if run.left <= 0:
            self._forget(run)
        return run.part(offset, length)

    def _done(self, data: bytes | memoryview, run: _Run) -> None:
        self.image_reads += 1
        self.image_read_bytes += len(data)
        run.done(data)

    def _failed(self, failure: Failure, run: _Run) -> None:
        """Read the parts one by one, so that a bad sector fails only the parts that have it."""
        self._forget(run)
        stale = getattr(failure.value, "errno", None) == ESTALE
        for part, start, length in run.waiting:
            if stale or length == run.end - run.offset:
                part.errback(failure)
            else:
                self(run.image, run.offset + start, length, 0).chainDeferred(part)

    def _forget(self, run: _Run) -> None:
        if run in self._runs:
            self._runs.remove(run)


def _join(*parts: "Deferred[memoryview]") -> "Deferred[memoryview]":
    """The bytes of parts that were read one by one."""

    def failed(failure: Failure) -> Failure:
        error = failure.value
        return error.subFailure if isinstance(error, FirstError) else failure

    joined = gatherResults(parts, consumeErrors=True)
    return joined.addCallbacks(lambda read: memoryview(b"".join(read)), failed)
