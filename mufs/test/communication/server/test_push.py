"""Pushes: the server has its clients fill their caches, in virtual time."""

from __future__ import annotations

import errno
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mufs.communication.server.push import MAX_PUSHES, PULL_TIMEOUT, IPushed, Pushes, Record
from mufs.filesystem.server.access import Access, parse_rule
from mufs.test.support.channels import Server
from mufs.test.support.memory import MemoryLibrary
from mufs.test.support.simulation import MIB, SimulatedNetwork
from mufs.wire.channel import Type
from mufs.wire.metadata import Pull, Pulled, decode
from mufs.wire.pages import BLOCK

SIZE = 8 * MIB + 4321


@implementer(IPushed)
@define(eq=False)
class Client:
    """A client that only remembers what it is asked to pull."""

    name: str
    library: MemoryLibrary
    address: str = "192.0.2.1"
    asked: list[tuple[int, bytes]] = field(factory=list)

    def pull(self, number: int, path: bytes) -> None:
        """See L{IPushed.pull}."""
        self.asked.append((number, path))


class PushesTests(SynchronousTestCase):
    """The server's end, with clients that report what the test has them report."""

    def setUp(self) -> None:
        """Have two clients that see the image, and one that does not."""
        self.clock = Clock()
        self.pushes = Pushes(self.clock, maybeDeferred)
        library = MemoryLibrary()
        library.put(b"disk.img", bytes(100))
        self.one, self.two = Client("one", library), Client("two", library, "192.0.2.2")
        self.blind = Client("blind", MemoryLibrary())
        self.told: list[Record] = []

    def push(self, *clients: Client, names: set[str] | None = None) -> Deferred[Record]:
        """Push the image."""
        pushing = maybeDeferred(
            self.pushes.push,
            b"disk.img",
            100,
            clients=clients,
            names=names,
            report=self.told.append,
        )
        return pushing

    def ended(self, pushing: Deferred[Record]) -> tuple[Any, list[str]]:
        """How many clients have succeeded; which have failed, and why."""
        result: Any = self.successResultOf(pushing)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return result["succeeded"], [f"{f['name']}: {f['error']}" for f in result["failed"]]

    def test_interface(self) -> None:
        """The double is what a push takes for a client."""
        verifyObject(IPushed, self.one)

    def test_all(self) -> None:
        """All that see the image are asked, once, and the push ends when they have ended."""
        pushing = self.push(self.one, self.two, self.blind)
        self.assertEqual([c.asked for c in (self.one, self.two, self.blind)],
                         [[(1, b"disk.img")], [(1, b"disk.img")], []])  # fmt: skip
        self.pushes.pulled(self.one, Pulled(1, 40, 100, False))
        self.clock.advance(1)
        self.assertEqual(self.told, [
            {"clients": 2, "succeeded": 0, "failed": 0, "held": 40, "size": 100}
        ])  # fmt: skip
        self.pushes.pulled(self.one, Pulled(1, 100, 100, True))
        self.assertNoResult(pushing)
        self.pushes.pulled(self.two, Pulled(1, 0, 0, True, "the cache is too small"))
        self.assertEqual(self.ended(pushing), (1, ["two: the cache is too small"]))

    def test_nobody(self) -> None:
        """The push fails when no client may see the image."""
        self.failureResultOf(self.push(), OSError)
        self.failureResultOf(self.push(self.blind), OSError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_named(self) -> None:
        """Clients that were named and cannot be asked have failed; only named ones are asked."""
        pushing = self.push(self.one, self.two, self.blind, names={"one", "blind", "none"})
        self.assertEqual(self.two.asked, [])
        self.pushes.pulled(self.one, Pulled(1, 100, 100, True))
        succeeded, failed = self.ended(pushing)
        self.assertEqual(succeeded, 1)
        self.assertEqual(sorted(failed), ["blind: no such image", "none: is not connected"])

    def test_join_and_leave(self) -> None:
        """Clients that connect later are asked, too; those that go fail unless they return."""
        pushing = self.push(self.one)
        self.pushes.add_client(self.two)
        self.assertEqual(self.two.asked, [(1, b"disk.img")])
        self.pushes.remove_client(self.two)
        again = Client("two", self.two.library, self.two.address)
        self.pushes.add_client(again)
        self.pushes.pulled(again, Pulled(1, 100, 100, True))
        self.pushes.remove_client(self.one)
        self.assertEqual(self.ended(pushing), (1, ["one: the connection was lost"]))

    def test_interrupted(self) -> None:
        """When a push is cancelled, the clients that still pull are told to stop."""
        pushing = self.push(self.one, self.two)
        self.pushes.pulled(self.two, Pulled(1, 100, 100, True))
        pushing.cancel()
        self.failureResultOf(pushing, CancelledError)
        self.assertEqual(self.one.asked[1:], [(1, b"")])
        self.assertEqual(self.two.asked[1:], [])
        self.pushes.pulled(self.one, Pulled(1, 50, 100, True, "interrupted"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_silent(self) -> None:
        """A client that does not report for long is given up."""
        pushing = self.push(self.one, self.two)
        for _ in range(int(PULL_TIMEOUT)):
            self.pushes.pulled(self.one, Pulled(1, 50, 100, False))
            self.clock.advance(1)
        self.pushes.pulled(self.one, Pulled(1, 100, 100, True))
        self.assertEqual(self.ended(pushing), (1, ["two: said nothing for 30 s"]))
        self.assertEqual(self.two.asked[1:], [(1, b"")])

    def test_nonsense(self) -> None:
        """Reports on other pushes, by other clients, or after the end are ignored."""
        pushing = self.push(self.one)
        self.pushes.pulled(self.one, Pulled(2, 0, 0, True, "?"))
        self.pushes.pulled(self.two, Pulled(1, 0, 0, True, "?"))
        self.pushes.pulled(self.one, Pulled(1, 1 << 60, 1 << 60, False))
        self.clock.advance(1)
        self.assertEqual(self.told[-1]["held"], 100)
        self.pushes.pulled(self.one, Pulled(1, 100, 100, True))
        self.pushes.pulled(self.one, Pulled(1, 0, 0, True, "?"))
        self.assertEqual(self.ended(pushing), (1, []))

    def test_gone_while_it_is_looked_at(self) -> None:
        """A client that goes before it is known whether it may see the image is not awaited."""
        looking: list[Deferred[None]] = []

        def in_thread(function: Any, *args: Any) -> Deferred[Any]:
            looking.append(Deferred())
            return looking[-1].addCallback(lambda _: function(*args))

        self.pushes = Pushes(self.clock, in_thread)
        pushing = self.push(self.one)
        self.pushes.remove_client(self.one)
        self.assertEqual(self.ended(pushing), (0, ["one: the connection was lost"]))
        looking[0].callback(None)
        self.assertEqual(self.one.asked, [])

    def test_limits(self) -> None:
        """An image is not pushed twice at a time, and not too many are pushed."""
        pushes = [self.push(self.one)]
        self.failureResultOf(self.push(self.one), OSError)
        for number in range(1, MAX_PUSHES):
            self.one.library.put(b"%d" % number, b"")
            pushes.append(
                self.pushes.push(
                    b"%d" % number, 0, clients=[self.one], names=None, report=self.told.append
                )
            )
        failed = maybeDeferred(
            self.pushes.push, b"x", 0, clients=[self.one], names=None, report=self.told.append
        )
        self.assertEqual(self.failureResultOf(failed, OSError).value.errno, errno.EBUSY)
        for push in pushes:
            push.cancel()
            self.failureResultOf(push, CancelledError)


class AccessTests(SynchronousTestCase):
    """Clients are asked only for what they see of the library."""

    def test_subtree(self) -> None:
        """A client is asked for images that it may see, and is told nothing of others."""
        server = Server()
        server.library.put(b"sub/disk.img", bytes(100))
        access = Access((parse_rule("*:/sub"),))
        server.factory.view = lambda name: access.view(server.library, name)
        channel, wire = server.connect()
        wire.clear()
        push = server.factory.pushes.push
        for names in (None, {"host"}):
            pushing = push(b"disk.img", SIZE, clients=[channel], names=names, report=lambda _: None)
            if names is None:
                self.failureResultOf(pushing, OSError)
            else:
                result: Any = self.successResultOf(pushing)
                self.assertEqual([each["error"] for each in result["failed"]],
                                 ["no such file or directory"])  # fmt: skip
        self.assertEqual(wire.packets(), [])
        pushing = push(b"sub/disk.img", 100, clients=[channel], names=None, report=lambda _: None)
        ((kind, _, body),) = wire.packets()
        self.assertEqual((kind, decode(Pull, body).path), (Type.PULL, b"sub/disk.img"))
        pushing.cancel()
        self.failureResultOf(pushing, CancelledError)


class SimulatedTests(SynchronousTestCase):
    """Server and clients in a simulated network."""

    def make(self, clients: int, size: int = SIZE, **how: Any) -> SimulatedNetwork:
        """Have a network with an image."""
        self.network = SimulatedNetwork(5, clients, **how)
        self.network.put_image(b"disk.img", size)
        self.size = size
        self.told: list[Any] = []
        return self.network

    def push(self, names: set[str] | None = None) -> Deferred[Any]:
        """Push the image."""
        factory = self.network.server.factory
        return factory.pushes.push(
            b"disk.img", self.size, clients=[each for each in factory.channels if each.name],
            names=names, report=self.told.append,
        )  # fmt: skip

    def sent(self) -> int:
        """File bytes that the server sent."""
        figures = self.network.server.figures()
        multicast, tcp = figures["bytes_multicast"], figures["bytes_over_tcp"]
        assert isinstance(multicast, int) and isinstance(tcp, int)
        return multicast + tcp

    def assert_all_there(self, *numbers: int) -> None:
        """These clients read the image right, without the server."""
        before = self.sent()
        for number in numbers:
            self.network.run(self.network.read_all(number, b"disk.img"))
        self.assertEqual(self.sent(), before)
        self.assertEqual(self.network.leftovers(), [])

    def test_hundred(self) -> None:
        """A hundred hosts get the image for one transfer of it, and little else."""
        self.make(100, link=1e9, rate_max=1e9)
        done = self.network.run(self.push())
        self.assertEqual((done["clients"], done["succeeded"], done["failed"]), (100, 100, []))
        self.assertLess(self.sent(), 1.02 * SIZE)
        self.assert_all_there(0, 50, 99)
        self.assertLess(len(self.network.server.factory.pushes._running), 1)

    def test_loss(self) -> None:
        """With 1 % of loss it costs little more."""
        self.make(20, link=1e9, rate_max=1e9, loss=0.01)
        self.assertEqual(self.network.run(self.push())["succeeded"], 20)
        self.assertLess(self.sent(), 1.15 * SIZE)
        self.assert_all_there(0, 19)

    def test_late(self) -> None:
        """A client that connects later joins; what it has missed is sent again."""
        self.make(3, link=1e8, rate_max=1e8)
        self.network.clients[2].service.stopService()
        self.network.clock.advance(0.1)
        pushing = self.push()
        self.network.clock.advance(0.8)
        self.network.clients[2].service.startService()
        done = self.network.run(pushing)
        self.assertEqual((done["clients"], done["succeeded"]), (3, 3))
        self.assertLess(self.sent(), 1.6 * SIZE)
        self.assert_all_there(0, 1, 2)

    def test_interrupted(self) -> None:
        """When the push is interrupted the clients stop pulling; another push resumes."""
        self.make(2, size=3 * SIZE, link=1e8, rate_max=1e8)
        pushing = self.push()
        self.network.clock.advance(0.9)
        pushing.cancel()
        self.failureResultOf(pushing, CancelledError)
        self.network.clock.advance(2)
        part = self.sent()
        self.assertLess(part, 0.8 * self.size)
        for client in self.network.clients:
            self.assertEqual(client.remote.open_images(), set())
        self.assertEqual(self.network.leftovers(), [])
        self.assertEqual(self.network.run(self.push())["succeeded"], 2)
        self.assertLess(self.sent(), 1.03 * self.size)
        self.assert_all_there(0, 1)

    def test_too_small(self) -> None:
        """A cache that is too small is reported, and keeps what it has."""
        self.make(2)
        small = self.network.clients[1]
        small.cache._slots = 4 * MIB // BLOCK
        done = self.network.run(self.push())
        self.assertEqual(done["succeeded"], 1)
        self.assertEqual([each["error"] for each in done["failed"]],
                         ["the image has 8.0 MiB of data, the cache 4.0 MiB"])  # fmt: skip
        self.assertEqual((small.cache.held, small.cache.evictions), (0, 0))
        self.assert_all_there(0)

    def test_lost(self) -> None:
        """A client that loses its connection and returns goes on."""
        self.make(2, link=1e8, rate_max=1e8)
        pushing = self.push()
        self.network.clock.advance(0.9)
        self.network.clients[1].cut()
        done = self.network.run(pushing)
        self.assertEqual((done["clients"], done["succeeded"]), (2, 2))
        self.assertLess(self.sent(), 1.2 * SIZE)
        self.assert_all_there(0, 1)

    def test_server_restarted(self) -> None:
        """When the server is restarted its pushes end, also at the clients."""
        self.make(1, link=1e8, rate_max=1e8)
        self.push().addErrback(lambda failure: None)
        self.network.clock.advance(0.9)
        self.network.restart_server(1)
        self.network.clock.advance(5)
        self.assertEqual(self.network.clients[0].remote.open_images(), set())
        self.assertTrue(self.network.clients[0].remote.is_connected)
