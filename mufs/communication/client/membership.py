"""Membership in the multicast group that the server names."""

from collections.abc import Callable, Container
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger

from mufs.communication.client.group_socket import GroupSocket
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.receiver import MulticastReceiver
from mufs.communication.interfaces import NetworkInterface, interface_of, interface_towards
from mufs.wire.channel import ProtocolError
from mufs.wire.metadata import Welcome

RETRY_INTERVAL = 5.0
"""Seconds after which what the system refused is tried again."""


class Membership:
    """
    Joins the group for a receiver, and leaves it.

    Which interface that is may change at any time, as may what the server says: L{_update} compares
    what is with what should be.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        receiver: MulticastReceiver,
        multicast_health: MulticastHealth,
        *,
        interface: str | None,
        on_joined: Callable[[], None],
        interface_of: Callable[[str], NetworkInterface | None] = interface_of,
        interface_towards: Callable[[str], NetworkInterface | None] = interface_towards,
    ) -> None:
        """
        @param interface: address or name of the interface to join on, or C{None} for that of the
            route to where the server sends from.
        @param on_joined: called when the group has been joined.
        """
        self._reactor = reactor
        self._receiver = receiver
        self._socket = GroupSocket(reactor, receiver)
        self._multicast_health = multicast_health
        self._setting = interface
        self._on_joined = on_joined
        self._interface_of = interface_of
        self._interface_towards = interface_towards
        self._welcome: Welcome | None = None
        self._local: str | None = None
        self._joined: NetworkInterface | None = None
        self._port: IListeningPort | None = None
        self._bound: tuple[str, int] | None = None
        self._closing: Deferred[Any] = succeed(None)
        self._retry: IDelayedCall | None = None
        multicast_health.join = self._set_joined

    @property
    def interface(self) -> str | None:
        """Address of the interface on which the group is joined; C{None} while it is not."""
        return None if self._joined is None else self._joined.address

    def welcomed(self, address: object, welcome: Welcome) -> None:
        """
        A connection was made: join the group that the server names, unless it is joined.

        @param address: of this host's end of the connection.
        """
        self._welcome = welcome
        self._local = address.host if isinstance(address, IPv4Address) else None
        self._receiver.listen_to(welcome.source if welcome.group else None, welcome.segment)
        if not self._update():
            self._multicast_health.resumed()

    def moved(self, welcome: Welcome) -> None:
        """
        The server sends to another group, from another address, or no more.

        @raise ProtocolError: when its segments have another size.
        """
        if welcome.segment != self._receiver.segment:
            raise ProtocolError("another segment size within a connection")
        self._welcome = welcome
        self._receiver.follow(welcome.source if welcome.group else None)
        if not self._update():
            self._multicast_health.available()

    def network_changed(self, removed: Container[int]) -> None:
        """
        Interfaces, addresses or routes have changed.

        @param removed: indices of interfaces that were removed, and with them what had joined.
        """
        if self._joined is not None and self._joined.index in removed:
            self._leave()
        if self._welcome is not None:
            self._update()

    def stop(self) -> "Deferred[Any]":
        """Leave the group and close the socket."""
        self._welcome = None
        self._cancel_retry()
        self._close()
        return self._closing

    def _update(self) -> bool:
        """Join the group where it should be joined now; whether that changed anything."""
        self._cancel_retry()
        welcome = self._welcome
        assert welcome is not None
        if not welcome.group:
            self._cannot("the server sends no multicast to this host")
            return True
        here = self._interface_now(welcome)
        if here is None:
            self._cannot(self._why_none())
            return True
        bound = welcome.group, welcome.port
        if self._bound not in (None, bound):
            self._close()
        if not self._closing.called:
            # The receiver has one socket at a time.
            self._closing.addCallback(lambda _: self.network_changed(()))
            return True
        if self._joined is not None:
            if self._joined.is_same(here):
                return False
            self._leave()
        try:
            self._listen(bound)
            self._socket.join(welcome.group, here.index)
        except (OSError, ValueError, CannotListenError) as error:
            self._refused(here, error)
            return True
        self._joined = here
        self._on_joined()
        self._multicast_health.available()
        self._log.info(
            "listening to {group}:{port} on interface {interface}",
            group=welcome.group,
            port=welcome.port,
            interface=here,
        )
        return True

    def _interface_now(self, welcome: Welcome) -> NetworkInterface | None:
        if self._setting is not None:
            here = self._interface_of(self._setting)
        else:
            here = self._interface_towards(welcome.source[0])
            if here is None and self._local is not None:
                here = self._interface_of(self._local)
        return here if here is not None and here.is_up else None

    def _why_none(self) -> str:
        wanted = self._setting or self._local
        if wanted is None:
            return "the way to the server tells no interface to listen on (set --interface)"
        return f"no interface {wanted} is up and has an IPv4 address"

    def _listen(self, bound: tuple[str, int]) -> None:
        if self._port is None:
            group, port = bound
            self._port = self._socket.listen(port, group)
            self._bound = bound

    def _leave(self) -> None:
        if self._joined is not None and self._bound is not None:
            self._socket.leave(self._bound[0], self._joined.index)
        self._joined = None

    def _close(self) -> None:
        self._joined = self._bound = None
        port, self._port = self._port, None
        if port is not None:
            self._closing = maybeDeferred(port.stopListening)

    def _cannot(self, reason: str) -> None:
        self._leave()
        self._multicast_health.unavailable(reason)

    def _refused(self, here: NetworkInterface, error: Exception) -> None:
        cause = error.socketError if isinstance(error, CannotListenError) else error
        reason = getattr(cause, "strerror", None) or str(cause)
        self._cannot(f"cannot listen to the group on interface {here}: {reason}")
        self._retry = self._reactor.callLater(RETRY_INTERVAL, self._update)

    def _cancel_retry(self) -> None:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self._retry = None

    def _set_joined(self, joined: bool) -> None:
        """Join the group again, or leave it, as the health of multicast demands."""
        if self._joined is None or self._bound is None:
            return
        group, index = self._bound[0], self._joined.index
        if not joined:
            self._socket.leave(group, index)
            return
        try:
            self._socket.join(group, index)
        except OSError as error:
            self._refused(self._joined, error)
