"""What one client may have of the server, so that others have their part."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.logger import capturedLogs
from twisted.python.failure import Failure as Error
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.sent import MAX_BYTES_AWAITED
from mufs.communication.server.limits import (
    ACTIVITY_TIMEOUT,
    CPU_BURST_SECONDS,
    CPU_FRACTION,
    MAX_CONNECTIONS_OF_HOST,
    MAX_METADATA_LOOKUPS,
    MAX_WAITING_BYTES,
    MIN_THROTTLE_DELAY,
    RESERVED_FRACTION,
    TURN_SECONDS,
    Limits,
)
from mufs.filesystem.client.reading.requests import MAX_BYTES_IN_FLIGHT
from mufs.test.support.channels import PING, TwoClientsTestCase
from mufs.test.support.virtual import VirtualTime
from mufs.wire.channel import MAX_READ, Priority, Read, Repair, Type, pack_tagged
from mufs.wire.metadata import At, encode
from mufs.wire.pages import BLOCK, PAGE


class ConnectionTests(SynchronousTestCase):
    """How many connections there may be."""

    def setUp(self) -> None:
        """A server that nobody is connected to."""
        self.limits = Limits(
            VirtualTime(), lambda: 0.0, max_connections=4 * MAX_CONNECTIONS_OF_HOST
        )

    def fill(self, address: str) -> int:
        """Connect from there until it is refused; how many connections were made."""
        made = 0
        while not self.limits.refuses(address):
            self.limits.add(object(), address)
            made += 1
        return made

    def test_of_one_address(self) -> None:
        """An address may have only so many, and that leaves room for others."""
        self.assertEqual(self.fill("a"), MAX_CONNECTIONS_OF_HOST)
        self.assertFalse(self.limits.refuses("b"))
        self.assertEqual(self.limits.refused, 1)

    def test_reserve(self) -> None:
        """When many addresses have all they can get, others still get one each."""
        made = sum(map(self.fill, "abc"))
        self.assertEqual(
            made, self.limits.max_connections - int(self.limits.max_connections * RESERVED_FRACTION)
        )
        self.assertEqual(self.fill("e"), 1)
        self.assertEqual(self.fill("f"), 1)

    def test_all(self) -> None:
        """There is a limit for all addresses together."""
        made = sum(self.fill(str(number)) for number in range(1000))
        self.assertEqual(made, self.limits.max_connections)

    def test_given_back(self) -> None:
        """A connection that has ended leaves room for another."""
        one = object()
        host = self.limits.add(one, "a")
        self.fill("a")
        self.limits.remove(one, host)
        self.assertEqual(self.fill("a"), 1)

    def test_log(self) -> None:
        """Refusals are logged once in a while, not each time."""
        with capturedLogs() as lines:
            self.fill("a")
            for _ in range(1000):
                self.limits.refuses("a")
        self.assertEqual([line["address"] for line in lines], ["a"])

    def test_debts_are_remembered(self) -> None:
        """A host that connects again still owes what it used before, until that is forgotten."""
        for wait, same in ((1.0, True), (1000.0, False)):
            one = object()
            host = self.limits.add(one, "a")
            self.limits.remove(one, host)
            self.limits.clock.advance(wait)  # type: ignore[attr-defined]  # a VirtualTime
            self.limits._forget_hosts()
            again = self.limits.add(one, "a")
            self.assertEqual(again is host, same)
            self.limits.remove(one, again)


class WaitingTests(TwoClientsTestCase):
    """READs that are not answered yet."""

    def setUp(self) -> None:
        """A large image, and a server that sends nothing yet."""
        super().setUp()
        self.server.library.put(b"large.img", bytes(MAX_READ))
        self.server.controller._idle = False
        self.handle = self.open(self.greedy, self.its_wire, b"large.img")

    def reads(self, over_tcp: bool, length: int = MAX_READ) -> list[bytes]:
        """Many READs of the whole image."""
        return [
            Read(tag, self.handle, 0, length, Priority.BLOCKED, over_tcp).encode()
            for tag in range(1, 51)
        ]

    def test_too_much(self) -> None:
        """A client that waits for too much is not read until some of it was sent, nor cut off."""
        self.greedy.dataReceived(b"".join(self.reads(over_tcp=False)))
        self.clock.advance(1)
        self.assertEqual(self.its_wire.producerState, "paused")
        self.assertLessEqual(self.greedy.share.waiting, MAX_WAITING_BYTES + MAX_READ)
        self.assertGreater(self.greedy.host.held_back, 0)
        self.server.controller._idle = True
        self.server.controller._wake()
        self.clock.advance(60)
        self.assertEqual(self.its_wire.producerState, "producing")
        self.assertEqual(self.greedy.share.waiting, 0)
        told = {tag for kind, tag, _ in self.its_wire.tagged() if kind == Type.SENT}
        self.assertEqual(told, set(range(1, 51)))

    def test_too_much_over_tcp(self) -> None:
        """The same for READs over TCP, of a client that does not read the answers."""
        self.full(self.its_wire)
        for packet in self.reads(over_tcp=True):
            self.greedy.dataReceived(packet)
        self.assertEqual(self.its_wire.producerState, "paused")
        self.assertGreater(self.greedy.share.waiting, MAX_WAITING_BYTES)
        self.greedy.connectionLost(Error(ConnectionLost()))
        self.assertEqual(self.greedy.share.waiting, 0)

    def test_of_one_host(self) -> None:
        """All connections of a host count together."""
        address = self.its_wire.getPeer().host
        other, its_wire = self.server.connect(host=address)
        self.greedy.dataReceived(b"".join(self.reads(over_tcp=False)))
        other.dataReceived(PING)
        self.assertEqual(its_wire.producerState, "paused")
        self.honest.dataReceived(PING)
        self.assertEqual(self.wire.producerState, "producing")

    def test_honest(self) -> None:
        """The most that an honest client asks for at a time does not make it a greedy one."""
        self.assertLessEqual(MAX_BYTES_IN_FLIGHT + 32 * BLOCK, MAX_BYTES_AWAITED)

    def test_gone(self) -> None:
        """When the client has gone nothing counts as waiting any more."""
        self.greedy.dataReceived(b"".join(self.reads(over_tcp=False)))
        self.greedy.connectionLost(Error(ConnectionLost()))
        self.assertEqual(self.greedy.share.waiting, 0)


class ProcessorTests(TwoClientsTestCase):
    """Requests that take processor time."""

    def setUp(self) -> None:
        """Looking at an image takes a tenth of a second of processor time."""
        super().setUp()
        library = self.server.library
        found = library.getattr
        self.looks = 0

        def work(*args: Any) -> Any:
            self.server.spent += 0.1
            self.looks += 1
            return found(*args)

        self.patch(library, "getattr", work)
        self.getattr = pack_tagged(Type.GETATTR, 2, encode(At(b"disk.img")))

    def beside(self, seconds: float) -> None:
        """Let time pass, in which the honest client is there."""
        for _ in range(round(seconds / 0.1)):
            repair = Repair(1, 999, 1, 1).encode()
            self.assertEqual(self.ask(self.honest, self.wire, repair), [(Type.GONE, 1)])
            self.clock.advance(0.08)
            self.server.answer()

    def test_share(self) -> None:
        """Beside others a client gets its part of the processor, and they are answered at once."""
        self.server.at_once = False
        self.beside(0.1)
        self.greedy.dataReceived(self.getattr * 500)
        self.beside(20)
        allowed = (CPU_BURST_SECONDS + CPU_FRACTION * 20) / 0.1
        self.assertLess(self.looks, allowed + MAX_METADATA_LOOKUPS + 1)
        self.assertGreater(self.looks, 0.8 * allowed)
        self.assertGreater(self.greedy.host.held_back, 0)
        self.assertFalse(self.its_wire.ended)

    def test_alone(self) -> None:
        """Without others a client gets the whole processor, and owes nothing when another comes."""
        self.clock.advance(ACTIVITY_TIMEOUT)
        self.greedy.dataReceived(self.getattr * 100)
        self.clock.advance(0.01)
        self.assertEqual(self.looks, 100)
        self.beside(0.5)
        self.assertEqual(len(self.its_wire.tagged()), 100)
        self.assertEqual(len(self.ask(self.greedy, self.its_wire, self.getattr)), 1)

    def test_signs_of_life(self) -> None:
        """Clients that only send PING take nothing from one that sends requests."""
        self.clock.advance(ACTIVITY_TIMEOUT)
        for _ in range(10):
            self.honest.dataReceived(PING)
            self.greedy.dataReceived(self.getattr * 100)
            self.clock.advance(0.1)
        self.assertEqual(self.looks, 1000)

    def test_slices(self) -> None:
        """Others have their turn between the requests of one that sends many at a time."""
        handle = self.open(self.greedy, self.its_wire)
        found = self.server.controller.request

        def work(*args: Any) -> None:
            self.server.spent += 2 * TURN_SECONDS
            found(*args)

        self.patch(self.server.controller, "request", work)
        reads = [Read(tag, handle, 0, PAGE, Priority.BLOCKED).encode() for tag in range(1, 11)]
        self.greedy.dataReceived(b"".join(reads))
        self.assertEqual(self.its_wire.producerState, "paused")
        self.assertEqual(self.server.queue.requests, 1)
        self.clock.advance(MIN_THROTTLE_DELAY)
        self.assertEqual(self.server.queue.requests, 10)
        self.assertEqual(self.its_wire.producerState, "producing")
