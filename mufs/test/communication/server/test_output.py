"""The socket that segments are sent from."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

from attrs import evolve
from twisted.internet import reactor as global_reactor
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mufs.communication.multicast import UDP_SEGMENT
from mufs.communication.server.output import (
    MAX_TRAIN,
    RECOVERY_SECONDS,
    SEND_BUFFER,
    MulticastOutput,
)
from mufs.test.communication.test_multicast import RecordingSocket
from mufs.test.support.doubles import make_interface
from mufs.wire.segments import HEADER

GROUP, HERE = "239.255.70.40", "127.0.0.1"
INTERFACE = make_interface(HERE, 1, name="lo", is_loopback=True)
SEGMENT = 1000
STRIDE = HEADER.size + SEGMENT
OFFLOAD = socket.SOL_UDP, UDP_SEGMENT


def error(number: int) -> OSError:
    """The error of a system call."""
    return OSError(number, os.strerror(number))


def train(segments: int, last: int = STRIDE) -> bytes:
    """Datagrams back to back, all of them different, the last of C{last} bytes."""
    return b"".join(bytes([n]) * STRIDE for n in range(segments - 1)) + b"\xff" * last


class RecordingTransport:
    """A port of the reactor that remembers how it was set up."""

    def __init__(self, handle: RecordingSocket) -> None:
        self.handle = handle
        self.set_up: list[tuple[object, ...]] = []

    def getHandle(self) -> RecordingSocket:
        """See L{ISystemHandle.getHandle}."""
        return self.handle

    def setLoopbackMode(self, mode: bool) -> None:
        """See L{IMulticastTransport.setLoopbackMode}."""
        self.set_up.append(("loopback", mode))

    def connect(self, host: str, port: int) -> None:
        """See L{IUDPTransport.connect}."""
        self.set_up.append(("connect", host, port))


class WritableReactor(Clock):
    """Remembers which descriptors are watched for room; the test calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: list[Any] = []

    def addWriter(self, writer: object) -> None:
        """See L{IReactorFDSet.addWriter}."""
        if writer not in self.writers:
            self.writers.append(writer)

    def removeWriter(self, writer: object) -> None:
        """See L{IReactorFDSet.removeWriter}."""
        if writer in self.writers:
            self.writers.remove(writer)


