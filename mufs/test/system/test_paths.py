"""Paths that reorder, duplicate and drop packets, and servers and links that pause."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from mufs.test.support.lab import SERVER, Lab
from mufs.test.support.netns import run
from mufs.test.support.processes import wait_until
from mufs.test.system.test_network import MIB, LabTestCase

PAUSE_SECONDS = float(os.environ.get("MUFS_TEST_PAUSE", "2"))
"""Seconds that a process or link pauses; C{MUFS_TEST_PAUSE} sets another value."""

RELAY = """
import random, socket, sys
source, target, seed = sys.argv[1:]
chance = random.Random(int(seed))
ways = []
for name, kind in ((source, 3), (target, 0)):
    way = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
    way.bind((name, kind))
    ways.append(way)
coming, going = ways
coming.settimeout(0.005)
held = []
while True:
    try:
        frame, where = coming.recvfrom(65536)
    except TimeoutError:
        frame = None
    else:
        if where[2] == 4 or frame[23] != 17 or frame[0] & 1 == 0:
            continue
        # The checksum was offloaded, so it is wrong here; 0 means none.
        frame = frame[:40] + bytes(2) + frame[42:]
        held.append(frame)
        if chance.random() < 0.1:
            held.append(frame)
    if frame is None or len(held) >= 40:
        chance.shuffle(held)
        for each in held:
            going.send(each)
        held.clear()
"""
"""Forwards multicast from one port of the switch to another, shuffled and with duplicates."""


class DisorderTests(LabTestCase):
    """Duplicated and reordered datagrams."""

    def test_doubled_and_shuffled(self) -> None:
        """A host that gets reordered datagrams, each tenth twice, reads by multicast."""
        lab = self.make_lab(2, 8 * MIB + 1111)
        network = lab.network
        switch = network.enter("switch")
        run(*switch, "bridge", "link", "set", "dev", "host1", "mcast_flood", "off")
        relay = [sys.executable, "-c", RELAY, SERVER, "host1", "7"]
        lab.start_program("relay", "switch", relay)
        lab.start_server()
        clients = lab.start_clients()
        self.read_all(lab)
        shuffled = clients[0].status()
        self.assertEqual(shuffled["multicast"], "working")
        self.assertLess(shuffled["bytes_over_tcp"], self.size / 2)
        self.assertEqual(shuffled["transfers_rejected"], 0)


class DatagramSizeTests(LabTestCase):
    """Links whose packets are smaller than the datagrams."""

    def set_mtu(self, lab: Lab, host: str) -> None:
        """Set the MTU of a host's link to 1200 bytes."""
        namespace = lab.network.namespace(host)
        run("ip", "-n", namespace, "link", "set", "dev", "eth0", "mtu", "1200")

    def test_server(self) -> None:
        """A server whose MTU becomes too small sends fragments, and logs that."""
        lab = self.make_lab(2, 6 * MIB + 5, rate=50)
        server = lab.start_server()
        clients = lab.start_clients()
        readers = self.start_reading(lab)
        self.set_mtu(lab, SERVER)
        self.assert_right([reader.result() for reader in readers])
        self.assertIn("UDP_SEGMENT is refused", server.output)
        for client in clients:
            self.assertEqual(client.status()["multicast"], "working")

    def test_client(self) -> None:
        """A host with a small MTU reads over TCP, and the other one by multicast."""
        lab = self.make_lab(2, 6 * MIB + 5)
        lab.start_server()
        self.set_mtu(lab, "host1")
        # A virtual link does not check the size of packets that the kernel segments.
        lab.network.set_loss("host1", 1000, "meta length > 1200")
        narrow, wide = lab.start_clients()
        self.read_all(lab)
        # All data but those in short datagrams, at the ends of transfers.
        self.assertGreater(narrow.status()["bytes_over_tcp"], 0.9 * self.size)
        self.assertLess(wide.status()["bytes_over_tcp"], self.size / 2)

    def test_between(self) -> None:
        """
        A switch that silently drops large packets, including those of TCP, causes EIO after the
        timeout, and does not affect the other host.
        """
        lab = self.make_lab(2, 4 * MIB + 5)
        lab.start_server()
        lab.start_clients("--timeout", "4")
        lab.network.set_loss("host1", 1000, "meta length > 1200")
        cut, other = lab.start_readers("disk.img")
        self.assert_right([other.result(30)])
        self.assertEqual(cut.result(30).error, "EIO")


