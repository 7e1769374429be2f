"""How much a hostile client slows down honest readers, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.simulation import MIB, SimulatedNetwork
from mufs.test.support.virtual import Stream
from mufs.wire.channel import Priority, Read, Repair, Type, pack, pack_tagged
from mufs.wire.metadata import VERSION, At, Hello, Pulled, encode
from mufs.wire.pages import BLOCK

SIZE = 16 * MIB
MIN_KEPT = 0.9
"""The fraction of their speed that the readers must keep."""

PACKET_INTERVAL = 0.002
"""Seconds from one packet of the attacker to the next."""


class Attacker(Protocol):
    """Opens an image, which gets the handle 1, and sends packets endlessly."""

    def __init__(self, network: SimulatedNetwork, packets: Iterator[bytes]) -> None:
        self._network = network
        self._packets = packets

    def connectionMade(self) -> None:
        """Say HELLO, open the image, and start to send."""
        assert self.transport is not None
        self.transport.write(pack_tagged(Type.HELLO, 0, encode(Hello(VERSION, "attacker"))))
        self.transport.write(pack_tagged(Type.OPEN, 1, encode(At(b"other.img"))))
        self._send_next()

    def _send_next(self) -> None:
        if self.connected:
            assert self.transport is not None
            self.transport.write(next(self._packets))
            self._network.clock.callLater(PACKET_INTERVAL, self._send_next)


class HostileClientTests(SynchronousTestCase):
    """Three hosts read an image over a link of 100 Mbit/s beside an attacker."""

    def setUp(self) -> None:
        """Measure how long they take without the attacker."""
        self.network = SimulatedNetwork(7, clients=3, link=1e8, cache_size=16 * MIB, disk=0.0001)
        self.network.put_image(b"first.img", SIZE)
        self.network.put_image(b"disk.img", SIZE)
        self.network.library.put(b"other.img", bytes(128 * MIB))
        self.alone = max(self.network.lockstep(b"first.img"))

    def assert_kept(self, packets: Iterator[bytes], listens: bool = True) -> Stream:
        """
        Assert that the hosts keep their speed beside an attacker that sends these packets.

        @param listens: whether it reads what the server sends to it.
        @return: the server's end of the attacker's connection.
        """
        clock, server = self.network.clock, self.network.server
        here = Stream(clock, "attacker", lambda size: clock.seconds() + 0.0001)
        link = self.network.link
        there = Stream(clock, "server", lambda size: link.through(clock.seconds(), size))
        here.peer, there.peer = there, here
        here.protocol = Attacker(self.network, packets)
        there.protocol = server.factory.buildProtocol(None)
        there.protocol.makeConnection(there)
        here.protocol.makeConnection(here)
        if not listens:
            here.pauseProducing()
        clock.advance(1)
        beside = max(self.network.lockstep(b"disk.img"))
        self.assertGreater(self.alone / beside, MIN_KEPT)
        for client in self.network.clients:
            self.assertEqual(client.remote.multicast_health.state, "working")
        here.abortConnection()
        clock.advance(1)
        self.assertEqual(len(server.queue), 0)
        return there

    def reads(self, over_tcp: bool = False) -> Iterator[bytes]:
        """Make READs of a MiB each, spread over a large image, at all priorities."""
        for tag in count(1):
            offset = tag * 37 % 128 * MIB
            yield Read(tag, 1, offset, MIB, Priority(tag % 3), over_tcp).encode()

    def test_reads(self) -> None:
        """Requesting far more than the link can carry hardly slows down the others."""
        self.assert_kept(self.reads())

    def test_reads_over_tcp(self) -> None:
        """Requesting far too much over TCP hardly slows down the others."""
        self.assert_kept(self.reads(over_tcp=True))

    def test_urgent_reads(self) -> None:
        """READs that all claim a blocked reader hardly slow down the others."""
        reads = (Read(t, 1, t % 1000 * BLOCK, BLOCK, Priority.BLOCKED) for t in count(1))
        self.assert_kept(read.encode() for read in reads)

    def test_repairs(self) -> None:
        """Claiming to have lost every segment causes few repairs."""
        controller = self.network.server.controller

        def repairs() -> Iterator[bytes]:
            for number in count():
                transfer = max(1, controller.transfers - number % 400)
                yield Repair(1, transfer, 1 + number % 2, (1 << 94) - 1).encode()

        before = controller.segments_repaired
        self.assert_kept(repairs())
        sent = controller.segments_repaired - before
        self.assertLess(sent, 0.5 * 2 * SIZE / 1400)

    def test_pulled(self) -> None:
        """Reports on pulls that were not requested delay nobody."""
        reports = (Pulled(t % 1000, t, t, False) for t in count(1))
        self.assert_kept(pack(Type.PULLED, encode(each)) * 50 for each in reports)

    def test_takes_nothing(self) -> None:
        """A client that does not read its answers delays nobody, and needs little memory."""
        there = self.assert_kept(self.reads(over_tcp=True), listens=False)
        self.assertLess(len(there._unsent), MIB)
