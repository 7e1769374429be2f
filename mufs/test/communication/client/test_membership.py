"""The group that the server names, joined and left."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.client.membership import Membership
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.receiver import MulticastReceiver
from mufs.wire.metadata import VERSION, Welcome

SOURCE = ("192.0.2.1", 40000)
GROUP = "239.5.5.0"
HERE = IPv4Address("TCP", "192.0.2.2", 50000)


def make_welcome(group: str = GROUP, port: int = 7041) -> Welcome:
    """What a server tells of its group."""
    return Welcome(VERSION, group, port, SOURCE, 1000)


class Port:
    """A socket that remembers what was joined with it."""

    def __init__(self, network: Network, group: str, port: int) -> None:
        self.network = network
        self.bound = group, port
        self.network.open.append(self.bound)

    def joinGroup(self, group: str, interface: str) -> Deferred[None]:
        """See L{IMulticastTransport.joinGroup}."""
        self.network.events.append(("join", group, interface))
        return fail(self.network.error) if self.network.error else succeed(None)

    def leaveGroup(self, group: str, interface: str) -> Deferred[None]:
        """See L{IMulticastTransport.leaveGroup}."""
        self.network.events.append(("leave", group, interface))
        return succeed(None)

    def stopListening(self) -> None:
        """See L{IListeningPort.stopListening}."""
        self.network.open.remove(self.bound)


class Network:
    """A reactor that listens to groups, and nothing else."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []
        self.open: list[tuple[str, int]] = []
        self.error: Exception | None = None

    def listenMulticast(self, port: int, protocol: Any, interface: str, **options: Any) -> Port:
        """See L{IReactorMulticast.listenMulticast}."""
        protocol.transport = Port(self, interface, port)
        return protocol.transport  # type: ignore[no-any-return]


class MembershipTests(SynchronousTestCase):
    """What a WELCOME does."""

    def setUp(self) -> None:
        """Have no connection yet."""
        self.network = Network()
        clock = Clock()
        self.health = MulticastHealth(clock)
        self.receiver = MulticastReceiver(clock, self.health, lambda descriptor, data: None)
        self.joined: list[str | None] = []
        self.unusable: list[str] = []
        self.membership = self.make()

    def make(self, interface: str | None = None) -> Membership:
        """A membership on an interface, or on that of the route."""
        membership: Membership = Membership(
            self.network,
            self.receiver,
            self.health,
            interface=interface,
            on_joined=lambda: self.joined.append(membership.interface),
            on_unusable=self.unusable.append,
        )
        return membership

    def test_joined(self) -> None:
        """The group is joined on the interface of the route, and its server listened to."""
        self.assertIsNone(self.membership.interface)
        self.membership.welcomed(HERE, make_welcome())
        self.assertEqual(self.network.open, [(GROUP, 7041)])
        self.assertEqual(self.network.events, [("join", GROUP, "192.0.2.2")])
        self.assertEqual(self.joined, ["192.0.2.2"])
        self.assertEqual(self.receiver.segment, 1000)
        self.assertTrue(self.health.should_use())

    def test_given_interface(self) -> None:
        """An interface that was chosen is used, whatever the route."""
        self.make("192.0.2.99").welcomed(HERE, make_welcome())
        self.assertEqual(self.network.events, [("join", GROUP, "192.0.2.99")])

    def test_same_group(self) -> None:
        """After a new connection the same group is not joined again, another one is."""
        self.membership.welcomed(HERE, make_welcome())
        self.membership.welcomed(HERE, make_welcome())
        self.assertEqual(len(self.network.events), 1)
        self.membership.welcomed(HERE, make_welcome(port=7042))
        self.assertEqual(self.network.open, [(GROUP, 7042)])
        self.assertEqual(len(self.network.events), 2)

    def test_no_group(self) -> None:
        """A server that names no group has this host read over TCP."""
        self.membership.welcomed(HERE, make_welcome(group=""))
        self.assertEqual(self.network.events, [])
        self.assertFalse(self.health.should_use())
        self.assertIn("sends no multicast", self.health.state)

    def test_no_interface(self) -> None:
        """So does a route that names no interface; the state says what helps."""
        self.membership.welcomed("elsewhere", make_welcome())
        self.assertEqual(self.network.events, [])
        self.assertIn("--interface", self.health.state)
        self.assertEqual(self.unusable, [])

    def test_cannot_join(self) -> None:
        """A group that cannot be joined is no fatal error, unless the interface was chosen."""
        self.network.error = OSError(19, "No such device")
        self.membership.welcomed(HERE, make_welcome())
        self.assertEqual((self.unusable, self.membership.interface), ([], None))
        self.assertIn("on interface 192.0.2.2: No such device", self.health.state)
        self.make("192.0.2.99").welcomed(HERE, make_welcome())
        (reason,) = self.unusable
        self.assertIn("192.0.2.99", reason)
        self.assertEqual(self.joined, [])

    def test_health(self) -> None:
        """The group is left and joined again as the health of multicast demands."""
        self.health.join(False)
        self.assertEqual(self.network.events, [])
        self.membership.welcomed(HERE, make_welcome())
        self.health.join(False)
        self.health.join(True)
        self.assertEqual([event for event, _, _ in self.network.events], ["join", "leave", "join"])

    def test_stop(self) -> None:
        """Stopping closes the socket, if there is one; twice does no harm."""
        self.successResultOf(self.membership.stop())
        self.membership.welcomed(HERE, make_welcome())
        self.successResultOf(self.membership.stop())
        self.successResultOf(self.membership.stop())
        self.assertEqual(self.network.open, [])