class GroupTests(LabTestCase):
    """Switches that do not know the group's members."""

    def test_reports_filtered(self) -> None:
        """A host whose IGMP reports are lost reads over TCP with the reason; others do not."""
        lab = self.make_lab(2, 4 * MIB + 5, snooping=True)
        # With a new querier, the switch floods multicast for this time.
        bridge = ["link", "set", "bridge", "type", "bridge", "mcast_query_response_interval", "100"]
        switch = ["ip", "-n", lab.network.namespace("switch")]
        run(*switch, *bridge, "mcast_querier", "0")
        run(*switch, *bridge, "mcast_querier", "1")
        rules = """
        table inet filter {
            chain out { type filter hook output priority 0; ip protocol igmp drop; }
        }
        """
        run(*lab.network.enter("host1"), "nft", "-f", "-", given=rules)
        lab.start_server()
        filtered, other = lab.start_clients()
        # Without any known member, the switch floods the group.
        wait_until(lambda: lab.network.members("239.5.5.0") == {"host2"}, 20, "host2 is known")
        self.read_all(lab)
        self.assertIn("nothing arrives", filtered.status()["multicast"])
        self.assertIn("multicast is not working: nothing arrives", filtered.output)
        self.assertEqual(other.status()["multicast"], "working")


class PauseTests(LabTestCase):
    """Processes and links that pause: reads wait, and end right."""

    def start(self, hosts: int = 2) -> Lab:
        lab = self.make_lab(hosts, 9 * MIB + 3, rate=50)
        self.server = lab.start_server()
        self.clients = lab.start_clients()
        self.readers = self.start_reading(lab)
        return lab

    def assert_all_right(self) -> None:
        """Assert that all reads end right, within their timeout."""
        self.assert_right([reader.result(60) for reader in self.readers])
        for client in self.clients:
            self.assertNotIn("Traceback", client.output)
        self.assertNotIn("Traceback", self.server.output)

    def test_server_stopped(self) -> None:
        """Reads end right after the server was stopped for a while."""
        self.start()
        self.server.signal(signal.SIGSTOP)
        time.sleep(PAUSE_SECONDS)
        self.server.signal(signal.SIGCONT)
        self.assert_all_right()

    def test_client_stopped(self) -> None:
        """A client that was stopped for a while reads right, and does not delay the other."""
        self.start()
        self.clients[0].signal(signal.SIGSTOP)
        self.assert_right([self.readers.pop().result(60)])
        time.sleep(PAUSE_SECONDS / 2)
        self.clients[0].signal(signal.SIGCONT)
        self.assert_all_right()

    def test_server_link(self) -> None:
        """Reads end right after the server's interface was down for a while."""
        lab = self.start()
        link = ["ip", "-n", lab.network.namespace(SERVER), "link", "set", "eth0"]
        run(*link, "down")
        time.sleep(PAUSE_SECONDS)
        run(*link, "up")
        self.assert_all_right()

    def test_client_link(self) -> None:
        """A client whose interface was down for a while is in the group again, and reads right."""
        lab = self.start()
        link = ["ip", "-n", lab.network.namespace("host1"), "link", "set", "eth0"]
        run(*link, "down")
        self.assert_right([self.readers.pop().result(60)])
        run(*link, "up")
        self.assert_all_right()
        self.assertTrue(self.in_group(lab, "host1"))

    def in_group(self, lab: Lab, host: str) -> bool:
        links = json.loads(run("ip", "-n", lab.network.namespace(host), "-j", "maddress", "show"))
        return any(each.get("address") == "239.5.5.0" for link in links for each in link["maddr"])

    def test_other_key(self) -> None:
        """Reads end right after a restart of the server, with new keys and numbers."""
        lab = self.start()
        before = self.clients[0].status()["segments_received"]
        self.server.kill()
        self.server = lab.start_server()
        self.assert_all_right()
        for client in self.clients:
            figures = client.status()
            self.assertEqual(figures["transfers_rejected"], 0)
            self.assertEqual(figures["multicast"], "working")
            self.assertGreater(figures["segments_received"], before)
