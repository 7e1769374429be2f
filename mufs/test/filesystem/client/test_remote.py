"""The operations of a remote file system, with a channel that the test answers."""

from __future__ import annotations

import errno
from itertools import count
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.channel import ChannelLost
from mufs.filesystem.client.attributes import ATTRIBUTE_LIFETIME
from mufs.filesystem.client.images import OpenImage, PageCache
from mufs.filesystem.client.remote import REOPEN_DELAY, RemoteFileSystem
from mufs.test.support.doubles import make_attributes
from mufs.wire.channel import Framer, Type
from mufs.wire.metadata import (
    MAX_PATH_BYTES,
    NOBODY,
    VERSION,
    At,
    Caller,
    Close,
    DataMap,
    Link,
    Names,
    Opened,
    Pull,
    Statistics,
    Welcome,
    decode,
)
from mufs.wire.pages import BLOCK, PAGE

SIZE = 4 * BLOCK
STATISTICS = Statistics(1, 2, 3, 4, 5, 6, 7, 8, 9)
OFFLINE_FOR = 60.0
ROOT = Caller(0, 0, [])


def make_opened(generation: int = 1, handle: int = 5, size: int = SIZE) -> Opened:
    """The server's answer to OPEN."""
    attributes = evolve(make_attributes(size), mtime=generation)
    data = DataMap(0, size, (0, size))
    return Opened(handle, 1, generation, bytes(16), attributes, data)


class Channel:
    """A connection: keeps requests for the test to answer, and the packets sent."""

    def __init__(self) -> None:
        self.requests: list[tuple[Type, Any, Deferred[Any]]] = []
        self.packets: list[bytes] = []
        self.new_tag = count(1).__next__
        self.aborted = False
        self.is_silent = False
        self.last_received = 0.0

    def ask(self, kind: Type, body: object, answer: type) -> Deferred[Any]:
        """See L{ClientChannel.ask}."""
        request: tuple[Type, Any, Deferred[Any]]
        request = kind, body, Deferred(lambda _: self.requests.remove(request))
        self.requests.append(request)
        return request[2]

    def send(self, packet: bytes) -> None:
        """See L{ClientChannel.send}."""
        self.packets.append(packet)

    def abort(self) -> None:
        """See L{ClientChannel.abort}."""
        self.aborted = True

    def answer(self, value: object) -> tuple[Type, Any]:
        """Answer the oldest request; its type and body."""
        kind, body, deferred = self.requests.pop(0)
        if isinstance(value, Exception):
            deferred.errback(value)
        else:
            deferred.callback(value)
        return kind, body

    def sent(self, kind: Type) -> list[bytes]:
        """The bodies of packets of a type that were sent since the last call."""
        packets = [each for packet in self.packets for each in Framer().feed(packet)]
        self.packets.clear()
        return [body for found, _, body in packets if found == kind]


