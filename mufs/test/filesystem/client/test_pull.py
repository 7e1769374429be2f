"""Pulls: caches that are filled before anybody reads, in virtual time."""

from __future__ import annotations

import errno
from typing import Any

from attrs import evolve
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    ensureDeferred,
    maybeDeferred,
)
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.output import SEND_BUFFER
from mufs.filesystem.client.pull import (
    DISK_TIMEOUT,
    MAX_EXTENTS_PER_TURN,
    MAX_PASSES,
    MAX_PULLS,
    PROGRESS_INTERVAL,
    Progress,
)
from mufs.test.support.simulation import MIB, SimulatedNetwork
from mufs.wire.metadata import NOBODY
from mufs.wire.pages import BLOCK, EXTENT

SIZE = 8 * MIB + 4321


class PullTests(SynchronousTestCase):
    """Pulls in a simulated network."""

    def make(self, clients: int = 1, size: int = SIZE, **how: Any) -> SimulatedNetwork:
        """Make a network with an image."""
        self.network = SimulatedNetwork(3, clients, **how)
        self.network.put_image(b"disk.img", size)
        self.told: list[Progress] = []
        return self.network

    def pull(self, number: int = 0, path: bytes = b"disk.img") -> Deferred[Progress]:
        """Have a client pull the image."""
        pulls = self.network.clients[number].pulls
        return maybeDeferred(pulls.pull, path, NOBODY, self.told.append)

    def sent(self) -> int:
        """File bytes that the server sent."""
        figures = self.network.server.figures()
        multicast, tcp = figures["bytes_multicast"], figures["bytes_over_tcp"]
        assert isinstance(multicast, int) and isinstance(tcp, int)
        return multicast + tcp

    def assert_all_there(self, number: int = 0, path: bytes = b"disk.img") -> None:
        """Reading the image gives the right bytes without the server."""
        before = self.sent()
        self.network.run(self.network.read_all(number, path))
        self.assertEqual(self.sent(), before)
        self.assertEqual(self.network.leftovers(), [])

    def assert_error(self, number: int, pulling: Deferred[Progress]) -> str:
        """A pull fails with this errno; returns its text."""
        with self.assertRaises(OSError) as raised:
            self.network.run(pulling)
        self.assertEqual(raised.exception.errno, number)
        return str(raised.exception.strerror)

    def test_pull(self) -> None:
        """A pulled image is read without the server, and was sent once."""
        self.make()
        done = self.network.run(self.pull())
        self.assertEqual((done.size, done.held, done.asked), (SIZE, SIZE, SIZE))
        self.assertLess(self.sent(), 1.02 * SIZE)
        self.assert_all_there()
        self.assertEqual(self.network.clients[0].remote.reads.deliveries.misses.total, 0)

    def test_empty(self) -> None:
        """Pulling an empty image ends at once."""
        self.make(size=0)
        self.assertEqual(self.network.run(self.pull()), Progress(0, 0, 0, 0, True))

    def test_again(self) -> None:
        """What is in the cache is not requested again, also after an interruption."""
        self.make(rate_max=1e8, link=1e8)
        pulling = self.pull()
        self.network.clock.advance(0.25)
        pulling.cancel()
        self.failureResultOf(pulling, CancelledError)
        self.network.clock.advance(1)
        part = self.network.clients[0].cache.held
        self.assertGreater(part, SIZE // 4)
        self.assertLess(part, SIZE)
        done = self.network.run(self.pull())
        self.assertLess(done.asked, SIZE - part + BLOCK)
        self.assertLess(self.sent(), 1.02 * SIZE)
        self.assert_all_there()
        before = self.network.clients[0].remote.reads.requests.bytes_requested
        self.network.run(self.pull())
        self.assertEqual(self.network.clients[0].remote.reads.requests.bytes_requested, before)

    def test_hosts_apart(self) -> None:
        """
        Ten hosts that begin at different times cost one transfer, and what went out before the
        last one began, or was on its way to the link then.
        """
        self.make(clients=10, link=1e8, rate_max=1e8, size=16 * MIB)
        before_last = 0

        def begin(number: int) -> Deferred[Progress]:
            nonlocal before_last
            before_last = self.sent()
            return self.pull(number)

        clock = self.network.clock
        pulls = [deferLater(clock, 0.02 * number, begin, number) for number in range(10)]
        results = self.network.run(DeferredList(pulls, consumeErrors=True))
        self.assertTrue(all(ok for ok, _ in results))
        self.assertLess(self.sent(), 1.03 * 16 * MIB + before_last + SEND_BUFFER + 4 * BLOCK)
        self.assertLess(before_last, 0.25 * 16 * MIB)
        for number in range(10):
            self.assert_all_there(number)

    def test_loss(self) -> None:
        """Losses are repaired like those of readers."""
        self.make(clients=4, loss=0.01)
        results = self.network.run(DeferredList([self.pull(number) for number in range(4)]))
        self.assertTrue(all(ok for ok, _ in results))
        self.assertLess(self.sent(), 1.15 * SIZE)
        for number in range(4):
            self.assert_all_there(number)

    def test_without_multicast(self) -> None:
        """Where no multicast arrives the pull uses TCP."""
        self.make(loss=1.0)
        self.network.run(self.pull())
        self.assert_all_there()

    def test_reader_first(self) -> None:
        """A read beside pulls waits only for what is already on the link."""
        self.make(clients=3, link=1e8, rate_max=1e8, size=32 * MIB)
        self.network.put_image(b"other.img", 4 * MIB)
        pulls = [self.pull(number) for number in range(3)]
        self.network.clock.advance(0.5)
        reader = self.network.clients[0]
        handle, _ = self.network.run(reader.remote.open(b"other.img"))
        opened = reader.remote.opened(handle)
        waits = []
        for offset in (0, 3 * MIB):
            begun = self.network.clock.seconds()
            self.network.run(ensureDeferred(reader.read(opened, offset, BLOCK)))
            waits.append(self.network.clock.seconds() - begun)
        # Of the image that is pulled, and on its way in the background.
        handle, _ = self.network.run(reader.remote.open(b"disk.img"))
        opened = reader.remote.opened(handle)
        requested = reader.remote.reads.in_flight.requested
        ahead = max(extent for key, extent in requested if key == opened.key)
        begun = self.network.clock.seconds()
        self.network.run(ensureDeferred(reader.read(opened, ahead * EXTENT, BLOCK)))
        waits.append(self.network.clock.seconds() - begun)
        self.assertLess(max(waits), 0.08)
        self.network.run(DeferredList(pulls))

    def test_bounded(self) -> None:
        """What all pulls together have on their way is bounded by the window."""
        self.make(link=1e8, rate_max=1e8, size=16 * MIB)
        for number in range(3):
            self.network.put_image(b"%d.img" % number, 16 * MIB)
        client = self.network.clients[0]
        pulls = [self.pull(), *(self.pull(path=b"%d.img" % number) for number in range(3))]
        for _ in range(200):
            self.network.clock.advance(0.01)
            self.assertLess(client.remote.reads.in_flight.pending, 2 * client.remote.reads.window)
        for pull in pulls:
            pull.cancel()
            self.failureResultOf(pull, CancelledError)
        self.network.clock.advance(1)
        self.assertEqual(self.network.leftovers(), [])
        self.assertEqual(client.remote.open_images(), set())

    def test_too_large(self) -> None:
        """An image that does not fit the cache is refused; the error names both sizes."""
        self.make(size=9 * MIB, cache_size=8 * MIB)
        text = self.assert_error(errno.ENOSPC, self.pull())
        self.assertEqual(text, "the image has 9.0 MiB of data, the cache 8.0 MiB")
        self.assertEqual(self.sent(), 0)

    def test_holes(self) -> None:
        """Of a sparse image the data is pulled, and needs to fit; its holes count as held."""
        self.make(cache_size=2 * MIB)
        content = bytearray(16 * MIB)
        content[4 * MIB : 5 * MIB] = self.network.random.randbytes(MIB)
        image = self.network.library.put(b"sparse.img", bytes(content))
        image.runs = [(4 * MIB, 5 * MIB)]
        image.attributes = evolve(image.attributes, blocks=MIB // 512)
        done = self.network.run(self.pull(path=b"sparse.img"))
        self.assertEqual((done.size, done.held, done.asked), (16 * MIB, 16 * MIB, MIB))
        self.assertLess(self.sent(), 1.02 * MIB)
        self.assert_all_there(path=b"sparse.img")
        large = self.network.library.put(b"large.img", bytes(content))
        large.runs = [(0, 2 * MIB + 4096)]
        large.attributes = evolve(large.attributes, blocks=MIB // 512)
        text = self.assert_error(errno.ENOSPC, self.pull(path=b"large.img"))
        self.assertEqual(text, "the image has 2.0 MiB of data, the cache 2.0 MiB")

    def test_fits_exactly(self) -> None:
        """One that fits exactly replaces others, and none of its own blocks."""
        self.make(size=8 * MIB, cache_size=8 * MIB)
        self.network.put_image(b"other.img", 4 * MIB)
        self.network.run(self.network.read_all(0, b"disk.img"))
        self.network.run(self.network.read_all(0, b"other.img"))
        before = self.sent()
        self.network.run(self.pull())
        self.assertLess(self.sent() - before, 1.02 * 4 * MIB)
        self.assert_all_there()

    def test_slow_disk(self) -> None:
        """While the disk is behind, nothing more is requested."""
        self.make(link=1e8, rate_max=1e8)
        client = self.network.clients[0]
        pulling = self.pull()
        self.network.clock.advance(0.1)
        behind = True
        storage: Any = client.cache._storage
        self.patch(storage, "is_behind", lambda: behind)
        self.network.clock.advance(2)
        asked = client.remote.reads.requests.bytes_requested
        self.assertLess(asked, SIZE)
        self.network.clock.advance(2)
        self.assertEqual(client.remote.reads.requests.bytes_requested, asked)
        behind = False
        self.network.run(pulling)
        self.assert_all_there()

    def test_full_disk(self) -> None:
        """A disk that accepts nothing for long ends the pull."""
        self.make()
        storage: Any = self.network.clients[0].cache._storage
        self.patch(storage, "is_behind", lambda: True)
        self.assert_error(errno.ENOSPC, self.pull())
        self.assertGreater(self.network.clock.seconds(), DISK_TIMEOUT)
        self.assertEqual(self.network.leftovers(), [])

    def test_no_room(self) -> None:
        """Images that evict each other do not keep pulls running for ever."""
        self.make(size=6 * MIB, cache_size=8 * MIB)
        self.network.put_image(b"other.img", 6 * MIB)
        both = DeferredList([self.pull(), self.pull(path=b"other.img")], consumeErrors=True)
        results = self.network.run(both)
        self.assertFalse(all(ok for ok, _ in results))
        self.assertLess(self.sent(), MAX_PASSES * 2 * 1.1 * 6 * MIB)

    def test_errors(self) -> None:
        """An image that cannot be opened ends the pull with the server's error."""
        self.make()
        self.assert_error(errno.ENOENT, self.pull(path=b"none"))

    def test_unreadable(self) -> None:
        """So does one that cannot be read."""
        self.make()
        self.network.library.images[b"disk.img"].read = self.broken  # type: ignore[method-assign]
        self.assert_error(errno.EIO, self.pull())
        self.assertEqual(self.network.leftovers(), [])

    def broken(self, offset: int, length: int) -> bytes:
        """A disk that fails."""
        raise OSError(errno.EIO, "input/output error")

    def test_replaced(self) -> None:
        """An image that is replaced meanwhile ends the pull with ESTALE."""
        self.make(link=1e8, rate_max=1e8)
        pulling = self.pull()
        self.network.clock.advance(0.3)
        self.network.put_image(b"disk.img", SIZE)
        self.assert_error(errno.ESTALE, pulling)

    def test_server_away(self) -> None:
        """While the server is away the pull waits and says so; then it continues where it was."""
        self.make(link=1e8, rate_max=1e8)
        pulling = self.pull()
        self.network.clock.advance(0.4)
        self.network.restart_server(5 * PROGRESS_INTERVAL)
        sent = self.sent()
        self.network.run(pulling)
        self.assertIn(False, [each.connected for each in self.told])
        self.assertGreater(sent, SIZE // 4)
        self.assertLess(self.sent() + sent, 1.3 * SIZE)
        self.assert_all_there()

    def test_server_not_there_yet(self) -> None:
        """A pull that starts without a server waits for it."""
        self.make()
        self.network.restart_server(3)
        pulling = self.pull()
        self.network.clock.advance(2)
        self.assertEqual(self.told[-1], Progress(0, 0, 0, 0, False))
        self.network.run(pulling)

    def test_reader_gives_up(self) -> None:
        """A reader that cancels what the pull waits for, too, does not end it."""
        self.make(link=1e8, rate_max=1e8)
        client = self.network.clients[0]
        handle, _ = self.network.run(client.remote.open(b"disk.img"))
        opened = client.remote.opened(handle)
        pulling = self.pull()
        self.network.clock.advance(0.1)
        for key, extent in list(client.remote.reads.in_flight.requested):
            self.assertEqual(key, opened.key)
            target = memoryview(bytearray(EXTENT))
            reading = client.remote.reader.read(opened, extent * EXTENT, target)
            reading.addErrback(lambda failure: failure.trap(CancelledError))
            reading.cancel()
        self.network.run(pulling)
        self.assert_all_there()

    def test_limit(self) -> None:
        """The number of pulls at a time is bounded."""
        self.make(link=1e6)
        pulls = [self.pull() for _ in range(MAX_PULLS)]
        self.failureResultOf(self.pull(), OSError)
        for pull in pulls:
            pull.cancel()
            self.failureResultOf(pull, CancelledError)

    def test_large(self) -> None:
        """Checking a large cached image lets the reactor do other work."""
        size = 2 * MAX_EXTENTS_PER_TURN * EXTENT + 1
        self.make(size=0, cache_size=size + BLOCK)
        client = self.network.clients[0]
        image = self.network.put_image(b"disk.img", 1)
        image.attributes = evolve(image.attributes, size=size)
        self.patch(client.cache, "missing", lambda *_: 0)
        pulling = self.pull()
        self.assertEqual(self.network.run(pulling).held, size)
