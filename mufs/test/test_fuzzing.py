"""Arbitrary bytes for each parser and protocol: a bounded version of `make fuzz`."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.client.reassembly import MAX_ORPHANS
from mufs.test.support import targets
from mufs.test.support.channels import Server
from mufs.test.support.doubles import receive
from mufs.test.support.properties import examples
from mufs.test.support.targets import TARGETS, Host, Script, clean_log
from mufs.wire.channel import Type, pack_tagged
from mufs.wire.metadata import At, encode
from mufs.wire.pages import BLOCK, PAGE
from mufs.wire.segments import HEADER, SEGMENT, Descriptor

EXAMPLES = {"server": 150, "client": 200, "group": 150, "transfer": 150}
"""The number of inputs of each target; the default is 400."""


@st.composite
def _mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw one of the inputs with some bytes removed, inserted or replaced."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 5))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 4))
        data[at : at + length] = draw(st.binary(max_size=8))
    return bytes(data)


def _test(name: str) -> Callable[[SynchronousTestCase], None]:
    target = TARGETS[name]

    @examples(EXAMPLES.get(name, 400))
    @given(st.one_of(st.binary(max_size=300), _mutated(target.seeds())))
    def test(self: SynchronousTestCase, data: bytes) -> None:
        target.run(data)

    test.__doc__ = target.run.__doc__
    return test


class AnyBytesTests(SynchronousTestCase):
    """Every target handles arbitrary inputs, which are the same in each run."""

    def tearDown(self) -> None:
        """Check that no failure is logged, including unhandled ones in Deferreds."""
        with clean_log():
            gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])


for _name in TARGETS:
    setattr(AnyBytesTests, f"test_{_name}", _test(_name))


class FoundTests(SynchronousTestCase):
    """Inputs that once failed."""

    CASES = [
        # A read was not requested over TCP while another read of its block was.
        ("group", "0101dd2bba1537436e5c2441e3d54410492b788768bcff2218cf8f7373abe8e394da"),
        # The text of an error put extra lines into the log.
        (
            "client",
            "0101f807e24e58c367402e281f9bddf89b74e4250950c9c367402e281f9bddf89b74e4250950c9"
            "c994752666ae81c74228358bedff935d406e8fdb72a34980be64d347bdcdda5117b919f538dc",
        ),
    ]

    def test_cases(self) -> None:
        """Inputs that once failed pass."""
        for name, data in self.CASES:
            TARGETS[name].run(bytes.fromhex(data))


class MemoryTests(SynchronousTestCase):
    """Memory is bounded: ten times as many packets need no more of it."""

    def setUp(self) -> None:
        """Log only failures: `trial -j` keeps the log of a test in memory."""
        emit = Logger.emit

        def emit_failures(log: Logger, level: Any, *arguments: Any, **event: Any) -> None:
            if level is LogLevel.critical:
                emit(log, level, *arguments, **event)

        self.patch(Logger, "emit", emit_failures)

    def assert_bounded(
        self, feed: Callable[[int], None], held: Callable[[], dict[str, int]], first: int
    ) -> None:
        """
        Feed C{first} packets, then nine times as many, and compare what is held.

        @param feed: feeds the packet with a number.
        @param held: returns the numbers of objects held.
        """
        self.addCleanup(tracemalloc.stop)
        tracemalloc.start()
        figures: list[dict[str, int]] = []
        for numbers in (range(first), range(first, 10 * first)):
            for number in numbers:
                feed(number)
            gc.collect()
            figures.append({**held(), "bytes": tracemalloc.get_traced_memory()[0] // 10_000})
        for name, count in figures[1].items():
            self.assertLessEqual(count, 1.3 * figures[0][name] + 250, f"{name} of {figures}")

    def test_server(self) -> None:
        """A server's memory is bounded whatever a client sends."""
        server, random = Server(), Random(1)

        def connect() -> None:
            self.channel, self.wire = server.connect()
            packet = pack_tagged(Type.OPEN, 1, encode(At(b"disk.img")))
            self.channel.dataReceived(packet)

        def feed(number: int) -> None:
            script = Script(bytes([number % 6]) + random.randbytes(300))
            self.channel.dataReceived(targets._from_client(script))
            server.clock.advance(0.05)
            server.output.written.clear()
            self.wire.packets()
            if self.wire.ended:
                targets._lose_client(self.channel, self.wire)
                connect()

        def held() -> dict[str, int]:
            return {
                "channels": len(server.factory.channels),
                "framed": len(self.channel._framer._buffer) // 1000,
                "queue": len(server.queue),
                "lines": sum(
                    len(line) for each in server.queue._classes.values() for line in each.values()
                ),
                "limits": len(server.factory.limits._hosts),
                "ready": server.controller._reads.ready,
                "window": len(server.queue._window._transfers),
                "timers": len(server.clock.getDelayedCalls()),
            }

        connect()
        self.assert_bounded(feed, held, 300)

    def held_by(self, host: Host) -> dict[str, int]:
        """Return the numbers of objects that a client holds."""
        remote, channel = host.client.remote, host.client.channel
        reassembly, core = remote.receiver.reassembly, remote.reads
        return {
            "framed": len(channel._framer._buffer) // 1000,
            "asked": len(channel._requests),
            "requests": len(core.in_flight.requests),
            "pending": len(core.in_flight.requested),
            "waiting": len(core.in_flight.waiting),
            "transfers": len(reassembly._transfers),
            "in order": len(reassembly._in_order),
            "partial": len(reassembly._partial),
            "orphans": sum(len(run[2]) for run in reassembly._orphans),
            "expected": len(reassembly._expected),
            "attributes": len(remote.attributes._known),
            "timers": len(host.client.clock.getDelayedCalls()),
        }

    def test_client(self) -> None:
        """A client's memory is bounded whatever its server sends while its mount is in use."""
        host, random = self.listening()
        looks: list[Deferred[object]] = []

        def feed(number: int) -> None:
            script = Script(random.randbytes(100))
            if not number % 10:
                targets._answer_opens(host)
                host.read(script.number() * 500, BLOCK)
                looks.append(host.keep(host.client.remote.getattr(b"disk.img")))
            host.say(targets._from_server(6 + number % 5, script, host))
            host.client.clock.advance(0.005)
            host.receive()
            del host.requests[:-20]
            # As the bridge does when they time out.
            for waiting in [*looks[:-4], *(read[3] for read in host.reads[:-4])]:
                waiting.cancel()
            del looks[:-4], host.reads[:-4]

        self.assert_bounded(feed, lambda: self.held_by(host), 300)

    def listening(self) -> tuple[Host, Random]:
        """Return a client with an open image, which receives overheard transfers."""
        host = Host()
        host.reconnect()
        host.open()
        host.receive()
        targets._answer_opens(host)
        return host, Random(3)

    def receive(self, host: Host, *datagrams: bytes) -> None:
        """Have the client receive datagrams."""
        receive(host.client.remote.receiver, host.client.clock, *datagrams)
        host.say(pack_tagged(Type.PONG, 1, b""))
        host.client.clock.advance(0.01)
        host.receive()
        host.requests.clear()

    def test_announcements(self) -> None:
        """A client's memory is bounded when announced and completed transfers are never sent."""
        host, random = self.listening()

        def feed(number: int) -> None:
            forged = Descriptor(1 + number, random.getrandbits(32), 5, 5 + number % 2, 0, PAGE)
            self.receive(host, targets._control(forged, 1 + number % 3 // 2 * 2))

        self.assert_bounded(feed, lambda: self.held_by(host), 2500)

    def test_segments(self) -> None:
        """A client's memory is bounded whatever is sent to the group."""
        host, random = self.listening()

        def feed(number: int) -> None:
            self.receive(host, targets._datagram(Script(random.randbytes(3000))))

        self.assert_bounded(feed, lambda: self.held_by(host), 1400)

    def test_orphans(self) -> None:
        """An orphan segment does not keep the rest of its datagram in memory."""
        host, random = self.listening()
        known = targets._datagrams(0)[0] * 200
        self.addCleanup(tracemalloc.stop)
        tracemalloc.start()
        for _ in range(MAX_ORPHANS + 50):
            orphan = HEADER.pack(2, SEGMENT, random.getrandbits(32)) + bytes(SEGMENT)
            self.receive(host, known + orphan)
        self.assertGreater(self.held_by(host)["orphans"], MAX_ORPHANS - 10)
        self.assertLess(tracemalloc.get_traced_memory()[0], MAX_ORPHANS * len(known) // 4)