class ServerPulls:
    """Remembers what the server asks for."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def requested(self, pull: Pull) -> None:
        """See L{mufs.filesystem.client.server_pulls.ServerPulls.requested}."""
        self.events.append(pull)

    def disconnected(self) -> None:
        """See L{mufs.filesystem.client.server_pulls.ServerPulls.disconnected}."""
        self.events.append("disconnected")


class RemoteTestCase(SynchronousTestCase):
    """A file system that is connected."""

    def setUp(self) -> None:
        """Connect."""
        self.clock = Clock()
        self.cache = BlockCache(16 * BLOCK)
        self.remote = RemoteFileSystem(
            self.clock,
            self.cache,
            BLOCK,
            offline_for=OFFLINE_FOR,
            on_welcome=lambda channel, welcome: None,
            on_moved=lambda welcome: None,
            on_refused=lambda reason: None,
        )
        self.server_pulls = ServerPulls()
        pulls: Any = self.server_pulls
        self.remote.server_pulls = pulls
        self.connect()

    def be_silent(self) -> None:
        """The server no longer answers."""
        self.channel.is_silent = True
        self.remote.silent()

    def connect(self) -> None:
        """Make a connection."""
        self.channel = channel = Channel()
        double: Any = channel
        self.remote.connected(double, Welcome(VERSION, "", 0, ("", 0), 1400))

    def disconnect(self) -> None:
        """Lose it."""
        self.remote.disconnected()
        while self.channel.requests:
            self.channel.answer(ChannelLost())

    def open(
        self, path: bytes = b"image", generation: int = 1, handle: int = 5
    ) -> tuple[int, OpenImage, PageCache]:
        """Open an image."""
        opening = self.remote.open(path, NOBODY)
        kind, _ = self.channel.answer(make_opened(generation, handle))
        self.assertEqual(kind, Type.OPEN)
        number, pages = self.successResultOf(opening)
        return number, self.remote.opened(number), pages

    def read_cached(self, opened: OpenImage, offset: int, target: memoryview) -> int | None:
        """Read what is in the cache."""
        return self.remote.reader.read_cached(opened, offset, target, cross=lambda *_: None)

    def closed(self) -> list[int]:
        """The handles that the server was told to close since the last call."""
        return [decode(Close, body).handle for body in self.channel.sent(Type.CLOSE)]

    def assert_errno(self, number: int, failed: Deferred[Any]) -> None:
        """An operation fails with this errno."""
        self.assertEqual(self.failureResultOf(failed, OSError).value.errno, number)


class OperationTests(RemoteTestCase):
    """Operations on names and attributes."""

    def test_getattr(self) -> None:
        """Attributes are the server's, and are known for a while from then on."""
        looking = self.remote.getattr(b"image", caller=ROOT)
        self.assertEqual(
            self.channel.answer(make_attributes(7)), (Type.GETATTR, At(b"image", ROOT))
        )
        self.assertEqual(self.successResultOf(looking), make_attributes(7))
        self.assertEqual(self.remote.attributes.get(b"image"), make_attributes(7))
        self.clock.advance(2 * ATTRIBUTE_LIFETIME)
        self.assertIsNone(self.remote.attributes.get(b"image"))

    def test_error(self) -> None:
        """An error of the server is the operation's."""
        looking = self.remote.getattr(b"none")
        self.channel.answer(OSError(errno.ENOENT, "none"))
        self.assert_errno(errno.ENOENT, looking)

    def test_readdir(self) -> None:
        """A listing brings attributes; a name that was listed twice comes once, as the last."""
        listing = self.remote.readdir(b"dir")
        names = [(b"a", make_attributes(1)), (b"b", make_attributes(2)), (b"a", make_attributes(3))]
        self.channel.answer(Names(names))
        self.assertEqual(
            self.successResultOf(listing), [(b"a", make_attributes(3)), (b"b", make_attributes(2))]
        )
        self.assertEqual(self.remote.attributes.get(b"dir/b"), make_attributes(2))

    def test_walk(self) -> None:
        """Who walks through a directory for long has it listed again, not each name looked up."""
        listing = self.remote.readdir(b"dir")
        names = [(b"%d" % number, make_attributes(1)) for number in range(20)]
        self.channel.answer(Names(names))
        self.successResultOf(listing)
        for name, _ in names:
            self.remote.attributes.get(b"dir/" + name)
        self.clock.advance(2 * ATTRIBUTE_LIFETIME)
        looking = self.remote.getattr(b"dir/3", caller=ROOT)
        again = Names([(name, make_attributes(5)) for name, _ in names])
        self.assertEqual(self.channel.answer(again), (Type.READDIR, At(b"dir", ROOT)))
        self.assertEqual(self.successResultOf(looking), make_attributes(5))
        self.clock.advance(2 * ATTRIBUTE_LIFETIME)
        looking = self.remote.getattr(b"dir/3", caller=ROOT)
        self.channel.answer(make_attributes(6))
        self.assertEqual(self.successResultOf(looking), make_attributes(6))

    def test_walk_denied(self) -> None:
        """Who may not list it, or looks for a name that is no longer there, asks for the name."""
        for answer in (OSError(errno.EACCES, "denied"), Names([(b"b", make_attributes(2))])):
            listing = self.remote.readdir(b"dir")
            self.channel.answer(Names([(b"a", make_attributes(1))]))
            self.successResultOf(listing)
            self.remote.attributes.get(b"dir/a")
            self.clock.advance(2 * ATTRIBUTE_LIFETIME)
            looking = self.remote.getattr(b"dir/a")
            self.channel.answer(answer)
            self.assertEqual(self.channel.answer(make_attributes(3))[0], Type.GETATTR)
            self.assertEqual(self.successResultOf(looking), make_attributes(3))

    def test_readlink(self) -> None:
        """The target of a link."""
        reading = self.remote.readlink(b"link")
        self.channel.answer(Link(b"there"))
        self.assertEqual(self.successResultOf(reading), b"there")

    def test_without_connection(self) -> None:
        """Operations wait for the next connection, and are asked again if one is lost."""
        looking = self.remote.getattr(b"image")
        self.disconnect()
        cancelled = self.remote.getattr(b"other")
        self.assertFalse(self.remote.is_connected)
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.connect()
        self.assertTrue(self.remote.is_connected)
        self.assertEqual([body.path for _, body, _ in self.channel.requests], [b"image"])
        self.channel.answer(make_attributes(7))
        self.assertEqual(self.successResultOf(looking), make_attributes(7))

    def test_server_pulls(self) -> None:
        """What the server asks for is passed on, and the end of the connection, too."""
        self.remote.pull(Pull(1, b"image"))
        self.disconnect()
        self.assertEqual(self.server_pulls.events, [Pull(1, b"image"), "disconnected"])

    def test_stop(self) -> None:
        """Stopping ends the connection at once."""
        self.remote.stop()
        self.assertTrue(self.channel.aborted)


