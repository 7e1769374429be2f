"""
The multicast group with an attacker who forges the server's address.

The effect of forged packets is bounded: no wrong bytes are read, they are not kept, and no client
requests more repairs than for packets that were really lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from attrs import evolve

from mufs.communication.client.reassembly import MAX_KNOWN, MAX_ORPHANS, MAX_PARTIAL
from mufs.communication.client.receiver import OLD_EPOCH_LIFETIME
from mufs.communication.server.key_rotation import MIN_KEY_LIFETIME
from mufs.test.simulated.test_simulation import PATH, SimulationTestCase
from mufs.test.support.simulation import MIB, SimulatedClient, SimulatedNetwork
from mufs.test.support.virtual import STRIDE
from mufs.wire.pages import BLOCK, PAGE
from mufs.wire.sealing import Epoch, unseal
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    CONTROL_SIZE,
    HEADER,
    MAC_SIZE,
    SEGMENT,
    TRANSMISSION,
    Descriptor,
    parse,
)

FLOOD = 4000
"""The number of forged packets: far more than any limit of a client."""


class Attacker:
    """
    A host that receives all multicast datagrams of the server, and sends to all clients.

    @ivar recorded: the server's datagrams, in order.
    @ivar answer: returns the datagrams to send before a write of the server reaches the clients.
    """

    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network
        self.recorded: list[bytes] = []
        self.answer: Callable[[bytes], list[bytes]] = lambda train: []
        self.random = random.Random(network.seed)
        self.listen()

    def listen(self) -> None:
        """Listen to the current server."""
        server = self._network.server
        write = server.write

        def record(packets: bytes | memoryview) -> int:
            sent = write(packets)
            train = bytes(packets[:sent])
            self.recorded += [train[at : at + STRIDE] for at in range(0, len(train), STRIDE)]
            if train:
                self.send(self.answer(train))
            return sent

        server.write = record  # type: ignore[method-assign]

    def send(self, datagrams: list[bytes]) -> None:
        """Send datagrams to all clients with the server's address."""
        for client in self._network.clients:
            for datagram in datagrams:
                client.receive(datagram, self._network.server.source)

    def controls(self) -> list[tuple[int, Descriptor]]:
        """Return the received control packets."""
        found = [each for datagram in self.recorded for each in parse(datagram) if len(each) == 2]
        return found

    def forged(self, count: int, phases: tuple[int, ...], **fields: Any) -> list[bytes]:
        """
        Forge control packets of the image that is read. Their numbers are future, past, far ahead
        or far behind; their MAC is random or copied.
        """
        chance, (_, real) = self.random, self.controls()[-1]
        made = []
        for _ in range(count):
            step = chance.choice([1, 2, -1, -50, 1 << 20, 1 << 31, -(1 << 31), 1 << 40, -(1 << 40)])
            descriptor = evolve(
                real,
                **{"transfer": (real.transfer + step) % (1 << 64), **fields},
                first=(real.first + chance.choice([0, 1, 94, 126, 1 << 16, (1 << 31) - 1, step]))
                % (1 << 32),
                offset=chance.randrange(16) * BLOCK,
                total=BLOCK,
                tag=chance.randbytes(16),
            )
            packet = descriptor.encode(chance.choice(phases), SEGMENT)
            mac = real.mac if chance.random() < 0.5 else chance.randbytes(MAC_SIZE)
            made.append(packet[:-MAC_SIZE] + mac)
        return made

    def forged_segments(self, numbers: list[int]) -> list[bytes]:
        """Forge full segments of random bytes."""
        return [
            HEADER.pack(TRANSMISSION, SEGMENT, number % (1 << 32)) + self.random.randbytes(SEGMENT)
            for number in numbers
        ]


def held(client: SimulatedClient) -> dict[str, int]:
    """Return what a client holds for the group: numbers of objects, and bytes."""
    reassembly = client.remote.receiver.reassembly
    return {
        "known": len(reassembly._transfers),
        "in order": len(reassembly._in_order),
        "partial": len(reassembly._partial),
        "expected": len(reassembly._expected),
        "orphans": sum(len(rows) for _, _, rows in reassembly._orphans),
        "orphan bytes": sum(rows.nbytes for _, _, rows in reassembly._orphans),
        "kept views": sum(
            rows.base is not None and rows.base.nbytes > rows.nbytes
            for _, _, rows in reassembly._orphans
        ),
        "looks": len(client.remote.repairs._overheard),
    }


