"""What all clients of a server share."""

from __future__ import annotations

from twisted.internet.error import ConnectionLost
from twisted.logger import capturedLogs
from twisted.python.failure import Failure as Error
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.clients import MAX_TLS_FAULTS
from mufs.communication.server.limits import MAX_SILENT_FRACTION
from mufs.test.support.channels import SIZE, Server, TwoClientsTestCase
from mufs.wire.channel import Key, Priority, Read, Type


class ClientsTests(TwoClientsTestCase):
    """Clients that come and go."""

    def test_present(self) -> None:
        """Those that are connected are known, until they have gone."""
        clients = self.server.factory
        self.assertEqual(clients.channels, {self.greedy, self.honest})
        self.greedy.connectionLost(Error(ConnectionLost()))
        self.assertEqual(clients.channels, {self.honest})
        self.assertEqual(clients.limits.connections, 1)

    def test_bytes_over_tcp(self) -> None:
        """What clients were sent over TCP still counts when they have gone."""
        clients = self.server.factory
        for channel, wire in ((self.greedy, self.its_wire), (self.honest, self.wire)):
            handle = self.open(channel, wire)
            channel.dataReceived(Read(7, handle, 0, SIZE, Priority.BLOCKED, True).encode())
        self.assertEqual(clients.bytes_over_tcp, 2 * SIZE)
        self.greedy.connectionLost(Error(ConnectionLost()))
        self.assertEqual(clients.bytes_over_tcp, 2 * SIZE)

    def test_keys_replaced(self) -> None:
        """New keys are told to all who were welcomed, and to no one else."""
        _, silent = self.server.connect(hello=False)
        self.server.controller.expelled()
        self.clock.advance(5)
        epoch = self.server.factory.keys.epoch
        for wire in (self.wire, self.its_wire):
            ((kind, offset, body),) = wire.packets()
            told = Key.parse(offset, body)
            self.assertEqual((kind, told), (Type.KEY, Key(epoch.number, epoch.secret)))
        self.assertEqual(silent.packets(), [])

    def test_no_hello(self) -> None:
        """Of too many connections that say nothing the oldest go; who said HELLO stays."""
        limits = self.server.factory.limits
        limits.max_connections = 200
        silent = [
            self.server.connect(hello=False)[1] for _ in range(int(200 * MAX_SILENT_FRACTION) + 5)
        ]
        ended = [wire.ended for wire in silent]
        self.assertEqual(ended, [True] * 5 + [False] * (int(200 * MAX_SILENT_FRACTION)))
        self.assertEqual((self.its_wire.ended, self.wire.ended), (False, False))


class TLSFaultTests(SynchronousTestCase):
    """What is logged of TLS that failed."""

    def setUp(self) -> None:
        """A server that nobody is connected to."""
        self.clients = Server().factory

    def logged(self, *faults: tuple[str, str]) -> list[tuple[str, str]]:
        """What is logged of these faults: address and fault of each line."""
        with capturedLogs() as lines:
            for address, fault in faults:
                self.clients.tls_failed(address, fault)
        return [(line["host"], line["fault"]) for line in lines]

    def test_once(self) -> None:
        """A fault is logged once for each address, and again when another one came between."""
        one, two = ("192.0.2.1", "expired"), ("192.0.2.1", "unknown")
        other = ("192.0.2.2", "expired")
        self.assertEqual(self.logged(one, one, other, one, two, two, one), [one, other, two, one])

    def test_welcomed(self) -> None:
        """When a client was welcomed since, it is logged again."""
        fault = ("192.0.2.1", "expired")
        self.assertEqual(self.logged(fault), [fault])
        self.clients.tls_succeeded("192.0.2.1")
        self.assertEqual(self.logged(fault), [fault])

    def test_bounded(self) -> None:
        """Not more than so many addresses are remembered."""
        faults = [(str(number), "expired") for number in range(3 * MAX_TLS_FAULTS)]
        self.assertEqual(len(self.logged(*faults)), len(faults))
        self.assertLessEqual(len(self.clients._last_tls_faults), MAX_TLS_FAULTS)

    def test_plain_server(self) -> None:
        """A client that speaks TLS to a server that does not is cut off, which is logged."""
        server = Server()
        channel, wire = server.connect(hello=False, host="192.0.2.1")
        with capturedLogs() as lines:
            channel.dataReceived(b"\x16\x03\x01\x02\x00")
        self.assertEqual([line["host"] for line in lines], ["192.0.2.1"])
        self.assertTrue(wire.aborted)
        channel.connectionLost(Error(ConnectionLost()))
        self.assertEqual(server.clock.getDelayedCalls(), [])
