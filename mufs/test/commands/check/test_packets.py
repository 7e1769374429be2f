"""Packets of IGMP."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis.strategies import binary
from twisted.trial.unittest import SynchronousTestCase

from mufs.commands.check.packets import TEST_GROUP, Query, parse_query
from mufs.test.support.properties import examples


class PacketTests(SynchronousTestCase):
    """Packets of IGMP."""

    def packet(self, body: bytes, options: bytes = b"") -> bytes:
        """One of IP, with the filling that Ethernet adds."""
        head = bytes([0x45 + len(options) // 4, 0]) + (20 + len(options) + len(body)).to_bytes(2)
        head += bytes(5) + bytes([socket.IPPROTO_IGMP]) + bytes(2)
        head += socket.inet_aton("192.0.2.254") + socket.inet_aton("224.0.0.1")
        return (head + options + body).ljust(46, b"\0")

    def test_versions(self) -> None:
        """Queries of all versions are told apart by length and time (RFC 3376, 7.1)."""
        group = socket.inet_aton(TEST_GROUP)
        first = Query("192.0.2.254", "0.0.0.0", 1)
        self.assertEqual(parse_query(self.packet(b"\x11\0\0\0" + bytes(4))), first)
        second = parse_query(self.packet(b"\x11\x0a\0\0" + group, b"\x94\x04\0\0"))
        self.assertEqual(second, Query("192.0.2.254", TEST_GROUP, 2))
        third = parse_query(self.packet(b"\x11\x0a\0\0" + group + bytes(4), b"\x94\x04\0\0"))
        self.assertEqual(third, Query("192.0.2.254", TEST_GROUP, 3))

    def test_others(self) -> None:
        """Reports are no queries, and neither are short packets."""
        self.assertIsNone(parse_query(self.packet(b"\x22\0\0\0" + bytes(12))))
        self.assertIsNone(parse_query(self.packet(b"\x11\0\0")))

    @examples(200)
    @given(binary(max_size=64))
    def test_any_bytes(self, rest: bytes) -> None:
        """Any bytes behind any length of a header are a query or none."""
        for first in range(256):
            query = parse_query(bytes([first, 0, 0, 40]) + rest)
            self.assertTrue(query is None or query.version in (1, 2, 3))
