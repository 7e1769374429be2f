"""Pushes: all clients are asked to pull an image at the same time, so that it is sent once."""

import errno
from collections.abc import Callable, Collection, Iterable
from itertools import count
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface

from mufs.interfaces import IImageLibrary
from mufs.wire.metadata import ROOT, Pulled

PROGRESS_INTERVAL = 1.0
"""Seconds from one report on a push to the next."""

PULL_TIMEOUT = 30.0
"""Seconds without a report from a client after which it has failed."""

MAX_PUSHES = 8
"""Pushes at a time: half of the pulls that a client takes."""

Record = dict[str, object]


class IPushed(Interface):
    """A client, as a push sees it."""

    name: str = Attribute("what it is called")
    address: str = Attribute("the address that it connects from; empty if there is none")
    library: IImageLibrary = Attribute("what it sees")

    def pull(number: int, path: bytes) -> None:
        """Ask it to pull an image for this push; without a path, to stop pulling it."""


@define(eq=False)
class _Target:
    """
    A client that was asked to pull, or that was named and is not connected.

    @ivar reported: when its last report came, in seconds.
    @ivar held: bytes of the image that it has.
    @ivar error: why it has failed, once it has.
    """

    name: str
    address: str
    reported: float
    held: int = 0
    ended: bool = False
    error: str = ""


class _Push:
    """
    The push of one image. Clients that connect before it ends join it.

    @ivar done: fires when all clients that were asked have succeeded or failed.
    """

    def __init__(
        self,
        number: int,
        path: bytes,
        *,
        size: int,
        names: Collection[str] | None,
        clock: IReactorTime,
        in_thread: Callable[..., "Deferred[Any]"],
    ) -> None:
        self.number = number
        self.path = path
        self._size = size
        self._names = names
        self._clock = clock
        self._in_thread = in_thread
        self._targets: dict[IPushed, _Target] = {}
        self._disconnected = [
            _Target(name, "", 0, ended=True, error="is not connected") for name in names or ()
        ]
        self.done: Deferred[Record] = Deferred(self._cancel)

    def add_client(self, client: IPushed) -> None:
        """A client is connected: ask it to pull, if it was named and may see the image."""
        if self._names is not None and client.name not in self._names:
            return
        self._targets[client] = _Target(client.name, client.address, self._clock.seconds())
        # The client pulls as root, so what counts is whether root of that host may open it.
        opening = self._in_thread(client.library.open, self.path, ROOT)
        opening.addCallbacks(
            lambda _: self._ask(client), lambda failure: self._skip(client, failure)
        )

    def remove_client(self, client: IPushed) -> None:
        """A client is no longer connected."""
        target = self._targets.pop(client, None)
        if target is not None:
            self._disconnected.append(target)
            self._end(target, "the connection was lost")

    def pulled(self, client: IPushed, pulled: Pulled) -> None:
        """A client reports how much of the image it has."""
        target = self._targets.get(client)
        if target is not None and not target.ended:
            target.reported = self._clock.seconds()
            target.held = min(pulled.held, self._size)
            if pulled.ended:
                self._end(target, pulled.error)

    def check_silent(self) -> None:
        """Give up clients that have not reported for C{PULL_TIMEOUT}."""
        for client, target in list(self._targets.items()):
            if not target.ended and self._clock.seconds() - target.reported >= PULL_TIMEOUT:
                client.pull(self.number, b"")
                self._end(target, f"said nothing for {PULL_TIMEOUT:g} s")

    def progress(self) -> Record:
        """Numbers of clients: all, succeeded, failed; bytes held by all but the failed ones."""
        targets = [*self._targets.values(), *self._disconnected]
        good = [each for each in targets if not each.error]
        return {
            "clients": len(targets),
            "succeeded": sum(each.ended for each in good),
            "failed": len(targets) - len(good),
            "held": sum(each.held for each in good),
            "size": self._size,
        }

    def _ask(self, client: IPushed) -> None:
        if client in self._targets and not self.done.called:
            self._forget_disconnected(client)
            client.pull(self.number, self.path)

    def _skip(self, client: IPushed, failure: Failure) -> None:
        """The client may not see the image: that counts as a failure only if it was named."""
        target = self._targets.pop(client, None)
        if target is not None and self._names is not None:
            self._forget_disconnected(client)
            self._disconnected.append(target)
            self._end(target, getattr(failure.value, "strerror", None) or str(failure.value))
        self.check_done()

    def _forget_disconnected(self, client: IPushed) -> None:
        """The client has connected again: its earlier connection does not count any more."""
        for target in self._disconnected:
            if target.name == client.name and target.address in ("", client.address):
                self._disconnected.remove(target)
                return

    def _end(self, target: _Target, error: str) -> None:
        if not target.ended:
            target.ended, target.error = True, error
            self.check_done()

    def check_done(self) -> None:
        """End the push if there is no client left to wait for."""
        targets = [*self._targets.values(), *self._disconnected]
        if self.done.called or not all(each.ended for each in targets):
            return
        if not targets:
            self.done.errback(OSError(errno.ENXIO, "no client is connected that may see it"))
            return
        failed = [
            {"name": each.name, "address": each.address, "error": each.error}
            for each in targets
            if each.error
        ]
        self.done.callback({**self.progress(), "failed": failed, "ended": True})

    def _cancel(self, _: object) -> None:
        for client, target in self._targets.items():
            if not target.ended:
                client.pull(self.number, b"")


