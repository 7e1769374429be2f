"""Membership in the multicast group that the server names."""

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import inlineCallbacks
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.receiver import MulticastReceiver
from mufs.communication.multicast import MAX_DATAGRAM
from mufs.wire.metadata import Welcome


class Membership:
    """
    Joins the group for a receiver, and leaves it.

    @ivar interface: address of the interface on which the group is joined, C{None} while it is
        not.
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
        on_unusable: Callable[[str], None],
    ) -> None:
        """
        @param interface: address of the interface to join on, or C{None} for that of the route to
            the server.
        @param on_joined: called when the group has been joined.
        @param on_unusable: called with the reason when it cannot be joined on the C{interface}
            that was given.
        """
        self._reactor = reactor
        self._receiver = receiver
        self._multicast_health = multicast_health
        self._chosen_interface = interface
        self._on_joined = on_joined
        self._on_unusable = on_unusable
        self._group: tuple[str, int, str] | None = None
        self._port: IListeningPort | None = None
        multicast_health.join = self._set_joined

    @property
    def interface(self) -> str | None:
        """See above."""
        return None if self._group is None else self._group[2]

    def welcomed(self, address: object, welcome: Welcome) -> None:
        """
        A connection was made: join the group that the server names, unless it is joined.

        @param address: of this host's end of the connection.
        """
        here = self._chosen_interface
        if here is None and isinstance(address, IPv4Address):
            here = address.host
        source = welcome.source if welcome.group else None
        self._receiver.listen_to(source, welcome.segment)
        if not welcome.group:
            self._multicast_health.unavailable("the server sends no multicast to this host")
        elif here is None:
            self._multicast_health.unavailable(
                "the way to the server tells no interface to listen on (set --interface)"
            )
        elif self._group == (welcome.group, welcome.port, here):
            self._multicast_health.resumed()
        else:
            listening = self._listen(welcome.group, welcome.port, here)
            listening.addErrback(self._failed, here)

    @inlineCallbacks
    def stop(self) -> Any:
        """Leave the group and close the socket."""
        port, self._port = self._port, None
        if port is not None:
            yield port.stopListening()

    @inlineCallbacks
    def _listen(self, group: str, port: int, interface: str) -> Any:
        self._group = None
        yield self.stop()
        self._port = self._reactor.listenMulticast(
            port, self._receiver, group, maxPacketSize=MAX_DATAGRAM, listenMultiple=True
        )
        yield self._receiver.transport.joinGroup(group, interface)
        self._group = group, port, interface
        self._on_joined()
        self._multicast_health.available()
        self._log.info(
            "listening to {group}:{port} on interface {interface}",
            group=group,
            port=port,
            interface=interface,
        )

    def _set_joined(self, joined: bool) -> None:
        """Join the group again, or leave it."""
        if self._group is not None:
            group, _, interface = self._group
            transport = self._receiver.transport
            change = transport.joinGroup if joined else transport.leaveGroup
            change(group, interface).addErrback(self._failed, interface)

    def _failed(self, failure: Failure, interface: str) -> None:
        reason = getattr(failure.value, "strerror", None) or failure.getErrorMessage()
        message = f"cannot listen to the group on interface {interface}: {reason}"
        self._group = None
        if self._chosen_interface is not None:
            self._on_unusable(message)
        self._multicast_health.unavailable(message)
