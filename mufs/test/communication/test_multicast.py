"""Options of UDP sockets."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.multicast import MulticastProtocol, grow_receive_buffer, set_option

FORCED = {32: socket.SO_SNDBUF, 33: socket.SO_RCVBUF}
"""The buffer that each of SO_SNDBUFFORCE and SO_RCVBUFFORCE sets."""

LIMIT = 200_000
"""Bytes of a buffer that a process without privileges gets."""


class RecordingSocket:
    """
    A socket that remembers its options and what is sent, and doubles the sizes of buffers as Linux
    does.

    @ivar refused: options that the kernel refuses.
    @ivar failures: what the next calls of C{send} raise, C{None} for one that succeeds.
    @ivar duplicates: what C{dup} returned.
    """

    def __init__(self, *refused: int) -> None:
        self.refused = set(refused)
        self.options: dict[tuple[int, int], int] = {}
        self.failures: list[OSError | None] = []
        self.written: list[bytes] = []
        self.duplicates: list[RecordingSocket] = []
        self.closed = False

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """See L{socket.socket.setsockopt}."""
        if option in self.refused:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if level == socket.SOL_SOCKET:
            value = 2 * (value if option in FORCED else min(value, LIMIT))
            option = FORCED.get(option, option)
        self.options[level, option] = value

    def getsockopt(self, level: int, option: int) -> int:
        """See L{socket.socket.getsockopt}."""
        return self.options[level, option]

    def send(self, packets: bytes | memoryview) -> int:
        """See L{socket.socket.send}."""
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.written.append(bytes(packets))
        return len(packets)

    def dup(self) -> RecordingSocket:
        """See L{socket.socket.dup}."""
        self.duplicates.append(RecordingSocket())
        return self.duplicates[-1]

    def fileno(self) -> int:
        """See L{socket.socket.fileno}."""
        return 77

    def close(self) -> None:
        """See L{socket.socket.close}."""
        self.closed = True


class OptionTests(SynchronousTestCase):
    """Options, of a socket alone and of that of a protocol."""

    def make(self, *refused: int) -> tuple[Any, MulticastProtocol]:
        """A socket whose kernel refuses some options, and a protocol on it."""
        handle: Any = RecordingSocket(*refused)
        protocol = MulticastProtocol()
        transport: Any = type("Transport", (), {"getHandle": lambda self: handle})()
        protocol.transport = transport
        return handle, protocol

    def test_set(self) -> None:
        """An option is set, and one that the kernel refuses is no error."""
        handle, _ = self.make(103)
        self.assertTrue(set_option(handle, socket.SOL_UDP, 104, 1))
        self.assertFalse(set_option(handle, socket.SOL_UDP, 103, 1))
        self.assertEqual(handle.options, {(socket.SOL_UDP, 104): 1})

    def test_privileged(self) -> None:
        """With the privilege to do so, a buffer exceeds the limit of the system."""
        handle, protocol = self.make()
        self.assertEqual(protocol.grow_send_buffer(3 * LIMIT), 3 * LIMIT)
        self.assertEqual(protocol.grow_receive_buffer(2 * LIMIT), 2 * LIMIT)
        self.assertEqual(
            handle.options,
            {
                (socket.SOL_SOCKET, socket.SO_SNDBUF): 6 * LIMIT,
                (socket.SOL_SOCKET, socket.SO_RCVBUF): 4 * LIMIT,
            },
        )

    def test_unprivileged(self) -> None:
        """Without it a buffer is as large as the system allows; the size granted is returned."""
        _, protocol = self.make(*FORCED)
        self.assertEqual(protocol.grow_send_buffer(3 * LIMIT), LIMIT)
        self.assertEqual(protocol.grow_receive_buffer(LIMIT // 2), LIMIT // 2)

    def test_kernel(self) -> None:
        """A real socket gets a small buffer in full."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            self.assertEqual(grow_receive_buffer(handle, 65536), 65536)
