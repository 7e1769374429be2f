"""The socket that segments are sent from."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.error import MessageLengthError
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mufs.communication.multicast import UDP_SEGMENT
from mufs.communication.server.output import MAX_TRAIN, SEND_BUFFER, MulticastOutput
from mufs.test.communication.test_multicast import RecordingSocket
from mufs.wire.segments import HEADER

GROUP, HERE = "239.255.70.40", "127.0.0.1"
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
    """
    A port of the reactor that remembers what is written to it.

    @ivar failures: what the next writes raise, C{None} for a write that succeeds.
    """

    def __init__(self, handle: RecordingSocket) -> None:
        self.handle = handle
        self.failures: list[Exception | None] = []
        self.written: list[bytes] = []
        self.set_up: list[tuple[object, ...]] = []

    def getHandle(self) -> RecordingSocket:
        """See L{ISystemHandle.getHandle}."""
        return self.handle

    def setOutgoingInterface(self, address: str) -> None:
        """See L{IMulticastTransport.setOutgoingInterface}."""
        self.set_up.append(("interface", address))

    def setLoopbackMode(self, mode: bool) -> None:
        """See L{IMulticastTransport.setLoopbackMode}."""
        self.set_up.append(("loopback", mode))

    def connect(self, host: str, port: int) -> None:
        """See L{IUDPTransport.connect}."""
        self.set_up.append(("connect", host, port))

    def write(self, packet: bytes | memoryview, address: object) -> None:
        """See L{IUDPTransport.write}."""
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.written.append(bytes(packet))


class WritableReactor:
    """Remembers which descriptors are watched for room; the test calls them."""

    def __init__(self) -> None:
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
        self.handle = RecordingSocket(*refused)
        transport: Any = RecordingTransport(self.handle)
        self.transport: RecordingTransport = transport
        self.reactor = WritableReactor()
        reactor: Any = self.reactor
        output = MulticastOutput(reactor, GROUP, 7041, interface=HERE, segment=SEGMENT)
        output.transport = transport
        output.startProtocol()
        return output

    def test_set_up(self) -> None:
        """It sends on its interface to the group, also to this host, from a small buffer."""
        self.make()
        self.assertEqual(
            self.transport.set_up,
            [("interface", HERE), ("loopback", True), ("connect", GROUP, 7041)],
        )
        self.assertEqual(self.handle.options[socket.SOL_SOCKET, socket.SO_SNDBUF], 2 * SEND_BUFFER)

    def test_train(self) -> None:
        """A train goes out in one write, and the kernel cuts it into datagrams of a segment."""
        output = self.make()
        packets = train(MAX_TRAIN, 500)
        self.assertEqual(output.write(memoryview(packets)), len(packets))
        self.assertEqual(self.transport.written, [packets])
        self.assertEqual(self.handle.options[OFFLOAD], STRIDE)

    def test_full(self) -> None:
        """If the send buffer has no room for a train, nothing of it is taken."""
        output = self.make()
        self.transport.failures = [BlockingIOError(errno.EAGAIN, "")]
        self.assertEqual(output.write(train(3)), 0)
        self.assertEqual(output.write(train(3)), 3 * STRIDE)
        self.assertEqual(self.handle.options[OFFLOAD], STRIDE)

    def test_cut(self) -> None:
        """Without UDP_SEGMENT a train is cut into datagrams, the last of which may be short."""
        output = self.make(UDP_SEGMENT)
        packets = train(3, 500)
        self.assertEqual(output.write(packets), len(packets))
        sizes = [len(each) for each in self.transport.written]
        self.assertEqual(sizes, [STRIDE, STRIDE, 500])
        self.assertEqual(b"".join(self.transport.written), packets)

    def test_cut_full(self) -> None:
        """If the buffer fills up within a train, the datagrams before that were taken."""
        output = self.make(UDP_SEGMENT)
        self.transport.failures = [None, None, BlockingIOError(errno.EAGAIN, "")]
        packets = train(4)
        self.assertEqual(output.write(packets), 2 * STRIDE)
        self.assertEqual(output.write(packets[2 * STRIDE :]), 2 * STRIDE)
        self.assertEqual(b"".join(self.transport.written), packets)

    def test_refused(self) -> None:
        """If the interface refuses UDP_SEGMENT nothing was taken, and later writes are cut."""
        for failure in (error(errno.EINVAL), error(errno.EIO), error(errno.EOPNOTSUPP),
                        MessageLengthError("message too long")):  # fmt: skip
            output = self.make()
            self.transport.failures = [failure]
            packets = train(2)
            self.assertEqual(output.write(packets), 0, failure)
            self.assertEqual(self.handle.options[OFFLOAD], 0)
            self.assertEqual(output.write(packets), len(packets))
            self.assertEqual(self.transport.written, [packets[:STRIDE], packets[STRIDE:]])

    def test_refusal_is_logged_once(self) -> None:
        """The log says once that UDP_SEGMENT is refused."""
        events: list[LogEvent] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        output = self.make()
        self.transport.failures = [error(errno.EINVAL)] * 2
        output.write(train(2))
        output.write(train(2))
        logged = [str(formatEvent(event)) for event in events]
        self.assertEqual(sum("UDP_SEGMENT is refused" in line for line in logged), 1)

    def test_other_errors(self) -> None:
        """What fails for another reason, such as ENOBUFS, counts as sent; repairs follow."""
        failures = [error(errno.ENOBUFS), error(errno.ENETDOWN), error(errno.EPERM)]
        for refused in ((), (UDP_SEGMENT,)):
            for failure in failures:
                output = self.make(*refused)
                self.transport.failures = [failure]
                self.assertEqual(output.write(train(3)), 3 * STRIDE, failure)
        self.assertEqual(len(self.transport.written), 2)

    def test_too_long(self) -> None:
        """A single datagram that is too long is left out, and the others are sent."""
        output = self.make(UDP_SEGMENT)
        self.transport.failures = [MessageLengthError("message too long")]
        self.assertEqual(output.write(train(2)), 2 * STRIDE)
        self.assertEqual(self.transport.written, [train(2)[STRIDE:]])

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
        """A stopped output does not watch its socket, and leaves no descriptor open."""
        output = self.make()
        output.writable()
        output.stopProtocol()
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
        self.output = MulticastOutput(reactor, GROUP, port, interface=HERE, segment=SEGMENT)
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
        """A train of more bytes than the kernel takes at a time is cut when it is tried again."""
        packets = train(65)
        self.assertEqual(self.output.write(packets), 0)
        self.assert_received(packets)

    def test_writable(self) -> Any:
        """The reactor reports room in the buffer."""
        return self.output.writable()
