"""What one client may have of the server, and that others have theirs beside it."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.logger import capturedLogs
from twisted.python.failure import Failure as Error
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.server.sent import MAX_BYTES_AWAITED
from mufs.communication.server.channel import ServerChannel
from mufs.communication.server.limits import (
    ACTIVE,
    BURST,
    LOOK,
    MAX_OF_ADDRESS,
    MAX_RUNNING,
    MAX_WAITING,
    PART,
    RESERVE,
    SILENCE,
    SILENT_PART,
    SLICE,
    STUCK,
    Limits,
)
from mufs.filesystem.client.coalescer import MAX_BYTES_IN_FLIGHT
from mufs.test.communication.server.test_channel import Server
from mufs.test.support.peers import Wire
from mufs.test.support.virtual import VirtualTime
from mufs.wire.channel import MAX_READ, Priority, Read, Repair, Type, pack_tagged, parse_tagged
from mufs.wire.metadata import At, Failure, Names, Opened, decode, encode
from mufs.wire.pages import BLOCK, PAGE

PING = pack_tagged(Type.PING, 1, b"")


class ConnectionTests(SynchronousTestCase):
    """How many connections there may be."""

    def setUp(self) -> None:
        """A server that nobody is connected to."""
        self.limits = Limits(VirtualTime(), lambda: 0.0, most=4 * MAX_OF_ADDRESS)

    def fill(self, address: str) -> int:
        """Connect from there until it is refused; how many connections were made."""
        made = 0
        while not self.limits.refuses(address):
            self.limits.enter(object(), address)
            made += 1
        return made

    def test_of_one_address(self) -> None:
        """An address may have so many, and others have theirs."""
        self.assertEqual(self.fill("a"), MAX_OF_ADDRESS)
        self.assertFalse(self.limits.refuses("b"))
        self.assertEqual(self.limits.refused, 1)

    def test_reserve(self) -> None:
        """When many addresses have all they can get, others still get one each."""
        made = sum(map(self.fill, "abc"))
        self.assertEqual(made, self.limits.most - self.limits.most // RESERVE)
        self.assertEqual(self.fill("e"), 1)
        self.assertEqual(self.fill("f"), 1)

    def test_all(self) -> None:
        """There is a limit for all, whoever they are."""
        made = sum(self.fill(str(number)) for number in range(1000))
        self.assertEqual(made, self.limits.most)

    def test_given_back(self) -> None:
        """A connection that has ended leaves room for another."""
        one = object()
        host = self.limits.enter(one, "a")
        self.fill("a")
        self.limits.left(one, host)
        self.assertEqual(self.fill("a"), 1)

    def test_log(self) -> None:
        """Refusing is told once in a while, not each time."""
        with capturedLogs() as lines:
            self.fill("a")
            for _ in range(1000):
                self.limits.refuses("a")
        self.assertEqual([line["address"] for line in lines], ["a"])

    def test_debts_are_remembered(self) -> None:
        """Who connects anew has used what he used before; in the end it is forgotten."""
        for wait, same in ((1.0, True), (1000.0, False)):
            one = object()
            host = self.limits.enter(one, "a")
            self.limits.left(one, host)
            self.limits.clock.advance(wait)  # type: ignore[attr-defined]  # a VirtualTime
            self.limits._forget()
            again = self.limits.enter(one, "a")
            self.assertEqual(again is host, same)
            self.limits.left(one, again)


class LimitTestCase(SynchronousTestCase):
    """A greedy client, and an honest one of another host."""

    def setUp(self) -> None:
        """A server with two clients."""
        self.server = Server()
        self.clock = self.server.clock
        self.greedy, self.its_wire = self.server.connect()
        self.honest, self.wire = self.server.connect()

    def tearDown(self) -> None:
        """Nothing was logged as a failure."""
        self.assertEqual(self.flushLoggedErrors(), [])

    def ask(self, channel: ServerChannel, wire: Wire, *packets: bytes) -> list[tuple[int, int]]:
        """What is answered soon to packets: type and tag."""
        channel.dataReceived(b"".join(packets))
        self.clock.advance(0.02)
        return [(kind, tag) for kind, tag, _ in wire.tagged()]

    def open(self, channel: ServerChannel, wire: Wire, path: bytes = b"disk.img") -> int:
        """Open an image; its handle."""
        channel.dataReceived(pack_tagged(Type.OPEN, 1, encode(At(path))))
        ((_, _, body),) = wire.tagged()
        return decode(Opened, body).handle

    def full(self, wire: Wire, full: bool = True) -> None:
        """The connection's buffer is full, or has room."""
        assert wire.producer is not None
        if full:
            wire.producer.pauseProducing()
        else:
            wire.producer.resumeProducing()