class OutputTests(SynchronousTestCase):
    """Writes that succeed and fail."""

    def make(self, *refused: int) -> MulticastOutput:
        """An output whose kernel refuses some options."""
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.handle = RecordingSocket(*refused)
        transport: Any = RecordingTransport(self.handle)
        self.transport: RecordingTransport = transport
        self.reactor = WritableReactor()
        reactor: Any = self.reactor
        output = MulticastOutput(reactor, GROUP, 7041, interface=INTERFACE, segment=SEGMENT)
        output.transport = transport
        output.startProtocol()
        return output

    def outgoing_index(self) -> int:
        """The interface that the socket sends by."""
        value: Any = self.handle.options[socket.IPPROTO_IP, socket.IP_MULTICAST_IF]
        return int(struct.unpack("=8xi", value)[0])

    def logged(self, text: str) -> int:
        """How many lines of the log contain a text."""
        return sum(text in str(formatEvent(event)) for event in self.events)

    def test_set_up(self) -> None:
        """It sends on its interface to the group, also to this host, from a small buffer."""
        self.make()
        self.assertEqual(self.transport.set_up, [("loopback", True), ("connect", GROUP, 7041)])
        self.assertEqual(self.outgoing_index(), 1)
        self.assertEqual(self.handle.options[socket.SOL_SOCKET, socket.SO_SNDBUF], 2 * SEND_BUFFER)

    def test_train(self) -> None:
        """A train goes out in one write, and the kernel cuts it into datagrams of a segment."""
        output = self.make()
        packets = train(MAX_TRAIN, 500)
        self.assertEqual(output.write(memoryview(packets)), len(packets))
        self.assertEqual(self.handle.written, [packets])
        self.assertEqual(self.handle.options[OFFLOAD], STRIDE)

    def test_trains(self) -> None:
        """Of many packets whole trains are taken while there is room."""
        output = self.make()
        packets = train(2 * MAX_TRAIN + 5, 500)
        self.handle.failures = [None, BlockingIOError(errno.EAGAIN, "")]
        taken = output.write(packets)
        self.assertEqual(taken, MAX_TRAIN * STRIDE)
        self.assertEqual(output.write(packets[taken:]), len(packets) - taken)
        sizes = [len(each) for each in self.handle.written]
        self.assertEqual(sizes, [MAX_TRAIN * STRIDE, MAX_TRAIN * STRIDE, 4 * STRIDE + 500])
        self.assertEqual(b"".join(self.handle.written), packets)

    def test_full(self) -> None:
        """If the send buffer has no room for a train, nothing of it is taken."""
        output = self.make()
        self.handle.failures = [BlockingIOError(errno.EAGAIN, "")]
        self.assertEqual(output.write(train(3)), 0)
        self.assertEqual(output.write(train(3)), 3 * STRIDE)
        self.assertEqual(self.handle.options[OFFLOAD], STRIDE)

    def test_cut(self) -> None:
        """Without UDP_SEGMENT a train is cut into datagrams, the last of which may be short."""
        output = self.make(UDP_SEGMENT)
        packets = train(3, 500)
        self.assertEqual(output.write(packets), len(packets))
        sizes = [len(each) for each in self.handle.written]
        self.assertEqual(sizes, [STRIDE, STRIDE, 500])
        self.assertEqual(b"".join(self.handle.written), packets)

    def test_cut_full(self) -> None:
        """If the buffer fills up within a train, the datagrams before that were taken."""
        output = self.make(UDP_SEGMENT)
        self.handle.failures = [None, None, BlockingIOError(errno.EAGAIN, "")]
        packets = train(4)
        self.assertEqual(output.write(packets), 2 * STRIDE)
        self.assertEqual(output.write(packets[2 * STRIDE :]), 2 * STRIDE)
        self.assertEqual(b"".join(self.handle.written), packets)

    def test_refused(self) -> None:
        """If the interface refuses UDP_SEGMENT nothing was taken, and later writes are cut."""
        for failure in (error(errno.EINVAL), error(errno.EIO), error(errno.EOPNOTSUPP),
                        error(errno.EMSGSIZE)):  # fmt: skip
            output = self.make()
            self.handle.failures = [failure]
            packets = train(2)
            self.assertEqual(output.write(packets), 0, failure)
            self.assertEqual(self.handle.options[OFFLOAD], 0)
            self.assertEqual(output.write(packets), len(packets))
            self.assertEqual(self.handle.written, [packets[:STRIDE], packets[STRIDE:]])

    def test_refusal_is_logged_once(self) -> None:
        """The log says once that UDP_SEGMENT is refused."""
        output = self.make()
        self.handle.failures = [error(errno.EINVAL)] * 2
        output.write(train(2))
        output.write(train(2))
        self.assertEqual(self.logged("UDP_SEGMENT is refused"), 1)

    def test_offload_again(self) -> None:
        """After a change of the network UDP_SEGMENT is tried again; the log says if it works."""
        output = self.make()
        self.handle.failures = [error(errno.EMSGSIZE)]
        output.write(train(2))
        changed = evolve(INTERFACE, index=3, mtu=1400)
        output.use(changed)
        self.assertEqual(self.outgoing_index(), 3)
        self.handle.failures = [error(errno.EMSGSIZE)]
        self.assertEqual(output.write(train(2)), 0)
        self.assertEqual(self.logged("UDP_SEGMENT works again"), 0)
        output.use(INTERFACE)
        self.assertEqual(output.write(train(2)), 2 * STRIDE)
        self.assertEqual(self.handle.written[-1], train(2))
        self.assertEqual(self.logged("UDP_SEGMENT is refused"), 1)
        self.assertEqual(self.logged("UDP_SEGMENT works again"), 1)

    def test_refused_by_firewall(self) -> None:
        """Writes that go on failing are a warning, once, and one line when they work again."""
        output = self.make()
        refused = error(errno.EPERM)
        for _ in range(4):
            self.handle.failures = [refused, refused]
            output.write(train(2))
            self.reactor.advance(0.3)
        self.assertEqual(self.logged("cannot send to the group on interface 127.0.0.1 (lo)"), 1)
        self.assertEqual(self.logged("Operation not permitted"), 1)
        output.write(train(2))
        self.assertEqual(self.logged("works again"), 0)
        self.reactor.advance(RECOVERY_SECONDS)
        output.write(train(2))
        output.write(train(2))
        self.assertEqual(self.logged("works again"), 1)

    def test_short_failure(self) -> None:
        """What fails for a moment alone is no warning."""
        output = self.make()
        self.handle.failures = [error(errno.ENODEV)] * 3
        for _ in range(5):
            output.write(train(2))
            self.reactor.advance(0.1)
        # The same socket goes on where the interface was made anew.
        output.use(INTERFACE)
        self.reactor.advance(10)
        self.handle.failures = [error(errno.ENODEV)]
        output.write(train(2))
        self.assertEqual(self.events, [])

    def test_other_errors(self) -> None:
        """What fails for another reason, such as ENOBUFS, counts as sent; repairs follow."""
        failures = [error(errno.ENOBUFS), error(errno.ENETDOWN), error(errno.EPERM)]
        for refused in ((), (UDP_SEGMENT,)):
            for failure in failures:
                output = self.make(*refused)
                self.handle.failures = [failure]
                self.assertEqual(output.write(train(3)), 3 * STRIDE, failure)
        self.assertEqual(len(self.handle.written), 2)

    def test_too_long(self) -> None:
        """A single datagram that is too long is left out, and the others are sent."""
        output = self.make(UDP_SEGMENT)
        self.handle.failures = [error(errno.EMSGSIZE)]
        self.assertEqual(output.write(train(2)), 2 * STRIDE)
        self.assertEqual(self.handle.written, [train(2)[STRIDE:]])

    def test_writable(self) -> None:
        """When there is room, everything that waits goes on, and the socket is not watched."""
        output = self.make()
        self.assertEqual(self.reactor.writers, [])
        first, second = output.writable(), output.writable()
        (writer,) = self.reactor.writers
        self.assertNoResult(first)
        writer.doWrite()
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.reactor.writers, [])

    def test_full_again(self) -> None:
        """A sender that finds the buffer full again may wait again at once."""
        output = self.make()
        again = output.writable().addCallback(lambda _: output.writable())
        self.reactor.writers[0].doWrite()
        self.assertNoResult(again)
        self.reactor.writers[0].doWrite()
        self.successResultOf(again)

    def test_stopped(self) -> None:
        """A stopped output leaves no descriptor open, and who waits for it goes on."""
        output = self.make()
        waiting = output.writable()
        output.stopProtocol()
        self.successResultOf(waiting)
        self.assertEqual(self.reactor.writers, [])
        self.assertEqual([each.closed for each in self.handle.duplicates], [True])