class HostileGroupTestCase(SimulationTestCase):
    """Has two clients and an attacker."""

    def setUp(self) -> None:
        """Make the network."""
        self.network = self.make_network(2, 2 * MIB + 1234, rate_max=FAST)
        self.attacker = Attacker(self.network)

    def repairs(self) -> int:
        """Return the number of repairs that the clients have requested."""
        return sum(client.remote.repairs.repairs_sent for client in self.network.clients)

    def dropped(self) -> int:
        """Return the number of datagrams that a client has dropped as forged."""
        return self.network.clients[0].remote.receiver.datagrams_dropped

    def assert_right(self) -> float:
        """Assert that both read the image right in bounded memory; return the longer time."""
        seconds = self.assert_all_right(self.network)
        for client in self.network.clients:
            found = held(client)
            self.assertLessEqual(found["known"], MAX_KNOWN)
            self.assertEqual(found["known"], found["in order"])
            self.assertLessEqual(found["partial"], MAX_PARTIAL)
            self.assertLessEqual(found["orphans"], MAX_ORPHANS)
            self.assertLessEqual(found["orphan bytes"], MAX_ORPHANS * SEGMENT)
            self.assertEqual(found["kept views"], 0)
            self.assertEqual(found["looks"], 0)
        return seconds

    def assert_undisturbed(self) -> None:
        """Assert that both read the image as without an attacker: sent once, without repairs."""
        self.assertLess(self.assert_right(), 1.3 * self.ideal())
        self.assertEqual(self.repairs(), 0)
        self.assertLess(self.multicast_share(self.network), 1.03)
        for client in self.network.clients:
            self.assertEqual(client.remote.multicast_health.state, "working")
            self.assertEqual(client.remote.receiver.transfers_rejected, 0)


FAST = 100e6


