"""The group that the server names, joined and left."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.client.group_socket import GroupSocket
from mufs.communication.client.membership import RETRY_INTERVAL, Membership
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.receiver import MulticastReceiver
from mufs.communication.interfaces import NetworkInterface
from mufs.test.communication.test_multicast import RecordingSocket
from mufs.test.support.doubles import make_interface
from mufs.wire.metadata import VERSION, Welcome

SOURCE = ("192.0.2.1", 40000)
GROUP = "239.5.5.0"
HERE = IPv4Address("TCP", "192.0.2.2", 50000)


def make_welcome(group: str = GROUP, port: int = 7041) -> Welcome:
    """What a server tells of its group."""
    return Welcome(VERSION, group, port, SOURCE, 1000)


class Port(RecordingSocket):
    """A socket of the reactor that remembers what was joined with it."""

    def __init__(self, network: Network, group: str, port: int) -> None:
        super().__init__()
        self.network = network
        self.bound = group, port
        self.network.open.append(self.bound)

    def getHandle(self) -> Port:
        """See L{ISystemHandle.getHandle}."""
        return self

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """See L{socket.socket.setsockopt}."""
        if option in (socket.IP_ADD_MEMBERSHIP, socket.IP_DROP_MEMBERSHIP):
            joins = option == socket.IP_ADD_MEMBERSHIP
            group, index = struct.unpack("=4s4xi", value)
            self.network.events.append(
                ("join" if joins else "leave", socket.inet_ntoa(group), index)
            )
            if joins and self.network.error:
                raise self.network.error
        else:
            super().setsockopt(level, option, value)

    def stopListening(self) -> Deferred[None]:
        """See L{IListeningPort.stopListening}."""
        self.network.open.remove(self.bound)
        self.network.closing = Deferred()
        if not self.network.closes_late:
            self.network.closing.callback(None)
        return self.network.closing


class Network(Clock):
    """
    A reactor that listens to groups, and the interfaces of this host.

    @ivar here: the interfaces, by what the options call them.
    @ivar towards: the interface of the route to the source of multicast.
    @ivar taken: whether the port is in use.
    @ivar closes_late: whether a socket closes only when the test fires C{closing}.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str, int]] = []
        self.open: list[tuple[str, int]] = []
        self.error: Exception | None = None
        self.here: dict[str, NetworkInterface] = {"192.0.2.2": make_interface("192.0.2.2", 2)}
        self.towards: NetworkInterface | None = None
        self.taken = self.closes_late = False
        self.closing: Deferred[None] = Deferred()

    def listen(self, port: int, interface: str, protocol: Any) -> Port:
        """Have the socket of a group open."""
        if self.taken:
            raise CannotListenError(interface, port, OSError(98, "Address already in use"))
        protocol.transport = Port(self, interface, port)
        return protocol.transport  # type: ignore[no-any-return]


