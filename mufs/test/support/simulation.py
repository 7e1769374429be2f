"""
One real server and any number of real clients, joined by a simulated network.

There are no sockets, threads or real waits: time is virtual, and all randomness is seeded, so that
a network gives the same figures each time.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

from attrs import evolve
from twisted.application.internet import ClientService
from twisted.internet.defer import (
    Deferred,
    DeferredList,
    TimeoutError,
    ensureDeferred,
    fail,
    maybeDeferred,
    succeed,
)
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.channel import ClientChannel, ClientChannelFactory, Refused
from mufs.communication.client.group_socket import RECEIVE_BUFFER
from mufs.communication.server.intake import Intake
from mufs.communication.server.limits import Limits
from mufs.communication.server.output import SEND_BUFFER, ISegmentOutput
from mufs.filesystem.client.images import OpenImage
from mufs.filesystem.client.pull import Pulls
from mufs.filesystem.client.remote import RemoteFileSystem
from mufs.filesystem.client.server_pulls import ServerPulls
from mufs.server_core import make_server_core
from mufs.status.client_figures import client_measurements
from mufs.status.server_figures import server_totals
from mufs.test.support.memory import MemoryImage, MemoryLibrary
from mufs.test.support.virtual import FRAME, STRIDE, Link, Path, Stream, VirtualTime
from mufs.wire.metadata import VERSION, Welcome
from mufs.wire.pages import BLOCK, EXTENT
from mufs.wire.segments import SEGMENT

MIB = 1024 * 1024


@implementer(ISegmentOutput)
class SimulatedServer:
    """One run of the server: its core and a simulated UDP port."""

    def __init__(self, network: SimulatedNetwork, run: int) -> None:
        self._network = network
        self._clock = network.clock
        self.source = "server", 40000 + run
        self.closed = False
        self.core = core = make_server_core(
            self._clock,
            rate_min=1e6,
            rate_max=network.rate_max,
            secret=b"secret of run %d" % run,
            view=lambda _: network.library,
            read_in_thread=self._in_thread,
            look_up_in_thread=self._in_thread,
            pack_in_thread=self._in_thread,
            welcome=lambda _: Welcome(VERSION, "239.5.5.0", 7041, self.source, SEGMENT),
            limits=Limits(self._clock, lambda: 0.0),
        )
        self.queue = core.queue
        self.window = core.window
        self.reads = core.reads
        self.keys = core.keys
        self.controller = core.controller
        self.factory = core.factory
        self.controller.output = self

    def write(self, packets: bytes | memoryview) -> int:
        """See L{ISegmentOutput.write}."""
        link, now = self._network.link, self._clock.seconds()
        if link.waiting(now) > SEND_BUFFER:
            return 0
        start = max(now, link.free_at)
        end = link.through(now, len(packets) + FRAME * -(-len(packets) // STRIDE))
        data = bytes(packets)
        for client in self._network.clients:
            if client.listening:
                for at, received in client.path.datagrams(start, end, data):
                    self._clock.callLater(at - now, client.receive, received, self.source)
        return len(packets)

    def writable(self) -> Deferred[None]:
        """See L{ISegmentOutput.writable}."""
        link = self._network.link
        over = link.waiting(self._clock.seconds()) - SEND_BUFFER / 2
        return deferLater(self._clock, max(0.0, over * 8 / (link.rate or 1)), lambda: None)

    def kill(self) -> None:
        """End the process: abort its connections, and send nothing more."""
        self.closed = True
        self.controller.stop()
        for channel in list(self.factory.channels):
            channel.transport.abortConnection()

    def figures(self) -> dict[str, object]:
        """Return the totals that a real server shows."""
        return server_totals(self.core, tls=False)

    def _in_thread(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        if self._network.disk:
            return deferLater(self._clock, self._network.disk, function, *args)
        return maybeDeferred(function, *args)


@implementer(IStreamClientEndpoint)
class SimulatedClient:
    """A client composed as in L{mufs.client}, without mount and threads."""

    def __init__(self, network: SimulatedNetwork, name: str, path: Path, cache_size: int) -> None:
        self._network = network
        self._clock = network.clock
        self.name = name
        self.path = path
        self.listening = True
        self.cache = BlockCache(cache_size)
        self.remote = RemoteFileSystem(
            self._clock,
            self.cache,
            cache_size // 4,
            on_welcome=self._welcomed,
            on_moved=self._moved,
            on_refused=self._refused,
        )
        self.pulls = Pulls(self.remote, self.cache, self._clock)
        self.remote.server_pulls = ServerPulls(self.pulls, self._clock, self.remote.send)
        self.remote.reads.limit(RECEIVE_BUFFER)
        self.remote.multicast_health.join = self._join
        self.longest_wait = 0.0
        self.refused: list[Refused] = []
        self.connections = 0
        self.stream: Stream | None = None
        factory = ClientChannelFactory(self.remote, self._clock, name)
        factory.max_transfer = network.max_transfer
        self.service = ClientService(
            self,
            factory,
            retryPolicy=lambda attempts: 0.2,
            clock=self._clock,
        )

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """See L{IStreamClientEndpoint}; fails when no server runs."""
        server = self._network.server
        if server.closed:
            return fail(ConnectionRefusedError())
        clock, link = self._clock, self._network.link
        here = Stream(clock, self.name, lambda size: clock.seconds() + self.path.latency)
        through = link.overtaking if self._network.fair else link.through
        there = Stream(
            clock, "server", lambda size: self.path.tcp(through(clock.seconds(), size), size)
        )
        here.peer, there.peer = there, here
        here.protocol = factory.buildProtocol(None)  # type: ignore[arg-type, assignment]
        there.protocol = server.factory.buildProtocol(None)
        self.stream = here
        self.connections += 1
        for stream in (there, here):
            assert stream.protocol is not None
            stream.protocol.makeConnection(stream)
        return succeed(here.protocol)

    def receive(self, data: bytes, source: tuple[str, int]) -> None:
        """Receive datagrams."""
        receiver = self.remote.receiver
        if source == receiver.source:
            receiver.received(memoryview(data), [len(data)], self._clock.seconds())
        else:
            receiver.datagrams_dropped += 1

    def cut(self) -> None:
        """Cut the connection."""
        if self.stream is not None:
            self.stream.end(ConnectionLost())

    @property
    def hits(self) -> int:
        """Reads that the cache answered."""
        return self.remote.reads.deliveries.hits.total

    def figures(self) -> dict[str, object]:
        """Return the figures of a client that need no mount, and the longest wait of a read."""
        figures = client_measurements(self.remote, self.cache, cache_size=self.cache.capacity)
        return {**figures, "longest_wait": self.longest_wait}

    def leftovers(self) -> list[str]:
        """Return the requests and reads still held: none, once all reads have ended."""
        names = ("requests", "requested", "waiting")
        tables = {name: getattr(self.remote.reads.in_flight, name) for name in names}
        return [f"{self.name}: {name} {table}" for name, table in tables.items() if table]

    def open(self, path: bytes) -> Deferred[Any]:
        """Open an image, and keep it open."""
        return self.remote.open(path)

    async def read_all(self, path: bytes, at_once: int, size: int, pause: float) -> float:
        """See L{SimulatedNetwork.read_all}."""
        begun = self._clock.seconds()
        handle, _ = await self.remote.open(path)
        opened = self.remote.opened(handle)
        offsets = iter(range(0, opened.size, size))
        try:
            readers = [self._reader(opened, offsets, size, pause) for _ in range(at_once)]
            done = DeferredList(map(ensureDeferred, readers), consumeErrors=True)
            for _, result in await done:
                if isinstance(result, Failure):
                    result.raiseException()
        finally:
            self.remote.release(handle)
        return self._clock.seconds() - begun

    async def _reader(
        self, opened: OpenImage, offsets: Iterator[int], size: int, pause: float
    ) -> None:
        for offset in offsets:
            data = await self.read(opened, offset, size)
            right = self._network.library.generations[opened.key][offset : offset + size]
            if data != right:
                raise AssertionError(f"{self.name}: wrong bytes at {offset} of {opened.path!r}")
            if pause:
                await deferLater(self._clock, pause)

    async def read(self, opened: OpenImage, offset: int, size: int) -> bytes:
        """Read as a thread of the mount does."""
        target = bytearray(size)
        view = memoryview(target)
        reader, cross = self.remote.reader, partial(self._clock.callLater, 0)
        length = reader.read_cached(opened, offset, view, cross=cross)
        if length is not None:
            return bytes(target[:length])
        begun = self._clock.seconds()
        try:
            reading = maybeDeferred(reader.read, opened, offset, view)
            length = await reading.addTimeout(self._network.timeout, self._clock)
        except TimeoutError:
            raise OSError(errno.EIO, "no answer from the server in time") from None
        finally:
            self.longest_wait = max(self.longest_wait, self._clock.seconds() - begun)
        return bytes(target[:length])

    def _welcomed(self, channel: ClientChannel, welcome: Welcome) -> None:
        self.remote.receiver.listen_to(welcome.source, welcome.segment)
        self.remote.multicast_health.resumed()

    def _moved(self, welcome: Welcome) -> None:
        self.remote.receiver.follow(welcome.source)

    def _join(self, joined: bool) -> None:
        self.listening = joined

    def _refused(self, reason: Refused) -> None:
        self.refused.append(reason)


class SimulatedNetwork:
    """
    A server, its clients, and the network between them.

    @ivar link: the server's link, shared by TCP and multicast; when it is the bottleneck,
        writes wait, as on a socket with a full send buffer.
    @ivar disk: seconds that a call of the library takes.
    """

    def __init__(
        self,
        seed: int,
        clients: int = 1,
        link: float | None = None,
        fair: bool = False,
        rate_max: float = 1e9,
        disk: float = 0.0,
        cache_size: int = 64 * 1024 * 1024,
        timeout: float = 30.0,
        max_transfer: int = EXTENT,
        **path: Any,
    ) -> None:
        """
        @param max_transfer: what the clients say in HELLO.
        @param link: rate of the server's link in bits a second, or C{None} for no limit.
        @param path: attributes of the L{Path} to each client.
        """
        self.seed = seed
        self.random = random.Random(seed)
        self.clock = VirtualTime()
        self.link = Link(link)
        self.fair = fair
        self.rate_max = rate_max
        self.disk = disk
        self.timeout = timeout
        self.max_transfer = max_transfer
        self.library = MemoryLibrary()
        self._runs = count()
        self.server = SimulatedServer(self, next(self._runs))
        self.clients = [
            SimulatedClient(self, f"host{i}", Path(**path, random=self._chances()), cache_size)
            for i in range(clients)
        ]
        for client in self.clients:
            client.service.startService()
        self.clock.advance(0.01)

    def _chances(self) -> random.Random:
        return random.Random(self.random.random())

    def put_image(self, path: bytes, size: int) -> MemoryImage:
        """Add an image of random bytes, or replace it."""
        parts = [self.random.randbytes(min(MIB, size - at)) for at in range(0, size, MIB)]
        return self.library.put(path, b"".join(parts))

    def set_path(self, number: int, **changes: Any) -> None:
        """Change the path between the server and one client."""
        client = self.clients[number]
        client.path = evolve(client.path, **changes)

    def read_all(
        self, number: int, path: bytes, at_once: int = 4, size: int = BLOCK, pause: float = 0.0
    ) -> Deferred[float]:
        """
        Have a client read an image from beginning to end, as a kernel with read-ahead does,
        and compare each read with the generation that was opened.

        @param at_once: reads in flight, each of C{size} bytes.
        @param pause: seconds between the end of a read and the next.
        @return: fires with the seconds that it took; fails with the C{OSError} of a read, or with
            C{AssertionError} when bytes are wrong.
        """
        return ensureDeferred(self.clients[number].read_all(path, at_once, size, pause))

    def run(self, until: Deferred[Any], at_most: float = 600.0) -> Any:
        """
        Advance the clock until a Deferred fires, and return its result.

        @raise AssertionError: when it has not fired after C{at_most} seconds.
        """
        results: list[Any] = []
        until.addBoth(results.append)
        self.clock.run_until(lambda: bool(results), self.clock.seconds() + at_most)
        if not results:
            raise AssertionError(f"seed {self.seed}: no result after {at_most} seconds")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def lockstep(self, path: bytes, apart: float = 0.0, **how: Any) -> list[float]:
        """Have all clients read an image, each starting C{apart} seconds after the previous one."""
        reads = [
            deferLater(self.clock, apart * i, self.read_all, i, path, **how)
            for i in range(len(self.clients))
        ]
        results = self.run(DeferredList(reads, consumeErrors=True))
        for _, result in results:
            if isinstance(result, Failure):
                result.raiseException()
        return [seconds for _, seconds in results]

    def restart_server(self, after: float) -> None:
        """Kill the server, and start one with a new secret and port C{after} seconds later."""
        self.server.kill()

        def start() -> None:
            self.server = SimulatedServer(self, next(self._runs))

        self.clock.callLater(after, start)

    def figures(self) -> dict[str, dict[str, object]]:
        """Return the figures of the server and of all clients."""
        return {
            "server": self.server.figures(),
            **{client.name: client.figures() for client in self.clients},
        }

    def leftovers(self) -> list[str]:
        """
        Return the requests, reads and timers still held two seconds after everything ended: the
        rate may be as low as that of one transfer in a second.
        """
        self.clock.advance(2.0)
        left = [each for client in self.clients for each in client.leftovers()]
        left += [f"server: {len(self.server.queue)} entries"] * bool(len(self.server.queue))
        calls = [getattr(call.func, "__qualname__", "") for call in self.clock.getDelayedCalls()]
        # Each end of a connection has a timer that checks the other one.
        for end in (ClientChannel._check_silence.__qualname__, Intake.check_idle.__qualname__):
            watches = calls.count(end)
            calls = [call for call in calls if call != end]
            left += [f"{watches} watches"] * (watches > len(self.clients))
        return left + calls
