"""The interface that a server sends multicast on, and what it tells clients about it."""

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from mufs.communication.server.channel import ServerChannel
from mufs.communication.server.output import MulticastOutput
from mufs.wire.metadata import VERSION, Welcome
from mufs.wire.segments import SEGMENT


class OutgoingMulticast:
    """
    Opens the output on the configured interface, or else on that by which the first client comes.

    Until there is an output, clients are given no group, and read over TCP.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        group: str,
        port: int,
        *,
        interface: str | None,
        on_open: Callable[[MulticastOutput], None],
        on_unusable: Callable[[str], None],
    ) -> None:
        """
        @param interface: address of the configured interface.
        @param on_open: called with the output once there is one.
        @param on_unusable: called with a message when the configured interface is of no use.
        """
        self._reactor = reactor
        self._group = group
        self._port = port
        self._configured = interface
        self._on_open = on_open
        self._on_unusable = on_unusable
        self._output: MulticastOutput | None = None
        self._source = ("", 0)

    @property
    def interface(self) -> str | None:
        """Address of the interface that multicast goes out on; C{None} if it does not yet."""
        return None if self._output is None else self._output.interface

    def start(self) -> None:
        """Open the output if the interface is configured."""
        if self._configured is not None:
            self._open(self._configured)

    def stop(self) -> "Deferred[Any]":
        """Close the output."""
        if self._output is None:
            return succeed(None)
        return maybeDeferred(self._output.transport.stopListening)

    def welcome(self, channel: ServerChannel) -> Welcome:
        """The answer to the HELLO of a client."""
        if self._configured is None:
            self._follow(channel)
        self._log.info(
            "{client} connected from {address}", client=channel.name, address=channel.address or "?"
        )
        group = "" if self._output is None else self._group
        return Welcome(VERSION, group, self._port, self._source, SEGMENT)

    def _follow(self, channel: ServerChannel) -> None:
        """Open the output where a client came in; warn where that is impossible or elsewhere."""
        address = channel.transport.getHost()
        here = address.host if isinstance(address, IPv4Address) else None
        if self._output is None:
            if here is None:
                self._log.warn(
                    "{client} connected to {here}, which has no interface for multicast: "
                    "it reads over TCP (set --interface)",
                    client=channel.name,
                    here=address,
                )
            else:
                self._open(here)
        if self.interface not in (None, here):
            self._log.warn(
                "{client} connected to {here}, but multicast goes out on {interface}: it may have "
                "to read over TCP (set --interface)",
                client=channel.name,
                here=here,
                interface=self.interface,
            )

    def _open(self, interface: str) -> None:
        output = MulticastOutput(
            self._reactor, self._group, self._port, interface=interface, segment=SEGMENT
        )
        try:
            port = self._reactor.listenMulticast(0, output, interface=interface)
        except (OSError, CannotListenError) as error:
            message = f"cannot send multicast on interface {interface}: {error}"
            if self._configured is not None:
                self._on_unusable(message)
            else:
                self._log.warn("{message}; clients read over TCP", message=message)
            return
        self._output = output
        self._source = (interface, port.getHost().port)
        self._on_open(output)
        self._log.info(
            "multicast to {group}:{port} on interface {interface}",
            group=self._group,
            port=self._port,
            interface=interface,
        )
