"""
The multicast group with an attacker in it who forges the server's address.

What forged packets can cost is bounded: no wrong bytes are read, nothing of them is kept, and no
client asks the server for more than was really lost.
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
"""Forged packets: far more than a client keeps of anything."""


class Attacker:
    """
    Receives all that the server sends to the group, and sends to all clients.

    @ivar heard: datagrams of the server, in order.
    @ivar answer: returns what to send before each write of the server reaches the clients.
    """

    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network
        self.heard: list[bytes] = []
        self.answer: Callable[[bytes], list[bytes]] = lambda train: []
        self.random = random.Random(network.seed)
        self.listen()

    def listen(self) -> None:
        """Listen to the server that runs now."""
        server = self._network.server
        write = server.write

        def overheard(packets: bytes | memoryview) -> int:
            sent = write(packets)
            train = bytes(packets[:sent])
            self.heard += [train[at : at + STRIDE] for at in range(0, len(train), STRIDE)]
            if train:
                self.say(self.answer(train))
            return sent

        server.write = overheard  # type: ignore[method-assign]

    def say(self, datagrams: list[bytes]) -> None:
        """Send these to all clients at once, as if from the server."""
        for client in self._network.clients:
            for datagram in datagrams:
                client.hear(datagram, self._network.server.source)

    def controls(self) -> list[tuple[int, Descriptor]]:
        """The control packets that were received."""
        found = [each for datagram in self.heard for each in parse(datagram) if len(each) == 2]
        return found

    def forged(self, count: int, phases: tuple[int, ...], **fields: Any) -> list[bytes]:
        """
        Announcements or completions of the image that is read, with numbers of all kinds: those
        to come, those that were, far ahead and far behind; the MAC is guessed or copied.
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
        """Full segments with random bytes."""
        return [
            HEADER.pack(TRANSMISSION, SEGMENT, number % (1 << 32)) + self.random.randbytes(SEGMENT)
            for number in numbers
        ]


def held(client: SimulatedClient) -> dict[str, int]:
    """How much a client keeps of what comes from the group."""
    reassembly = client.remote.receiver.reassembly
    return {
        "known": len(reassembly._transfers),
        "in order": len(reassembly._in_order),
        "partial": len(reassembly._partial),
        "expected": len(reassembly._expected),
        "orphans": sum(len(rows) for _, _, rows in reassembly._orphans),
        "orphan bytes": sum(rows.nbytes for _, _, rows in reassembly._orphans),
        "kept views": sum(rows.base is not None and rows.base.nbytes > rows.nbytes
                          for _, _, rows in reassembly._orphans),
        "aside": len(client.remote.receiver._batch),
        "looks": len(client.remote.repairs._overheard),
    }  # fmt: skip


class HostileGroupTestCase(SimulationTestCase):
    """Two clients that read, and an attacker."""

    def setUp(self) -> None:
        """Let the attacker record some traffic."""
        self.network = self.make_network(2, 2 * MIB + 1234, rate_max=FAST)
        self.attacker = Attacker(self.network)

    def repairs(self) -> int:
        """The number of requests for missing segments."""
        return sum(client.remote.repairs.repairs_sent for client in self.network.clients)

    def dropped(self) -> int:
        """The number of datagrams that a client found to be forged."""
        return self.network.clients[0].remote.receiver.datagrams_dropped

    def assert_right(self) -> float:
        """Both read the whole image right, within bounds; returns the slowest's seconds."""
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
        """They read it as if there were no attacker: sent once, in time, without repairs."""
        self.assertLess(self.assert_right(), 1.3 * self.ideal())
        self.assertEqual(self.repairs(), 0)
        self.assertLess(self.multicast_share(self.network), 1.03)
        for client in self.network.clients:
            self.assertEqual(client.remote.multicast_health.state, "working")
            self.assertEqual(client.remote.receiver.transfers_rejected, 0)


FAST = 100e6


