"""Pushes: pulls of one image that all clients are asked for, so that it is sent once."""

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

EVERY = 1.0
"""Seconds from one word about a push to the next."""

SILENCE = 30.0
"""Seconds without a word from a client after which it is given up."""

MOST = 8
"""Pushes at a time: half of what a client takes."""

Record = dict[str, object]


class IPushed(Interface):
    """A client, as a push sees it."""

    name: str = Attribute("what it is called")
    address: str = Attribute("where it connects from")
    library: IImageLibrary = Attribute("what it sees")

    def pull(number: int, path: bytes) -> None:
        """Ask it to pull an image, or, without a path, to give that up."""


@define(eq=False)
class _Target:
    """
    A client that was asked.

    @ivar heard: when it said something last.
    @ivar error: why it has failed, once it has.
    """

    name: str
    address: str
    heard: float
    held: int = 0
    ended: bool = False
    error: str = ""


class _Push:
    """
    One image. Clients that connect before the end join.

    @ivar done: fires when all clients that were asked have ended.
    """

    def __init__(
        self,
        number: int,
        path: bytes,
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
        self._gone = [
            _Target(name, "", 0, ended=True, error="is not connected") for name in names or ()
        ]
        self.done: Deferred[Record] = Deferred(self._interrupt)

    def join(self, client: IPushed) -> None:
        """A client is connected: ask it, if it is meant and may see the image."""
        if self._names is not None and client.name not in self._names:
            return
        self._targets[client] = _Target(client.name, client.address, self._clock.seconds())
        # As root of that host, who pulls it there, whomever he counts as.
        looking = self._in_thread(client.library.open, self.path, ROOT)
        looking.addCallbacks(
            lambda _: self._seen(client), lambda failure: self._unseen(client, failure)
        )

    def leave(self, client: IPushed) -> None:
        """A client is connected no longer."""
        target = self._targets.pop(client, None)
        if target is not None:
            self._gone.append(target)
            self._end(target, "the connection was lost")

    def pulled(self, client: IPushed, pulled: Pulled) -> None:
        """A client tells how far it is."""
        target = self._targets.get(client)
        if target is not None and not target.ended:
            target.heard = self._clock.seconds()
            target.held = min(pulled.held, self._size)
            if pulled.ended:
                self._end(target, pulled.error)

    def look(self) -> None:
        """Give up clients that are silent."""
        for client, target in list(self._targets.items()):
            if not target.ended and self._clock.seconds() - target.heard >= SILENCE:
                client.pull(self.number, b"")
                self._end(target, f"said nothing for {SILENCE:g} s")

    def progress(self) -> Record:
        """How far it is: clients, those that are done and have failed, and bytes."""
        targets = [*self._targets.values(), *self._gone]
        good = [each for each in targets if not each.error]
        return {
            "clients": len(targets),
            "succeeded": sum(each.ended for each in good),
            "failed": len(targets) - len(good),
            "held": sum(each.held for each in good),
            "size": self._size,
        }

    def _seen(self, client: IPushed) -> None:
        if client in self._targets and not self.done.called:
            self._replaces(client)
            client.pull(self.number, self.path)

    def _unseen(self, client: IPushed, failure: Failure) -> None:
        """Those that see nothing of it are told of only if they were named."""
        target = self._targets.pop(client, None)
        if target is not None and self._names is not None:
            self._replaces(client)
            self._gone.append(target)
            self._end(target, getattr(failure.value, "strerror", None) or str(failure.value))
        self.check()

    def _replaces(self, client: IPushed) -> None:
        """What is there of the same host from an earlier connection counts no longer."""
        for gone in self._gone:
            if gone.name == client.name and gone.address in ("", client.address):
                self._gone.remove(gone)
                return

    def _end(self, target: _Target, error: str) -> None:
        if not target.ended:
            target.ended, target.error = True, error
            self.check()

    def check(self) -> None:
        """End if there is nobody left to wait for."""
        targets = [*self._targets.values(), *self._gone]
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

    def _interrupt(self, _: object) -> None:
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
        clients: Iterable[IPushed],
        names: Collection[str] | None,
        tell: Callable[[Record], None],
    ) -> "Deferred[Record]":
        """
        Have clients pull an image; those that connect meanwhile join.

        @param clients: that are connected now.
        @param names: of those that are meant; C{None} for all that may see it.
        @param tell: is told each second how far it is.
        @return: fires when all have ended; fails with C{OSError}; may be cancelled.
        """
        if any(push.path == path for push in self._running.values()):
            raise OSError(errno.EBUSY, "is being pushed already")
        if len(self._running) >= MOST:
            raise OSError(errno.EBUSY, f"{MOST} pushes are running")
        number = next(self._numbers) & 0xFFFFFFFF
        push = _Push(number, path, size, names, self._clock, self._in_thread)
        self._running[number] = push

        def tick() -> None:
            push.look()
            tell(push.progress())

        ticks = LoopingCall(tick)
        ticks.clock = self._clock

        def end(result: Record) -> Record:
            del self._running[number]
            if ticks.running:
                ticks.stop()
            return result

        done = push.done.addBoth(end)
        for client in clients:
            push.join(client)
        push.check()
        if not push.done.called:
            ticks.start(EVERY, now=False)
        return done

    def joined(self, client: IPushed) -> None:
        """A client was welcomed."""
        for push in list(self._running.values()):
            push.join(client)

    def left(self, client: IPushed) -> None:
        """A client is connected no longer."""
        for push in list(self._running.values()):
            push.leave(client)

    def pulled(self, client: IPushed, pulled: Pulled) -> None:
        """A client tells how far it is with a push, which may have ended meanwhile."""
        push = self._running.get(pulled.number)
        if push is not None:
            push.pulled(client, pulled)
