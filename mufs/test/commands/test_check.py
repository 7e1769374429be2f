"""The findings of C{mufs check}, each by itself: from files, certificates, packets and figures."""

from __future__ import annotations

import os
import re
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from hypothesis import given
from hypothesis.strategies import binary
from twisted.trial.unittest import SynchronousTestCase

from mufs.commands import keys
from mufs.commands.check import certificates, host, multicast, network
from mufs.commands.check.finding import WIDTH, Finding, Level, ok, problem, warning
from mufs.commands.check.network import Interface
from mufs.commands.check.packets import TEST_GROUP, Query, parse_query
from mufs.commands.check.session import Reading
from mufs.commands.keys import make_keys
from mufs.communication.client.receiver import RECEIVE_BUFFER
from mufs.test.support.properties import examples
from mufs.wire.metadata import VERSION, Welcome

WELCOME = Welcome(VERSION, "239.5.5.0", 7041, ("192.0.2.1", 40000), 1400)
READING = Reading(
    seconds=5.0,
    bytes_asked=12_000_000,
    bytes_over_tcp=0,
    segments=9000,
    segment=1400,
    loss=0.0,
    dropped=0,
    works=True,
    state="working",
    is_lost=False,
)
SILENT = attrs.evolve(
    READING, segments=0, loss=None, works=False, bytes_over_tcp=100_000, state="not working: ..."
)
ETHERNET = Interface("eth0", "192.0.2.11", 1500, True, True, True, False, False)


class FindingTests(SynchronousTestCase):
    """How findings are shown."""

    def test_width(self) -> None:
        """Text fits 80 columns; a command is one line, however long it is."""
        command = "nft add rule inet filter input " + "ip saddr 192.0.2.1 " * 5 + "accept"
        lines = problem("receive buffer", "word " * 40, "remedy " * 30, command).lines()
        self.assertTrue(lines[0].startswith("problem  receive buffer  word"), lines)
        self.assertEqual(lines[-1].strip(), command)
        self.assertLessEqual(max(map(len, lines[:-1])), WIDTH)
        self.assertEqual(sum("->" in line for line in lines), 1)

    def test_lines(self) -> None:
        """Each line of a remedy begins a line."""
        lines = warning("multicast", "x", "1. this\n2. that").lines()
        self.assertEqual([line.strip() for line in lines[1:]], ["-> 1. this", "2. that"])
        self.assertEqual(len(ok("multicast", "x").lines()), 1)


class HostTests(SynchronousTestCase):
    """What this host needs."""

    def test_device(self) -> None:
        """A device that is missing or closed to this user is a problem, with what to type."""
        path = Path(self.mktemp())
        self.assertIn("modprobe fuse", host.fuse_device(str(path)).commands)
        path.mkdir()
        closed = host.fuse_device(str(path))
        self.assertIs(closed.level, Level.PROBLEM)
        self.assertIn("directory", closed.figure)

    def test_library(self) -> None:
        """The library is looked for as fusepy does, which takes a path from the environment."""
        self.patch(host, "find_library", lambda name: None)
        self.assertIs(host.fuse_library().level, Level.PROBLEM)
        self.patch(os, "environ", {"FUSE_LIBRARY_PATH": "/opt/libfuse.so"})
        self.assertEqual(host.fuse_library().figure, "/opt/libfuse.so")

    def test_fusermount(self) -> None:
        """A fusermount that does not run as root is of no use to others than root."""
        directory = Path(self.mktemp())
        directory.mkdir()
        self.patch(os, "environ", {"PATH": str(directory.absolute())})
        self.assertIs(host.fusermount().level, Level.PROBLEM)
        program = directory / "fusermount"
        program.touch()
        program.chmod(0o755)
        self.patch(os, "geteuid", lambda: 0)
        self.assertIs(host.fusermount().level, Level.OK)
        self.patch(os, "geteuid", lambda: 1000)
        self.assertEqual(host.fusermount().commands, (f"chmod u+s {program.absolute()}",))
        program.chmod(0o4755)
        self.assertIs(host.fusermount().level, Level.OK)

    def test_allow_other(self) -> None:
        """user_allow_other counts if it is a line, and no comment."""
        config = Path(self.mktemp())
        self.assertIs(host.allow_other(config).level, Level.WARNING)
        config.write_text("# mount_max = 1000\n#user_allow_other\n")
        self.assertIs(host.allow_other(config).level, Level.WARNING)
        config.write_text("mount_max = 1000\nuser_allow_other\n")
        self.assertIs(host.allow_other(config).level, Level.OK)

    def test_receive_buffer(self) -> None:
        """A small limit is a warning to whom it limits, and told to whom it does not."""
        limit = Path(self.mktemp())
        limit.write_text("212992\n")
        most = host.number(str(limit))
        small = host.receive_buffer(212992, most)
        self.assertIs(small.level, Level.WARNING)
        self.assertIn("208 KiB of the 16384", small.figure)
        self.assertEqual(small.commands, ("sysctl -w net.core.rmem_max=16777216",))
        self.assertIn("gets 208", host.receive_buffer(RECEIVE_BUFFER, most).figure)
        self.assertNotIn("gets", host.receive_buffer(RECEIVE_BUFFER, 1 << 30).figure)
        self.assertIsNone(host.number(str(limit) + ".missing"))


