"""The interface that a server sends multicast on, and what it tells clients about it."""

from collections.abc import Callable, Container
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from mufs.communication.interfaces import NetworkInterface, interface_of
from mufs.communication.server.channel import ServerChannel
from mufs.communication.server.output import MulticastOutput
from mufs.wire.metadata import VERSION, Welcome
from mufs.wire.segments import SEGMENT


class OutgoingMulticast:
    """
    Sends on the configured interface, or else on that by which the first client came; if that is
    gone, by that of the next one.

    Without an interface there is no output, and clients read over TCP. If it comes back with the
    same address, the same socket sends on it, so that clients need not be told.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        group: str,
        port: int,
        *,
        interface: str | None,
        on_output: Callable[[MulticastOutput | None], None],
        on_moved: Callable[[Welcome], None],
        interface_of: Callable[[str], NetworkInterface | None] = interface_of,
    ) -> None:
        """
        @param interface: address or name of the configured interface.
        @param on_output: called with the output when there is one, C{None} when there is none.
        @param on_moved: called with what clients are to know once multicast goes out.
        """
        self._reactor = reactor
        self._group = group
        self._port = port
        self._is_configured = interface is not None
        # Without a configured one, the addresses by which clients came: only own ones.
        self._settings = [] if interface is None else [interface]
        self._on_output = on_output
        self._on_moved = on_moved
        self._interface_of = interface_of
        self._output: MulticastOutput | None = None
        self._interface: NetworkInterface | None = None
        self._source = ("", 0)
        self._last_fault = ""

    @property
    def interface(self) -> str | None:
        """Address of the interface that multicast goes out on; C{None} while it does not."""
        return None if self._interface is None else self._interface.address

    def stop(self) -> "Deferred[Any]":
        """Close the output."""
        output, self._output = self._output, None
        return succeed(None) if output is None else maybeDeferred(output.transport.stopListening)

    def network_changed(self, removed: Container[int] = ()) -> None:
        """
        Interfaces or addresses have changed, or it is the start: send where it is right now.

        @param removed: indices of interfaces that were removed.
        """
        if not self._settings:
            return
        found = [self._interface_of(setting) for setting in self._settings]
        usable = [each for each in found if each is not None and each.is_up]
        if not usable:
            self._without(f"no interface {self._settings[0]} is up and has an IPv4 address")
        # Nobody else hears what goes out on the loopback.
        for here in sorted(usable, key=lambda each: each.is_loopback):
            if self._interface == here and here.index not in removed:
                break
            try:
                self._send_on(here)
            except (OSError, CannotListenError) as error:
                cause = error.socketError if isinstance(error, CannotListenError) else error
                reason = getattr(cause, "strerror", None) or str(cause)
                self._without(f"cannot send multicast on interface {here}: {reason}")
            else:
                break

    def welcome(self, channel: ServerChannel) -> Welcome:
        """The answer to the HELLO of a client."""
        self._follow(channel)
        self._log.info(
            "{client} connected from {address}", client=channel.name, address=channel.address or "?"
        )
        return self._welcome()

    def _welcome(self) -> Welcome:
        group = "" if self._interface is None else self._group
        return Welcome(VERSION, group, self._port, self._source, SEGMENT)

    def _follow(self, channel: ServerChannel) -> None:
        """Send where a client came in, if nothing else is set; warn where that is impossible."""
        address = channel.transport.getHost()
        here = address.host if isinstance(address, IPv4Address) else None
        if not self._is_configured and here is not None and here not in self._settings:
            self._settings.append(here)
        if self._interface is None or self._interface.is_loopback:
            self.network_changed()
        if self._is_configured:
            return
        if not self._settings:
            self._log.warn(
                "{client} connected by {how}, which has no interface for multicast: it reads over "
                "TCP (set --interface)",
                client=channel.name,
                how="IPv6" if isinstance(address, IPv6Address) else "a UNIX socket",
            )
        elif here is not None and self.interface not in (None, here):
            self._log.warn(
                "{client} connected to {here}, but multicast goes out on {interface}: it may have "
                "to read over TCP (set --interface)",
                client=channel.name,
                here=here,
                interface=self.interface,
            )

    def _send_on(self, here: NetworkInterface) -> None:
        before, output = self._interface, self._output
        if output is not None and self._source[0] == here.address:
            output.use(here)
        else:
            output = MulticastOutput(
                self._reactor, self._group, self._port, interface=here, segment=SEGMENT
            )
            port = self._reactor.listenMulticast(0, output, interface=here.address)
            self.stop()
            self._source = (here.address, port.getHost().port)
        self._output, self._interface, self._last_fault = output, here, ""
        if before is None or not before.is_same(here):
            self._log.info(
                "multicast to {group}:{port} on interface {interface}",
                group=self._group,
                port=self._port,
                interface=here,
            )
        self._on_output(output)
        self._on_moved(self._welcome())

    def _without(self, fault: str) -> None:
        """There is no interface to send on now."""
        if fault != self._last_fault:
            self._log.warn("{fault}: clients read over TCP", fault=fault)
        self._interface, self._last_fault = None, fault
        self._on_output(None)