class ImageTests(RemoteTestCase):
    """Open images."""

    def test_open(self) -> None:
        """An image has the server's handle; closing it tells the server."""
        number, opened, pages = self.open()
        self.assertEqual((opened.server_handle, opened.key, pages), (5, (1, 1), PageCache.RENEW))
        self.assertEqual(self.remote.open_images(), {(1, 1)})
        self.remote.release(number)
        self.assertEqual(
            [decode(Close, body) for body in self.channel.sent(Type.CLOSE)], [Close(5)]
        )
        self.assertEqual(self.remote.open_images(), set())
        self.assertEqual(list(self.remote.images), [(1, 1)])

    def test_cached_read(self) -> None:
        """A read is answered by the cache if all of it is there, up to the end of the image."""
        _, opened, _ = self.open()
        self.cache.store(opened.key, 3 * BLOCK, bytes(range(256)) * (BLOCK // 256))
        target = memoryview(bytearray(2 * PAGE))
        self.assertEqual(self.read_cached(opened, SIZE - PAGE, target), PAGE)
        self.assertEqual(bytes(target[:PAGE]), bytes(range(256)) * (PAGE // 256))
        self.assertIsNone(self.read_cached(opened, 3 * BLOCK - PAGE, target))
        self.assertEqual(self.read_cached(opened, SIZE + PAGE, target), 0)
        self.assertEqual(self.remote.reads.deliveries.reads_and_hits, (2, 2))
        self.assertFalse(self.remote.reads.lacks(opened, 3 * BLOCK, BLOCK))
        self.assertTrue(self.remote.reads.lacks(opened, 3 * BLOCK - PAGE, 2 * PAGE))

    def test_stale(self) -> None:
        """When the server tells of another content, reads and attributes by handle are ESTALE."""
        number, opened, _ = self.open()
        by_handle = self.remote.getattr(b"image", number)
        self.channel.answer(make_attributes(SIZE, generation=2))
        self.assert_errno(errno.ESTALE, by_handle)
        target = memoryview(bytearray(PAGE))
        for read in (self.remote.reader.read, self.read_cached):
            error = self.assertRaises(OSError, read, opened, 0, target)
            self.assertEqual(error.errno, errno.ESTALE)

    def test_caller(self) -> None:
        """Attributes by handle are asked for as whoever opened the image."""
        opening = self.remote.open(b"image", ROOT)
        self.channel.answer(make_opened())
        number, _ = self.successResultOf(opening)
        self.remote.getattr(b"image", number, NOBODY)
        self.assertEqual(self.channel.requests[0][1], At(b"image", ROOT))

    def test_asked_before(self) -> None:
        """Attributes that were asked for before an open do not make its image stale."""
        self.remote.getattr(b"image")
        opening = self.remote.open(b"image")
        _, _, late = self.channel.requests.pop(0)
        self.channel.answer(make_opened(2))
        number, _ = self.successResultOf(opening)
        late.callback(make_attributes(SIZE + 1))
        self.assertFalse(self.remote.opened(number).stale)


class ReconnectTests(RemoteTestCase):
    """Open images on the next connection."""

    def test_reopened(self) -> None:
        """An image of the same generation gets a new handle."""
        _, opened, _ = self.open()
        self.disconnect()
        self.assertIsNone(opened.server_handle)
        self.connect()
        self.assertEqual(self.channel.answer(make_opened(handle=9))[0], Type.OPEN)
        self.assertEqual((opened.server_handle, opened.stale), (9, False))

    def test_replaced(self) -> None:
        """One that was replaced or removed meanwhile is stale."""
        for answer in (make_opened(2), OSError(errno.ENOENT, "none")):
            number, opened, _ = self.open()
            self.disconnect()
            self.connect()
            self.channel.answer(answer)
            self.assertTrue(opened.stale)
            self.remote.release(number)

    def test_server_busy(self) -> None:
        """A server that lacks files is asked again; whoever reads waits, and nothing is stale."""
        number, opened, _ = self.open()
        self.disconnect()
        self.connect()
        for _ in range(2):
            self.channel.answer(OSError(errno.EMFILE, "too many open images"))
            self.assertEqual(self.channel.requests, [])
            self.clock.advance(REOPEN_DELAY)
        self.channel.answer(make_opened(handle=9))
        self.assertEqual((opened.server_handle, opened.stale), (9, False))
        # Not on another connection, nor of an image that was closed.
        for leave in (self.disconnect, lambda: self.remote.release(number)):
            self.disconnect()
            self.connect()
            self.channel.answer(OSError(errno.ENFILE, "too many open files"))
            leave()
            self.clock.advance(REOPEN_DELAY)
            self.assertEqual(self.channel.requests, [])

    def test_closed_meanwhile(self) -> None:
        """One that is closed while it is reopened is closed on the server, too."""
        number, _, _ = self.open()
        self.disconnect()
        self.connect()
        self.remote.release(number)
        self.channel.answer(make_opened(handle=9))
        self.assertEqual(
            [decode(Close, body) for body in self.channel.sent(Type.CLOSE)], [Close(9)]
        )

    def test_closed_by_reader(self) -> None:
        """A reader whose stale image fails may close it at once; the others are reopened."""
        number, opened, _ = self.open()
        _, other, _ = self.open(b"other", handle=6)
        reading = self.remote.reader.read(opened, 0, memoryview(bytearray(PAGE)))
        reading.addErrback(lambda failure: self.remote.release(number))
        self.disconnect()
        opened.stale = True
        self.connect()
        self.successResultOf(reading)
        self.channel.answer(make_opened(handle=9))
        self.assertEqual(other.server_handle, 9)


class AwayTests(RemoteTestCase):
    """Operations while the server is away."""

    def learn(self) -> None:
        """Have the server tell of a directory, an image in it, a link and the file system."""
        self.remote.readdir(b"dir")
        self.channel.answer(Names([(b"image", make_opened().attributes)]))
        self.remote.readlink(b"link")
        self.channel.answer(Link(b"there"))
        self.remote.getattr(b"")
        self.channel.answer(make_attributes(4096))
        self.remote.statfs()
        self.channel.answer(STATISTICS)
        number, _, _ = self.open(b"dir/image")
        self.remote.release(number)

    def look(self) -> list[Deferred[Any]]:
        """Ask for all of it."""
        return [
            self.remote.readdir(b"dir"),
            self.remote.getattr(b"dir/image"),
            self.remote.readlink(b"link"),
            self.remote.open(b"dir/image", NOBODY),
            self.remote.statfs(),
            self.remote.getattr(b""),
        ]

    def assert_known(self, looks: list[Deferred[Any]]) -> None:
        """All of it is answered as the server did last."""
        attributes = make_opened().attributes
        listing, found, target, (number, _), statistics, root = map(self.successResultOf, looks)
        self.assertEqual(listing, [(b"image", attributes)])
        self.assertEqual((found, target, statistics), (attributes, b"there", STATISTICS))
        self.assertEqual(root.size, 4096)
        opened = self.remote.opened(number)
        self.assertEqual((opened.key, opened.server_handle), ((1, 1), None))

    def test_known(self) -> None:
        """What was last known is answered at once, and images are opened again afterwards."""
        self.learn()
        self.disconnect()
        self.assert_known(self.look())
        self.connect()
        kind, _ = self.channel.answer(make_opened(handle=9))
        self.assertEqual(kind, Type.OPEN)
        (opened,) = (self.remote.opened(number) for number in (2,))
        self.assertEqual((opened.server_handle, opened.stale), (9, False))

    def test_replaced(self) -> None:
        """An image that was replaced meanwhile is stale when the server is back."""
        self.learn()
        self.disconnect()
        number, _ = self.successResultOf(self.remote.open(b"dir/image", NOBODY))
        self.connect()
        self.channel.answer(make_opened(2))
        self.assertTrue(self.remote.opened(number).stale)

    def test_silent(self) -> None:
        """The same while a connection is without an answer, for what waits and what comes."""
        self.learn()
        self.clock.advance(2.0)
        waiting = self.look()
        self.be_silent()
        self.assert_known(waiting)
        self.assert_known(self.look())

    def test_silent_open(self) -> None:
        """An image that was opened without the server gets its handle when the server answers."""
        self.learn()
        self.be_silent()
        number, _ = self.successResultOf(self.remote.open(b"dir/image", NOBODY))
        self.assertEqual(self.channel.answer(make_opened(handle=9))[0], Type.OPEN)
        self.assertEqual(self.remote.opened(number).server_handle, 9)

    def test_too_long(self) -> None:
        """After offline_for everything waits, but for the root and the file system's figures."""
        self.learn()
        self.disconnect()
        self.clock.advance(OFFLINE_FOR + 1.0)
        *others, statistics, root = self.look()
        self.assertEqual(self.successResultOf(statistics), STATISTICS)
        self.successResultOf(root)
        for each in others:
            self.assertNoResult(each)
            each.cancel()
            self.failureResultOf(each, CancelledError)

    def test_unknown(self) -> None:
        """What is not known waits; a name that was not in its directory does not exist."""
        self.learn()
        self.disconnect()
        waiting = self.remote.getattr(b"elsewhere/image")
        self.assertNoResult(waiting)
        self.assert_errno(errno.ENOENT, self.remote.getattr(b"dir/other"))
        self.connect()
        self.channel.answer(make_attributes(7))
        self.successResultOf(waiting)

    def test_cancelled(self) -> None:
        """A request that is cancelled while nobody is silent ends as cancelled."""
        looking = self.remote.getattr(b"image")
        looking.cancel()
        self.failureResultOf(looking, CancelledError)

    def test_by_handle(self) -> None:
        """An open image has the attributes that it was opened with."""
        number, opened, _ = self.open()
        self.remote.attributes.put(b"image", make_attributes(7), 1.0)
        self.disconnect()
        found = self.successResultOf(self.remote.getattr(b"image", number))
        self.assertEqual(found, opened.attributes)

    def test_last_heard(self) -> None:
        """The time of the last byte is known also without a connection."""
        self.channel.last_received = 5.0
        self.assertEqual(self.remote.last_heard, 5.0)
        self.disconnect()
        self.assertEqual(self.remote.last_heard, 5.0)

    def test_long_path(self) -> None:
        """A path that is too long for a request is refused here."""
        self.assert_errno(errno.ENAMETOOLONG, self.remote.getattr(b"a" * (MAX_PATH_BYTES + 1)))
        self.assertEqual(self.channel.requests, [])
