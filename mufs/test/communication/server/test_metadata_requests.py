"""A client's requests about names and attributes."""

from __future__ import annotations

import errno
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure as Error
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.intake import Intake, Pause
from mufs.communication.server.limits import (
    MAX_METADATA_LOOKUPS,
    MAX_METADATA_REQUESTS,
    Limits,
)
from mufs.communication.server.metadata_requests import MetadataRequests
from mufs.interfaces import IImage
from mufs.test.support.channels import SIZE, Server, ServerChannelTestCase, TwoClientsTestCase
from mufs.test.support.doubles import FakeTransport, make_attributes
from mufs.test.support.memory import MemoryLibrary
from mufs.wire.channel import (
    ProtocolError,
    Type,
    pack_tagged,
)
from mufs.wire.metadata import (
    UNKNOWN,
    At,
    Attributes,
    Caller,
    DataMap,
    Link,
    MapRequest,
    Names,
    Statistics,
    decode,
    encode,
)


class MetadataRequestsTests(SynchronousTestCase):
    """The requests of one client, to a library that answers when the test says so."""

    def setUp(self) -> None:
        """A client that has asked for nothing yet."""
        clock = Clock()
        self.spent = 0.0
        self.limits = Limits(clock, lambda: self.spent)
        self.host = self.limits.add(self, "192.0.2.1")
        self.intake = Intake(
            clock,
            self.host,
            FakeTransport(),
            answer=lambda: self.requests.go_on(),
            read=lambda: None,
            close=lambda reason: None,
        )
        self.library = MemoryLibrary()
        self.library.put(b"disk.img", b"content")
        self.lookups: list[Deferred[Any]] = []
        self.replies: list[tuple[Any, int, int]] = []
        self.opened: list[tuple[bytes, tuple[IImage, DataMap], int]] = []
        self.failures: list[tuple[Any, int]] = []
        self.requests = MetadataRequests(
            self.host,
            self.intake,
            in_thread=self.in_thread,
            reply=lambda *reply: self.replies.append(reply),
            image=lambda handle: self.library.images[b"disk.img"],
            opened=lambda *opened: self.opened.append(opened),
            failed=lambda failure, tag, opens: self.failures.append((failure.value, tag)),
        )

    def in_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        """Call a function when the test has it answered."""
        lookup: Deferred[Any] = Deferred()
        lookup.addCallback(lambda _: self.limits.timed(function, *args))
        self.lookups.append(lookup)
        return lookup

    def answer(self) -> None:
        """Answer all lookups that have begun, and those that begin then."""
        while self.lookups:
            self.lookups.pop(0).callback(None)

    def ask(self, kind: Type, path: bytes = b"disk.img", tag: int = 1) -> None:
        """The client sends a request."""
        self.requests.handle(self.library, kind, tag, encode(At(path)))

    def test_kinds(self) -> None:
        """Each request is answered by what the library says, under its tag."""
        self.patch(self.library, "readlink", lambda path, caller: b"target of " + path)
        kinds = [Type.GETATTR, Type.READDIR, Type.READLINK, Type.OPEN, Type.STATFS]
        for tag, kind in enumerate(kinds):
            self.ask(kind, tag=tag)
        self.answer()
        image = self.library.images[b"disk.img"]
        self.assertEqual(self.opened, [(b"disk.img", (image, DataMap(0, 7, (0, 7))), 3)])
        self.assertEqual(
            self.replies,
            [
                (image.attributes, 0, Type.REPLY),
                (Names([(b"disk.img", image.attributes)]), 1, Type.REPLY),
                (Link(b"target of disk.img"), 2, Type.REPLY),
                (self.library.statfs(), 4, Type.REPLY),
            ],
        )

    def test_caller(self) -> None:
        """The library is given the caller of each request."""
        callers: list[Caller | None] = []
        self.patch(self.library, "getattr", lambda path, caller: callers.append(caller))
        caller = Caller(1000, 100, [])
        self.requests.handle(self.library, Type.GETATTR, 1, encode(At(b"disk.img", caller)))
        self.answer()
        self.assertEqual(callers, [caller])

    def test_map(self) -> None:
        """A map is what the image says; where that fails, an image is opened without it."""
        image = self.library.images[b"disk.img"]
        image.runs = [(1, 2), (3, 4)]
        self.requests.handle(self.library, Type.MAP, 4, encode(MapRequest(1, 2)))
        self.answer()
        self.assertEqual(self.replies, [(DataMap(2, 7, (3, 4)), 4, Type.REPLY)])
        image.error = errno.ESTALE
        self.ask(Type.OPEN)
        self.requests.handle(self.library, Type.MAP, 5, encode(MapRequest(1, 2)))
        self.answer()
        self.assertEqual(self.opened, [(b"disk.img", (image, UNKNOWN), 1)])
        self.assertEqual([(error.errno, tag) for error, tag in self.failures], [(errno.ESTALE, 5)])

    def test_malformed(self) -> None:
        """A request that is malformed asks the library nothing."""
        self.assertRaises(ProtocolError, self.requests.handle, self.library, Type.OPEN, 1, b"\xc1")
        self.assertEqual(self.lookups, [])

    def test_errors(self) -> None:
        """What the library cannot answer fails, be it for the client or for the server."""
        self.ask(Type.GETATTR, b"none", tag=5)
        self.patch(self.library, "statfs", None)
        self.ask(Type.STATFS, tag=6)
        self.answer()
        self.assertEqual([tag for _, tag in self.failures], [5, 6])
        self.assertIsInstance(self.failures[0][0], FileNotFoundError)
        self.assertIsInstance(self.failures[1][0], TypeError)
        self.assertEqual(self.replies, [])

    def test_few_at_a_time(self) -> None:
        """A few are looked up at a time, in order; each answer makes room for the next."""
        for tag in range(3 * MAX_METADATA_LOOKUPS):
            self.ask(Type.GETATTR, tag=tag)
        self.assertEqual(len(self.lookups), MAX_METADATA_LOOKUPS)
        self.lookups.pop(0).callback(None)
        self.assertEqual(len(self.lookups), MAX_METADATA_LOOKUPS)
        self.answer()
        self.assertEqual([tag for _, tag, _ in self.replies], [*range(3 * MAX_METADATA_LOOKUPS)])

    def test_backlog(self) -> None:
        """While too many wait no more is read; it is again when half of them are answered."""
        for tag in range(MAX_METADATA_LOOKUPS + MAX_METADATA_REQUESTS - 1):
            self.ask(Type.GETATTR, tag=tag)
        self.assertEqual(self.intake.reasons, set())
        self.ask(Type.GETATTR)
        self.assertEqual(self.intake.reasons, {Pause.METADATA_BACKLOG})
        while self.intake.reasons:
            self.lookups.pop(0).callback(None)
        self.assertEqual(len(self.replies), MAX_METADATA_REQUESTS // 2)

    def test_paused(self) -> None:
        """While the buffer is full or the host throttled, nothing more is looked up."""
        for reason in (Pause.SEND_BUFFER_FULL, Pause.THROTTLED):
            self.intake.pause(reason)
            self.ask(Type.GETATTR)
            self.assertEqual(self.lookups, [])
            self.intake.resume(reason)
            self.assertEqual(len(self.lookups), 1)
            self.answer()
        self.assertEqual(len(self.replies), 2)

    def test_listing(self) -> None:
        """A listing is sent in parts while there is room, and no other lookup takes its place."""
        entries = [(b"%05d" % number, make_attributes()) for number in range(2000)]
        self.patch(self.library, "readdir", lambda path, caller: entries)
        for tag in range(MAX_METADATA_LOOKUPS + 1):
            self.ask(Type.READDIR, tag=tag)
        self.intake.pause(Pause.SEND_BUFFER_FULL)
        self.answer()
        self.assertEqual(self.replies, [])
        self.intake.resume(Pause.SEND_BUFFER_FULL)
        self.answer()
        for tag in range(MAX_METADATA_LOOKUPS + 1):
            parts = [(value, kind) for value, each, kind in self.replies if each == tag]
            self.assertEqual([e for value, _ in parts for e in value.entries], entries)
            kinds = [kind for _, kind in parts]
            self.assertEqual(kinds, [Type.MORE] * (len(kinds) - 1) + [Type.REPLY])
            self.assertGreater(len(kinds), 1)

    def test_charged(self) -> None:
        """The host is charged for what the thread and the answer took."""
        found = self.library.getattr

        def work(*args: Any) -> Any:
            self.spent += 0.25
            return found(*args)

        self.patch(self.library, "getattr", work)
        before = self.host._cpu_credit
        self.ask(Type.GETATTR)
        self.answer()
        self.assertEqual(self.host._cpu_credit, before - 0.25)

    def test_stopped(self) -> None:
        """When the connection ends nothing more is looked up, and no answer is sent."""
        for tag in range(2 * MAX_METADATA_LOOKUPS):
            self.ask(Type.GETATTR, tag=tag)
        self.intake.begin_close()
        self.requests.stop()
        self.assertEqual(len(self.lookups), MAX_METADATA_LOOKUPS)
        self.answer()
        self.assertEqual((self.replies, self.failures), ([], []))


class ChannelTests(ServerChannelTestCase):
    """Requests through a channel."""

    def test_answers(self) -> None:
        """Each request is answered by what belongs to it, with its tag."""
        answers = self.send(
            pack_tagged(Type.GETATTR, 1, encode(At(b"disk.img"))),
            pack_tagged(Type.READDIR, 2, encode(At(b""))),
            pack_tagged(Type.STATFS, 3, encode(At(b""))),
        )
        self.assertEqual(
            [(kind, tag) for kind, tag, _ in answers], [(Type.REPLY, n + 1) for n in range(3)]
        )
        self.assertEqual(decode(Attributes, answers[0][2]).size, SIZE)
        self.assertEqual(decode(Names, answers[1][2]).entries[0][0], b"disk.img")
        self.assertEqual(decode(Statistics, answers[2][2]).namemax, 255)

    def test_errors(self) -> None:
        """What the library cannot answer is answered with its errno."""
        self.assert_error(self.send(pack_tagged(Type.GETATTR, 4, encode(At(b"none")))), 4, "ENOENT")
        self.assert_error(
            self.send(pack_tagged(Type.READLINK, 4, encode(At(b"disk.img")))), 4, "EINVAL"
        )

    def test_malformed(self) -> None:
        """A malformed path ends the connection."""
        for body in (
            b"",
            b"\xc1",
            encode(7),
            encode(At(b"x")) + b"y",
            encode({"path": 5}),
            encode(At(b"x" * 65537)),
        ):
            self.channel, self.wire = self.server.connect()
            self.assert_closes(pack_tagged(Type.GETATTR, 1, body))

    def test_long_directory(self) -> None:
        """A directory of many long names comes in parts, each of them a packet."""
        for number in range(3000):
            self.server.library.put(b"%05d" % number + b"x" * 250, b"")
        answers = self.send(pack_tagged(Type.READDIR, 1, encode(At(b""))))
        self.assertEqual({kind for kind, _, _ in answers[:-1]}, {Type.MORE})
        self.assertEqual(answers[-1][0], Type.REPLY)
        self.assertEqual(sum(len(decode(Names, body).entries) for _, _, body in answers), 3001)

    def test_directory_of_other_file_systems(self) -> None:
        """The same for the longest names that a client accepts."""
        for number in range(600):
            self.server.library.put(b"%04d" % number + b"x" * 1020, b"")
        answers = self.send(pack_tagged(Type.READDIR, 1, encode(At(b""))))
        self.assertEqual(answers[-1][0], Type.REPLY)
        self.assertEqual(sum(len(decode(Names, body).entries) for _, _, body in answers), 601)

    def test_fault_of_the_server(self) -> None:
        """A fault of the library itself is logged, and answered with EIO."""
        library: Any = self.server.library
        library.statfs = None
        self.assert_error(self.send(pack_tagged(Type.STATFS, 6, encode(At(b"")))), 6, "EIO")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_gone_before_the_answer(self) -> None:
        """An answer that comes when the client has gone is not written."""
        self.server.at_once = False
        self.send(pack_tagged(Type.OPEN, 1, encode(At(b"disk.img"))))
        self.channel.connectionLost(Error(ConnectionLost()))
        self.channel.connected = 0
        self.server.answer()
        self.assertEqual(self.wire.packets(), [])

    def test_requests_in_flight(self) -> None:
        """No more requests are read while too many wait for the library."""
        server = Server(at_once=False)
        channel, wire = server.connect()
        for tag in range(20_000):
            if wire.producerState == "paused":
                break
            channel.dataReceived(pack_tagged(Type.GETATTR, tag, encode(At(b"disk.img"))))
        self.assertEqual(wire.producerState, "paused")
        while server.asked:
            server.answer()
        self.assertEqual(wire.producerState, "producing")


class TwoClientsTests(TwoClientsTestCase):
    """What a client that asks for much takes from another one."""

    def test_threads(self) -> None:
        """A few requests of a client are looked up at a time, so that others have their turn."""
        self.server.at_once = False
        packet = pack_tagged(Type.GETATTR, 2, encode(At(b"disk.img")))
        self.greedy.dataReceived(packet * 100)
        self.assertEqual(len(self.server.asked), MAX_METADATA_LOOKUPS)
        self.honest.dataReceived(packet)
        self.assertEqual(len(self.server.asked), MAX_METADATA_LOOKUPS + 1)
        self.server.answer()
        self.assertEqual(len(self.wire.tagged()), 1)
        while self.server.asked:
            self.server.answer()
        self.assertEqual(len(self.its_wire.tagged()), 100)

    def test_listings_wait(self) -> None:
        """Listings are sent as the client reads them, and until then nothing else is looked up."""
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