class NetworkTests(SynchronousTestCase):
    """What this host's kernel tells of the way to a server."""

    def test_loopback(self) -> None:
        """The way to this host is the loopback, and its interface is found by its address."""
        self.assertEqual(network.route("127.0.0.1"), network.Route("lo", "127.0.0.1", None))
        found = network.interface_of("127.0.0.1")
        assert found is not None
        self.assertTrue(found.is_up and found.is_loopback)
        self.assertEqual(found.name, "lo")
        self.assertIs(network.usable("127.0.0.1").level, Level.OK)
        self.assertIs(network.usable("192.0.2.250").level, Level.PROBLEM)

    def test_packet_size(self) -> None:
        """Datagrams that are larger than a packet are a problem; what TCP tells is a warning."""
        small = attrs.evolve(ETHERNET, mtu=1439)
        self.assertIs(network.packet_size(small, 1400, None).level, Level.PROBLEM)
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
        self.patch(network, "interfaces", lambda: [there])
        return network.usable(there.address).level


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


class CertificateTests(SynchronousTestCase):
    """Certificates, and the clock that they are looked at by."""

    def setUp(self) -> None:
        self.top = Path(self.mktemp())
        make_keys(self.top, ["images.lab", "192.0.2.1"], ["host1.lab"])
        self.server = x509.load_pem_x509_certificate((self.top / "server.pem").read_bytes())
        self.given = {
            "certificate": str(self.top / "host1.lab.pem"),
            "trustRoots": str(self.top / "ca"),
        }

    def judge(self, days: float) -> Finding:
        """The finding so many days from now."""
        now = datetime.now(UTC) + timedelta(days=days)
        return certificates.judge(certificates.SERVER, self.server, now)

    def test_time(self) -> None:
        """It is fine, about to end, past, or not valid yet, and a clock years away is called so."""
        self.assertIs(self.judge(0).level, Level.OK)
        self.assertIs(self.judge(keys.LIFETIME.days - 31).level, Level.OK)
        self.assertIs(self.judge(keys.LIFETIME.days - 29).level, Level.WARNING)
        past = self.judge(keys.LIFETIME.days + 1)
        self.assertIs(past.level, Level.PROBLEM)
        self.assertIn("expired", past.figure)
        self.assertNotIn("clock", past.remedy)
        self.assertIn("clock", self.judge(keys.LIFETIME.days + 3000).remedy)
        early = self.judge(-3)
        self.assertIs(early.level, Level.PROBLEM)
        self.assertIn("not valid yet", early.figure)
        self.assertNotIn("years", early.remedy)
        self.assertIn("slow by years", self.judge(-3000).remedy)

    def test_own(self) -> None:
        """Own certificate and authority are found; what is missing or malformed is a problem."""
        self.assertEqual([each.level for each in certificates.own(self.given)], [Level.OK] * 2)
        (self.top / "ca" / "other.pem").write_text("nothing\n")
        levels = [each.level for each in certificates.own(self.given)]
        self.assertEqual(levels, [Level.OK, Level.OK, Level.PROBLEM])
        gone = {"certificate": "missing.pem", "trustRoots": str(self.top / "missing")}
        levels = [each.level for each in certificates.own(gone)]
        self.assertEqual(levels, [Level.PROBLEM] * 2)
        self.assertIs(certificates.own({})[0].level, Level.WARNING)

    def test_server(self) -> None:
        """Its name, its address and its signer have to be right."""
        for name in ("images.lab", "IMAGES.lab", "192.0.2.1"):
            found = certificates.of_server(self.server, name, self.given)
            self.assertEqual([each.level for each in found], [Level.OK], name)
        other = certificates.of_server(self.server, "192.0.2.2", self.given)
        self.assertEqual([each.what for each in other[1:]], ["server's name"])
        self.assertEqual(other[1].commands, ("mufs keys --server images.lab,192.0.2.1,192.0.2.2",))
        make_keys(self.top / "others", ["images.lab"], [])
        roots = {"trustRoots": str(self.top / "others" / "ca")}
        found = certificates.of_server(self.server, "images.lab", roots)
        self.assertEqual([each.what for each in found[1:]], ["server's signer"])

    def test_hostile_name(self) -> None:
        """A name that anybody may have written is quoted in what is to be typed."""
        self.patch(keys, "_NAME", re.compile(".*"))
        make_keys(self.top / "evil", ["$(reboot)\x1b[2J"], [])
        pem = (self.top / "evil" / "server.pem").read_bytes()
        found = certificates.of_server(x509.load_pem_x509_certificate(pem), "a", {})
        text = "\n".join(line for each in found for line in each.lines())
        self.assertNotIn("\x1b", text)
        self.assertIn("'$(reboot)\\x1b[2J,a'", text)


