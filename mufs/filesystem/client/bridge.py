"""
The bridge between FUSE's threads and the reactor: the only module that knows both.

FUSE's threads call L{Bridge}, which answers from the cache in the calling thread and passes
everything else to the reactor with C{blockingCallFromThread}. There a call that waits ends early
with C{--timeout}, and when whoever made it is told to end.
"""

import errno
import os
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
from mufs.filesystem.client.interruption import is_interrupted
from mufs.filesystem.client.remote import RemoteFileSystem
from mufs.wire.metadata import Attributes, Caller, Statistics

T = TypeVar("T")

WATCH_INTERVAL = 0.3
"""
Seconds between two looks at the calls that wait. Looking at one takes some 40 us, and hundreds may
wait for a server that is away.
"""


MIN_WAIT_SECONDS = 0.1
"""Seconds that a call waits before it is looked at."""


@define(eq=False)
class _Call:
    """
    An operation that a thread waits for.

    @ivar began: when, in seconds.
    @ivar asker: the thread that the kernel asks for, 0 if that is unknown.
    @ivar is_read: whether it reads an image.
    @ivar failure: why it was cancelled.
    """

    deferred: Deferred[Any]
    began: float
    asker: int
    is_read: bool
    failure: OSError | None = None


class Bridge:
    """The operations of L{RemoteFileSystem} as blocking calls for FUSE's threads."""

    _log = Logger()

    def __init__(
        self,
        reactor: "IReactorFromThreads | IReactorTime",
        remote: RemoteFileSystem,
        timeout: float,
        *,
        asker: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        @param timeout: seconds after which an operation ends with EIO; 0 for never.
        @param asker: returns the ID of the thread that the operation in this thread is for; 0 if
            that is unknown.
        """
        self._reactor: Any = reactor
        self._remote = remote
        self._opened = remote.opened
        self._read_cached = remote.reader.read_cached
        self._timeout = timeout
        self._asker = asker
        self._calls: dict[_Call, None] = {}
        self._watch: IDelayedCall | None = None
        self._in_vain: dict[int, float] = {}
        self._stopped = False

    def getattr(self, path: bytes, handle: int | None, caller: Callable[[], Caller]) -> Attributes:
        """
        See L{RemoteFileSystem.getattr}.

        @param caller: returns who asks; called only if the server is asked.
        """
        if handle is None:
            known = self._remote.attributes.get(path)
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
        self.call_in_reactor(self._remote.release, handle)

    def read(self, handle: int, offset: int, target: memoryview) -> int:
        """
        Fill C{target} with the bytes at C{offset}, from the cache or else by way of the reactor.

        @return: the number of bytes, less at the end of the image.
        """
        opened = self._opened(handle)
        length = self._read_cached(opened, offset, target, cross=self.call_in_reactor)
        if length is None:
            return self._call(self._remote.reader.read, opened, offset, target)
        return length

    def find(self, handle: int, offset: int, *, data: bool) -> int:
        """See L{Holes.known}; what is not known is asked for by way of the reactor."""
        opened = self._remote.opened(handle)
        found = self._remote.holes.known(opened, offset, data=data)
        return self._call(self._remote.holes.find, opened, offset, data) if found is None else found

    def call_in_reactor(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the reactor's thread, without waiting for it; unless it is ending."""
        if not self._stopped:
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
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for call in list(self._calls):
            self._cancel(call, errno.EIO, "the mount is ending")

    def _call(self, function: "Callable[..., Deferred[T]]", *args: object) -> T:
        if self._stopped:
            raise OSError(errno.EIO, "the mount is ending")
        watched: Callable[..., Deferred[Any]] = self._watched
        call = blockingCallFromThread(self._reactor, watched, self._asker(), function, *args)
        return cast(T, call)

    def _watched(
        self, asker: int, function: "Callable[..., Deferred[T]]", *args: object
    ) -> "Deferred[T]":
        if self._stopped:
            raise OSError(errno.EIO, "the mount is ending")
        now = self._reactor.seconds()
        is_read = function == self._remote.reader.read
        call = _Call(maybeDeferred(function, *args), now, asker, is_read)
        self._calls[call] = None
        if self._watch is None:
            self._watch = self._reactor.callLater(WATCH_INTERVAL, self._look)
        call.deferred.addBoth(self._ended, call)
        return call.deferred

    def _ended(self, result: T, call: _Call) -> "T | Failure":
        del self._calls[call]
        return result if call.failure is None else Failure(call.failure)

    def _cancel(self, call: _Call, number: int, why: str) -> None:
        call.failure = OSError(number, why)
        call.deferred.cancel()

    def _note_in_vain(self, asker: int, now: float) -> None:
        heard = self._remote.last_heard
        self._in_vain = {thread: at for thread, at in self._in_vain.items() if at > heard}
        self._in_vain[asker] = now

    def _has_waited(self, asker: int, now: float) -> bool:
        """
        Whether a thread has read in vain a moment ago, and the server said nothing since. It does
        not wait for long again: the kernel reads ahead, and then asks for the page once more.
        Threads of other PID namespaces cannot be told apart.
        """
        if not asker:
            return False
        ended = self._in_vain.get(asker, self._remote.last_heard)
        return self._remote.last_heard < ended and now - ended < self._timeout

    def _look(self) -> None:
        """End the calls that have had their time, and those whose makers have to end."""
        self._watch = None
        now = self._reactor.seconds()
        for call in list(self._calls):
            waited = now - call.began
            if waited < MIN_WAIT_SECONDS:
                break
            once_more = call.is_read and self._has_waited(call.asker, now)
            if 0 < self._timeout <= waited or once_more:
                if call.is_read:
                    self._note_in_vain(call.asker, now)
                self._cancel(call, errno.EIO, "no answer from the server in time")
            elif is_interrupted(call.asker):
                self._cancel(call, errno.EINTR, os.strerror(errno.EINTR))
        if self._calls:
            self._watch = self._reactor.callLater(WATCH_INTERVAL, self._look)
