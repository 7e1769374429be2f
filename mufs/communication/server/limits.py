"""
What one client may have of the server: connections, requests that wait, and processor time
(docs/protocol.md section 6). Clients count by the address that they come from.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import thread_time
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mufs.cache.server.sent import Share
from mufs.communication.server.descriptors import SPARE, exhausted

MAX_CONNECTIONS = 4096
"""Connections of all clients together, if the system lets the server open as many files."""

RESERVE = 4
"""One such part of them is kept for addresses that have none yet."""

MAX_OF_ADDRESS = 64
"""Connections of one address: a host has one for each mount."""

SILENT_PART = 2
"""
One such part of all connections need not have said HELLO: a thousand hosts may start at one moment.
Of more, the eldest is ended.
"""

MAX_HANDLES = 4096
"""Handles of one connection; fewer, if the server can open fewer than four times as many files."""

MAX_WAITING = 64 * 1024 * 1024
"""
Bytes that an address may wait for before no more of its requests are read: four times what
makes it a greedy one, which an honest client never is.
"""

MAX_ASKED = 1024
"""Requests about metadata that may be in flight on a connection before no more are read."""

MAX_RUNNING = 4
"""How many of them are being answered at a time, for one client not to keep all threads busy."""

HELLO_TIMEOUT = 10.0
"""Seconds that a connection may take for its first packet, and for TLS before it."""

SILENCE = 60.0
"""Seconds without a packet after which a client is taken for dead: it sends PING every 5 s."""

STUCK = 60.0
"""Seconds for which a client may take nothing of what is sent to it."""

PART = 0.1
"""Which part of a processor an address may use in the long run, while another is there."""

BURST = 1.0
"""Seconds of processor time that it may use at once: to list some thousand files is less."""

SLICE = 0.001
"""Seconds for which the requests of one connection are looked at before others have their turn."""

ACTIVE = 1.0
"""Seconds after its last request for which a client counts as one that another must leave room."""

LOOK = 0.02
"""Seconds until a connection that waits for its requests to be answered looks again."""

AGAIN = 10.0
"""Seconds from one line of the log about connections that were refused to the next."""

REMEMBERED = 60.0
"""Seconds for which an address is remembered that has no connection, with what it has used."""


@define(eq=False)
class Host:
    """
    An address that clients come from.

    @ivar connections: how many it has.
    @ivar held_back: how often no more requests were read, for there were too many.
    """

    limits: "Limits"
    share: Share = field(factory=Share)
    connections: int = 0
    held_back: int = 0
    seen: float = 0.0
    _credit: float = BURST

    def charge(self, seconds: float) -> None:
        """So much processor time was spent for it."""
        now = self.limits.clock.seconds()
        self._credit = min(BURST, self._credit + PART * (now - self.seen)) - seconds
        self.seen = now

    @contextmanager
    def charged(self) -> Iterator[None]:
        """What is done meanwhile is done for it."""
        began = self.limits.cpu()
        try:
            yield
        finally:
            self.charge(self.limits.cpu() - began)

    def rest(self) -> float:
        """For how many seconds nothing more is to be done for it."""
        self.charge(0.0)
        if not self.limits.has_others(self):
            # Nobody has to wait for it: it owes nothing later.
            self._credit = max(0.0, self._credit)
        elif self._credit < 0:
            return max(LOOK, -self._credit / PART)
        return LOOK if self.waits_for_too_much else 0.0

    @property
    def waits_for_too_much(self) -> bool:
        """Whether requests are to wait until some that came before are answered."""
        return self.share.waiting > MAX_WAITING


class Limits:
    """
    All addresses that clients come from.

    @ivar connections: how many there are.
    @ivar refused: connections that were not taken because there were too many.
    @ivar cut_off: connections that the server ended.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        cpu: Callable[[], float] = thread_time,
        most: int = MAX_CONNECTIONS,
        handles: int = MAX_HANDLES,
    ) -> None:
        """
        @param cpu: tells the processor time that the calling thread has used, in seconds.
        @param most: connections of all clients.
        @param handles: of each of them.
        """
        self.clock = clock
        self.cpu = cpu
        self.most = most
        self.handles = handles
        self.refused = 0
        self.cut_off = 0
        self._hosts: dict[object, Host] = {}
        self.connections = 0
        self._silent: dict[Any, None] = {}
        self._last: Host | None = None
        self._last_at = self._other_at = self._told_at = float("-inf")

    def refuses(self, address: object) -> bool:
        """Whether one more connection from there is too many; C{None} is nowhere in particular."""
        host = self._hosts.get(address)
        known = 0 if host is None else host.connections
        most = self.most - (self.most // RESERVE if known else 0)
        full = exhausted(SPARE)
        if not full and known < MAX_OF_ADDRESS and self.connections < most:
            return False
        self.refused += 1
        now = self.clock.seconds()
        if now >= self._told_at + AGAIN:
            self._told_at = now
            self._log.warn(
                "refusing a connection from {address}, which has {known} of {all}: {why} "
                "({refused} refused so far)",
                address=address,
                known=known,
                all=self.connections,
                refused=self.refused,
                why="too many files are open" if full else "too many",
            )
        return True

    def enter(self, connection: object, address: object) -> Host:
        """
        A client has connected.

        @param address: what it is known by, or C{None} where each connection stands for itself.
        @return: what it counts for.
        """
        if len(self._hosts) > 2 * self.connections + MAX_OF_ADDRESS:
            self._forget()
        key = connection if address is None else address
        if key not in self._hosts:
            self._hosts[key] = Host(self)
        host = self._hosts[key]
        host.charge(0.0)
        host.connections += 1
        self.connections += 1
        self._silent[connection] = None
        return host

    def greeted(self, connection: object) -> None:
        """It has said HELLO, or is going."""
        self._silent.pop(connection, None)

    def eldest(self) -> Any:
        """The connection that has to go for there are too many that said nothing, or C{None}."""
        return next(iter(self._silent)) if len(self._silent) > self.most // SILENT_PART else None

    def left(self, connection: object, host: Host) -> None:
        """A connection has ended."""
        self.greeted(connection)
        host.connections -= 1
        self.connections -= 1
        self._hosts.pop(connection, None)

    def heard(self, host: Host) -> None:
        """A client has asked for something."""
        if host is not self._last:
            self._other_at, self._last = self._last_at, host
        self._last_at = self.clock.seconds()

    def has_others(self, host: Host) -> bool:
        """Whether a client of another address asked for something just now."""
        at = self._other_at if host is self._last else self._last_at
        return self.clock.seconds() - at < ACTIVE

    def timed(self, function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        """
        Call a function, in any thread.

        @return: its result, or the C{OSError} that it raised, and the processor time it took.
        """
        began = self.cpu()
        result: Any
        try:
            result = function(*args)
        except OSError as error:
            result = error
        return result, self.cpu() - began

    def _forget(self) -> None:
        """Let go of addresses that have been away for long."""
        now = self.clock.seconds()
        for key, host in list(self._hosts.items()):
            if not host.connections and host.seen < now - REMEMBERED:
                del self._hosts[key]
