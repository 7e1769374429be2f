"""The interface that multicast is sent on."""

from typing import Any

from attrs import define
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.outgoing import OutgoingMulticast
from mufs.communication.server.output import MulticastOutput
from mufs.wire.metadata import VERSION, Welcome
from mufs.wire.segments import SEGMENT

GROUP, PORT = "239.5.5.0", 7041


class RecordingPort:
    """A UDP port without a socket."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.listening = True

    def getHost(self) -> IPv4Address:
        """See L{IListeningPort.getHost}."""
        return IPv4Address("UDP", self.interface, 40000)

    def stopListening(self) -> None:
        """See L{IListeningPort.stopListening}."""
        self.listening = False


class MulticastReactor:
    """
    Opens UDP ports.

    @ivar broken: interfaces that cannot be sent on.
    """

    def __init__(self) -> None:
        self.ports: list[RecordingPort] = []
        self.broken: set[str] = set()

    def listenMulticast(self, number: int, protocol: Any, interface: str) -> RecordingPort:
        """See L{IReactorMulticast.listenMulticast}."""
        if interface in self.broken:
            raise CannotListenError(interface, number, OSError(19, "No such device"))
        port = protocol.transport = RecordingPort(interface)
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
        self.opened: list[MulticastOutput] = []
        self.unusable: list[str] = []
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        return OutgoingMulticast(
            self.reactor,
            GROUP,
            PORT,
            interface=interface,
            on_open=self.opened.append,
            on_unusable=self.unusable.append,
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
        outgoing.start()
        self.assertEqual([output.interface for output in self.opened], ["192.0.2.1"])
        self.assertEqual(outgoing.interface, "192.0.2.1")
        expected = Welcome(VERSION, GROUP, PORT, ("192.0.2.1", 40000), SEGMENT)
        elsewhere = IPv4Address("TCP", "198.51.100.1", 7040)
        self.assertEqual(self.come(outgoing, elsewhere), expected)
        self.assertEqual(self.logged("host1 connected from 192.0.2.9"), 1)
        self.assertEqual(self.logged("set --interface"), 0)

    def test_configured_unusable(self) -> None:
        """One that is of no use is reported."""
        outgoing = self.make("192.0.2.1")
        self.reactor.broken.add("192.0.2.1")
        outgoing.start()
        (message,) = self.unusable
        self.assertIn("cannot send multicast on interface 192.0.2.1: ", message)
        self.assertEqual(self.opened, [])

    def test_first_client(self) -> None:
        """Without one, multicast goes out where the first client came in."""
        outgoing = self.make(None)
        outgoing.start()
        self.assertIsNone(outgoing.interface)
        told = self.come(outgoing, IPv4Address("TCP", "192.0.2.1", 7040))
        self.assertEqual((told.group, told.source), (GROUP, ("192.0.2.1", 40000)))
        self.assertEqual(len(self.opened), 1)

    def test_another_interface(self) -> None:
        """A client that comes by another one is told the same, and there is a warning."""
        outgoing = self.make(None)
        first = self.come(outgoing, IPv4Address("TCP", "192.0.2.1", 7040))
        self.assertEqual(self.logged("set --interface"), 0)
        second = self.come(outgoing, IPv4Address("TCP", "198.51.100.1", 7040))
        self.assertEqual(second, first)
        self.assertEqual(self.logged("multicast goes out on 192.0.2.1"), 1)
        self.assertEqual(len(self.opened), 1)

    def test_no_interface(self) -> None:
        """A client that comes by no address of IPv4 is told of no group."""
        outgoing = self.make(None)
        told = self.come(outgoing, UNIXAddress("/run/socket"))
        self.assertEqual(told, Welcome(VERSION, "", PORT, ("", 0), SEGMENT))
        self.assertEqual(self.logged("has no interface for multicast"), 1)

    def test_unusable(self) -> None:
        """Where its interface is of no use, clients read over TCP, and another one may do."""
        outgoing = self.make(None)
        self.reactor.broken.add("192.0.2.1")
        told = self.come(outgoing, IPv4Address("TCP", "192.0.2.1", 7040))
        self.assertEqual(told.group, "")
        self.assertEqual(self.unusable, [])
        self.assertEqual(self.logged("clients read over TCP"), 1)
        told = self.come(outgoing, IPv4Address("TCP", "192.0.2.2", 7040))
        self.assertEqual(told.source, ("192.0.2.2", 40000))

    def test_stop(self) -> None:
        """The port is closed in the end, if there is one."""
        outgoing = self.make("192.0.2.1")
        self.successResultOf(outgoing.stop())
        outgoing.start()
        self.successResultOf(outgoing.stop())
        self.assertFalse(self.reactor.ports[0].listening)
