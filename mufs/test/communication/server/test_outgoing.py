"""The interface that multicast is sent on."""

import socket
import struct
from typing import Any

from attrs import define, evolve
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.outgoing import OutgoingMulticast
from mufs.communication.server.output import MulticastOutput
from mufs.test.communication.server.test_output import WritableReactor
from mufs.test.communication.test_multicast import RecordingSocket
from mufs.test.support.doubles import make_interface
from mufs.wire.metadata import VERSION, Welcome
from mufs.wire.segments import SEGMENT

GROUP, PORT = "239.5.5.0", 7041


class RecordingPort:
    """A UDP port whose socket does nothing."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.listening = True
        self.handle = RecordingSocket()

    def getHandle(self) -> RecordingSocket:
        """See L{ISystemHandle.getHandle}."""
        return self.handle

    @property
    def index(self) -> int:
        """The interface that it sends by."""
        value: Any = self.handle.options[socket.IPPROTO_IP, socket.IP_MULTICAST_IF]
        return int(struct.unpack("=8xi", value)[0])

    def setLoopbackMode(self, mode: bool) -> None:
        """See L{IMulticastTransport.setLoopbackMode}."""

    def connect(self, host: str, port: int) -> None:
        """See L{IUDPTransport.connect}."""

    def getHost(self) -> IPv4Address:
        """See L{IListeningPort.getHost}."""
        return IPv4Address("UDP", self.interface, 40000)

    def stopListening(self) -> None:
        """See L{IListeningPort.stopListening}."""
        self.listening = False


class MulticastReactor(WritableReactor):
    """
    Opens UDP ports.

    @ivar interfaces: those of this host, by address.
    @ivar broken: addresses that cannot be sent from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.interfaces = {
            "192.0.2.1": make_interface("192.0.2.1", 2),
            "192.0.2.2": make_interface("192.0.2.2", 2),
            "198.51.100.1": make_interface("198.51.100.1", 3, name="eth1"),
            "127.0.0.1": make_interface("127.0.0.1", 1, name="lo", is_loopback=True),
        }
        self.ports: list[RecordingPort] = []
        self.broken: set[str] = set()

    def listenMulticast(self, number: int, protocol: Any, interface: str) -> RecordingPort:
        """See L{IReactorMulticast.listenMulticast}."""
        if interface in self.broken:
            raise CannotListenError(interface, number, OSError(19, "No such device"))
        port = protocol.transport = RecordingPort(interface)
        protocol.startProtocol()
        self.ports.append(port)
        return port


@define
class Channel:
    """A client that came by an address of this host."""

    host: object
    name: str = "host1"
    address: str = "192.0.2.9"

    @property
    def transport(self) -> "Channel":
        """Its connection."""
        return self

    def getHost(self) -> object:
        """See L{ITransport.getHost}."""
        return self.host


