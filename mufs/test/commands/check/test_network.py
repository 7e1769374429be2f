"""Findings about the route to the server."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from mufs.commands.check import network
from mufs.commands.check.finding import Level
from mufs.communication import interfaces
from mufs.communication.interfaces import Route, interface_of, route
from mufs.test.support.doubles import make_interface

ETHERNET = make_interface("192.0.2.11")


class NetworkTests(SynchronousTestCase):
    """What this host's kernel tells of the way to a server."""

    def test_loopback(self) -> None:
        """The way to this host is the loopback, and its interface is found by its address."""
        self.assertEqual(route("127.0.0.1"), Route("lo", "127.0.0.1", None))
        found = interface_of("127.0.0.1")
        assert found is not None
        self.assertTrue(found.is_up and found.is_loopback)
        self.assertEqual(found.name, "lo")
        self.assertIs(network.usable("127.0.0.1").level, Level.OK)
        self.assertIs(network.usable("192.0.2.250").level, Level.PROBLEM)

    def test_packet_size(self) -> None:
        """Datagrams that are larger than a packet, here or as TCP tells, are a warning."""
        small = attrs.evolve(ETHERNET, mtu=1439)
        self.assertIs(network.packet_size(small, 1400, None).level, Level.WARNING)
        self.assertIs(network.packet_size(ETHERNET, 1400, 1387).level, Level.WARNING)
        self.assertIs(network.packet_size(ETHERNET, 1400, 1388).level, Level.OK)
        just = attrs.evolve(ETHERNET, mtu=1440)
        self.assertIs(network.packet_size(just, 1400, None).level, Level.OK)

    def test_bad_interfaces(self) -> None:
        """An interface is a problem that is down, without carrier or multicast; Wi-Fi a warning."""
        self.assertIs(self.usable(), Level.OK)
        for fault in ("is_up", "has_carrier", "has_multicast"):
            self.assertIs(self.usable(**{fault: False}), Level.PROBLEM, fault)
        self.assertIs(self.usable(is_wireless=True), Level.WARNING)

    def usable(self, **changes: Any) -> Level:
        there = attrs.evolve(ETHERNET, **changes)
        self.patch(interfaces, "interfaces", lambda: [there])
        return network.usable(there.address).level
