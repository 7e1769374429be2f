"""The socket of the group, and how it is read."""

import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mufs.communication.client import group_socket
from mufs.communication.client.group_socket import (
    BULK,
    RECEIVE_BUFFER,
    GroupSocket,
    max_transfer,
)
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.receiver import MulticastReceiver
from mufs.communication.multicast import MAX_DATAGRAM
from mufs.wire.pages import BLOCK, EXTENT


class RecordingReceiver(MulticastReceiver):
    """
    A receiver that keeps what it is given.

    @ivar seconds: for which reading may rest.
    """

    def __init__(self) -> None:
        super().__init__(MulticastHealth(Clock()), lambda descriptor, data, zeros: None)
        self.seconds = 0.0
        self.bulks: list[list[bytes]] = []
        self.fault: Exception | None = None

    def received(self, datagrams: memoryview, ends: list[int], now: float) -> None:
        """See L{MulticastReceiver.received}."""
        begins = [0, *ends[:-1]]
        self.bulks.append(
            [bytes(datagrams[begin:end]) for begin, end in zip(begins, ends, strict=True)]
        )
        if self.fault is not None:
            raise self.fault

    def rest(self, now: float) -> float:
        """See L{MulticastReceiver.rest}."""
        return self.seconds


class GroupSocketTests(TestCase):
    """A socket on the loopback interface."""

    def setUp(self) -> None:
        """Open it, and one of a server."""
        self.receiver = RecordingReceiver()
        self.socket = GroupSocket(reactor, self.receiver)
        self.port: Any = self.socket.listen(0, "127.0.0.1")
        self.addCleanup(self.port.stopListening)
        self.sender = self.open()
        self.receiver.source = self.sender.getsockname()

    def open(self) -> socket.socket:
        """A socket that sends to it."""
        handle = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(handle.close)
        handle.bind(("127.0.0.1", 0))
        handle.connect(("127.0.0.1", self.port.getHost().port))
        return handle

    def pause(self, seconds: float = 0.0) -> "Deferred[None]":
        """Let the reactor run."""
        return deferLater(reactor, seconds)

    async def until_read(self, bulks: int) -> None:
        """Wait until it was read so many times."""
        while len(self.receiver.bulks) < bulks:
            await self.pause(0.001)

    async def test_all_at_once(self) -> None:
        """All datagrams that wait are given to the receiver together, each with its bounds."""
        datagrams = [b"one", b"", b"three" * 200, bytes(60_000)]
        for each in datagrams:
            self.sender.send(each)
        await self.until_read(1)
        self.assertEqual(self.receiver.bulks, [datagrams])

    async def test_foreign(self) -> None:
        """What comes from elsewhere is counted, and not given to the receiver."""
        other = self.open()
        for each in [b"1", b"2"]:
            other.send(b"forged")
            self.sender.send(each)
        await self.until_read(1)
        self.assertEqual(self.receiver.bulks, [[b"1", b"2"]])
        self.assertEqual(self.receiver.datagrams_dropped, 2)

    async def test_foreign_alone(self) -> None:
        """However many come from elsewhere, the reactor has its turn."""
        self.patch(group_socket, "MAX_BULK_DATAGRAMS", 5)
        self.receiver.source = None
        for _ in range(12):
            self.sender.send(bytes(60_000))
        self.assertTrue(self.socket.read())
        self.assertEqual(self.receiver.datagrams_dropped, 5)
        while self.receiver.datagrams_dropped < 12:
            await self.pause(0.001)
        self.assertEqual(self.receiver.bulks, [])

    async def test_bound(self) -> None:
        """More than fits is read in parts."""
        if self.receiver.buffer < RECEIVE_BUFFER:
            self.skipTest("the receive buffer is not large enough")
        datagrams = [bytes([number]) * 65507 for number in range(40)]
        for each in datagrams:
            self.sender.send(each)
        while sum(map(len, self.receiver.bulks)) < len(datagrams):
            await self.pause(0.001)
        first, *others = self.receiver.bulks
        self.assertEqual(first + [each for bulk in others for each in bulk], datagrams)
        self.assertTrue(BULK < sum(map(len, first)) <= BULK + MAX_DATAGRAM)
        self.assertEqual(self.socket.read(), False)

    async def test_rest(self) -> None:
        """Datagrams gather while reading rests, if the receive buffer is large."""
        self.receiver.buffer = RECEIVE_BUFFER
        self.receiver.seconds = 0.05
        self.sender.send(b"1")
        await self.until_read(1)
        self.receiver.seconds = 0.0
        for each in [b"2", b"3"]:
            self.sender.send(each)
            await self.pause(0.005)
        self.assertEqual(self.receiver.bulks, [[b"1"]])
        await self.until_read(2)
        self.assertEqual(self.receiver.bulks[1:], [[b"2", b"3"]])

    async def test_rest_ends(self) -> None:
        """Who needs to know reads although reading rests; the end of the socket ends the rest."""
        self.receiver.buffer = RECEIVE_BUFFER
        self.receiver.seconds = 60.0
        self.sender.send(b"1")
        await self.until_read(1)
        self.sender.send(b"2")
        self.assertFalse(self.receiver.read_now())
        self.assertEqual(self.receiver.bulks, [[b"1"], [b"2"]])
        await self.port.stopListening()
        self.assertFalse(self.receiver.read_now())

    async def test_small_buffer(self) -> None:
        """With a small receive buffer reading never rests."""
        self.receiver.buffer = 212_992
        self.receiver.seconds = 60.0
        for number in (1, 2):
            self.sender.send(b"datagram")
            await self.until_read(number)

    async def test_fault(self) -> None:
        """A fault is logged, and reading goes on."""
        self.receiver.fault = ZeroDivisionError()
        for number in (1, 2):
            self.sender.send(b"datagram")
            await self.until_read(number)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)


class MaxTransferTests(SynchronousTestCase):
    """What a receive buffer has room for."""

    def test_sizes(self) -> None:
        """Two transfers fit into the buffer; a block is possible with any."""
        for granted, found in [
            (0, BLOCK),
            (212_992, BLOCK),
            (1 << 20, 637_000),
            (RECEIVE_BUFFER, EXTENT),
        ]:
            self.patch(group_socket, "grow_receive_buffer", lambda *_, granted=granted: granted)
            self.assertEqual(max_transfer(), found)

    def test_here(self) -> None:
        """It is asked of a real socket."""
        self.assertTrue(BLOCK <= max_transfer() <= EXTENT)