class OutgoingTests(SynchronousTestCase):
    """Interfaces, configured and not."""

    def make(self, interface: str | None) -> OutgoingMulticast:
        """Have one that is started."""
        self.reactor = MulticastReactor()
        self.outputs: list[MulticastOutput | None] = []
        self.told: list[Welcome] = []
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        return OutgoingMulticast(
            self.reactor,
            GROUP,
            PORT,
            interface=interface,
            on_output=self.outputs.append,
            on_moved=self.told.append,
            interface_of=lambda setting: self.reactor.interfaces.get(setting),
        )

    def come(self, outgoing: OutgoingMulticast, host: object) -> Welcome:
        """A client comes by an address of this host; what it is told."""
        channel: Any = Channel(host)
        return outgoing.welcome(channel)

    def logged(self, text: str) -> int:
        """How many lines of the log contain a text."""
        return sum(text in str(formatEvent(event)) for event in self.events)

    def test_configured(self) -> None:
        """A configured interface is opened at the start, and clients are told of it."""
        outgoing = self.make("192.0.2.1")
        outgoing.network_changed()
        self.assertEqual(len(self.outputs), 1)
        self.assertEqual(outgoing.interface, "192.0.2.1")
        expected = Welcome(VERSION, GROUP, PORT, ("192.0.2.1", 40000), SEGMENT)
        elsewhere = IPv4Address("TCP", "198.51.100.1", 7040)
        self.assertEqual(self.come(outgoing, elsewhere), expected)
        self.assertEqual(self.logged("host1 connected from 192.0.2.9"), 1)
        self.assertEqual(self.logged("set --interface"), 0)

    def test_configured_later(self) -> None:
        """One that is not there yet is waited for, and clients are told when it is."""
        outgoing = self.make("192.0.2.7")
        for _ in range(2):
            outgoing.network_changed()
        self.assertEqual(self.come(outgoing, IPv4Address("TCP", "192.0.2.1", 1)).group, "")
        self.assertEqual(self.logged("no interface 192.0.2.7 is up"), 1)
        self.reactor.interfaces["192.0.2.7"] = make_interface("192.0.2.7", 9)
        outgoing.network_changed()
        (told,) = self.told
        self.assertEqual((told.group, told.source), (GROUP, ("192.0.2.7", 40000)))
        self.assertEqual(self.logged("multicast to 239.5.5.0:7041 on interface 192.0.2.7"), 1)

    def test_configured_unusable(self) -> None:
        """One that cannot be sent on is a warning."""
        outgoing = self.make("192.0.2.1")
        self.reactor.broken.add("192.0.2.1")
        outgoing.network_changed()
        warning = "cannot send multicast on interface 192.0.2.1 (eth0): No such device"
        self.assertEqual(self.logged(warning), 1)
        self.assertEqual(self.outputs, [None])

    def test_made_anew(self) -> None:
        """An interface that went away and came back is sent on by the socket of before."""
        outgoing = self.make("192.0.2.1")
        outgoing.network_changed()
        before = self.reactor.interfaces.pop("192.0.2.1")
        outgoing.network_changed({2})
        self.assertIsNone(self.outputs[-1])
        self.assertIsNone(outgoing.interface)
        self.assertEqual(self.logged("clients read over TCP"), 1)
        self.reactor.interfaces["192.0.2.1"] = evolve(before, index=8)
        outgoing.network_changed()
        (port,) = self.reactor.ports
        self.assertEqual(port.index, 8)
        self.assertIs(self.outputs[-1], self.outputs[0])
        self.assertEqual(self.logged("multicast to 239.5.5.0:7041"), 2)

    def test_moved_to_bridge(self) -> None:
        """An address that moved to another interface is sent from there; once is enough."""
        outgoing = self.make("192.0.2.1")
        outgoing.network_changed()
        self.reactor.interfaces["192.0.2.1"] = make_interface("192.0.2.1", 8, name="br0")
        outgoing.network_changed()
        outgoing.network_changed({5})
        self.assertEqual(self.reactor.ports[0].index, 8)
        self.assertEqual(self.logged("on interface 192.0.2.1 (br0)"), 1)
        self.assertEqual(len(self.outputs), 2)

    def test_removed_with_same_index(self) -> None:
        """An interface that was removed and has its index again needs to be set again."""
        outgoing = self.make("192.0.2.1")
        outgoing.network_changed()
        self.reactor.ports[0].handle.options.clear()
        outgoing.network_changed({2})
        self.assertEqual(self.reactor.ports[0].index, 2)

    def test_another_address(self) -> None:
        """An interface by name that has another address is sent from it, and clients are told."""
        outgoing = self.make("eth0")
        self.reactor.interfaces["eth0"] = make_interface("192.0.2.1", 2)
        outgoing.network_changed()
        self.reactor.interfaces["eth0"] = make_interface("192.0.2.2", 2)
        outgoing.network_changed()
        self.assertEqual([port.listening for port in self.reactor.ports], [False, True])
        self.assertEqual(self.told[-1].source, ("192.0.2.2", 40000))
        self.assertIsNot(self.outputs[-1], self.outputs[0])

    def test_first_client(self) -> None:
        """Without one, multicast goes out where the first client came in."""
        outgoing = self.make(None)
        outgoing.network_changed()
        self.assertIsNone(outgoing.interface)
        told = self.come(outgoing, IPv4Address("TCP", "192.0.2.1", 7040))
        self.assertEqual((told.group, told.source), (GROUP, ("192.0.2.1", 40000)))
        self.assertEqual(len(self.outputs), 1)

    def test_first_client_here(self) -> None:
        """If that was a client of this host, multicast moves to where another one comes in."""
        outgoing = self.make(None)
        here = IPv4Address("TCP", "127.0.0.1", 7040)
        self.assertEqual(self.come(outgoing, here).source[0], "127.0.0.1")
        told = self.come(outgoing, IPv4Address("TCP", "192.0.2.1", 7040))
        self.assertEqual((told, self.told[-1]), (told, told))
        self.assertEqual(told.source[0], "192.0.2.1")
        self.assertEqual(self.come(outgoing, here), told)

    def test_next_client(self) -> None:
        """If the first client's interface is gone, multicast goes out by that of another one."""
        outgoing = self.make(None)
        self.come(outgoing, IPv4Address("TCP", "127.0.0.1", 7040))
        self.come(outgoing, IPv4Address("TCP", "192.0.2.1", 7040))
        self.come(outgoing, IPv4Address("TCP", "198.51.100.1", 7040))
        del self.reactor.interfaces["192.0.2.1"]
        outgoing.network_changed()
        self.assertEqual(self.told[-1].source, ("198.51.100.1", 40000))
        del self.reactor.interfaces["198.51.100.1"], self.reactor.interfaces["127.0.0.1"]
        outgoing.network_changed()
        self.assertIsNone(self.outputs[-1])
        told = self.come(outgoing, IPv4Address("TCP", "192.0.2.2", 7040))
        self.assertEqual(told.source, ("192.0.2.2", 40000))

    def test_another_interface(self) -> None:
        """A client that comes by another one is told the same, and there is a warning."""
        outgoing = self.make(None)
        first = self.come(outgoing, IPv4Address("TCP", "192.0.2.1", 7040))
        self.assertEqual(self.logged("set --interface"), 0)
        second = self.come(outgoing, IPv4Address("TCP", "198.51.100.1", 7040))
        self.assertEqual(second, first)
        self.assertEqual(self.logged("multicast goes out on 192.0.2.1"), 1)
        self.assertEqual(len(self.outputs), 1)

    def test_no_interface(self) -> None:
        """A client that comes by no address of IPv4 is told of no group."""
        outgoing = self.make(None)
        told = self.come(outgoing, UNIXAddress("/run/socket"))
        self.assertEqual(told, Welcome(VERSION, "", PORT, ("", 0), SEGMENT))
        self.assertEqual(self.logged("connected by a UNIX socket, which has no interface"), 1)
        self.come(outgoing, IPv6Address("TCP", "2001:db8::1", 7040))
        self.assertEqual(self.logged("connected by IPv6, which has no interface"), 1)

    def test_unusable(self) -> None:
        """Where its interface is of no use, clients read over TCP, and another one may do."""
        outgoing = self.make(None)
        self.reactor.broken.add("192.0.2.1")
        told = self.come(outgoing, IPv4Address("TCP", "192.0.2.1", 7040))
        self.assertEqual(told.group, "")
        self.assertEqual(self.logged("clients read over TCP"), 1)
        told = self.come(outgoing, IPv4Address("TCP", "192.0.2.2", 7040))
        self.assertEqual(told.source, ("192.0.2.2", 40000))

    def test_stop(self) -> None:
        """The port is closed in the end, if there is one."""
        outgoing = self.make("192.0.2.1")
        self.successResultOf(outgoing.stop())
        outgoing.network_changed()
        self.successResultOf(outgoing.stop())
        self.assertFalse(self.reactor.ports[0].listening)
