"""A server and its clients on a simulated network that loses, delays and reorders packets."""

from __future__ import annotations

import errno
import os
from typing import Any

from twisted.internet.defer import DeferredList, ensureDeferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mufs.communication.server.output import ISegmentOutput
from mufs.filesystem.client.reading.core import MAX_WINDOW
from mufs.interfaces import IImage, IImageLibrary
from mufs.test.support.simulation import MIB, SimulatedNetwork
from mufs.wire.pages import BLOCK
from mufs.wire.segments import SEGMENT

FAST = 100e6
"""The rate of the links of most tests, in bits a second."""

PATH = b"disk.img"


class SimulationTestCase(SynchronousTestCase):
    """
    Makes simulated networks, and adds the seed to the messages of failed assertions.

    C{MUFS_TEST_SEED} sets another seed.
    """

    seed = int(os.environ.get("MUFS_TEST_SEED", "1"))

    def _formatMessage(self, msg: Any, standardMsg: str) -> str:
        text: str = super()._formatMessage(msg, standardMsg)
        return f"{text} (MUFS_TEST_SEED={self.seed})"

    def make_network(
        self, clients: int = 4, size: int = 4 * MIB + 1234, **settings: Any
    ) -> SimulatedNetwork:
        """Make a network with one image, whose clients have connected to the server."""
        settings.setdefault("link", FAST)
        network = SimulatedNetwork(self.seed, clients, **settings)
        network.put_image(PATH, size)
        self.size = size
        return network

    def results(self, network: SimulatedNetwork, paths: list[bytes] | None = None) -> list[Any]:
        """Have all clients read at the same time, and return their seconds or exceptions."""
        paths = paths or [PATH] * len(network.clients)
        reads = [network.read_all(number, path) for number, path in enumerate(paths)]
        done = network.run(DeferredList(reads, consumeErrors=True))
        return [r.value if isinstance(r, Failure) else r for _, r in done]

    def assert_clean(self, network: SimulatedNetwork) -> None:
        """Assert that no side holds requests any more, and that no failure was logged."""
        self.assertEqual(network.leftovers(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def assert_all_right(self, network: SimulatedNetwork) -> float:
        """Assert that all clients read the image right; return the seconds of the slowest one."""
        seconds = network.lockstep(PATH)
        self.assert_clean(network)
        return max(seconds)

    def ideal(self, rate: float = FAST) -> float:
        """Return the seconds for sending the image, without headers, at a rate."""
        return self.size * 8 / rate

    def multicast_share(self, network: SimulatedNetwork) -> float:
        """Return the multicast bytes sent for each byte of the image."""
        return network.server.controller.bytes_multicast / self.size


class DoubleTests(SimulationTestCase):
    """The simulated network itself."""

    def test_interfaces(self) -> None:
        """The doubles provide the interfaces that they replace."""
        network = self.make_network(clients=1)
        verifyObject(IImageLibrary, network.library)
        verifyObject(IImage, network.library.images[PATH])
        verifyObject(ISegmentOutput, network.server)
        verifyObject(IStreamClientEndpoint, network.clients[0])

    def test_repeatable(self) -> None:
        """The same seed gives the same figures, to the last bit of each time."""
        bad = {"loss": 0.05, "jitter": 0.002, "duplicates": 0.01, "disk": 0.001}
        networks = [self.make_network(3, 2 * MIB, **bad) for _ in range(2)]
        times = [network.lockstep(PATH, apart=0.03) for network in networks]
        self.assertEqual(times[0], times[1])
        self.assertEqual(networks[0].figures(), networks[1].figures())

    def test_seed_matters(self) -> None:
        """With another seed, other datagrams are lost."""
        networks = [SimulatedNetwork(seed, 2, link=FAST, loss=0.05) for seed in (1, 2)]
        for network in networks:
            network.put_image(PATH, MIB)
            network.lockstep(PATH)
        self.assertNotEqual(networks[0].figures(), networks[1].figures())

    def test_wrong_bytes_are_noticed(self) -> None:
        """A read that returns wrong bytes fails the test."""
        network = self.make_network(clients=1, size=MIB)
        image = network.library.images[PATH]
        image.content = bytes(MIB)
        self.assertRaises(AssertionError, network.lockstep, PATH)


class LosslessTests(SimulationTestCase):
    """A network without loss."""

    def check_once(self, clients: int) -> None:
        """Assert that clients in lockstep cause one disk read and one transfer of each block."""
        network = self.make_network(clients)
        seconds = self.assert_all_right(network)
        self.assertEqual(network.server.reads.image_read_bytes, self.size)
        self.assertLessEqual(self.multicast_share(network), 1.02)
        self.assertEqual(network.server.factory.bytes_over_tcp, 0)
        self.assertEqual(network.server.controller.segments_repaired, 0)
        self.assertLess(seconds, 1.15 * self.ideal())

    def test_one_client(self) -> None:
        """One client is sent the image once, at the speed of the link."""
        self.check_once(1)

    def test_four_clients(self) -> None:
        """Four clients in lockstep cause no more traffic than one, and take no longer."""
        self.check_once(4)

    def test_sixteen_clients(self) -> None:
        """Sixteen clients in lockstep cause no more traffic than one, and take no longer."""
        self.check_once(16)

    def test_fast_link(self) -> None:
        """A link of 1 Gbit/s is used fully."""
        network = self.make_network(4, 32 * MIB, link=1e9)
        self.assertLess(self.assert_all_right(network), 1.5 * self.ideal(1e9))
        self.assertLessEqual(self.multicast_share(network), 1.02)

    def test_slow_disk(self) -> None:
        """A library that takes 5 ms for each read does not slow the link down."""
        network = self.make_network(4, disk=0.005)
        self.assertLess(self.assert_all_right(network), 1.15 * self.ideal())

    def test_late_openers(self) -> None:
        """Clients that open the image while it is sent cause no repairs, and count no losses."""
        network = self.make_network(4)
        # The rate grows beyond the link's, so that nobody opens the image within a transfer.
        network.put_image(b"another", 4 * MIB)
        network.run(network.read_all(0, b"another"))
        network.lockstep(PATH, apart=0.05)
        self.assert_clean(network)
        self.assertEqual(network.server.controller.segments_repaired, 0)
        for client in network.clients:
            repairs = client.remote.repairs
            self.assertEqual((repairs.segments_lost, repairs.repairs_sent), (0, 0))

    def test_reordering(self) -> None:
        """Datagrams reordered by up to 5 ms cause no repairs."""
        network = self.make_network(4, jitter=0.005)
        self.assert_all_right(network)
        self.assertEqual(network.server.controller.segments_repaired, 0)

    def test_duplication(self) -> None:
        """Duplicated datagrams change nothing."""
        network = self.make_network(4, duplicates=0.3)
        self.assert_all_right(network)
        self.assertEqual(network.server.controller.segments_repaired, 0)
        self.assertEqual(network.clients[0].remote.receiver.transfers_rejected, 0)

    def test_single_datagrams(self) -> None:
        """Datagrams that are delivered one by one give the right bytes."""
        network = self.make_network(2, 2 * MIB, joined=False)
        self.assert_all_right(network)
        self.assertLessEqual(self.multicast_share(network), 1.02)

    def test_small_reads(self) -> None:
        """Reads of 4 KiB are mostly hits, and cause no more traffic than large ones."""
        network = self.make_network(4, 2 * MIB)
        network.lockstep(PATH, size=4096, at_once=1)
        self.assertLessEqual(self.multicast_share(network), 1.02)
        self.assertGreater(network.clients[0].hits, 0.9 * self.size / 4096)
        self.assert_clean(network)

    def test_odd_reads(self) -> None:
        """Reads that cross page and block boundaries return the right bytes."""
        network = self.make_network(2, MIB + 4097)
        network.lockstep(PATH, size=70_001, at_once=3)
        self.assert_clean(network)

    def test_small_cache(self) -> None:
        """Clients with caches smaller than the image read it right, and it is sent once."""
        network = self.make_network(4, cache_size=MIB)
        self.assert_all_right(network)
        self.assertLessEqual(self.multicast_share(network), 1.02)
        for client in network.clients:
            self.assertLessEqual(client.cache.held, MIB)
            self.assertGreater(client.cache.evictions, 0)

    def test_large_reads(self) -> None:
        """Reads of 1 MiB are right, and what is on its way fits into the receive buffer."""
        for buffer in (212_992, 16 * MIB):
            network = self.make_network(2, 8 * MIB + 1234, max_transfer=BLOCK, cache_size=32 * MIB)
            for client in network.clients:
                client.remote.reads.limit(buffer)
            reads = [network.read_all(number, PATH, at_once=1, size=MIB) for number in range(2)]
            done = DeferredList(reads)
            for _ in range(100):
                network.clock.advance(0.01)
                for client in network.clients:
                    self.assertLessEqual(client.remote.reads.in_flight.pending, 2 * buffer)
            network.run(done)
            self.assert_clean(network)
            self.assertLessEqual(self.multicast_share(network), 1.02)

    def test_one_block_of_cache(self) -> None:
        """With a cache of one block, reads return the right bytes."""
        network = self.make_network(2, MIB, cache_size=BLOCK)
        self.assert_all_right(network)

    def test_second_reading(self) -> None:
        """A second reading is answered from the cache, without any request."""
        network = self.make_network(2)
        self.assert_all_right(network)
        requests = network.server.queue.requests
        network.lockstep(PATH)
        self.assert_clean(network)
        self.assertEqual(network.server.queue.requests, requests)

    def test_overheard(self) -> None:
        """A client with an open image reads what it has overheard without any request."""
        network = self.make_network(2)
        network.run(network.clients[1].open(PATH))
        network.run(network.read_all(0, PATH))
        before = network.server.queue.requests
        network.run(network.read_all(1, PATH))
        self.assertEqual(network.server.queue.requests, before)
        self.assertEqual(network.clients[1].remote.reads.bytes_overheard, self.size)

    def test_different_images(self) -> None:
        """Clients that read different images get the right bytes, and a fair share of the link."""
        network = self.make_network(4)
        paths = [PATH]
        for number in range(3):
            paths.append(b"%d.img" % number)
            network.put_image(paths[-1], self.size)
        seconds = self.results(network, paths)
        self.assertLess(max(seconds), 4 * 1.15 * self.ideal())
        self.assertLess(max(seconds), 1.2 * min(seconds))
        self.assert_clean(network)

    def test_empty_and_tiny_images(self) -> None:
        """Images of 0 bytes and of 1 byte are read right."""
        for size in (0, 1, SEGMENT, 4096, BLOCK, BLOCK + 1):
            network = self.make_network(2, size)
            self.assert_all_right(network)

    def test_after_idleness(self) -> None:
        """Reads after an idle minute are as fast as before."""
        network = self.make_network(2)
        network.put_image(b"next.img", self.size)
        network.lockstep(PATH)
        network.clock.advance(60)
        self.assertLess(max(network.lockstep(b"next.img")), 1.15 * self.ideal())


class StaggeredTests(SimulationTestCase):
    """Clients that start one after the other."""

    def test_right(self) -> None:
        """Late clients read right, and much of it was requested by others."""
        network = self.make_network(4, 16 * MIB)
        network.lockstep(PATH, apart=0.1)
        self.assert_clean(network)
        self.assertLess(self.multicast_share(network), 1.6)
        self.assertEqual(network.server.reads.image_read_bytes, self.size)

    def test_first_is_not_starved(self) -> None:
        """Late clients, which request earlier parts of the image, do not starve the first one."""
        network = self.make_network(4, 16 * MIB)
        seconds = network.lockstep(PATH, apart=0.1)
        self.assertLess(seconds[0], 1.6 * self.ideal())

    def test_long_after(self) -> None:
        """A client that starts when nothing is left in the server's window reads right."""
        network = self.make_network(2, 4 * MIB)
        network.server.window._limit = MIB
        network.run(network.read_all(0, PATH))
        network.run(network.read_all(1, PATH))
        self.assert_clean(network)

    def test_lossy(self) -> None:
        """Late clients on lossy paths read right."""
        network = self.make_network(4, loss=0.05)
        network.lockstep(PATH, apart=0.05)
        self.assert_clean(network)

    def test_lossy_wave(self) -> None:
        """Losses of many late clients are not repaired for each of them separately."""
        network = self.make_network(60, 2 * MIB, loss=0.01)
        reads = [
            deferLater(network.clock, 0.3 * (number >= 10), network.read_all, number, PATH)
            for number in range(60)
        ]
        for right, result in network.run(DeferredList(reads, consumeErrors=True)):
            self.assertTrue(right, result)
        self.assert_clean(network)
        self.assertLess(self.multicast_share(network), 2.6)
        self.assertLess(network.server.factory.bytes_over_tcp, 0.1 * self.size)


class LossTests(SimulationTestCase):
    """Networks that lose datagrams."""

    def test_one_percent(self) -> None:
        """With 1 % loss at four clients, reads take at most 25 % longer, with few repairs."""
        network = self.make_network(4, 8 * MIB)
        lossless = self.assert_all_right(network)
        network = self.make_network(4, 8 * MIB, loss=0.01)
        self.assertLess(self.assert_all_right(network), 1.25 * lossless)
        self.assertLess(self.multicast_share(network), 1.08)
        self.assertLess(network.server.factory.bytes_over_tcp, 0.01 * self.size)
        self.assertEqual(network.server.reads.image_read_bytes, self.size)

    def test_three_percent(self) -> None:
        """With 3 % loss, repairs by multicast send little more than what was lost."""
        network = self.make_network(4, 8 * MIB, loss=0.03)
        self.assertLess(self.assert_all_right(network), 1.3 * self.ideal())
        self.assertLess(self.multicast_share(network), 1.18)

    def check_lossy(self, loss: float, times: float) -> None:
        """Assert that four clients with a loss read right, in at most C{times} the ideal time."""
        network = self.make_network(4, 8 * MIB, loss=loss)
        self.assertLess(self.assert_all_right(network), times * self.ideal())
        self.assertLess(max(client.longest_wait for client in network.clients), 3.5)

    def test_ten_percent(self) -> None:
        """With 10 % loss, all reads are right, and the rate does not collapse."""
        self.check_lossy(0.1, 2.2)

    def test_twenty_percent(self) -> None:
        """With 20 % loss, all reads are right, and no slower than over separate TCP connections."""
        self.check_lossy(0.2, 4.5)

    def test_thirty_percent(self) -> None:
        """With 30 % loss, all reads are right in bounded time."""
        self.check_lossy(0.3, 6)

    def test_half(self) -> None:
        """With 50 % loss, all reads are right in bounded time."""
        self.check_lossy(0.5, 10)

    def test_all_lost(self) -> None:
        """Without any datagrams, clients soon read over TCP, and their status gives the reason."""
        network = self.make_network(4, loss=1.0)
        seconds = self.assert_all_right(network)
        self.assertLess(seconds, 1.2 * 4 * self.ideal() + 0.5)
        for client in network.clients:
            self.assertIn("nothing arrives", client.remote.multicast_health.state)
        self.assertLess(network.server.factory.bytes_over_tcp, 4.1 * self.size)

    def test_one_deaf(self) -> None:
        """A client that loses all datagrams slows down the others only by its share of the link."""
        network = self.make_network(4, 8 * MIB)
        network.set_path(0, loss=1.0)
        seconds = self.results(network)
        self.assertLess(max(seconds[1:]), 2.2 * self.ideal())
        self.assert_clean(network)

    def test_one_hard_of_hearing(self) -> None:
        """A client that receives 10 % of the datagrams does not stop three others."""
        network = self.make_network(4, 16 * MIB)
        network.set_path(0, loss=0.9)
        seconds = self.results(network)
        self.assertLess(max(seconds[1:]), 3 * self.ideal())
        self.assert_clean(network)

    def test_one_of_two_hard_of_hearing(self) -> None:
        """A client that receives 10 % of the datagrams does not stop a single other one."""
        network = self.make_network(2, 16 * MIB)
        network.set_path(0, loss=0.9)
        seconds = self.results(network)
        self.assertLess(seconds[1], 3 * self.ideal())
        self.assert_clean(network)

    def test_outage(self) -> None:
        """A client whose datagrams are lost for a while catches up, and stays in the group."""
        network = self.make_network(4, 16 * MIB)
        network.clock.callLater(0.2, network.set_path, 0, loss=1.0)
        network.clock.callLater(0.7, network.set_path, 0, loss=0.0)
        seconds = self.results(network)
        self.assertLess(max(seconds), 2 * self.ideal())
        self.assertEqual(network.clients[0].remote.multicast_health.state, "working")
        self.assert_clean(network)

    def test_everything_at_once(self) -> None:
        """With loss, reordering, duplicates, late starts and small caches, all reads are right."""
        network = self.make_network(
            5, 3 * MIB, loss=0.08, jitter=0.004, duplicates=0.1, cache_size=MIB, disk=0.002
        )
        network.lockstep(PATH, apart=0.06, size=100_000)
        self.assert_clean(network)

    def test_many_clients(self) -> None:
        """
        With 1 % loss at a hundred clients, parity segments repair most transfers for all clients,
        and no read waits long.
        """
        for loss in (0.0, 0.01):
            network = self.make_network(100, 4 * MIB, loss=loss, cache_size=2 * MIB)
            seconds = self.assert_all_right(network)
            self.assertLess(self.multicast_share(network), 1.1)
            self.assertLess(seconds, 1.4 * self.ideal())
            self.assertEqual(network.server.reads.image_read_bytes, self.size)
            # What was read ahead is hurried after 0.125 s of waiting.
            self.assertLess(max(client.longest_wait for client in network.clients), 0.25)

    def test_all_connect_at_once(self) -> None:
        """Of hundreds of clients that connect at the same time, none is refused."""
        network = self.make_network(300, MIB, loss=0.01)
        self.assert_all_right(network)
        self.assertEqual(network.server.factory.limits.cut_off, 0)
        self.assertLess(self.multicast_share(network), 1.15)
        self.assertLess(network.server.factory.bytes_over_tcp, 0.1 * self.size)


class CongestionTests(SimulationTestCase):
    """Links that are slower than the server's."""

    def check_switch(self, queue: int, rate: float = FAST) -> None:
        """Assert that client links that are the bottleneck are filled with little loss."""
        network = self.make_network(
            4, 32 * MIB, link=None, rate_max=1e10, rate=rate, queue=queue, cache_size=2 * MIB
        )
        seconds = self.assert_all_right(network)
        self.assertLess(seconds, 1.4 * self.ideal(rate))
        self.assertLess(self.multicast_share(network), 1.3)
        for client in network.clients:
            self.assertEqual(client.remote.multicast_health.state, "working")

    def test_shallow_switch(self) -> None:
        """A bottleneck with a queue of 128 KiB is filled with little loss."""
        self.check_switch(128 * 1024)

    def test_deep_switch(self) -> None:
        """A bottleneck with a queue of 512 KiB is filled with little loss."""
        self.check_switch(512 * 1024)

    def test_fair_queue(self) -> None:
        """Fair queueing on the server's link, where TCP overtakes multicast, causes few repairs."""
        network = self.make_network(4, 8 * MIB, fair=True)
        seconds = self.assert_all_right(network)
        self.assertLess(seconds, 1.25 * self.ideal())
        self.assertLess(self.multicast_share(network), 1.06)


class SlowLinkTests(SimulationTestCase):
    """One client whose link has a tenth of the others' rate."""

    def make_slow(self, size: int, clients: int = 4, queue: int = MIB) -> SimulatedNetwork:
        network = self.make_network(clients, size)
        network.set_path(0, rate=FAST / 10, queue=queue)
        return network

    def check_slow(self, queue: int) -> None:
        """Assert that it leaves the group, hardly slows the others, and reads at its own rate."""
        size = 40 * MIB
        alone = self.assert_all_right(self.make_network(3, size))
        network = self.make_slow(size, queue=queue)
        slow, *reads = [network.read_all(number, PATH) for number in range(4)]
        others = max(seconds for _, seconds in network.run(DeferredList(reads)))
        # What the slow client requested first is sent once more.
        self.assertLess(others, 1.03 * alone + MAX_WINDOW * 8 / FAST)
        self.assertFalse(network.clients[0].listening)
        self.assertIn("too lossy", network.clients[0].remote.multicast_health.state)
        self.assertTrue(all(client.listening for client in network.clients[1:]))
        self.assertLess(network.run(slow), 1.1 * self.ideal(FAST / 10) + others)
        self.assert_clean(network)

    def test_deep_queue(self) -> None:
        """A slow client behind a queue of 1 MiB, which delays the loss, leaves the group."""
        self.check_slow(MIB)

    def test_shallow_queue(self) -> None:
        """A slow client behind a queue of 64 KiB leaves the group."""
        self.check_slow(64 * 1024)

    def test_another_image(self) -> None:
        """A slow client leaves the group even if the others read an image that it never opened."""
        network = self.make_slow(40 * MIB)
        network.run(DeferredList([network.read_all(number, PATH) for number in (1, 2, 3)]))
        self.assertFalse(network.clients[0].listening)

    def test_one_other(self) -> None:
        """A slow client hardly slows down a single other one."""
        size = 24 * MIB
        alone = self.assert_all_right(self.make_network(1, size))
        network = self.make_slow(size, clients=2)
        self.assertLess(self.results(network)[1], 1.08 * alone)
        self.assert_clean(network)

    def test_recovers(self) -> None:
        """A client whose link becomes fast returns to the group within a minute of reading."""
        network = self.make_slow(24 * MIB, clients=2)
        self.results(network)
        network.set_path(0, rate=FAST)
        network.put_image(b"long.img", 48 * MIB)
        before = network.clients[0].remote.reads.bytes_over_tcp
        network.lockstep(b"long.img", at_once=1, pause=0.2)
        self.assertEqual(network.clients[0].remote.multicast_health.state, "working")
        self.assertTrue(network.clients[0].listening)
        self.assertLess(network.clients[0].remote.reads.bytes_over_tcp - before, 45 * MIB)
        self.assert_clean(network)

    def test_half_lost(self) -> None:
        """A client that loses 50 % on a fast link leaves the group, and soon reads over TCP."""
        network = self.make_network(4, 24 * MIB)
        network.set_path(0, loss=0.5)
        seconds = self.results(network)
        self.assertFalse(network.clients[0].listening)
        self.assertLess(seconds[0], 2.4 * self.ideal())
        self.assert_clean(network)

    def test_fifth_lost(self) -> None:
        """A client that loses 20 % stays in the group."""
        network = self.make_network(4, 24 * MIB)
        network.set_path(0, loss=0.2)
        self.results(network)
        self.assertEqual(network.clients[0].remote.multicast_health.state, "working")
        self.assertLess(network.clients[0].remote.reads.bytes_over_tcp, 0.1 * self.size)
        self.assert_clean(network)


class FailureTests(SimulationTestCase):
    """Connections, servers and images that fail during reads."""

    def test_connections_cut(self) -> None:
        """Cutting connections one after the other delays reads only by the reconnection."""
        network = self.make_network(4, 8 * MIB)
        for number, client in enumerate(network.clients):
            network.clock.callLater(0.1 + 0.1 * number, client.cut)
        self.assertLess(max(self.results(network)), 2 * self.ideal())
        self.assertEqual([client.connections for client in network.clients], [2] * 4)
        self.assert_clean(network)

    def test_all_cut_at_once(self) -> None:
        """Cutting all connections at once costs the reconnection, but does not lower the rate."""
        network = self.make_network(4, 8 * MIB)
        for client in network.clients:
            network.clock.callLater(0.2, client.cut)
        self.assertLess(max(self.results(network)), 1.15 * self.ideal() + 0.3)
        self.assert_clean(network)

    def test_cut_again_and_again(self) -> None:
        """Reads complete even when the connection is cut every 50 ms."""
        network = self.make_network(2, 2 * MIB, loss=0.02)
        for step in range(40):
            network.clock.callLater(0.05 * step, network.clients[step % 2].cut)
        self.results(network)
        network.clock.advance(3.0)
        self.assert_clean(network)

    def test_server_restarted(self) -> None:
        """Reads interrupted by a restart of the server, which gets new keys, end right."""
        network = self.make_network(4, 8 * MIB)
        network.clock.callLater(0.3, network.restart_server, 3.0)
        seconds = self.results(network)
        self.assertLess(max(seconds), 1.15 * self.ideal() + 3.0 + 0.5)
        self.assertEqual([c.remote.receiver.transfers_rejected for c in network.clients], [0] * 4)
        self.assertGreater(network.server.controller.transfers, 0)
        self.assert_clean(network)

    def test_server_restarted_with_loss(self) -> None:
        """Reads interrupted by a restart of the server end right on lossy paths, too."""
        network = self.make_network(4, 8 * MIB, loss=0.1)
        network.clock.callLater(0.3, network.restart_server, 1.0)
        self.results(network)
        self.assert_clean(network)

    def test_old_server_still_heard(self) -> None:
        """Late datagrams of the server's previous run are dropped and counted."""
        network = self.make_network(1, 4 * MIB)
        client, source = network.clients[0], network.server.source
        network.run(network.read_all(0, PATH))
        network.restart_server(0.1)
        network.clock.advance(1.0)
        client.receive(bytes(100), source)
        self.assertEqual(client.remote.receiver.datagrams_dropped, 1)

    def test_server_gone(self) -> None:
        """Reads fail with EIO after the timeout when the server does not return."""
        network = self.make_network(2, timeout=5.0)
        network.clock.callLater(0.2, network.restart_server, 1000.0)
        results = self.results(network)
        self.assertEqual([error.errno for error in results], [errno.EIO] * 2)
        self.assertLess(max(client.longest_wait for client in network.clients), 5.1)
        self.assertEqual([line for c in network.clients for line in c.leftovers()], [])

    def test_image_replaced(self) -> None:
        """Readers of a replaced image get ESTALE, and a new open gets the new image."""
        network = self.make_network(4, 8 * MIB)
        network.clock.callLater(0.3, network.put_image, PATH, self.size)
        results = self.results(network)
        self.assertEqual([error.errno for error in results], [errno.ESTALE] * 4)
        self.assert_all_right(network)

    def test_image_replaced_with_loss(self) -> None:
        """On lossy paths, readers of a replaced image get old bytes or ESTALE, never a mixture."""
        network = self.make_network(4, 4 * MIB, loss=0.1)
        network.clock.callLater(0.2, network.put_image, PATH, self.size)
        for result in self.results(network):
            self.assertEqual(getattr(result, "errno", errno.ESTALE), errno.ESTALE)
        self.assert_all_right(network)

    def test_image_replaced_while_away(self) -> None:
        """A reader that reconnects after its image was replaced gets ESTALE immediately."""
        network = self.make_network(2, 4 * MIB)

        def replace() -> None:
            network.put_image(PATH, self.size)
            for client in network.clients:
                client.cut()

        network.clock.callLater(0.1, replace)
        results = self.results(network)
        self.assertEqual([error.errno for error in results], [errno.ESTALE] * 2)
        self.assertLess(max(client.longest_wait for client in network.clients), 1.0)
        self.assert_clean(network)

    def test_stale_then_cut(self) -> None:
        """A read of a stale image ends soon, even if the connection is cut."""
        network = self.make_network(1, 4 * MIB)
        client = network.clients[0]
        reading = network.read_all(0, PATH)

        def stale_and_cut() -> None:
            (opened,) = client.remote._open
            opened.stale = True
            client.cut()

        network.clock.callLater(0.1, stale_and_cut)
        error = self.assertRaises(OSError, network.run, reading)
        self.assertEqual(error.errno, errno.ESTALE)
        self.assertLess(client.longest_wait, 1.0)

    def test_read_error(self) -> None:
        """Reads of an unreadable image fail with EIO immediately, and no other reads fail."""
        network = self.make_network(4, 4 * MIB)
        network.put_image(b"good.img", self.size)

        def damage() -> None:
            network.library.images[PATH].error = errno.EIO

        network.clock.callLater(0.2, damage)
        results = self.results(network, [PATH, PATH, b"good.img", b"good.img"])
        self.assertEqual([error.errno for error in results[:2]], [errno.EIO] * 2)
        self.assertLess(max(client.longest_wait for client in network.clients), 1.0)
        self.assertLess(max(results[2:]), 2.3 * self.ideal())
        self.assert_clean(network)

    def test_read_error_over_tcp(self) -> None:
        """Over TCP, errors affect only the reads of what is unreadable."""
        network = self.make_network(2, 4 * MIB, loss=1.0)

        def damage() -> None:
            network.library.images[PATH].error = errno.EIO

        network.clock.callLater(0.3, damage)
        results = self.results(network)
        self.assertEqual([error.errno for error in results], [errno.EIO] * 2)
        self.assert_clean(network)

    def check_bad_sector(self, **settings: Any) -> None:
        """Assert that a bad sector fails only the reads that include it, immediately."""
        network = self.make_network(2, 2 * MIB, **settings)
        image = network.library.images[PATH]
        image.bad = range(5 * BLOCK + 8192 + 100, 5 * BLOCK + 8192 + 612)
        results = self.results(network)
        self.assertEqual([error.errno for error in results], [errno.EIO] * 2)
        for client in network.clients:
            opened = client.remote.opened(network.run(client.open(PATH))[0])
            for first, length in ((0, 8192), (12288, BLOCK - 12288), (-4096, 12288)):
                offset = 5 * BLOCK + first
                data = network.run(ensureDeferred(client.read(opened, offset, length)))
                self.assertEqual(data, image.content[offset : offset + length])
            reading = ensureDeferred(client.read(opened, 5 * BLOCK + 8192, 4096))
            self.assertEqual(self.assertRaises(OSError, network.run, reading).errno, errno.EIO)
            for block in (*range(5), *range(6, 16)):
                data = network.run(ensureDeferred(client.read(opened, block * BLOCK, BLOCK)))
                self.assertEqual(data, image.content[block * BLOCK :][:BLOCK])
            self.assertLess(client.longest_wait, 1.0)
        self.assert_clean(network)

    def test_bad_sector(self) -> None:
        """A bad sector fails only the reads that include it."""
        self.check_bad_sector()

    def test_bad_sector_over_tcp(self) -> None:
        """Over TCP, errors affect only the reads of what is unreadable."""
        self.check_bad_sector(loss=1.0)

    def test_short_read_error(self) -> None:
        """After a temporary error, reading again succeeds."""
        network = self.make_network(2, 2 * MIB)
        network.library.images[PATH].error = errno.EIO
        self.assertEqual([error.errno for error in self.results(network)], [errno.EIO] * 2)
        network.library.images[PATH].error = None
        self.assert_all_right(network)

    def test_client_leaves(self) -> None:
        """A client that disconnects while reading leaves nothing on the server."""
        network = self.make_network(3, 4 * MIB)
        leaver = network.clients[0]
        reading = network.read_all(0, PATH)
        reading.addErrback(lambda _: None)

        def leave() -> None:
            leaver.service.stopService()
            leaver.remote.stop()

        network.clock.callLater(0.1, leave)
        others = [network.read_all(number, PATH) for number in (1, 2)]
        seconds = [result for _, result in network.run(DeferredList(others, consumeErrors=True))]
        self.assertLess(max(seconds), 1.3 * self.ideal())
        self.assertEqual(len(network.server.factory.channels), 2)
        self.assertEqual(len(network.server.queue), 0)
        network.run(reading)

    def test_waits_for_no_other(self) -> None:
        """A client whose path is dead delays nobody."""
        network = self.make_network(3, 8 * MIB)
        stuck = network.clients[0]
        network.clock.callLater(0.1, setattr, stuck, "listening", False)
        network.clock.callLater(0.1, stuck.cut)
        seconds = self.results(network)
        self.assertLess(max(seconds[1:]), 2.4 * self.ideal())
        self.assertLess(max(c.longest_wait for c in network.clients[1:]), 0.5)
