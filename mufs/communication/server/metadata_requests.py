"""What a client asks of the library: looked into outside the reactor's thread, and answered."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mufs.communication.server.limits import MAX_ASKED, MAX_RUNNING, Host
from mufs.wire.channel import MAX_DATA, Type
from mufs.wire.metadata import Attributes, Names

ENTRY = 256
"""Bytes that an entry of a listing takes at the most, besides its name."""

Entries = list[tuple[bytes, Attributes]]

Answer = Callable[[Any, int], "Deferred[None] | None"]
"""Sends what the library told under a tag, and tells when it is sent if that is not at once."""


class MetadataRequests:
    """
    The questions of one client: some are looked into at a time, and of a listing as much is sent as
    the connection takes.

    @ivar behind: whether so many wait that no more should be taken in.
    """

    def __init__(
        self,
        host: Host,
        in_thread: Callable[..., "Deferred[Any]"],
        reply: Callable[[Any, int, int], None],
        failed: Callable[[Failure, int], None],
        answered: Callable[[], None],
        caught_up: Callable[[], None],
    ) -> None:
        """
        @param in_thread: calls a function outside the reactor's thread; what it returned, or the
            C{OSError} that it raised, and the seconds of processor time that it took.
        @param reply: sends a value under a tag, as a packet of that type.
        @param failed: is told why a question has no answer.
        @param answered: called after each answer; C{caught_up} when no longer L{behind}.
        """
        self._host = host
        self._in_thread = in_thread
        self._reply = reply
        self._failed = failed
        self._answered = answered
        self._caught_up = caught_up
        self._waiting: deque[tuple[int, Answer, Callable[..., Any], tuple[Any, ...]]] = deque()
        self._running = 0
        self._listings: deque[tuple[Iterator[tuple[Entries, bool]], int, Deferred[None]]] = deque()
        self._full = self._resting = self._stopped = False
        self.behind = False

    def ask(self, tag: int, then: Answer, function: Callable[..., Any], *args: Any) -> None:
        """Ask the library, in the client's turn, and have the answer sent by C{then}."""
        self._waiting.append((tag, then, function, args))
        self.behind = self.behind or len(self._waiting) >= MAX_ASKED
        self._next()

    def list(self, entries: Entries, tag: int) -> "Deferred[None]":
        """An L{Answer}: the listing of a directory."""
        done: Deferred[None] = Deferred()
        self._listings.append((_parts(entries), tag, done))
        self._list_on()
        return done

    def pause(self, full: bool) -> None:
        """The connection takes nothing more, or has room again."""
        self._full = full
        self._list_on()
        self._next()

    def rest(self, resting: bool) -> None:
        """The host has used up what it may have, or may go on."""
        self._resting = resting
        self._next()

    def stop(self) -> None:
        """The connection is ending."""
        self._stopped = True
        self._waiting.clear()
        self._listings.clear()

    def _next(self) -> None:
        while self._waiting and self._running < MAX_RUNNING:
            if self._full or self._resting:
                return
            tag, then, function, args = self._waiting.popleft()
            self._running += 1
            asked = self._in_thread(function, *args)
            asked.addCallback(self._came, then, tag)
            asked.addErrback(self._failed, tag).addCallback(self._done)

    def _came(self, came: tuple[Any, float], then: Answer, tag: int) -> "Deferred[None] | None":
        result, seconds = came
        self._host.charge(seconds)
        if isinstance(result, OSError):
            raise result
        with self._host.charged():
            return then(result, tag)

    def _done(self, _: None) -> None:
        self._running -= 1
        self._answered()
        self._next()
        if self.behind and len(self._waiting) <= MAX_ASKED // 2:
            self.behind = False
            self._caught_up()

    def _list_on(self) -> None:
        """Send of the listings what the connection takes; what follows waits for it."""
        while self._listings and not self._full:
            parts, tag, done = self._listings[0]
            part, is_last = next(parts)
            if is_last:
                self._listings.popleft()
            self._reply(Names(part), tag, Type.REPLY if is_last else Type.MORE)
            if is_last:
                done.callback(None)


def _parts(entries: Entries) -> Iterator[tuple[Entries, bool]]:
    """A listing in parts that fit a packet, and for each whether it is the last one."""
    part: Entries = []
    size = 0
    for entry in entries:
        size += len(entry[0]) + ENTRY
        if size > MAX_DATA - 64:
            yield part, False
            part, size = [], len(entry[0]) + ENTRY
        part.append(entry)
    yield part, True
