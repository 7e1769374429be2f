"""A client's requests about names and attributes: looked up in threads, answered as it reads."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mufs.communication.server.intake import Intake, Pause
from mufs.communication.server.limits import (
    MAX_METADATA_LOOKUPS,
    MAX_METADATA_REQUESTS,
    Host,
)
from mufs.interfaces import IImage, IImageLibrary
from mufs.wire.channel import MAX_DATA, Type
from mufs.wire.metadata import (
    UNKNOWN,
    At,
    Attributes,
    Caller,
    DataMap,
    Link,
    MapRequest,
    Names,
    decode,
)

METADATA_TYPES = frozenset(
    {Type.GETATTR, Type.READDIR, Type.READLINK, Type.OPEN, Type.STATFS, Type.MAP}
)
"""The packets that are handled here."""

MAX_ENTRY_SIZE = 256
"""Bytes that an entry of a listing takes at most, besides its name."""

MAX_LISTING_SIZE = MAX_DATA - 64
"""Bytes of entries in one packet: the rest is for the tag and the encoding around them."""

Entries = list[tuple[bytes, Attributes]]

Answer = Callable[[Any, int], "Deferred[None] | None"]
"""
Answers a request with what the library returned, given that and the tag; returns a Deferred where
the answer is not sent at once.
"""


_Lookup = tuple[int, Answer, Callable[..., Any], tuple[Any, ...], bytes | None]
"""Tag, answer, function and arguments of a request, and the path if it is an OPEN."""


class MetadataRequests:
    """
    The metadata requests of one client: a few are looked up at a time, the others wait. Of
    listings no more is sent than the connection has room for.
    """

    def __init__(
        self,
        host: Host,
        intake: Intake,
        *,
        in_thread: Callable[..., "Deferred[Any]"],
        reply: Callable[[Any, int, int], None],
        image: Callable[[int], IImage],
        opened: Callable[[bytes, tuple[IImage, DataMap], int], None],
        failed: Callable[[Failure, int, bytes | None], None],
    ) -> None:
        """
        @param host: is charged for the lookups.
        @param intake: is paused while too many requests wait; tells when answers may be sent.
        @param in_thread: calls a function outside the reactor's thread, see L{Limits.timed}.
        @param reply: sends a value under a tag, as a packet of that type.
        @param image: returns the open image of a handle, or raises C{OSError}.
        @param opened: answers an OPEN, given the path, the image with the first part of its map,
            and the tag.
        @param failed: called with the failure of a request, its tag, and the path of an OPEN.
        """
        self._host = host
        self._intake = intake
        self._in_thread = in_thread
        self._reply = reply
        self._image = image
        self._opened = opened
        self._failed = failed
        self._waiting: deque[_Lookup] = deque()
        self._running = 0
        self._listings: deque[tuple[Iterator[tuple[Entries, bool]], int, Deferred[None]]] = deque()

    def handle(self, library: IImageLibrary, kind: int, tag: int, body: bytes) -> None:
        """
        Answer a request of C{METADATA_TYPES}, when it is its turn.

        @param library: what the client sees.
        @raise ProtocolError: when the request is malformed.
        """
        if kind == Type.STATFS:
            self._submit(tag, self._answer, library.statfs)
            return
        if kind == Type.MAP:
            asked = decode(MapRequest, body)
            self._submit(tag, self._answer, self._find_data, asked.handle, asked.offset)
            return
        at = decode(At, body)
        if kind == Type.GETATTR:
            self._submit(tag, self._answer, library.getattr, at.path, at.caller)
        elif kind == Type.READLINK:
            self._submit(tag, self._answer_link, library.readlink, at.path, at.caller)
        elif kind == Type.READDIR:
            self._submit(tag, self._answer_listing, library.readdir, at.path, at.caller)
        else:
            answer = partial(self._opened, at.path)
            self._submit(tag, answer, _open, library, at.path, at.caller, opens=at.path)

    def go_on(self) -> None:
        """Do what had to wait, as far as the intake lets it."""
        self._send_listings()
        self._start_lookups()

    def stop(self) -> None:
        """Forget all requests: the connection is ending."""
        self._waiting.clear()
        self._listings.clear()

    def _submit(
        self,
        tag: int,
        answer: Answer,
        function: Callable[..., Any],
        *args: Any,
        opens: bytes | None = None,
    ) -> None:
        self._waiting.append((tag, answer, function, args, opens))
        if len(self._waiting) >= MAX_METADATA_REQUESTS:
            self._intake.pause(Pause.METADATA_BACKLOG)
        self._start_lookups()

    def _start_lookups(self) -> None:
        while self._waiting and self._running < MAX_METADATA_LOOKUPS and self._intake.may_work:
            tag, answer, function, args, opens = self._waiting.popleft()
            self._running += 1
            lookup = self._in_thread(function, *args)
            lookup.addCallback(self._looked_up, answer, tag)
            lookup.addErrback(self._failed, tag, opens).addCallback(self._done)

    def _looked_up(
        self, timed: tuple[Any, float], answer: Answer, tag: int
    ) -> "Deferred[None] | None":
        result, seconds = timed
        self._host.charge(seconds)
        if isinstance(result, OSError):
            raise result
        if self._intake.closed:
            return None
        with self._host.charged():
            return answer(result, tag)

    def _done(self, _: None) -> None:
        self._running -= 1
        self._intake.throttle()
        self._start_lookups()
        if len(self._waiting) <= MAX_METADATA_REQUESTS // 2:
            self._intake.resume(Pause.METADATA_BACKLOG)

    def _find_data(self, handle: int, offset: int) -> DataMap:
        return self._image(handle).find_data(offset)

    def _answer(self, value: Any, tag: int) -> None:
        self._reply(value, tag, Type.REPLY)

    def _answer_link(self, target: bytes, tag: int) -> None:
        self._reply(Link(target), tag, Type.REPLY)

    def _answer_listing(self, entries: Entries, tag: int) -> "Deferred[None]":
        sent: Deferred[None] = Deferred()
        self._listings.append((_parts(entries), tag, sent))
        self._send_listings()
        return sent

    def _send_listings(self) -> None:
        while self._listings and self._intake.may_send:
            parts, tag, sent = self._listings[0]
            part, is_last = next(parts)
            if is_last:
                self._listings.popleft()
            self._reply(Names(part), tag, Type.REPLY if is_last else Type.MORE)
            if is_last:
                sent.callback(None)


def _open(library: IImageLibrary, path: bytes, caller: Caller) -> tuple[IImage, DataMap]:
    """Open an image, and look where it has data."""
    image = library.open(path, caller)
    try:
        return image, image.find_data(0)
    except OSError:  # it was changed meanwhile, say: what the client reads of it will fail
        return image, UNKNOWN


def _parts(entries: Entries) -> Iterator[tuple[Entries, bool]]:
    """A listing in parts that fit a packet, and for each whether it is the last one."""
    part: Entries = []
    size = 0
    for entry in entries:
        entry_size = len(entry[0]) + MAX_ENTRY_SIZE
        if size + entry_size > MAX_LISTING_SIZE:
            yield part, False
            part, size = [], 0
        part.append(entry)
        size += entry_size
    yield part, True
