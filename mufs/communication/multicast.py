"""What both ends of the multicast group do with their UDP sockets."""

import socket

from twisted.internet.interfaces import IMulticastTransport
from twisted.internet.protocol import DatagramProtocol

UDP_SEGMENT = 103
UDP_GRO = 104
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

MAX_DATAGRAM = 65535


class MulticastProtocol(DatagramProtocol):
    """A datagram protocol on a port made by C{listenMulticast}."""

    noisy = False
    transport: IMulticastTransport

    def _socket(self) -> socket.socket:
        handle: socket.socket = self.transport.getHandle()  # type: ignore[attr-defined]
        return handle

    def _set(self, level: int, option: int, value: int) -> bool:
        """Set a socket option; C{False} where the kernel refuses it."""
        try:
            self._socket().setsockopt(level, option, value)
        except OSError:
            return False
        return True

    def _grow(self, option: int, force: int, size: int) -> int:
        """
        Ask for a buffer of C{size} bytes, past the system's limit where that is allowed.

        @return: the bytes granted.
        """
        if not self._set(socket.SOL_SOCKET, force, size):
            self._set(socket.SOL_SOCKET, option, size)
        return self._socket().getsockopt(socket.SOL_SOCKET, option) // 2

    def grow_send_buffer(self, size: int) -> int:
        """Ask for a send buffer of C{size} bytes; what was granted."""
        return self._grow(socket.SO_SNDBUF, _SO_SNDBUFFORCE, size)

    def grow_receive_buffer(self, size: int) -> int:
        """Ask for a receive buffer of C{size} bytes; what was granted."""
        return self._grow(socket.SO_RCVBUF, _SO_RCVBUFFORCE, size)