class ForgedControlTests(HostileGroupTestCase):
    """Announcements and completions that the server did not make."""

    def flood(self, phases: tuple[int, ...], **fields: int) -> None:
        """Send many with each write of the server."""
        self.attacker.answer = lambda train: self.attacker.forged(20, phases, **fields)
        self.assert_undisturbed()
        self.assertGreater(self.dropped(), 500)

    def test_announcements(self) -> None:
        """Announcements of the image being read change nothing, whatever their numbers."""
        self.flood((ANNOUNCEMENT,))

    def test_completions(self) -> None:
        """Completions of what was never sent cause no repair, and no count of loss."""
        self.flood((COMPLETION,))

    def test_other_images(self) -> None:
        """Neither do those of images that nobody has open."""
        self.flood((ANNOUNCEMENT, COMPLETION), image=99)

    def test_stale_generation(self) -> None:
        """Neither do those of another generation."""
        self.flood((ANNOUNCEMENT, COMPLETION), generation=77)

    def test_other_epochs(self) -> None:
        """Neither do those of epochs that do not exist."""
        for transfer in (1 << 32, (1 << 64) - 1):
            self.setUp()
            self.flood((ANNOUNCEMENT, COMPLETION), transfer=transfer)

    def test_nothing_is_kept(self) -> None:
        """After very many of them a client keeps no more than before."""
        self.assert_undisturbed()
        before = [held(client) for client in self.network.clients]
        timers = len(self.network.clock.getDelayedCalls())
        self.attacker.say(self.attacker.forged(FLOOD, (ANNOUNCEMENT, COMPLETION)))
        self.assertEqual([held(client) for client in self.network.clients], before)
        self.assertEqual(len(self.network.clock.getDelayedCalls()), timers)
        self.assertEqual(self.dropped(), FLOOD)

    def test_each_field(self) -> None:
        """A control packet with any bit changed, or any two fields exchanged, is rejected."""
        self.assert_undisturbed()
        real = [d for d in self.attacker.heard if len(d) >= CONTROL_SIZE and d[3] != TRANSMISSION]
        packets, other = [], real[5][:CONTROL_SIZE]
        for bit in range(8 * CONTROL_SIZE):
            wrong = bytearray(other)
            wrong[bit // 8] ^= 1 << bit % 8
            packets.append(bytes(wrong))
        # transfer, first, image, generation, offset, tag, MAC; total and number of segments
        for begin, end in ((12, 20), (20, 24), (24, 32), (32, 40), (40, 48), (48, 64), (64, 80)):
            spliced = other[:begin] + real[8][begin:end] + other[end:]
            if spliced != other:
                packets.append(spliced)
        for client in self.network.clients:
            client.remote.receiver.reassembly.__init__(SEGMENT)  # type: ignore[misc]
        self.attacker.say(packets)
        self.assertEqual([held(client)["known"] for client in self.network.clients], [0, 0])

    def test_lossy(self) -> None:
        """Where segments are really lost, forged packets cause no more repairs."""
        asked = []
        for flooded in (False, True):
            self.network = self.make_network(2, 2 * MIB, loss=0.02)
            self.attacker = Attacker(self.network)
            if flooded:
                self.attacker.answer = lambda train: self.attacker.forged(
                    20, (ANNOUNCEMENT, COMPLETION)
                )
            self.assert_right()
            asked.append(self.repairs())
        self.assertEqual(asked[0], asked[1])


class ForgedSegmentTests(HostileGroupTestCase):
    """Forged segments: these have no MAC, only the transfer has."""

    def test_far_numbers(self) -> None:
        """Numbers far from those in use do not confuse the order of the real ones."""
        steps = [1 << 31, (1 << 31) - 1, 1 << 30, 1 << 20, -(1 << 20), -(1 << 31) + 1]

        def far(train: bytes) -> list[bytes]:
            _, real = self.attacker.controls()[-1]
            return self.attacker.forged_segments([real.first + step for step in steps])

        self.attacker.answer = far
        self.assert_undisturbed()

    def test_orphans(self) -> None:
        """A bounded number of segments outside all transfers is kept."""
        self.assert_undisturbed()
        _, real = self.attacker.controls()[-1]
        beyond = [real.first + 100_000 + 2 * i for i in range(FLOOD)]
        self.attacker.say(self.attacker.forged_segments(beyond))
        # A datagram may be of 64 KiB, though one segment of it is kept.
        short = HEADER.pack(TRANSMISSION, 1, (real.first + 1 << 20) % (1 << 32)) + b"x"
        self.attacker.say([short + bytes(65_000)] * FLOOD)
        self.assert_right()

    def poison(self, times: int | None = None) -> None:
        """Put a forged segment into each transfer that is announced."""
        self.poisoned = 0

        def spoil(train: bytes) -> list[bytes]:
            found = [each for each in parse(train) if len(each) == 2 and each[0] == ANNOUNCEMENT]
            if found and (times is None or self.poisoned < times):
                self.poisoned += 1
                forged = self.attacker.forged_segments([found[0][1].first + 3])
                # Before the real one, and behind it.
                on_link = self.network.link.free_at - self.network.clock.seconds()
                for delay in (0.0, on_link + 0.007):
                    self.network.clock.callLater(delay, self.attacker.say, forged)
            return []

        self.attacker.answer = spoil

    def test_spoilt_once(self) -> None:
        """A few spoilt transfers are requested once each, and multicast goes on."""
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
        Where each transfer is spoilt, reads end right, over TCP, in bounded time; each transfer
        is sent again a few times at the most, and asked for as often by each client.
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
        """A client that only overhears asks once for what is spoilt again and again."""
        network = self.network
        network.run(network.clients[1].open(PATH))
        self.poison()
        network.run(network.read_all(0, PATH))
        network.clock.advance(5.0)
        self.assertGreater(network.clients[1].remote.receiver.transfers_rejected, 10)
        asked = network.clients[1].remote.repairs.repairs_sent
        self.assertLessEqual(asked, network.server.controller.transfers)


class ReplayTests(HostileGroupTestCase):
    """Datagrams of the server that are recorded and replayed."""

    def setUp(self) -> None:
        """Record the transfer of a whole image, and note what is delivered from then on."""
        super().setUp()
        self.assert_undisturbed()
        self.recorded = list(self.attacker.heard)
        self.delivered: list[tuple[str, Descriptor]] = []
        for client in self.network.clients:
            self.note(client)

    def note(self, client: SimulatedClient) -> None:
        """Record what a client's receiver delivers."""
        receiver = client.remote.receiver
        deliver = receiver._deliver

        def noted(descriptor: Descriptor, data: bytes) -> None:
            self.delivered.append((client.name, descriptor))
            deliver(descriptor, data)

        receiver._deliver = noted

    def replay(self) -> None:
        """Replay all of it, and let time pass."""
        self.attacker.say(self.recorded)
        self.attacker.say(self.recorded[::-1])
        self.network.clock.advance(5.0)

    def test_at_once(self) -> None:
        """In the same epoch nothing is received twice, and nothing is requested."""
        self.replay()
        self.assertEqual(self.delivered, [])
        self.assertEqual(self.repairs(), 0)

    def test_much_later(self) -> None:
        """Neither is it when the client has long forgotten those transfers."""
        for client in self.network.clients:
            reassembly = client.remote.receiver.reassembly
            for number in range(MAX_KNOWN + 1):
                reassembly.describe(Descriptor(1000 + number, number, 9, 9, 0, PAGE), False)
            self.assertNotIn(1, reassembly._transfers)
        self.replay()
        self.assertEqual(self.delivered, [])
        self.assertEqual(self.repairs(), 0)

    def test_after_replacement(self) -> None:
        """Once what was on its way has come, replaced keys open nothing."""
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
        """Have the clients forget all transfers, as if they had just joined."""
        for client in self.network.clients:
            client.remote.receiver.reassembly.__init__(SEGMENT)  # type: ignore[misc]

    def test_after_restart(self) -> None:
        """Neither is it after a restart of the server, from whatever port it comes."""
        self.network.restart_server(0.1)
        self.network.clock.advance(5.0)
        self.assertTrue(all(client.remote.is_connected for client in self.network.clients))
        self.replay()
        self.assertEqual(self.delivered, [])
        self.assertEqual(self.repairs(), 0)

    def test_late_joiner(self) -> None:
        """A client that has just joined gets right bytes from them, and nothing else."""
        self.forget()
        before = len(self.delivered)
        self.replay()
        self.assertGreater(len(self.delivered), before)
        self.assertEqual(self.repairs(), 0)
        self.assert_right()

    def test_spliced(self) -> None:
        """Segments of one transfer under the numbers, or with the completion, of another."""
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
        self.attacker.say([*renumbered, completion])
        self.assertEqual(self.delivered, [])
        self.assertEqual(self.network.clients[0].remote.receiver.transfers_rejected, 1)


class ExpelledTests(SimulationTestCase):
    """A client that had the keys, and must not have the next ones."""

    def setUp(self) -> None:
        """Make three clients; the last one keeps everything it learns."""
        self.network = self.make_network(3, 4 * MIB)
        self.attacker = Attacker(self.network)
        self.keys = self.network.server.keys

    def expel(self, number: int) -> None:
        """Have a client break the protocol, and stay away."""
        client = self.network.clients[number]
        client.service.stopService()
        assert client.stream is not None
        client.stream.write(bytes(range(9)))

    def test_replaced(self) -> None:
        """It cannot read what is sent after it was expelled; the others are not disturbed."""
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
        self.assertEqual(self.opens(epoch, key), 0)
        self.assertEqual(self.opens(self.keys.epoch, key), network.server.controller.transfers)
        self.assertEqual(network.server.controller.segments_repaired, 0)

    def opens(self, epoch: Epoch, key: bytes) -> int:
        """The number of transfers sent that these keys open."""
        found: dict[int, bytes] = {}
        opened = 0
        for packet in (p for datagram in self.attacker.heard for p in parse(datagram)):
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
        """A client that merely leaves causes no replacement."""
        self.network.clients[2].service.stopService()
        self.network.clients[2].cut()
        self.network.clock.advance(2 * MIN_KEY_LIFETIME)
        self.network.run(self.network.read_all(0, PATH))
        self.assertEqual(self.keys.epoch.number, 0)

    def test_again_and_again(self) -> None:
        """A client that has itself expelled all the time costs little: one epoch a second."""
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
        """The keys are replaced also while nothing is sent, so that it cannot forge either."""
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
        """Have the keys replaced after so many seconds."""
        keys: Any = network.server.keys
        keys.due = lambda: (
            "as the test wants it" if network.clock.seconds() - keys.since >= seconds else None
        )

    def test_costs_nothing(self) -> None:
        """Without loss nothing is sent twice, nothing is repaired, and no read waits."""
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
        """With loss, late clients and reordering, all reads are right and in time."""
        network = self.make_network(4, 8 * MIB, loss=0.02, jitter=0.002, latency=0.01)
        self.replace_each(network, 0.2)
        network.lockstep(PATH, apart=0.1)
        self.assert_clean(network)
        self.assertGreater(network.server.keys.epoch.number, 2)
        for client in network.clients:
            self.assertEqual(client.remote.receiver.transfers_rejected, 0)
            self.assertLess(client.longest_wait, 2.0)

    def test_late_key(self) -> None:
        """A client whose KEY is late ignores what it cannot open, and reads right."""
        network = self.make_network(2, 4 * MIB)
        self.replace_each(network, 0.1)
        deaf = network.clients[1].remote
        begin = deaf.key
        deaf.key = lambda key: network.clock.callLater(0.3, begin, key)  # type: ignore[method-assign, assignment]
        self.assert_all_right(network)
        self.assertGreater(network.server.keys.epoch.number, 1)

    def test_in_flight(self) -> None:
        """What was on its way when the keys were replaced is opened with the old ones."""
        network = self.make_network(1, MIB, latency=0.05)
        network.run(network.clients[0].open(PATH))
        receiver = network.clients[0].remote.receiver
        reading = network.read_all(0, PATH)
        network.clock.run_until(lambda: network.server.controller.transfers >= 3, 10)
        receiver.begin_epoch(7, bytes(32))
        network.run(reading)
        self.assertGreaterEqual(network.clients[0].cache.held, 3 * BLOCK)
        self.assertEqual(receiver.transfers_rejected, 0)