class MulticastTests(SynchronousTestCase):
    """What the figures of a session mean."""

    def judge(self, seen: bool | None = None, asked: bool | None = None, **changes: Any) -> Finding:
        """The finding of a reading that differs from a good one by these changes."""
        return multicast.judge(attrs.evolve(READING, **changes), WELCOME, seen=seen, asked=asked)

    def silent(self, seen: bool | None, asked: bool | None = None) -> Finding:
        return multicast.judge(SILENT, WELCOME, seen=seen, asked=asked)

    def test_loss(self) -> None:
        """A little loss is fine, some a warning, and what multicast is given up for a problem."""
        for loss, level in (
            (0.009, Level.OK), (0.01, Level.WARNING), (0.4, Level.WARNING), (0.41, Level.PROBLEM),
        ):  # fmt: skip
            self.assertIs(self.judge(loss=loss).level, level, loss)
        self.assertIn("20.2 Mbit/s", self.judge().figure)
        self.assertIs(self.judge(works=False, state="not working: too lossy").level, Level.PROBLEM)

    def test_short_alone(self) -> None:
        """Where short datagrams alone come, the size of packets is the remedy."""
        found = self.judge(loss=0.989, segments=50, works=False)
        self.assertIs(found.level, Level.PROBLEM)
        self.assertIn("1440", found.figure)
        self.assertIn("mtu", found.commands[0])

    def test_silent(self) -> None:
        """What came to the interface tells this host's firewall from the network."""
        here = self.silent(seen=True)
        self.assertIn("firewall of this host", here.remedy)
        self.assertIn("udp dport 7041 accept", here.commands[0])
        away = self.silent(seen=False, asked=False)
        self.assertNotIn("firewall of this host", away.remedy)
        self.assertIn("there is none, see above", away.remedy)
        self.assertEqual(away.commands, ())
        unknown = self.silent(seen=None)
        self.assertIn("as root", unknown.remedy)
        self.assertEqual(unknown.commands, here.commands)

    def test_nothing_sent(self) -> None:
        """A server that sends nothing proves nothing; a connection that is lost is a problem."""
        self.assertIs(self.judge(segments=0, loss=None).level, Level.WARNING)
        self.assertIs(self.judge(is_lost=True).level, Level.PROBLEM)

    def test_over_tcp(self) -> None:
        """TCP is spoken of only where it is needed."""
        self.assertIsNone(multicast.over_tcp(READING))
        came = multicast.over_tcp(SILENT)
        assert came is not None
        self.assertIs(came.level, Level.OK)
        nothing = multicast.over_tcp(attrs.evolve(SILENT, bytes_over_tcp=0))
        assert nothing is not None
        self.assertIs(nothing.level, Level.PROBLEM)

    def test_others(self) -> None:
        """Datagrams of others in the group are a warning."""
        self.assertIs(multicast.others(READING).level, Level.OK)
        self.assertIs(multicast.others(attrs.evolve(READING, dropped=3)).level, Level.WARNING)

    def test_querier(self) -> None:
        """Whoever asks is named, but for a bridge that has no address."""
        found = multicast.querier([Query("192.0.2.254", TEST_GROUP, 2)], 5)
        self.assertIs(found.level, Level.OK)
        self.assertEqual(found.figure, "192.0.2.254 asks, by IGMP version 2")
        self.assertIn("switch", multicast.querier([Query("0.0.0.0", "0.0.0.0", 3)], 5).figure)
        self.assertIs(multicast.querier([], 5).level, Level.WARNING)
