"""Any use of a server by some hosts while anything happens to them, by chance."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.simulation import MIB, SimulatedClient, SimulatedNetwork
from mufs.test.support.virtual import Stream
from mufs.wire.metadata import NOBODY
from mufs.wire.pages import BLOCK, EXTENT, PAGE

PATHS = b"a.img", b"b.img"

MAX_WAIT_SECONDS = 10.0
"""
What a read may wait: two connections that end, a host that hears nothing for a second, and what
goes by TCP over a slow link.
"""


class RandomUse:
    """
    One run, all of which follows from its seed.

    @ivar faults: what went wrong.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = chance = random.Random(seed)
        self.faults: list[str] = []
        self.is_over = False
        pick = chance.choice
        self.network = SimulatedNetwork(
            seed,
            clients=pick([1, 2, 3]),
            link=pick([None, 1e8, 1e9]),
            fair=pick([True, False]),
            disk=pick([0.0, 0.001, 0.02]),
            cache_size=pick([BLOCK, MIB, 64 * MIB]),
            max_transfer=pick([BLOCK, 3 * BLOCK, EXTENT]),
            latency=pick([0.0001, 0.001, 0.02]),
            loss=pick([0.0, 0.01, 0.1]),
            jitter=pick([0.0, 0.002]),
            duplicates=pick([0.0, 0.02]),
        )
        for client in self.network.clients:
            if chance.random() < 0.3:
                client.remote.reads.limit(pick([BLOCK, MIB]))
        for path in PATHS:
            self.put(path)

    def put(self, path: bytes) -> None:
        """Make or replace an image, with some holes that the server may know."""
        size = self.chance.choice([1, PAGE, BLOCK - 1, MIB, 2 * MIB + 77])
        data, begin = bytearray(size), 0
        runs: list[tuple[int, int]] = []
        while begin < size:
            end = min(size, begin + self.chance.choice([PAGE, 10 * PAGE, 3 * BLOCK, EXTENT, size]))
            if self.chance.random() < 0.8:
                data[begin:end] = self.chance.randbytes(end - begin)
                starts = runs.pop()[0] if runs and runs[-1][1] == begin else begin
                runs.append((starts, end))
            begin = end
        image = self.network.library.put(path, bytes(data))
        if self.chance.random() < 0.7:
            image.runs, image.max_runs = runs, self.chance.choice([1, 5])

    def sleep(self, most: float) -> Deferred[None]:
        """Fires after some time."""
        return deferLater(self.network.clock, self.chance.uniform(0, most), lambda: None)

    def run(self) -> None:
        """Have all clients read while anything happens."""
        network = self.network
        readers = [
            ensureDeferred(self.read(client))
            for client in network.clients
            for _ in range(self.chance.randint(1, 3))
        ]
        happening = ensureDeferred(self.happen())
        for succeeded, result in network.run(DeferredList(readers, consumeErrors=True)):
            if not succeeded:
                self.faults.append(result.getTraceback())
        self.is_over = True
        network.run(happening)
        network.clock.advance(2 * MAX_WAIT_SECONDS)
        # A report may be on its way.
        on_its_way = Stream._arrive.__qualname__
        self.faults += [each for each in network.leftovers() if each != on_its_way]
        self.faults += [
            f"{client.name}: {client.remote.reads.in_flight.pending} bytes pending"
            for client in network.clients
            if client.remote.reads.in_flight.pending
        ]
        self.faults += [
            f"{channel.name} waits for {channel.share.waiting} bytes"
            for channel in network.server.factory.channels
            if channel.share.waiting
        ]

    async def read(self, client: SimulatedClient) -> None:
        """Open images, and read from each in one of several ways."""
        for _ in range(3):
            handle, _ = await client.remote.open(self.chance.choice(PATHS))
            opened = client.remote.opened(handle)
            position, size = 0, self.chance.choice([PAGE, 4 * PAGE, BLOCK, EXTENT, 2 * EXTENT])
            in_sequence = self.chance.random() < 0.5
            for _ in range(self.chance.randint(1, 30)):
                if not in_sequence:
                    position = self.chance.randrange(opened.size)
                elif position >= opened.size:
                    position = 0
                try:
                    data = await self.read_once(client.read(opened, position, size))
                except OSError as error:
                    if error.errno != errno.ESTALE:
                        self.faults.append(f"{client.name}: {error}")
                    break
                right = self.network.library.generations[opened.key][position:][:size]
                if data not in (None, right):
                    self.faults.append(f"{client.name}: wrong bytes at {position} of {opened.key}")
                position += size
                if self.chance.random() < 0.2:
                    await self.sleep(0.3)
            client.remote.release(handle)

    async def read_once(self, reading: Coroutine[Any, Any, bytes]) -> bytes | None:
        """The bytes of a read; C{None} if it was given up before."""
        began = self.network.clock.seconds()
        deferred = ensureDeferred(reading)
        if self.chance.random() < 0.1:
            self.network.clock.callLater(self.chance.choice([0.0, 0.01, 0.2]), deferred.cancel)
        try:
            return await deferred
        except CancelledError:
            return None
        finally:
            if self.network.clock.seconds() - began > MAX_WAIT_SECONDS:
                self.faults.append(f"a read that began at {began:g} waited too long")

    async def happen(self) -> None:
        """Have one thing after the other happen."""
        kinds = [self.cut, self.replace, self.renew_keys, self.restart, self.mute, self.leave]
        kinds += [self.stall, self.pull]
        while not self.is_over:
            await self.sleep(0.7)
            self.chance.choice(kinds)(self.chance.choice(self.network.clients))

    def later(self, function: Any, *args: Any) -> None:
        """Call a function within a second."""
        self.network.clock.callLater(self.chance.random(), function, *args)

    def cut(self, client: SimulatedClient) -> None:
        """A connection is cut."""
        client.cut()

    def replace(self, client: SimulatedClient) -> None:
        """An image is replaced."""
        self.put(self.chance.choice(PATHS))

    def renew_keys(self, client: SimulatedClient) -> None:
        """There are new keys."""
        self.network.server.controller.expelled()

    def restart(self, client: SimulatedClient) -> None:
        """The server is started anew."""
        if not self.network.server.closed:
            self.network.restart_server(self.chance.random())

    def mute(self, client: SimulatedClient) -> None:
        """The server has no group to send to for a while."""
        controller = self.network.server.controller
        if controller.output is not None:
            self.later(setattr, controller, "output", controller.output)
            controller.output = None

    def leave(self, client: SimulatedClient) -> None:
        """A client hears nothing of the group for a while."""
        client.listening = False
        self.later(setattr, client, "listening", True)

    def stall(self, client: SimulatedClient) -> None:
        """Nothing comes over a connection for a while."""
        if client.stream is not None:
            stream = self.chance.choice([client.stream, client.stream.peer])
            stream.pauseProducing()
            self.later(stream.resumeProducing)

    def pull(self, client: SimulatedClient) -> None:
        """An image is pulled, or that is begun."""
        pulling = client.pulls.pull(self.chance.choice(PATHS), NOBODY, lambda progress: None)
        pulling.addErrback(lambda failure: failure.trap(OSError, CancelledError))
        if self.chance.random() < 0.5:
            self.later(pulling.cancel)


class RandomUseTests(SynchronousTestCase):
    """
    Runs by chance. C{MUFS_TEST_SEED} sets the first seed, C{MUFS_TEST_RUNS} how many there are.
    """

    def test_right(self) -> None:
        """Reads are right, wait a bounded time, and leave nothing behind on any side."""
        first = int(os.environ.get("MUFS_TEST_SEED", "1"))
        for seed in range(first, first + int(os.environ.get("MUFS_TEST_RUNS", "10"))):
            use = RandomUse(seed)
            use.run()
            self.assertEqual(use.faults, [], f"MUFS_TEST_SEED={seed} MUFS_TEST_RUNS=1")
        self.assertEqual(self.flushLoggedErrors(), [])