class Pushes:
    """All pushes of a server."""

    def __init__(self, clock: IReactorTime, in_thread: Callable[..., "Deferred[Any]"]) -> None:
        """@param in_thread: calls a function of the library outside the reactor's thread."""
        self._clock = clock
        self._in_thread = in_thread
        self._numbers = count(1)
        self._running: dict[int, _Push] = {}

    def push(
        self,
        path: bytes,
        size: int,
        *,
        clients: Iterable[IPushed],
        names: Collection[str] | None,
        report: Callable[[Record], None],
    ) -> "Deferred[Record]":
        """
        Have clients pull an image; those that connect before the push ends join it.

        @param clients: those that are connected now.
        @param names: of the clients to ask; C{None} for all that may see the image.
        @param report: called with the progress every C{PROGRESS_INTERVAL}.
        @return: fires when all clients have succeeded or failed; fails with C{OSError} when no
            client may see the image; may be cancelled.
        @raise OSError: EBUSY, when the image is being pushed, or too many others are.
        """
        if any(push.path == path for push in self._running.values()):
            raise OSError(errno.EBUSY, "is being pushed already")
        if len(self._running) >= MAX_PUSHES:
            raise OSError(errno.EBUSY, f"{MAX_PUSHES} pushes are running")
        number = next(self._numbers) & 0xFFFFFFFF
        push = _Push(
            number, path, size=size, names=names, clock=self._clock, in_thread=self._in_thread
        )
        self._running[number] = push

        def tick() -> None:
            push.check_silent()
            report(push.progress())

        ticks = LoopingCall(tick)
        ticks.clock = self._clock

        def end(result: Record) -> Record:
            del self._running[number]
            if ticks.running:
                ticks.stop()
            return result

        done = push.done.addBoth(end)
        for client in clients:
            push.add_client(client)
        push.check_done()
        if not push.done.called:
            ticks.start(PROGRESS_INTERVAL, now=False)
        return done

    def add_client(self, client: IPushed) -> None:
        """A client was welcomed."""
        for push in list(self._running.values()):
            push.add_client(client)

    def remove_client(self, client: IPushed) -> None:
        """A client is no longer connected."""
        for push in list(self._running.values()):
            push.remove_client(client)

    def pulled(self, client: IPushed, pulled: Pulled) -> None:
        """A client reports on a push, which may have ended meanwhile."""
        push = self._running.get(pulled.number)
        if push is not None:
            push.pulled(client, pulled)