class ForgedControlTests(HostileGroupTestCase):
    """Forged announcements and completions."""

    def flood(self, phases: tuple[int, ...], **fields: int) -> None:
        """Assert that many forged packets with each write of the server disturb nobody."""
        self.attacker.answer = lambda train: self.attacker.forged(20, phases, **fields)
        self.assert_undisturbed()
        self.assertGreater(self.dropped(), 500)

    def test_announcements(self) -> None:
        """Forged announcements of the image being read disturb nobody."""
        self.flood((ANNOUNCEMENT,))

    def test_completions(self) -> None:
        """Forged completions cause no repairs, and do not count as loss."""
        self.flood((COMPLETION,))

    def test_other_images(self) -> None:
        """Forged packets about images that are not open disturb nobody."""
        self.flood((ANNOUNCEMENT, COMPLETION), image=99)

    def test_stale_generation(self) -> None:
        """Forged packets about another generation disturb nobody."""
        self.flood((ANNOUNCEMENT, COMPLETION), generation=77)

    def test_other_epochs(self) -> None:
        """Forged packets of epochs that do not exist disturb nobody."""
        for transfer in (1 << 32, (1 << 64) - 1):
            self.setUp()
            self.flood((ANNOUNCEMENT, COMPLETION), transfer=transfer)

    def test_nothing_is_kept(self) -> None:
        """A client keeps nothing of forged packets."""
        self.assert_undisturbed()
        before = [held(client) for client in self.network.clients]
        timers = len(self.network.clock.getDelayedCalls())
        self.attacker.send(self.attacker.forged(FLOOD, (ANNOUNCEMENT, COMPLETION)))
        self.assertEqual([held(client) for client in self.network.clients], before)
        self.assertEqual(len(self.network.clock.getDelayedCalls()), timers)
        self.assertEqual(self.dropped(), FLOOD)

    def test_each_field(self) -> None:
        """A control packet with any changed bit, or with a field of another one, is rejected."""
        self.assert_undisturbed()
        real = [
            d for d in self.attacker.recorded if len(d) >= CONTROL_SIZE and d[3] != TRANSMISSION
        ]
        packets, other = [], real[5][:CONTROL_SIZE]
        for bit in range(8 * CONTROL_SIZE):
            wrong = bytearray(other)
            wrong[bit // 8] ^= 1 << bit % 8
            packets.append(bytes(wrong))
        # transfer, first, image, generation, offset, tag, MAC
        for begin, end in ((12, 20), (20, 24), (24, 32), (32, 40), (40, 48), (48, 64), (64, 80)):
            spliced = other[:begin] + real[8][begin:end] + other[end:]
            if spliced != other:
                packets.append(spliced)
        for client in self.network.clients:
            client.remote.receiver.reassembly.__init__(SEGMENT)  # type: ignore[misc]
        self.attacker.send(packets)
        self.assertEqual([held(client)["known"] for client in self.network.clients], [0, 0])

    def test_lossy(self) -> None:
        """When segments are really lost, forged packets cause no additional repairs."""
        repairs = []
        for flooded in (False, True):
            self.network = self.make_network(2, 2 * MIB, loss=0.02)
            self.attacker = Attacker(self.network)
            if flooded:
                self.attacker.answer = lambda train: self.attacker.forged(
                    20, (ANNOUNCEMENT, COMPLETION)
                )
            self.assert_right()
            repairs.append(self.repairs())
        self.assertEqual(repairs[0], repairs[1])


class ForgedSegmentTests(HostileGroupTestCase):
    """Forged segments, which are detected only when their transfer is complete."""

    def test_far_numbers(self) -> None:
        """Forged segments with numbers far from those in use disturb nobody."""
        steps = [1 << 31, (1 << 31) - 1, 1 << 30, 1 << 20, -(1 << 20), -(1 << 31) + 1]

        def far(train: bytes) -> list[bytes]:
            _, real = self.attacker.controls()[-1]
            return self.attacker.forged_segments([real.first + step for step in steps])

        self.attacker.answer = far
        self.assert_undisturbed()

    def test_orphans(self) -> None:
        """A client keeps a bounded number of segments that belong to no transfer."""
        self.assert_undisturbed()
        _, real = self.attacker.controls()[-1]
        beyond = [real.first + 100_000 + 2 * i for i in range(FLOOD)]
        self.attacker.send(self.attacker.forged_segments(beyond))
        # Keeping one segment must not keep a datagram of 64 KiB.
        short = HEADER.pack(TRANSMISSION, 1, (real.first + 1 << 20) % (1 << 32)) + b"x"
        self.attacker.send([short + bytes(65_000)] * FLOOD)
        self.assert_right()

    def poison(self, times: int | None = None) -> None:
        """Send a forged segment for each announced transfer, or for the first C{times}."""
        self.poisoned = 0

        def spoil(train: bytes) -> list[bytes]:
            found = [each for each in parse(train) if len(each) == 2 and each[0] == ANNOUNCEMENT]
            if found and (times is None or self.poisoned < times):
                self.poisoned += 1
                forged = self.attacker.forged_segments([found[0][1].first + 3])
                # Before and after the real one.
                on_link = self.network.link.free_at - self.network.clock.seconds()
                for delay in (0.0, on_link + 0.007):
                    self.network.clock.callLater(delay, self.attacker.send, forged)
            return []

        self.attacker.answer = spoil

    def test_spoilt_once(self) -> None:
        """A few spoilt transfers are requested once each, and the clients stay with multicast."""
        network = self.network
        self.poison(times=4)
        self.assert_right()
        rejected = network.clients[0].remote.receiver.transfers_rejected
        self.assertGreaterEqual(rejected, 1)
        self.assertLessEqual(rejected, 8)
        self.assertLessEqual(self.repairs(), 4 * 2 * 3)
        self.assertEqual(network.clients[0].remote.multicast_health.state, "working")
        self.attacker.answer = lambda train: []

    def test_spoilt_always(self) -> None:
        """
        When every transfer is spoilt, reads end right in bounded time, and each client requests
        each transfer at most three times.
        """
        network = self.network
        self.poison()
        self.assert_right()
        transfers = network.server.controller.transfers
        self.assertGreater(self.poisoned, 10)
        self.assertGreater(network.clients[0].remote.receiver.transfers_rejected, 10)
        self.assertLessEqual(self.repairs(), transfers * 2 * 3)
        self.assertLess(self.multicast_share(network), 4)
        self.assertLess(max(client.longest_wait for client in network.clients), 5)

    def test_overheard(self) -> None:
        """A client that only overhears requests a transfer once, however often it is spoilt."""
        network = self.network
        network.run(network.clients[1].open(PATH))
        self.poison()
        network.run(network.read_all(0, PATH))
        network.clock.advance(5.0)
        self.assertGreater(network.clients[1].remote.receiver.transfers_rejected, 10)
        repairs = network.clients[1].remote.repairs.repairs_sent
        self.assertLessEqual(repairs, network.server.controller.transfers)


class ReplayTests(HostileGroupTestCase):
    """Replayed datagrams of the server."""

    def setUp(self) -> None:
        """Record the transfers of an image, and then watch what is delivered."""
        super().setUp()
        self.assert_undisturbed()
        self.recorded = list(self.attacker.recorded)
        self.delivered: list[tuple[str, Descriptor]] = []
        for client in self.network.clients:
            self.watch(client)

    def watch(self, client: SimulatedClient) -> None:
        """Record what a client's receiver delivers."""
        receiver = client.remote.receiver
        deliver = receiver._deliver

        def record(descriptor: Descriptor, data: memoryview, zeros: int) -> None:
            self.delivered.append((client.name, descriptor))
            deliver(descriptor, data, zeros)

        receiver._deliver = record

    def replay(self) -> None:
        """Replay the whole recording, forwards and backwards."""
        self.attacker.send(self.recorded)
        self.attacker.send(self.recorded[::-1])
        self.network.clock.advance(5.0)

    def test_at_once(self) -> None:
        """In the same epoch, replayed transfers are neither delivered nor requested."""
        self.replay()
        self.assertEqual(self.delivered, [])
        self.assertEqual(self.repairs(), 0)

    def test_much_later(self) -> None:
        """Replayed transfers that the client has forgotten are neither delivered nor requested."""
        for client in self.network.clients:
            reassembly = client.remote.receiver.reassembly
            for number in range(MAX_KNOWN + 1):
                reassembly.describe(Descriptor(1000 + number, number, 9, 9, 0, PAGE), False)
            self.assertNotIn(1, reassembly._transfers)
        self.replay()
        self.assertEqual(self.delivered, [])
        self.assertEqual(self.repairs(), 0)

    def test_after_replacement(self) -> None:
        """When the lifetime of the old epoch is over, its packets are dropped."""
        self.network.server.keys.replace()
        for channel in self.network.server.factory.channels:
            channel.tell_key()
        self.network.clock.advance(OLD_EPOCH_LIFETIME + 0.1)
        self.forget()
        before = self.dropped()
        self.replay()
        self.assertEqual(self.delivered, [])
        self.assertEqual(self.repairs(), 0)
        self.assertGreater(self.dropped(), before)

    def forget(self) -> None:
        """Have the clients forget all transfers, as if they had just joined the group."""
        for client in self.network.clients:
            client.remote.receiver.reassembly.__init__(SEGMENT)  # type: ignore[misc]

    def test_after_restart(self) -> None:
        """After a restart of the server, replayed transfers are neither delivered nor requested."""
        self.network.restart_server(0.1)
        self.network.clock.advance(5.0)
        self.assertTrue(all(client.remote.is_connected for client in self.network.clients))
        self.replay()
        self.assertEqual(self.delivered, [])
        self.assertEqual(self.repairs(), 0)

    def test_late_joiner(self) -> None:
        """A client that has just joined accepts replayed transfers, which have the right bytes."""
        self.forget()
        before = len(self.delivered)
        self.replay()
        self.assertGreater(len(self.delivered), before)
        self.assertEqual(self.repairs(), 0)
        self.assert_right()

    def test_spliced(self) -> None:
        """Segments of one transfer with the numbers and completion of another one are rejected."""
        self.forget()
        controls = {(phase, d.transfer): d for phase, d in self.attacker.controls()}
        a, b = controls[ANNOUNCEMENT, 3], controls[ANNOUNCEMENT, 5]

        def number(old: int) -> int:
            return (old - a.first + b.first) % (1 << 32)

        renumbered = [
            HEADER.pack(TRANSMISSION, length, number(first + i)) + bytes(row)
            for datagram in self.recorded
            for packet in parse(datagram)
            if len(packet) == 3
            for first, length, rows in [packet]
            if 0 <= first - a.first < 94
            for i, row in enumerate(rows)
        ]
        self.assertEqual(len(renumbered), 94)
        completion = next(
            datagram[-CONTROL_SIZE:]
            for datagram in self.recorded
            for packet in parse(datagram)
            if packet[0] == COMPLETION and packet[1] == b
        )
        self.attacker.send([*renumbered, completion])
        self.assertEqual(self.delivered, [])
        self.assertEqual(self.network.clients[0].remote.receiver.transfers_rejected, 1)


class ExpelledTests(SimulationTestCase):
    """A client that is expelled, and must not get the next keys."""

    def setUp(self) -> None:
        """Make three clients and an attacker."""
        self.network = self.make_network(3, 4 * MIB)
        self.attacker = Attacker(self.network)
        self.keys = self.network.server.keys

    def expel(self, number: int) -> None:
        """Have a client violate the protocol, and not reconnect."""
        client = self.network.clients[number]
        client.service.stopService()
        assert client.stream is not None
        client.stream.write(bytes(range(9)))

    def test_replaced(self) -> None:
        """An expelled client cannot decrypt later transfers, and the others are not disturbed."""
        network, insider = self.network, self.network.clients[2]
        handle = network.run(insider.open(PATH))[0]
        image = insider.remote.opened(handle).key
        key = insider.remote.receiver._keys[image]
        epoch = insider.remote.receiver._epoch
        assert epoch is not None
        network.clock.advance(MIN_KEY_LIFETIME)
        self.expel(2)
        network.clock.advance(0.1)
        reads = [network.read_all(number, PATH) for number in (0, 1)]
        for read in reads:
            self.assertLess(network.run(read), 1.3 * self.ideal())
        self.assertEqual(self.keys.epoch.number, 1)
        self.assertEqual(self.count_opened(epoch, key), 0)
        self.assertEqual(
            self.count_opened(self.keys.epoch, key), network.server.controller.transfers
        )
        self.assertEqual(network.server.controller.segments_repaired, 0)

    def count_opened(self, epoch: Epoch, key: bytes) -> int:
        """Return the number of recorded transfers that these keys decrypt."""
        found: dict[int, bytes] = {}
        opened = 0
        for packet in (p for datagram in self.attacker.recorded for p in parse(datagram)):
            if len(packet) == 3:
                found.update(
                    ((packet[0] + i) % (1 << 32), bytes(row)) for i, row in enumerate(packet[2])
                )
            elif packet[0] == COMPLETION:
                d = packet[1]
                count = -(-d.total // SEGMENT)
                sealed = b"".join(found[(d.first + i) % (1 << 32)] for i in range(count))
                opened += unseal(epoch.cipher(key), d, sealed + d.tag) is not None
        return opened

    def test_left(self) -> None:
        """A client that leaves causes no new keys."""
        self.network.clients[2].service.stopService()
        self.network.clients[2].cut()
        self.network.clock.advance(2 * MIN_KEY_LIFETIME)
        self.network.run(self.network.read_all(0, PATH))
        self.assertEqual(self.keys.epoch.number, 0)

    def test_again_and_again(self) -> None:
        """A client that is expelled again and again causes at most one epoch a second."""
        network = self.network
        network.put_image(PATH, 16 * MIB)
        network.put_image(b"other.img", 16 * MIB)
        alone = network.run(network.read_all(0, PATH))
        sent = network.server.controller.bytes_multicast

        def break_in() -> None:
            client = network.clients[2]
            if client.stream is not None and client.stream.protocol is not None:
                client.stream.write(bytes(range(9)))
            network.clock.callLater(0.05, break_in)

        break_in()
        epochs, begun = self.keys.epoch.number, network.clock.seconds()
        seconds = network.run(network.read_all(1, b"other.img"))
        passed = network.clock.seconds() - begun
        self.assertLessEqual(self.keys.epoch.number - epochs, 1 + passed / MIN_KEY_LIFETIME)
        self.assertGreaterEqual(self.keys.epoch.number, 1)
        self.assertLess(seconds, 1.1 * alone)
        self.assertLess(network.server.controller.bytes_multicast, 2.1 * sent)

    def test_idle(self) -> None:
        """The keys are replaced even while nothing is sent."""
        network = self.network
        self.expel(2)
        self.expel(1)
        network.clock.advance(MIN_KEY_LIFETIME + 0.1)
        self.assertEqual(self.keys.epoch.number, 1)
        epoch = network.clients[0].remote.receiver._epoch
        self.assertEqual(epoch and epoch.secret, self.keys.epoch.secret)


class ReplacementTests(SimulationTestCase):
    """New keys while clients read."""

    def replace_each(self, network: SimulatedNetwork, seconds: float) -> None:
        """Have the keys replaced every C{seconds}."""
        keys: Any = network.server.keys
        keys.due = lambda: (
            "set by the test" if network.clock.seconds() - keys.since >= seconds else None
        )

    def test_costs_nothing(self) -> None:
        """Without loss, new keys cause no repairs, no additional bytes and no waiting."""
        for link in (FAST, 1e9):
            figures = []
            for often in (1e9, 0.05):
                network = self.make_network(4, 8 * MIB, link=link)
                self.replace_each(network, often)
                seconds = self.assert_all_right(network)
                figures.append((network, seconds))
            (before, alone), (network, seconds) = figures
            self.assertGreaterEqual(network.server.keys.epoch.number, 1)
            self.assertEqual(network.server.controller.segments_repaired, 0)
            self.assertEqual(network.server.factory.bytes_over_tcp, 0)
            self.assertEqual(
                network.server.controller.bytes_multicast,
                before.server.controller.bytes_multicast,
            )
            self.assertLess(seconds, alone + 0.02 * network.server.keys.epoch.number + 0.01)

    def test_with_loss(self) -> None:
        """With loss, late clients and reordering, all reads are right despite new keys."""
        network = self.make_network(4, 8 * MIB, loss=0.02, jitter=0.002, latency=0.01)
        self.replace_each(network, 0.2)
        network.lockstep(PATH, apart=0.1)
        self.assert_clean(network)
        self.assertGreater(network.server.keys.epoch.number, 2)
        for client in network.clients:
            self.assertEqual(client.remote.receiver.transfers_rejected, 0)
            self.assertLess(client.longest_wait, 2.0)

    def test_late_key(self) -> None:
        """A client whose KEY is late ignores what it cannot decrypt, and reads right."""
        network = self.make_network(2, 4 * MIB)
        self.replace_each(network, 0.1)
        deaf = network.clients[1].remote
        begin = deaf.key
        deaf.key = lambda key: network.clock.callLater(0.3, begin, key)  # type: ignore[method-assign, assignment]
        self.assert_all_right(network)
        self.assertGreater(network.server.keys.epoch.number, 1)

    def test_in_flight(self) -> None:
        """Transfers in flight while the keys are replaced are decrypted with the old ones."""
        network = self.make_network(1, MIB, latency=0.05)
        network.run(network.clients[0].open(PATH))
        receiver = network.clients[0].remote.receiver
        reading = network.read_all(0, PATH)
        network.clock.run_until(lambda: network.server.controller.transfers >= 3, 10)
        receiver.begin_epoch(7, bytes(32), network.clock.seconds())
        network.run(reading)
        self.assertGreaterEqual(network.clients[0].cache.held, 3 * BLOCK)
        self.assertEqual(receiver.transfers_rejected, 0)