class SocketTests(TestCase):
    """A real socket, whose group is received on the loopback."""

    def setUp(self) -> None:
        """Join the group, and open an output to it."""
        self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.receiver.close)
        self.receiver.bind((GROUP, 0))
        joined = socket.inet_aton(GROUP) + socket.inet_aton(HERE)
        self.receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        self.receiver.settimeout(10)
        reactor: Any = global_reactor
        port = self.receiver.getsockname()[1]
        self.output = MulticastOutput(reactor, GROUP, port, interface=INTERFACE, segment=SEGMENT)
        self.addCleanup(reactor.listenMulticast(0, self.output, interface=HERE).stopListening)

    def assert_received(self, packets: bytes) -> None:
        """Each segment of a train arrives as a datagram of its own."""
        self.assertEqual(self.output.write(packets), len(packets))
        expected = [packets[at : at + STRIDE] for at in range(0, len(packets), STRIDE)]
        self.assertEqual([self.receiver.recv(65535) for _ in expected], expected)

    def test_train(self) -> None:
        """A train arrives as the same datagrams whether the kernel or the output cuts it."""
        self.assert_received(train(5, 500))
        self.output._set(*OFFLOAD, 0)
        self.output._offload = False
        self.assert_received(train(5, 500))

    def test_too_many(self) -> None:
        """More packets than the kernel takes at a time are written in several trains."""
        self.assert_received(train(65))
        self.assertTrue(self.output._offload)

    def test_writable(self) -> Any:
        """The reactor reports room in the buffer."""
        return self.output.writable()
