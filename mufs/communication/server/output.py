"""The socket that the server sends to the multicast group from."""

import socket
from collections.abc import Callable
from errno import EINVAL, EIO, EMSGSIZE, ENOBUFS, EOPNOTSUPP
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IWriteDescriptor
from twisted.logger import Logger
from zope.interface import Interface, implementer

from mufs.communication.interfaces import NetworkInterface
from mufs.communication.multicast import UDP_SEGMENT, MulticastProtocol
from mufs.wire.segments import HEADER

SEND_BUFFER = 256 * 1024
"""Bytes that may queue before the link, and thus delay answers on the request channel."""

MAX_TRAIN = 45
"""Datagrams that the kernel cuts from one write at most: 64 KiB of them."""


FAILURE_SECONDS = 0.5
"""
Seconds for which writes fail before the log says so: if the interface went away, its owner knows
sooner, and says more.
"""

RECOVERY_SECONDS = 1.0
"""Seconds without a failure after which sending works again."""


class ISegmentOutput(Interface):
    """Where the server sends its datagrams."""

    def write(packets: bytes | memoryview) -> int:
        """
        Send packets that lie back to back, as datagrams of a segment each.

        @return: how many bytes were taken; the send buffer had no room for the rest.
        """

    def writable() -> "Deferred[None]":
        """Wait until the send buffer has room again."""


@implementer(IWriteDescriptor)
class _Writability:
    """Watches a socket for room in its send buffer; a port of the reactor reads from it."""

    def __init__(self, watched: socket.socket, reactor: IReactorFDSet) -> None:
        # The reactor identifies descriptors by number, and the port uses the number of this one.
        self._socket = watched.dup()
        self._reactor = reactor
        self._waiting: list[Deferred[None]] = []

    def wait(self) -> "Deferred[None]":
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        self._reactor.addWriter(self)
        return waiting

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "mufs-server"

    def doWrite(self) -> None:
        self._reactor.removeWriter(self)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def connectionLost(self, reason: object) -> None:
        self.doWrite()  # whoever waits may write elsewhere
        self._socket.close()


@implementer(ISegmentOutput)
class MulticastOutput(MulticastProtocol):
    """Sends segments to the group, many per write where the kernel supports UDP_SEGMENT."""

    _log = Logger()

    def __init__(
        self, reactor: Any, group: str, port: int, *, interface: NetworkInterface, segment: int
    ) -> None:
        """
        @param group: address of the group.
        @param interface: the interface to send on.
        @param segment: bytes of data in a segment.
        """
        self._reactor = reactor
        self._group = (group, port)
        self._interface = interface
        self._stride = HEADER.size + segment
        self._train = MAX_TRAIN * self._stride
        self._offload = False
        self._offload_refused = False
        self._failing_since: float | None = None
        self._failed_at = 0.0
        self._warned = False
        self._writability: _Writability | None = None
        self._send: Callable[[bytes | memoryview], int]

    def startProtocol(self) -> None:
        """Set up the socket."""
        self.send_by(self._interface.index)
        self.transport.setLoopbackMode(True)
        self.transport.connect(*self._group)
        self.grow_send_buffer(SEND_BUFFER)
        self._offload = self._set(socket.SOL_UDP, UDP_SEGMENT, self._stride)
        handle = self._socket()
        self._send = handle.send  # the port's own write takes as long in Python as in the kernel
        self._writability = _Writability(handle, self._reactor)

    def use(self, interface: NetworkInterface) -> None:
        """
        Send on this interface from now on, which has the address of the one before.

        @raise OSError: when that is impossible.
        """
        self.send_by(interface.index)
        self._interface = interface
        if not self._warned:
            self._failing_since = None
        # Its MTU may be another, or that of the same interface.
        if not self._offload:
            self._offload = self._set(socket.SOL_UDP, UDP_SEGMENT, self._stride)

    def stopProtocol(self) -> None:
        """Stop watching the socket."""
        if self._writability is not None:
            self._writability.connectionLost(None)

    def write(self, packets: bytes | memoryview) -> int:
        """See L{ISegmentOutput.write}; packets that fail to be sent are left to repairs."""
        most = self._train if self._offload else self._stride
        for start in range(0, len(packets), most):
            if not self._write(packets[start : start + most]):
                return start
        return len(packets)

    def writable(self) -> "Deferred[None]":
        """See L{ISegmentOutput.writable}."""
        assert self._writability is not None
        return self._writability.wait()

    def _write(self, packets: bytes | memoryview) -> bool:
        """Write once; C{False} if that must be tried again."""
        try:
            self._send(packets)
        except BlockingIOError:
            return False
        except OSError as error:
            if self._offload and error.errno in (EINVAL, EIO, EOPNOTSUPP, EMSGSIZE):
                # Not supported by the interface, or segments exceed its MTU. Without
                # UDP_SEGMENT the kernel fragments them.
                if not self._offload_refused:
                    self._log.info("UDP_SEGMENT is refused here ({error}): cutting", error=error)
                self._set(socket.SOL_UDP, UDP_SEGMENT, 0)
                self._offload, self._offload_refused = False, True
                return False
            if error.errno != ENOBUFS:  # a queue of this host is full
                self._note_failure(error)
        else:
            if self._failing_since is not None:
                self._note_success()
            if self._offload and self._offload_refused:
                self._offload_refused = False
                self._log.info("UDP_SEGMENT works again")
        return True

    def _note_failure(self, error: OSError) -> None:
        now = self._reactor.seconds()
        if self._failing_since is None:
            self._failing_since = now
        self._failed_at = now
        if not self._warned and now - self._failing_since >= FAILURE_SECONDS:
            self._warned = True
            self._log.warn(
                "cannot send to the group on interface {interface}: {reason}",
                interface=self._interface,
                reason=error.strerror or str(error),
            )

    def _note_success(self) -> None:
        # A firewall may refuse some datagrams only.
        if self._reactor.seconds() - self._failed_at >= RECOVERY_SECONDS:
            if self._warned:
                self._log.info(
                    "sending to the group on interface {interface} works again",
                    interface=self._interface,
                )
            self._failing_since, self._warned = None, False
