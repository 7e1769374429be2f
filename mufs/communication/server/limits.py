"""
What one client may have of the server: connections, waiting requests, and processor time
(docs/protocol.md section 6). Clients are counted by the address that they connect from.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import thread_time
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mufs.cache.server.sent import Share
from mufs.communication.server.descriptors import RESERVED_FDS, exhausted

MAX_CONNECTIONS = 4096
"""Connections of all clients together, if the system lets the server open as many files."""

RESERVED_FRACTION = 1 / 4
"""Fraction of them that is kept for addresses that have none yet."""

MAX_CONNECTIONS_OF_HOST = 64
"""Connections of one address: a host has one for each mount."""

MAX_SILENT_FRACTION = 1 / 2
"""
Fraction of all connections that may be without HELLO: a thousand hosts may start at one moment.
When there are more, the oldest is closed.
"""

MAX_HANDLES = 4096
"""Handles of one connection; fewer, if the server can open fewer than four times as many files."""

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""
Bytes that an address may wait for before no more of its requests are read: four times what makes
a client a greedy one, which an honest client never is.
"""

MAX_METADATA_REQUESTS = 1024
"""Metadata requests that may wait on a connection before no more requests are read."""

MAX_METADATA_LOOKUPS = 4
"""How many of them are looked up at a time, so that one client does not keep all threads busy."""

HELLO_TIMEOUT = 10.0
"""Seconds that a connection may take for its first packet, and for TLS before it."""

IDLE_TIMEOUT = 60.0
"""Seconds without a packet after which a client is taken for dead: it sends PING every 5 s."""

STALL_TIMEOUT = 60.0
"""Seconds for which a client may read nothing of what is sent to it."""

CLOSE_TIMEOUT = 10.0
"""Seconds that a connection may take to end after the server has closed it."""

CPU_FRACTION = 0.1
"""Fraction of a processor that an address may use in the long run, while another is active."""

CPU_BURST_SECONDS = 1.0
"""Seconds of processor time that it may use at once: listing some thousand files takes less."""

TURN_SECONDS = 0.001
"""Seconds of processor time for the requests of one connection before others have their turn."""

ACTIVITY_TIMEOUT = 1.0
"""Seconds after its last request for which a client counts as active: others leave it room."""

MIN_THROTTLE_DELAY = 0.02
"""Seconds for which a client is throttled at least."""

REFUSAL_LOG_INTERVAL = 10.0
"""Seconds from one line of the log about refused connections to the next."""

HOST_LIFETIME = 60.0
"""Seconds for which an address without a connection is remembered, with what it has used."""


