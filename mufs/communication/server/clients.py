"""What all clients of a server share."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import Attribute

from mufs.cache.server.sent import IReader
from mufs.communication.server.access_statistics import AccessStatistics
from mufs.communication.server.controller import MulticastController
from mufs.communication.server.disk_reads import Reading
from mufs.communication.server.limits import Host, Limits
from mufs.communication.server.push import IPushed, Pushes
from mufs.interfaces import IImageLibrary
from mufs.wire.metadata import Welcome
from mufs.wire.sealing import Keys

MAX_TLS_FAULTS = 1000
"""Addresses for which the last fault of TLS is remembered, so that it is not logged again."""


class IClient(IReader, IPushed):
    """A connected client."""

    host: Host = Attribute("what its connections count for")
    bytes_over_tcp: int = Attribute("file bytes, and segments, that it was sent over TCP")

    def tell_key() -> None:
        """Tell it which keys are in use now."""

    def close(reason: str) -> None:
        """Close its connection, for this reason."""


Client = TypeVar("Client", bound=IClient)


class Clients(Generic[Client]):
    """
    The clients that are connected now, and what they share.

    @ivar channels: the clients.
    @ivar access_statistics: what they ask for of each image.
    @ivar pushes: images that they are asked to pull.
    @ivar bytes_delivered: what all clients gave to readers, including those that have gone.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        view: Callable[[str | None], IImageLibrary | None],
        controller: MulticastController,
        keys: Keys,
        read: Reading,
        in_thread: Callable[..., "Deferred[Any]"],
        welcome: Callable[[Client], Welcome],
        clock: IReactorTime,
        limits: Limits,
    ) -> None:
        """
        @param view: what a client sees of the library, by the name in its certificate, if it has
            one; C{None} if nothing is shared with it.
        @param in_thread: calls a function of the library outside the reactor's thread.
        @param welcome: the answer to a client's HELLO.
        """
        self.view = view
        self.controller = controller
        self.keys = keys
        self.read = read
        self.in_thread = in_thread
        self.welcome = welcome
        self.clock = clock
        self.limits = limits
        self.channels: set[Client] = set()
        self.access_statistics = AccessStatistics(clock)
        self.pushes = Pushes(clock, in_thread)
        self._last_tls_faults: dict[str, str] = {}
        self._bytes_over_tcp = 0
        self.bytes_delivered = 0
        controller.keys_replaced = self._tell_keys

    @property
    def bytes_over_tcp(self) -> int:
        """What all clients were sent over TCP, including those that have gone."""
        return self._bytes_over_tcp + sum(channel.bytes_over_tcp for channel in self.channels)

    def add(self, channel: Client) -> None:
        """A client has connected; if too many others have not said HELLO, the oldest goes."""
        self.channels.add(channel)
        surplus = self.limits.surplus_silent()
        if surplus is not None:
            surplus.close("no HELLO came, and too many others wait")

    def remove(self, channel: Client) -> None:
        """A client has gone."""
        self.channels.discard(channel)
        self.pushes.remove_client(channel)
        self._bytes_over_tcp += channel.bytes_over_tcp
        self.controller.forget(channel)
        self.limits.remove(channel, channel.host)

    def tls_failed(self, address: str, fault: str) -> None:
        """Log why TLS failed: once, since clients try again and again."""
        if self._last_tls_faults.get(address) != fault:
            if len(self._last_tls_faults) >= MAX_TLS_FAULTS:
                self._last_tls_faults.clear()
            self._last_tls_faults[address] = fault
            self._log.warn("no TLS with {host}: {fault}", host=address, fault=fault)

    def tls_succeeded(self, address: str) -> None:
        """A client was welcomed: log the next fault of TLS with it, even if it is the same."""
        self._last_tls_faults.pop(address, None)

    def _tell_keys(self) -> None:
        for channel in self.channels:
            channel.tell_key()