class MembershipTests(SynchronousTestCase):
    """What a WELCOME does."""

    def setUp(self) -> None:
        """Have no connection yet."""
        self.network = Network()
        self.patch(GroupSocket, "listen", lambda socket, *at: socket._clock.listen(*at, socket))
        self.health = MulticastHealth(self.network)
        self.receiver = MulticastReceiver(self.health, lambda descriptor, data, zeros: None)
        self.joined: list[str | None] = []
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.membership = self.make()

    def make(self, interface: str | None = None) -> Membership:
        """A membership on an interface, or on that of the route."""
        membership: Membership = Membership(
            self.network,
            self.receiver,
            self.health,
            interface=interface,
            on_joined=lambda: self.joined.append(membership.interface),
            interface_of=self.network.here.get,
            interface_towards=lambda source: self.network.towards,
        )
        return membership

    def logged(self, text: str) -> int:
        """How many lines of the log contain a text."""
        return sum(text in str(formatEvent(event)) for event in self.events)

    def test_joined(self) -> None:
        """The group is joined on the interface of the connection, and its server listened to."""
        self.assertIsNone(self.membership.interface)
        self.membership.welcomed(HERE, make_welcome())
        self.assertEqual(self.network.open, [(GROUP, 7041)])
        self.assertEqual(self.network.events, [("join", GROUP, 2)])
        self.assertEqual(self.joined, ["192.0.2.2"])
        self.assertEqual(self.receiver.segment, 1000)
        self.assertTrue(self.health.should_use())

    def test_route(self) -> None:
        """The route to where the server sends from comes first, also if control comes by IPv6."""
        self.network.towards = make_interface("198.51.100.2", 5)
        self.membership.welcomed(HERE, make_welcome())
        self.assertEqual(self.network.events, [("join", GROUP, 5)])
        self.make().welcomed("elsewhere", make_welcome())
        self.assertEqual(self.network.events, [("join", GROUP, 5)] * 2)

    def test_given_interface(self) -> None:
        """An interface that was chosen is used, whatever the route, by address or by name."""
        self.network.towards = make_interface("198.51.100.2", 5)
        self.network.here["eth1"] = make_interface("192.0.2.99", 7)
        self.make("192.0.2.2").welcomed(HERE, make_welcome())
        self.make("eth1").welcomed(HERE, make_welcome())
        self.assertEqual(self.network.events, [("join", GROUP, 2), ("join", GROUP, 7)])

    def test_same_group(self) -> None:
        """After a new connection the same group is not joined again, another one is."""
        self.membership.welcomed(HERE, make_welcome())
        self.membership.welcomed(HERE, make_welcome())
        self.assertEqual(len(self.network.events), 1)
        self.membership.welcomed(HERE, make_welcome(port=7042))
        self.assertEqual(self.network.open, [(GROUP, 7042)])
        self.assertEqual(len(self.network.events), 2)

    def test_closes_late(self) -> None:
        """Another group is joined once the socket of the one before is closed."""
        self.membership.welcomed(HERE, make_welcome())
        self.network.closes_late = True
        self.membership.welcomed(HERE, make_welcome(port=7042))
        self.membership.network_changed(())
        self.assertEqual(self.network.open, [])
        self.network.closing.callback(None)
        self.assertEqual(self.network.open, [(GROUP, 7042)])
        self.assertEqual(len(self.joined), 2)

    def test_no_group(self) -> None:
        """A server that names no group has this host read over TCP, until it names one."""
        self.membership.welcomed(HERE, make_welcome(group=""))
        self.assertEqual(self.network.events, [])
        self.assertFalse(self.health.should_use())
        self.assertIn("sends no multicast", self.health.state)
        self.membership.moved(make_welcome())
        self.assertEqual(self.network.events, [("join", GROUP, 2)])
        self.assertTrue(self.health.should_use())

    def test_no_interface(self) -> None:
        """So does a route that names no interface; the state says what helps."""
        self.membership.welcomed("elsewhere", make_welcome())
        self.assertEqual(self.network.events, [])
        self.assertIn("--interface", self.health.state)

    def test_removed(self) -> None:
        """Where the interface is gone this host reads over TCP; the group is joined on the next."""
        for chosen in (None, "192.0.2.2"):
            self.events.clear()
            membership = self.make(chosen)
            membership.welcomed(HERE, make_welcome())
            last = self.network.here.pop("192.0.2.2")
            membership.network_changed({last.index})
            self.assertIsNone(membership.interface)
            self.assertFalse(self.health.should_use())
            self.assertEqual(self.logged("no interface 192.0.2.2 is up"), 1)
            self.network.here["192.0.2.2"] = make_interface("192.0.2.2", last.index + 1)
            membership.network_changed(())
            self.assertEqual(self.network.events[-1], ("join", GROUP, last.index + 1))
            self.assertEqual(self.logged("listening to"), 2)
            self.assertTrue(self.health.should_use())

    def test_made_anew(self) -> None:
        """An interface that was made anew in no time is joined again, also with the same index."""
        self.membership.welcomed(HERE, make_welcome())
        self.membership.network_changed({2})
        self.assertEqual([event for event, *_ in self.network.events], ["join", "leave", "join"])

    def test_unrelated_change(self) -> None:
        """Changes of others are no reason to join again."""
        self.membership.network_changed({2})
        self.membership.welcomed(HERE, make_welcome())
        self.network.here["192.0.2.2"] = make_interface("192.0.2.2", 2, mtu=9000)
        self.membership.network_changed({3})
        self.assertEqual(len(self.network.events), 1)

    def test_down(self) -> None:
        """An interface that is down is as good as none."""
        self.network.here["192.0.2.2"] = make_interface("192.0.2.2", is_up=False)
        self.membership.welcomed(HERE, make_welcome())
        self.assertIsNone(self.membership.interface)

    def test_cannot_join(self) -> None:
        """A group that cannot be joined is tried again, and the log says so once each way."""
        self.network.error = OSError(19, "No such device")
        self.membership.welcomed(HERE, make_welcome())
        self.assertIsNone(self.membership.interface)
        self.assertIn("on interface 192.0.2.2 (eth0): No such device", self.health.state)
        self.network.advance(RETRY_INTERVAL)
        self.network.advance(RETRY_INTERVAL)
        self.assertEqual(self.logged("cannot listen"), 1)
        self.network.error = None
        self.network.advance(RETRY_INTERVAL)
        self.assertEqual(self.membership.interface, "192.0.2.2")
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_port_taken(self) -> None:
        """A port that another process has is tried again, and used when it is free."""
        self.network.taken = True
        self.membership.welcomed(HERE, make_welcome())
        self.assertIn("Address already in use", self.health.state)
        self.network.taken = False
        self.network.advance(RETRY_INTERVAL)
        self.assertEqual(self.joined, ["192.0.2.2"])

    def test_no_address(self) -> None:
        """A server that names no address of a group has this host read over TCP."""
        self.membership.welcomed(HERE, make_welcome(group="no address"))
        self.assertIn("cannot listen to the group", self.health.state)

    def test_moved(self) -> None:
        """A server that sends from elsewhere is listened to there; a silent one gets a chance."""
        self.membership.welcomed(HERE, make_welcome())
        self.health.result(100, 100)
        self.assertFalse(self.health.works)
        self.membership.moved(Welcome(VERSION, GROUP, 7041, ("192.0.2.7", 5), 1000))
        self.assertTrue(self.health.works)
        self.assertEqual(self.receiver.source, ("192.0.2.7", 5))
        self.assertEqual(self.joined, ["192.0.2.2"])

    def test_health(self) -> None:
        """The group is left and joined again as the health of multicast demands."""
        self.health.join(False)
        self.assertEqual(self.network.events, [])
        self.membership.welcomed(HERE, make_welcome())
        self.health.join(False)
        self.health.join(True)
        self.assertEqual([event for event, *_ in self.network.events], ["join", "leave", "join"])

    def test_health_cannot_join(self) -> None:
        """A group that cannot be joined again for its health is tried again later."""
        self.membership.welcomed(HERE, make_welcome())
        self.health.join(False)
        self.network.error = OSError(105, "No buffer space available")
        self.health.join(True)
        self.assertIn("No buffer space available", self.health.state)
        self.network.error = None
        self.network.advance(RETRY_INTERVAL)
        self.assertEqual(self.membership.interface, "192.0.2.2")

    def test_stop(self) -> None:
        """Stopping closes the socket, if there is one; twice does no harm."""
        self.successResultOf(self.membership.stop())
        self.membership.welcomed(HERE, make_welcome())
        self.successResultOf(self.membership.stop())
        self.successResultOf(self.membership.stop())
        self.assertEqual(self.network.open, [])