class EndTests(LimitTestCase):
    """Connections that are of use to nobody."""

    def test_silent(self) -> None:
        """A client that shows no sign of life is cut off after a while, and others are not."""
        while self.clock.seconds() < SILENCE + 2:
            self.honest.dataReceived(PING)
            self.clock.advance(5)
        self.assertEqual((self.its_wire.ended, self.wire.ended), (True, False))
        self.assertEqual(self.server.factory.limits.cut_off, 1)

    def test_takes_nothing(self) -> None:
        """A client that takes nothing of what is sent to it is cut off after a while."""
        self.full(self.its_wire)
        self.clock.advance(STUCK - 1)
        self.assertFalse(self.its_wire.ended)
        self.clock.advance(2)
        self.assertTrue(self.its_wire.ended)

    def test_takes_little(self) -> None:
        """One that takes something now and then is not, though it cannot be heard meanwhile."""
        for _ in range(10):
            self.full(self.its_wire)
            self.clock.advance(STUCK - 1)
            self.full(self.its_wire, False)
        self.assertFalse(self.its_wire.ended)

    def test_no_hello(self) -> None:
        """Of too many connections that say nothing the eldest go; who said HELLO stays."""
        limits = self.server.factory.limits
        limits.most = 200
        silent = [self.server.connect(hello=False)[1] for _ in range(200 // SILENT_PART + 5)]
        ended = [wire.ended for wire in silent]
        self.assertEqual(ended, [True] * 5 + [False] * (200 // SILENT_PART))
        self.assertEqual((self.its_wire.ended, self.wire.ended), (False, False))

    def test_nothing_left(self) -> None:
        """Connections that end leave nothing behind, whatever they were waiting for."""
        self.full(self.its_wire)
        self.server.spent += 1
        self.greedy.host.charge(1)
        self.honest.dataReceived(PING)
        for channel in (self.greedy, self.honest):
            channel.connectionLost(Error(ConnectionLost()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.server.factory.limits.connections, 0)


class WaitingTests(LimitTestCase):
    """READs that are not answered yet."""

    def setUp(self) -> None:
        """A large image, and a server that does not get to sending."""
        super().setUp()
        self.server.library.put(b"large.img", bytes(MAX_READ))
        self.server.controller._idle = False
        self.handle = self.open(self.greedy, self.its_wire, b"large.img")

    def reads(self, over_tcp: bool, length: int = MAX_READ) -> list[bytes]:
        """READs of all of it, ever again."""
        return [
            Read(tag, self.handle, 0, length, Priority.BLOCKED, over_tcp).encode()
            for tag in range(1, 51)
        ]

    def test_too_much(self) -> None:
        """Who waits for too much is not listened to until some of it was sent, and not cut off."""
        self.greedy.dataReceived(b"".join(self.reads(over_tcp=False)))
        self.clock.advance(1)
        self.assertEqual(self.its_wire.producerState, "paused")
        self.assertLessEqual(self.greedy.share.waiting, MAX_WAITING + MAX_READ)
        self.assertGreater(self.greedy.host.held_back, 0)
        self.server.controller._idle = True
        self.server.controller._wake()
        self.clock.advance(60)
        self.assertEqual(self.its_wire.producerState, "producing")
        self.assertEqual(self.greedy.share.waiting, 0)
        told = {tag for kind, tag, _ in self.its_wire.tagged() if kind == Type.SENT}
        self.assertEqual(told, set(range(1, 51)))

    def test_too_much_over_tcp(self) -> None:
        """The same for READs over TCP, of a client that does not take them."""
        self.full(self.its_wire)
        for packet in self.reads(over_tcp=True):
            self.greedy.dataReceived(packet)
        self.assertEqual(self.its_wire.producerState, "paused")
        self.assertGreater(self.greedy.share.waiting, MAX_WAITING)
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
        """What an honest client has on its way at the most does not make it a greedy one."""
        self.assertLessEqual(MAX_BYTES_IN_FLIGHT + 64 * BLOCK, MAX_BYTES_AWAITED)

    def test_gone(self) -> None:
        """What was waited for is waited for no longer when the client has gone."""
        self.greedy.dataReceived(b"".join(self.reads(over_tcp=False)))
        self.greedy.connectionLost(Error(ConnectionLost()))
        self.assertEqual(self.greedy.share.waiting, 0)


class ProcessorTests(LimitTestCase):
    """Requests that are work."""

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
        """Beside others a client gets a part of the processor, and they are answered at once."""
        self.server.at_once = False
        self.beside(0.1)
        self.greedy.dataReceived(self.getattr * 500)
        self.beside(20)
        allowed = (BURST + PART * 20) / 0.1
        self.assertLess(self.looks, allowed + MAX_RUNNING + 1)
        self.assertGreater(self.looks, 0.8 * allowed)
        self.assertGreater(self.greedy.host.held_back, 0)
        self.assertFalse(self.its_wire.ended)

    def test_alone(self) -> None:
        """A client alone gets all there is, and owes nothing for it when another comes."""
        self.clock.advance(ACTIVE)
        self.greedy.dataReceived(self.getattr * 100)
        self.clock.advance(0.01)
        self.assertEqual(self.looks, 100)
        self.beside(0.5)
        self.assertEqual(len(self.its_wire.tagged()), 100)
        self.assertEqual(len(self.ask(self.greedy, self.its_wire, self.getattr)), 1)

    def test_signs_of_life(self) -> None:
        """Clients that only show that they are there take nothing from one that works."""
        self.clock.advance(ACTIVE)
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
            self.server.spent += 2 * SLICE
            found(*args)

        self.patch(self.server.controller, "request", work)
        reads = [Read(tag, handle, 0, PAGE, Priority.BLOCKED).encode() for tag in range(1, 11)]
        self.greedy.dataReceived(b"".join(reads))
        self.assertEqual(self.its_wire.producerState, "paused")
        self.assertEqual(self.server.queue.requests, 1)
        self.clock.advance(LOOK)
        self.assertEqual(self.server.queue.requests, 10)
        self.assertEqual(self.its_wire.producerState, "producing")


class AskingTests(LimitTestCase):
    """Requests about metadata."""

    def test_threads(self) -> None:
        """A client has a few of its requests looked into at a time, so that others get theirs."""
        self.server.at_once = False
        packet = pack_tagged(Type.GETATTR, 2, encode(At(b"disk.img")))
        self.greedy.dataReceived(packet * 100)
        self.assertEqual(len(self.server.asked), MAX_RUNNING)
        self.honest.dataReceived(packet)
        self.assertEqual(len(self.server.asked), MAX_RUNNING + 1)
        self.server.answer()
        self.assertEqual(len(self.wire.tagged()), 1)
        while self.server.asked:
            self.server.answer()
        self.assertEqual(len(self.its_wire.tagged()), 100)

    def test_listings_wait(self) -> None:
        """Listings are sent as the client takes them, and nothing more is looked at before."""
        for number in range(3000):
            self.server.library.put(b"%05d" % number + b"x" * 250, b"")
        readdir = pack_tagged(Type.READDIR, 7, encode(At(b"")))
        self.full(self.its_wire)
        for _ in range(20):
            self.greedy.dataReceived(readdir)
        self.assertEqual(self.its_wire.value(), b"")
        self.full(self.its_wire, False)
        answers = self.its_wire.tagged()
        names = [decode(Names, body).entries for kind, _, body in answers if kind != Type.ERROR]
        self.assertEqual(sum(map(len, names)), 20 * 3001)
        self.assertEqual(sum(kind == Type.REPLY for kind, _, _ in answers), 20)

    def test_listing_in_parts(self) -> None:
        """A connection that is full in the middle of a listing gets the rest later."""
        for number in range(3000):
            self.server.library.put(b"%05d" % number + b"x" * 250, b"")
        write = self.its_wire.write

        def fill(data: bytes) -> None:
            write(data)
            self.full(self.its_wire)

        self.patch(self.its_wire, "write", fill)
        self.greedy.dataReceived(pack_tagged(Type.READDIR, 7, encode(At(b""))))
        kinds = []
        for _ in range(20):
            packets = self.its_wire.packets()
            self.assertLessEqual(len(packets), 1)
            kinds += [kind for kind, _, _ in packets]
            self.full(self.its_wire, False)
        self.assertEqual(kinds[-1], Type.REPLY)
        self.assertEqual(set(kinds[:-1]), {Type.MORE})
        self.assertGreater(len(kinds), 5)

    def test_handles(self) -> None:
        """Where the server can open few files, one client cannot have them all."""
        self.server.factory.limits.handles = 3
        for _ in range(3):
            self.open(self.greedy, self.its_wire)
        self.greedy.dataReceived(pack_tagged(Type.OPEN, 1, encode(At(b"disk.img"))))
        ((kind, _, body),) = self.its_wire.packets()
        self.assertEqual(kind, Type.ERROR)
        self.assertEqual(decode(Failure, parse_tagged(body)[1]).errno, "EMFILE")
        self.open(self.honest, self.wire)
