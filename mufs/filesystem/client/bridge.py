"""
The bridge between FUSE's threads and the reactor: the only module that knows both.

FUSE's threads call L{Bridge}, which answers from the cache in the calling thread and passes
everything else to the reactor with C{blockingCallFromThread}, where a timeout bounds it.
"""

import errno
from collections.abc import Callable
from threading import Thread
from typing import Any, TypeVar, cast

from attrs import define
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.internet.threads import blockingCallFromThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from mufs.filesystem.client.images import PageCache
from mufs.filesystem.client.remote import RemoteFileSystem
from mufs.wire.metadata import Attributes, Caller, Statistics

T = TypeVar("T")


@define(eq=False)
class _Call:
    """
    An operation that a thread waits for.

    @ivar expires: when it is cancelled, in seconds.
    @ivar failure: why it was cancelled.
    """

    deferred: Deferred[Any]
    expires: float
    failure: OSError | None = None


class Bridge:
    """The operations of L{RemoteFileSystem} as blocking calls for FUSE's threads."""

    _log = Logger()

    def __init__(
        self,
        reactor: "IReactorFromThreads | IReactorTime",
        remote: RemoteFileSystem,
        timeout: float,
    ) -> None:
        """@param timeout: seconds after which an operation ends with EIO."""
        self._reactor: Any = reactor
        self._remote = remote
        self._timeout = timeout
        self._calls: dict[_Call, None] = {}
        self._expiry: IDelayedCall | None = None
        self._stopped = False

    def getattr(self, path: bytes, handle: int | None, caller: Callable[[], Caller]) -> Attributes:
        """
        See L{RemoteFileSystem.getattr}; the root answers also without a connection.

        @param caller: returns who asks; called only if the server is asked.
        """
        if handle is None:
            known = self._remote.attributes.get(path)
            if known is None and not path and not self._remote.is_connected:
                known = self._remote.attributes.last(path)
            if known is not None:
                return known
        return self._call(self._remote.getattr, path, handle, caller())

    def readdir(self, path: bytes, caller: Caller) -> list[tuple[bytes, Attributes]]:
        """See L{RemoteFileSystem.readdir}."""
        return self._call(self._remote.readdir, path, caller)

    def readlink(self, path: bytes, caller: Caller) -> bytes:
        """See L{RemoteFileSystem.readlink}."""
        return self._call(self._remote.readlink, path, caller)

    def statfs(self) -> Statistics:
        """See L{RemoteFileSystem.statfs}."""
        return self._call(self._remote.statfs)

    def open(self, path: bytes, caller: Caller) -> tuple[int, PageCache]:
        """See L{RemoteFileSystem.open}."""
        return self._call(self._remote.open, path, caller)

    def release(self, handle: int) -> None:
        """See L{RemoteFileSystem.release}."""
        if not self._stopped:
            self._reactor.callFromThread(self._remote.release, handle)

    def read(self, handle: int, offset: int, target: memoryview) -> int:
        """
        Fill C{target} with the bytes at C{offset}, from the cache or else by way of the reactor.

        @return: the number of bytes, less at the end of the image.
        """
        opened = self._remote.opened(handle)
        opened.was_read = True
        length = self._remote.cached_read(opened, offset, target)
        if length is None:
            return self._call(self._remote.read, opened, offset, target)
        ahead = opened.sequence_detector.advance(offset, length)
        if ahead is not None and not self._stopped and self._remote.lacks(opened, *ahead):
            self._reactor.callFromThread(self._remote.coalescer.prefetch, opened, *ahead)
        return length

    def call_in_reactor(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the reactor's thread, without waiting for it."""
        self._reactor.callFromThread(function, *args)

    def run(self, function: Callable[[], None], name: str) -> "Deferred[None]":
        """
        Run a function in a thread of its own, which does not keep the process alive.

        @param name: of the thread.
        @return: fires in the reactor's thread when the function has returned.
        """
        ended: Deferred[None] = Deferred()

        def body() -> None:
            try:
                function()
            except BaseException:
                self._reactor.callFromThread(ended.errback, Failure())
            else:
                self._reactor.callFromThread(ended.callback, None)

        Thread(target=body, name=name, daemon=True).start()
        return ended

    def stop(self) -> None:
        """Fail all waiting and future operations with EIO; called in the reactor's thread."""
        self._stopped = True
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        for call in list(self._calls):
            self._cancel(call, "the mount is ending")

    def _call(self, function: "Callable[..., Deferred[T]]", *args: object) -> T:
        if self._stopped:
            raise OSError(errno.EIO, "the mount is ending")
        bounded: Callable[..., Deferred[Any]] = self._bounded
        return cast(T, blockingCallFromThread(self._reactor, bounded, function, *args))

    def _bounded(self, function: "Callable[..., Deferred[T]]", *args: object) -> "Deferred[T]":
        if self._stopped:
            raise OSError(errno.EIO, "the mount is ending")
        call = _Call(maybeDeferred(function, *args), self._reactor.seconds() + self._timeout)
        self._calls[call] = None
        if self._expiry is None:
            self._expiry = self._reactor.callLater(self._timeout, self._expire)
        call.deferred.addBoth(self._ended, call)
        return call.deferred

    def _ended(self, result: T, call: _Call) -> "T | Failure":
        del self._calls[call]
        return result if call.failure is None else Failure(call.failure)

    def _cancel(self, call: _Call, why: str) -> None:
        call.failure = OSError(errno.EIO, why)
        call.deferred.cancel()

    def _expire(self) -> None:
        """Cancel the calls that took too long: they have the same timeout, so the oldest first."""
        self._expiry = None
        for call in list(self._calls):
            left = call.expires - self._reactor.seconds()
            if left > 0:
                self._expiry = self._reactor.callLater(left, self._expire)
                break
            self._cancel(call, "no answer from the server in time")
