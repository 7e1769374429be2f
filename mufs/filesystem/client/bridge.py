"""
The bridge between FUSE's threads and the reactor: the one module that knows of both.

FUSE's threads call L{Bridge}; it answers from the cache in their own thread, and carries the
rest into the reactor with C{blockingCallFromThread}, never for longer than its timeout.
"""

import errno
from collections.abc import Callable
from threading import Lock, Thread
from typing import Any, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.threads import blockingCallFromThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from mufs.filesystem.client.files import Files
from mufs.wire.metadata import Attributes, Statistics

T = TypeVar("T")


class Bridge:
    """
    The operations of L{Files} as plain calls for threads other than the reactor's.

    @ivar hits: reads that the cache answered.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: "IReactorFromThreads | IReactorTime",
        files: Files,
        timeout: float,
    ) -> None:
        """@param timeout: seconds after which an operation ends with EIO."""
        self._reactor: Any = reactor
        self._files = files
        self._timeout = timeout
        self._calls: set[Deferred[Any]] = set()
        self._stopped = False
        self._counting = Lock()
        self.hits = 0

    def getattr(self, path: bytes, handle: int | None = None) -> Attributes:
        """See L{Files.getattr}; the root answers also without a connection."""
        if handle is None:
            known = self._files.attributes.get(path)
            if known is None and not path and not self._files.is_connected:
                known = self._files.attributes.last(path)
            if known is not None:
                return known
        return self._call(self._files.getattr, path, handle)

    def readdir(self, path: bytes) -> list[tuple[bytes, Attributes]]:
        """See L{Files.readdir}."""
        return self._call(self._files.readdir, path)

    def readlink(self, path: bytes) -> bytes:
        """See L{Files.readlink}."""
        return self._call(self._files.readlink, path)

    def statfs(self) -> Statistics:
        """See L{Files.statfs}."""
        return self._call(self._files.statfs)

    def open(self, path: bytes) -> tuple[int, bool]:
        """See L{Files.open}."""
        return self._call(self._files.open, path)

    def release(self, handle: int) -> None:
        """See L{Files.release}."""
        if not self._stopped:
            self._reactor.callFromThread(self._files.release, handle)

    def read(self, handle: int, offset: int, length: int) -> bytes:
        """The bytes at C{offset}, from the cache or else by way of the reactor."""
        opened = self._files.opened(handle)
        data = self._files.cached_read(opened, offset, length)
        if data is None:
            return self._call(self._files.read, opened, offset, length)
        with self._counting:
            self.hits += 1
        ahead = opened.ahead.advance(offset, length)
        if ahead is not None and not self._stopped:
            self._reactor.callFromThread(self._files.fetch.prefetch, opened, *ahead)
        return data

    def tell(self, function: Callable[..., object], *args: object) -> None:
        """Have the reactor's thread call a function, without waiting for it."""
        self._reactor.callFromThread(function, *args)

    def run(self, function: Callable[[], None]) -> "Deferred[None]":
        """
        Run a function in a thread of its own, which does not keep the process alive.

        @return: fires in the reactor's thread when it ended.
        """
        ended: Deferred[None] = Deferred()

        def body() -> None:
            try:
                function()
            except BaseException:
                self._reactor.callFromThread(ended.errback, Failure())
            else:
                self._reactor.callFromThread(ended.callback, None)

        Thread(target=body, name="fuse", daemon=True).start()
        return ended

    def stop(self) -> None:
        """Fail with EIO what waits, and what comes from now on; in the reactor's thread."""
        self._stopped = True
        for call in list(self._calls):
            call.cancel()

    def _call(self, function: "Callable[..., Deferred[T]]", *args: object) -> T:
        if self._stopped:
            raise OSError(errno.EIO, "the mount is ending")
        bounded: Callable[..., Deferred[Any]] = self._bounded
        try:
            return cast(T, blockingCallFromThread(self._reactor, bounded, function, *args))
        except CancelledError:
            raise OSError(errno.EIO, "the mount is ending") from None
        except TimeoutError:
            raise OSError(errno.EIO, "no answer from the server in time") from None

    def _bounded(self, function: "Callable[..., Deferred[T]]", *args: object) -> "Deferred[T]":
        if self._stopped:
            raise OSError(errno.EIO, "the mount is ending")
        call = maybeDeferred(function, *args)
        self._calls.add(call)
        call.addTimeout(self._timeout, self._reactor)
        call.addBoth(self._ended, call)
        return call

    def _ended(self, result: T, call: "Deferred[Any]") -> T:
        self._calls.discard(call)
        return result
