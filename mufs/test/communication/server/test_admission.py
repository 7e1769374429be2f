"""Connections that are refused, and limits that follow from those of the process."""

import socket
from resource import RLIM_INFINITY
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server import admission
from mufs.communication.server.admission import (
    ACCEPT_PAUSE_SECONDS,
    MAX_FILES,
    MAX_UNSENT_BYTES,
    REFUSALS_PER_PAUSE,
    Admission,
    bound_by_files,
    bound_unsent_bytes,
)
from mufs.communication.server.limits import MAX_CONNECTIONS, MAX_HANDLES, Limits
from mufs.test.support.doubles import FakeTransport
from mufs.wire.channel import Type
from mufs.wire.metadata import Failure, decode

ADDRESS = IPv4Address("TCP", "192.0.2.1", 5000)


class RecordingFactory(Factory):
    """Counts the protocols that it builds."""

    def __init__(self) -> None:
        self.built: list[object] = []

    def buildProtocol(self, addr: object) -> Any:
        """See L{IProtocolFactory.buildProtocol}."""
        self.built.append(addr)
        return object()


class RecordingPort:
    """A listening port without a socket."""

    def __init__(self, factory: Factory) -> None:
        self.factory = factory
        self.numberAccepts = 100
        self.reading = True

    def stopReading(self) -> None:
        """See L{Port.stopReading}."""
        self.reading = False

    def startReading(self) -> None:
        """See L{Port.startReading}."""
        self.reading = True


class AdmissionTests(SynchronousTestCase):
    """Connections at a port."""

    def setUp(self) -> None:
        """Guard a port."""
        self.clock = Clock()
        self.limits = Limits(self.clock)
        self.admission = Admission(self.limits, self.clock)
        self.factory = RecordingFactory()
        self.port = RecordingPort(self.factory)
        self.admission.guard(self.port)
        self.too_many = False
        self.patch(self.limits, "refuses", self.refuses)

    def refuses(self, address: object) -> bool:
        """Whether there are too many, as the test wants it."""
        self.limits.refused += self.too_many
        return self.too_many

    def come(self) -> Any:
        """A connection is accepted; the protocol for it."""
        return self.port.factory.buildProtocol(ADDRESS)

    def test_admitted(self) -> None:
        """Within the limits the factory builds a protocol."""
        self.assertIsNotNone(self.come())
        self.assertEqual(self.factory.built, [ADDRESS])

    def test_refused(self) -> None:
        """Beyond them the client is told, and the port accepts one connection at a time."""
        self.too_many = True
        transport = FakeTransport()
        self.come().makeConnection(transport)
        ((kind, tag, body),) = transport.tagged()
        self.assertEqual((kind, tag), (Type.ERROR, 0))
        self.assertEqual(decode(Failure, body).errno, "EAGAIN")
        self.assertTrue(transport.ended)
        self.assertEqual(self.factory.built, [])
        self.assertEqual(self.port.numberAccepts, 1)
        self.assertTrue(self.port.reading)

    def test_pause(self) -> None:
        """After some refusals nothing is accepted for a moment."""
        self.too_many = True
        for _ in range(REFUSALS_PER_PAUSE):
            self.assertTrue(self.port.reading)
            self.come()
        self.assertFalse(self.port.reading)
        self.clock.advance(ACCEPT_PAUSE_SECONDS)
        self.assertTrue(self.port.reading)

    def test_stop(self) -> None:
        """A server that stops leaves no timer, and does not accept again."""
        self.too_many = True
        for _ in range(REFUSALS_PER_PAUSE):
            self.come()
        self.admission.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.port.reading)

    def test_no_factory(self) -> None:
        """A port that does not tell its factory is left alone."""
        self.admission.guard(object())


class FileTests(SynchronousTestCase):
    """The limit of open files."""

    def bound(self, soft: int, hard: int) -> tuple[Limits, list[tuple[int, int]]]:
        """Have a process with these limits; what follows, and which limits were set."""
        limits, made = Limits(Clock()), []
        self.patch(admission, "getrlimit", lambda _: (soft, hard))
        self.patch(admission, "setrlimit", lambda _, both: made.append(both))
        bound_by_files(limits)
        return limits, made

    def test_raised(self) -> None:
        """It is raised to the hard limit, and connections may take half of the files."""
        limits, made = self.bound(1024, 4096)
        self.assertEqual(made, [(4096, 4096)])
        self.assertEqual((limits.max_connections, limits.max_handles), (2048, 1024))

    def test_enough(self) -> None:
        """It is not raised beyond what is of use."""
        limits, made = self.bound(1024, RLIM_INFINITY)
        self.assertEqual(made, [(MAX_FILES, RLIM_INFINITY)])
        self.assertEqual(
            (limits.max_connections, limits.max_handles), (MAX_CONNECTIONS, MAX_HANDLES)
        )

    def test_never_lowered(self) -> None:
        """It is never lowered."""
        self.assertEqual(self.bound(2 * MAX_FILES, 2 * MAX_FILES)[1], [])

    def test_no_limit(self) -> None:
        """Without a limit the bounds are those of a server."""
        limits, made = self.bound(RLIM_INFINITY, RLIM_INFINITY)
        self.assertEqual(made, [])
        self.assertEqual(
            (limits.max_connections, limits.max_handles), (MAX_CONNECTIONS, MAX_HANDLES)
        )


class UnsentTests(SynchronousTestCase):
    """What may lie unsent in the kernel."""

    class Port:
        """A port with a socket."""

        def __init__(self, family: int) -> None:
            self.socket = socket.socket(family)

    def test_tcp(self) -> None:
        """The sockets of TCP hold little."""
        port = self.Port(socket.AF_INET)
        self.addCleanup(port.socket.close)
        bound_unsent_bytes(port)
        found = port.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        self.assertEqual(found, MAX_UNSENT_BYTES)

    def test_others(self) -> None:
        """Other sockets, and ports without one, stay as they are."""
        port = self.Port(socket.AF_UNIX)
        self.addCleanup(port.socket.close)
        bound_unsent_bytes(port)
        bound_unsent_bytes(object())
