"""The network interfaces of this host, and changes of them."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Container
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mufs.communication import interfaces
from mufs.communication.interfaces import (
    CHANGE_DELAY,
    NetworkChanges,
    Route,
    interface_of,
    interface_towards,
    route,
)
from mufs.test.support.doubles import make_interface

NEW_LINK, DELETED_LINK, NEW_ADDRESS = 16, 17, 20


def message(kind: int, index: int, family: int = socket.AF_UNSPEC) -> bytes:
    """What the kernel says of an interface."""
    body = struct.pack("=BxHiII", family, 1, index, 0, 0)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


class Kernel(socket.socket):
    """
    A netlink socket that the test speaks by.

    @ivar says: what comes next: bytes, or an error.
    """

    says: list[bytes | OSError]

    def recv(self, size: int, flags: int = 0) -> bytes:
        """See L{socket.socket.recv}."""
        if not self.says:
            raise BlockingIOError
        said = self.says.pop(0)
        if isinstance(said, OSError):
            raise said
        return said


class ReadingReactor(Clock):
    """Remembers which descriptors are read."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: object) -> None:
        """See L{IReactorFDSet.addReader}."""
        self.readers.append(reader)

    def removeReader(self, reader: object) -> None:
        """See L{IReactorFDSet.removeReader}."""
        self.readers.remove(reader)


class NowTests(SynchronousTestCase):
    """What is now."""

    def test_loopback(self) -> None:
        """The loopback is found by its address, its name, and the route to it."""
        self.assertEqual(route("127.0.0.1"), Route("lo", "127.0.0.1", None))
        found = interface_of("127.0.0.1")
        assert found is not None
        self.assertEqual((found.name, found.index), ("lo", 1))
        self.assertEqual(interface_of("lo"), found)
        self.assertEqual(interface_towards("127.0.0.1"), found)

    def test_none(self) -> None:
        """Nobody's address, a name that no interface has, and nonsense lead nowhere."""
        for setting in ("192.0.2.250", "eth99", ""):
            self.assertIsNone(interface_of(setting))
        for address in ("", "1\0", "not.an.address"):
            self.assertIsNone(interface_towards(address), address)

    def test_name_means_first_address(self) -> None:
        """A name stands for the first address of the interface."""
        own = [make_interface("192.0.2.1"), make_interface("192.0.2.2")]
        self.patch(interfaces, "interfaces", lambda: own)
        self.assertIs(interface_of("eth0"), own[0])
        self.assertIs(interface_of("192.0.2.2"), own[1])

    def test_shown(self) -> None:
        """An interface is shown by address and name."""
        self.assertEqual(str(make_interface()), "192.0.2.1 (eth0)")


class ChangeTests(SynchronousTestCase):
    """Changes that the kernel reports."""

    def setUp(self) -> None:
        """Watch a kernel that the test speaks for."""
        self.reactor = ReadingReactor()
        self.told: list[Container[int]] = []
        self.patch(socket, "socket", Kernel)
        self.changes = NetworkChanges(self.reactor, self.told.append)
        self.changes.startService()
        self.addCleanup(self.changes.stopService)

    def say(self, *said: bytes | OSError) -> None:
        """The kernel reports changes."""
        kernel: Any = self.changes._socket
        kernel.says = list(said)
        (reader,) = self.reactor.readers
        reader.doRead()

    def test_provides(self) -> None:
        """It can be read by the reactor."""
        self.assertTrue(verifyObject(IReadDescriptor, self.changes))
        self.assertGreaterEqual(self.changes.fileno(), 0)

    def test_together(self) -> None:
        """Changes that come together are told once, with the interfaces that were removed."""
        self.say(message(DELETED_LINK, 7) + message(NEW_LINK, 8), message(DELETED_LINK, 9))
        self.reactor.advance(CHANGE_DELAY / 2)
        self.say(message(NEW_ADDRESS, 8))
        self.assertEqual(self.told, [])
        self.reactor.advance(CHANGE_DELAY / 2)
        self.assertEqual(self.told, [{7, 9}])
        self.reactor.advance(10)
        self.say(message(NEW_ADDRESS, 8))
        self.reactor.advance(CHANGE_DELAY)
        self.assertEqual(self.told[1:], [set()])

    def test_bridge_port(self) -> None:
        """An interface that leaves a bridge was not removed."""
        self.say(message(DELETED_LINK, 7, socket.AF_BRIDGE))
        self.reactor.advance(CHANGE_DELAY)
        self.assertEqual(self.told, [set()])

    def test_overflow(self) -> None:
        """If the kernel could not tell all, any interface may have been removed."""
        lost = OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        self.say(message(DELETED_LINK, 7), lost)
        self.say(message(DELETED_LINK, 8))
        self.reactor.advance(CHANGE_DELAY)
        (removed,) = self.told
        self.assertIn(9, removed)

    def test_malformed(self) -> None:
        """What makes no sense counts as a change, and does no harm."""
        self.say(b"\0" * 15, b"\0" * 40, message(DELETED_LINK, 7)[:-12])
        self.reactor.advance(CHANGE_DELAY)
        self.assertEqual(len(self.told), 1)

    def test_stopped(self) -> None:
        """A stopped one reads and tells nothing more, and leaves no timer."""
        self.say(message(NEW_LINK, 7))
        self.changes.stopService()
        self.assertEqual(self.reactor.readers, [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.changes.fileno(), -1)

    def test_no_netlink(self) -> None:
        """Without netlink there is a warning."""
        events: list[LogEvent] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

        def refuse(*_: object) -> None:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

        self.patch(socket, "socket", refuse)
        blind = NetworkChanges(self.reactor, self.told.append)
        blind.startService()
        self.addCleanup(blind.stopService)
        (event,) = events
        self.assertIn("unnoticed: no netlink here: Address family", str(formatEvent(event)))
