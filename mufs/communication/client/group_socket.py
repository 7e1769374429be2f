"""The socket of the multicast group at a client, read in bulk."""

import socket
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.internet.udp import MulticastPort
from twisted.logger import Logger

from mufs.communication.client.receiver import MulticastReceiver
from mufs.communication.multicast import (
    MAX_DATAGRAM,
    UDP_GRO,
    MulticastProtocol,
    grow_receive_buffer,
)
from mufs.wire.pages import BLOCK, EXTENT
from mufs.wire.segments import SEGMENT

RECEIVE_BUFFER = 16 * 1024 * 1024
"""Bytes asked for the socket's receive buffer, where datagrams wait while this process is busy."""

SEGMENT_COST = 2304
"""Bytes of a receive buffer that a whole segment takes, including what the kernel adds."""

BULK = EXTENT // 2
"""
Bytes that are read at a time: what a processor's own cache has room for while it is taken apart.
Then the reactor has other events served.
"""

MAX_BULK_DATAGRAMS = 2048
"""The same in datagrams, or in trains of them that the kernel merged."""


def max_transfer() -> int:
    """
    Bytes of the largest transfer that this host can take: two of them fit into its receive buffer,
    since the next one comes while one is taken out.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # The kernel counts up to twice what it says that it granted.
        granted = 2 * grow_receive_buffer(probe, RECEIVE_BUFFER)
    return max(BLOCK, min(EXTENT, granted // SEGMENT_COST * SEGMENT // 2))


class GroupSocket(MulticastProtocol):
    """
    Reads what comes for a receiver: all datagrams that wait, into one buffer, at each wake-up.

    If the receive buffer is large, they gather in it while the receiver says that reading may rest.
    """

    _log = Logger()
    transport: "_BulkPort"

    def __init__(self, reactor: Any, receiver: MulticastReceiver) -> None:
        self._clock = reactor
        self._receiver = receiver
        self._resting: IDelayedCall | None = None
        self._bulk = memoryview(bytearray(BULK + MAX_DATAGRAM))
        receiver.read_now = self.read

    def listen(self, port: int, group: str) -> IListeningPort:
        """
        Open the socket.

        @raise CannotListenError: when that is impossible.
        """
        listening = _BulkPort(port, self, group, MAX_DATAGRAM, self._clock, listenMultiple=True)
        listening.startListening()
        return listening

    def startProtocol(self) -> None:
        """Set up the socket."""
        buffer = self._receiver.buffer = self.grow_receive_buffer(RECEIVE_BUFFER)
        offload = self._set(socket.SOL_UDP, UDP_GRO, 1)
        self._log.info(
            "receive buffer of {buffer} KiB, datagrams received together: {offload}",
            buffer=buffer // 1024,
            offload="yes" if offload else "no",
        )

    def stopProtocol(self) -> None:
        """Stop resting."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def read(self) -> bool:
        """Process the datagrams that wait; whether more of them may wait."""
        if self.transport is None:
            return False
        receive, bulk, source = self._socket().recvfrom_into, self._bulk, self._receiver.source
        ends: list[int] = []
        filled, more = 0, True
        for _ in range(MAX_BULK_DATAGRAMS):
            try:
                length, sender = receive(bulk[filled:])
            except (BlockingIOError, InterruptedError):
                more = False
                break
            if sender == source:
                filled += length
                ends.append(filled)
            else:
                self._receiver.datagrams_dropped += 1
            if filled > BULK:
                break
        if ends:
            try:
                self._receiver.received(bulk[:filled], ends, self._clock.seconds())
            except Exception:
                self._log.failure("cannot process what came from the group")
        return more

    def read_in_turn(self) -> None:
        """There is something to read: read it, and rest."""
        more = self.read()
        seconds = self._receiver.rest(self._clock.seconds())
        if seconds and not more and self._receiver.buffer >= RECEIVE_BUFFER // 4:
            self.transport.stopReading()
            self._resting = self._clock.callLater(seconds, self._rested)

    def _rested(self) -> None:
        self._resting = None
        self.transport.startReading()


class _BulkPort(MulticastPort):
    """A port whose protocol reads the socket itself."""

    protocol: GroupSocket

    def doRead(self) -> None:
        """See C{IReadDescriptor} of Twisted."""
        self.protocol.read_in_turn()
