"""Options of UDP sockets, for both ends of the multicast group."""

import socket
import struct
from contextlib import suppress

from twisted.internet.interfaces import IMulticastTransport
from twisted.internet.protocol import DatagramProtocol

# Linux constants that the socket module does not define.
UDP_SEGMENT = 103
UDP_GRO = 104
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

MAX_DATAGRAM = 65535
"""Bytes of a datagram at most."""


def set_option(handle: socket.socket, level: int, option: int, value: int) -> bool:
    """Set a socket option; C{False} if the kernel refuses it."""
    try:
        handle.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def grow_receive_buffer(handle: socket.socket, size: int) -> int:
    """Request a receive buffer of C{size} bytes; the bytes granted."""
    return _grow(handle, socket.SO_RCVBUF, force=_SO_RCVBUFFORCE, size=size)


def _grow(handle: socket.socket, option: int, *, force: int, size: int) -> int:
    """
    Request a buffer of C{size} bytes, beyond the system's limit if the process may exceed it.

    @return: the bytes granted.
    """
    if not set_option(handle, socket.SOL_SOCKET, force, size):
        set_option(handle, socket.SOL_SOCKET, option, size)
    return handle.getsockopt(socket.SOL_SOCKET, option) // 2


def _on(group: str, index: int) -> bytes:
    """A struct ip_mreqn, ip(7). Unlike an address, the index means one interface for sure."""
    return struct.pack("=4s4xi", socket.inet_aton(group), index)


class MulticastProtocol(DatagramProtocol):
    """A datagram protocol on a port of C{listenMulticast}, with access to its socket."""

    noisy = False
    transport: IMulticastTransport

    def _socket(self) -> socket.socket:
        handle: socket.socket = self.transport.getHandle()  # type: ignore[attr-defined]
        return handle

    def _set(self, level: int, option: int, value: int) -> bool:
        """Set a socket option; C{False} if the kernel refuses it."""
        return set_option(self._socket(), level, option, value)

    def join(self, group: str, index: int) -> None:
        """
        Join a group on the interface of this index, also one without an address of its own.

        @raise OSError: when that is impossible.
        """
        self._socket().setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _on(group, index))

    def leave(self, group: str, index: int) -> None:
        """Leave a group, also where the interface is gone, or the group was not joined."""
        with suppress(OSError):
            handle = self._socket()
            handle.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, _on(group, index))

    def send_by(self, index: int) -> None:
        """
        Send multicast by the interface of this index.

        @raise OSError: when that is impossible.
        """
        by = _on("0.0.0.0", index)
        self._socket().setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, by)

    def grow_send_buffer(self, size: int) -> int:
        """Request a send buffer of C{size} bytes; the bytes granted."""
        return _grow(self._socket(), socket.SO_SNDBUF, force=_SO_SNDBUFFORCE, size=size)

    def grow_receive_buffer(self, size: int) -> int:
        """Request a receive buffer of C{size} bytes; the bytes granted."""
        return grow_receive_buffer(self._socket(), size)