@define(eq=False)
class Host:
    """
    An address that clients connect from.

    @ivar connections: how many it has.
    @ivar held_back: how often it was throttled.
    @ivar last_charged: when its processor time was updated last, in seconds.
    """

    limits: "Limits"
    share: Share = field(factory=Share)
    connections: int = 0
    held_back: int = 0
    last_charged: float = 0.0
    _cpu_credit: float = CPU_BURST_SECONDS

    def charge(self, seconds: float) -> None:
        """Processor time, in seconds, was spent for it."""
        now = self.limits.clock.seconds()
        earned = CPU_FRACTION * (now - self.last_charged)
        self._cpu_credit = min(CPU_BURST_SECONDS, self._cpu_credit + earned) - seconds
        self.last_charged = now

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Charge it for the processor time spent within the context."""
        began = self.limits.cpu()
        try:
            yield
        finally:
            self.charge(self.limits.cpu() - began)

    def throttle_delay(self) -> float:
        """For how many seconds its requests have to wait; 0 if they need not."""
        self.charge(0.0)
        if not self.limits.has_others(self):
            # It takes nothing from anybody, so it owes nothing when another comes.
            self._cpu_credit = max(0.0, self._cpu_credit)
        elif self._cpu_credit < 0:
            return max(MIN_THROTTLE_DELAY, -self._cpu_credit / CPU_FRACTION)
        return MIN_THROTTLE_DELAY if self.share.waiting > MAX_WAITING_BYTES else 0.0


class Limits:
    """
    The limits of a server, and the addresses that clients connect from.

    @ivar max_connections: of all clients; C{max_handles} of each connection.
    @ivar connections: how many there are.
    @ivar refused: connections that were refused because there were too many.
    @ivar cut_off: connections that the server has closed.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        cpu: Callable[[], float] = thread_time,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_handles: int = MAX_HANDLES,
    ) -> None:
        """@param cpu: the processor time that the calling thread has used, in seconds."""
        self.clock = clock
        self.cpu = cpu
        self.max_connections = max_connections
        self.max_handles = max_handles
        self.refused = 0
        self.cut_off = 0
        self.connections = 0
        self._hosts: dict[object, Host] = {}
        self._silent: dict[Any, None] = {}
        self._last_active: Host | None = None
        self._last_active_at = self._other_active_at = self._refusal_logged_at = float("-inf")

    def refuses(self, address: object) -> bool:
        """Whether one more connection from there is too many; C{None} is no address at all."""
        host = self._hosts.get(address)
        of_host = 0 if host is None else host.connections
        allowed = self.max_connections
        if of_host:
            allowed -= int(allowed * RESERVED_FRACTION)
        no_files = exhausted(RESERVED_FDS)
        if not no_files and of_host < MAX_CONNECTIONS_OF_HOST and self.connections < allowed:
            return False
        self.refused += 1
        now = self.clock.seconds()
        if now >= self._refusal_logged_at + REFUSAL_LOG_INTERVAL:
            self._refusal_logged_at = now
            self._log.warn(
                "refusing a connection from {address}, which has {known} of {all}: {why} "
                "({refused} refused so far)",
                address=address,
                known=of_host,
                all=self.connections,
                refused=self.refused,
                why="too many files are open" if no_files else "too many",
            )
        return True

    def add(self, connection: object, address: object) -> Host:
        """
        A client has connected.

        @param address: of its host; C{None} where each connection counts as a host of its own.
        """
        if len(self._hosts) > 2 * self.connections + MAX_CONNECTIONS_OF_HOST:
            self._forget_hosts()
        key = connection if address is None else address
        if key not in self._hosts:
            self._hosts[key] = Host(self)
        host = self._hosts[key]
        host.charge(0.0)
        host.connections += 1
        self.connections += 1
        self._silent[connection] = None
        return host

    def note_hello(self, connection: object) -> None:
        """It has said HELLO, or need not any more because it is being closed."""
        self._silent.pop(connection, None)

    def surplus_silent(self) -> Any:
        """The oldest connection without HELLO if there are too many of these, else C{None}."""
        too_many = len(self._silent) > int(self.max_connections * MAX_SILENT_FRACTION)
        return next(iter(self._silent)) if too_many else None

    def remove(self, connection: object, host: Host) -> None:
        """A connection has ended."""
        self.note_hello(connection)
        host.connections -= 1
        self.connections -= 1
        self._hosts.pop(connection, None)

    def note_request(self, host: Host) -> None:
        """A client of this host has asked for something."""
        if host is not self._last_active:
            self._other_active_at, self._last_active = self._last_active_at, host
        self._last_active_at = self.clock.seconds()

    def has_others(self, host: Host) -> bool:
        """Whether a client of another host asked for something within C{ACTIVITY_TIMEOUT}."""
        at = self._other_active_at if host is self._last_active else self._last_active_at
        return self.clock.seconds() - at < ACTIVITY_TIMEOUT

    def timed(self, function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        """
        Call a function, in any thread.

        @return: its result, or the C{OSError} that it raised, and the processor seconds it took.
        """
        began = self.cpu()
        result: Any
        try:
            result = function(*args)
        except OSError as error:
            result = error
        return result, self.cpu() - began

    def _forget_hosts(self) -> None:
        """Forget addresses that had no connection for C{HOST_LIFETIME}."""
        now = self.clock.seconds()
        for key, host in list(self._hosts.items()):
            if not host.connections and host.last_charged < now - HOST_LIFETIME:
                del self._hosts[key]
