"""One server and several hosts: real processes, mounts and sockets on a network with loss.

The images consist of random bytes, and their sizes are not multiples of a page.  Speed is not
tested here, but by bench/acceptance.py.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.lab import SERVER, Lab, why_unavailable, write_image
from mufs.test.support.netns import run
from mufs.test.support.processes import Reader, Reading, wait_until

MIB = 1 << 20
MAX_OVERHEAD = 300_000
"""Bytes that the server may send in a test besides file data."""


class LabTestCase(SynchronousTestCase):
    """Has a lab with one image, closed after the test."""

    skip = why_unavailable()

    def make_lab(
        self, hosts: int, size: int, rate: float | None = 100, snooping: bool = False
    ) -> Lab:
        lab = Lab(hosts, rate, Path(self.mktemp()), snooping)
        self.addCleanup(lab.close)
        self.size = size
        self.sha256 = write_image(lab.images / "disk.img", size)
        return lab

    def assert_right(self, readings: list[Reading]) -> None:
        """Assert that the whole image was read right."""
        right = [("", self.size, self.sha256)] * len(readings)
        self.assertEqual([(r.error, r.size, r.sha256) for r in readings], right)

    def read_all(self, lab: Lab, apart: float = 0.0) -> int:
        """Read the image on all hosts, check it, and return the bytes that the server sent."""
        before = lab.network.bytes_sent(SERVER)
        readers = lab.start_readers("disk.img", apart)
        self.assert_right([reader.result() for reader in readers])
        return lab.network.bytes_sent(SERVER) - before

    def start_reading(self, lab: Lab) -> list[Reader]:
        """Start to read the image on all hosts, and return when a third of it was sent."""
        third = lab.network.bytes_sent(SERVER) + self.size // 3
        readers = lab.start_readers("disk.img")
        wait_until(lambda: lab.network.bytes_sent(SERVER) > third, 60, "a third of the image sent")
        return readers


class DeliveryTests(LabTestCase):
    """Several hosts read the same image."""

    def test_lockstep(self) -> None:
        """Four hosts that read at the same time get the right bytes, which are sent about once."""
        lab = self.make_lab(4, 16 * MIB + 1237)
        server = lab.start_server()
        clients = lab.start_clients()
        self.assertLess(self.read_all(lab), 1.10 * self.size + MAX_OVERHEAD)
        for client in clients:
            figures = client.status()
            ways = figures["hits"] + figures["joined"] + figures["misses"]
            self.assertEqual(figures["reads"], ways)
            self.assertGreater(figures["reads"], 0)
            self.assertEqual(figures["multicast"], "working")
        self.assertLess(server.status()["image_read_bytes"], 1.10 * self.size + MAX_OVERHEAD)
        self.assertEqual(len(server.status()["clients"]), 4)

    def test_staggered(self) -> None:
        """Hosts that start one after the other share most of the bytes sent."""
        lab = self.make_lab(4, 24 * MIB + 91, rate=50)
        lab.start_server()
        lab.start_clients()
        self.assertLess(self.read_all(lab, apart=0.2), 1.6 * self.size + MAX_OVERHEAD)

    def test_second_read(self) -> None:
        """A second reading of an image requests none of its bytes."""
        lab = self.make_lab(1, 8 * MIB + 7)
        lab.start_server()
        lab.start_clients()
        self.read_all(lab)
        self.assertLess(self.read_all(lab), MAX_OVERHEAD)

    def test_small_cache(self) -> None:
        """Hosts whose cache is smaller than the image read it right in bounded memory."""
        lab = self.make_lab(2, 24 * MIB + 4097)
        lab.start_server()
        clients = lab.start_clients("--cache-size", "4M")
        self.read_all(lab)
        self.read_all(lab)
        for host, client in zip(lab.hosts, clients, strict=True):
            self.assertLess(lab.memory(host), 104 * MIB)
            self.assertLessEqual(client.status()["cache_bytes"], 4 * MIB)
            self.assertGreater(client.status()["evictions"], 0)


class LossTests(LabTestCase):
    """A network that loses multicast."""

    def read_with_loss(self, per_mille: int, size: int) -> list[dict[str, Any]]:
        """Read the image on four hosts with independent loss; return the clients' figures."""
        lab = self.make_lab(4, size)
        lab.start_server()
        clients = lab.start_clients()
        for host in lab.hosts:
            lab.network.set_loss(host, per_mille)
        self.read_all(lab)
        return [client.status() for client in clients]

    def test_one_percent(self) -> None:
        """With 1 % of the UDP packets to each host lost, all bytes are right."""
        for figures in self.read_with_loss(10, 16 * MIB + 333):
            self.assertGreater(figures["segments_lost"], 0)
            self.assertEqual(figures["multicast"], "working")

    def test_ten_percent(self) -> None:
        """With 10 % of the UDP packets to each host lost, all bytes are right."""
        for figures in self.read_with_loss(100, 16 * MIB + 1):
            self.assertGreater(figures["repairs_sent"], 0)

    def test_no_multicast(self) -> None:
        """Without any UDP packets, all bytes come over TCP, and the status gives the reason."""
        for figures in self.read_with_loss(1000, 8 * MIB + 4095):
            self.assertGreaterEqual(figures["bytes_over_tcp"], self.size)
            self.assertEqual(figures["segments_received"], 0)
            self.assertNotEqual(figures["multicast"], "working")
            self.assertGreater(len(figures["multicast"].split()), 2)

    def test_one_host_without_multicast(self) -> None:
        """A host without any UDP packets reads right, and does not affect the others."""
        lab = self.make_lab(3, 8 * MIB + 5)
        lab.start_server()
        clients = lab.start_clients()
        lab.network.set_loss("host1", 1000)
        self.assertLess(self.read_all(lab), 2.2 * self.size + MAX_OVERHEAD)
        multicast = [client.status()["multicast"] for client in clients]
        self.assertEqual([state == "working" for state in multicast], [False, True, True])


class SlowHostTests(LabTestCase):
    """One host that loses most of what is sent to the group."""

    def test_leaves(self) -> None:
        """It leaves the group, so that the switch stops forwarding, and all hosts read right."""
        lab = self.make_lab(3, 16 * MIB + 77, rate=20, snooping=True)
        lab.start_server()
        clients = lab.start_clients()
        lab.network.set_loss("host3", 700)
        readers = lab.start_readers("disk.img")
        wait_until(lambda: "239.5.5.0" not in self.groups(lab, "host3"), 60, "host3 leaves")
        others = {"host1", "host2"}
        wait_until(lambda: lab.network.members("239.5.5.0") == others, 10, "the switch knows")
        self.assertIn("too lossy", clients[2].status()["multicast"])
        self.assert_right([reader.result() for reader in readers])
        for client in clients[:2]:
            self.assertEqual(client.status()["multicast"], "working")

    def groups(self, lab: Lab, host: str) -> list[str]:
        """Return the multicast groups that a host is a member of."""
        own = json.loads(run("ip", "-n", lab.network.namespace(host), "-j", "maddress", "show"))
        return [each.get("address", "") for link in own for each in link["maddr"]]


class QuerierTests(LabTestCase):
    """A switch that asks for members, and a host whose firewall drops what it asks."""

    def test_cut_off(self) -> None:
        """The host is cut off when its report has expired, and joins again when it reads."""
        lab = self.make_lab(2, MIB, snooping=True)
        switch = lab.network.namespace("switch")
        times = ["mcast_membership_interval", "500", "mcast_query_interval", "100"]
        times += ["mcast_query_response_interval", "50", "mcast_startup_query_interval", "100"]
        # The query that is due by the former intervals comes only when the querier starts anew.
        for more in ([*times, "mcast_querier", "0"], ["mcast_querier", "1"]):
            run("ip", "-n", switch, "link", "set", "bridge", "type", "bridge", *more)
        rules = """
        table inet filter {
            chain input {
                type filter hook input priority 0
                ip protocol igmp drop
            }
        }
        """
        run(*lab.network.enter("host1"), "nft", "-f", "-", given=rules)
        lab.start_server()
        client, other = lab.start_clients()
        members = partial(lab.network.members, "239.5.5.0")
        wait_until(lambda: members() == {"host1", "host2"}, 30, "the switch knows both")
        wait_until(lambda: members() == {"host2"}, 30, "the switch forgets one")
        self.read_all(lab)
        wait_until(lambda: "host1" in members(), 30, "it joins again")
        before = client.status()["segments_received"]
        self.sha256 = write_image(lab.images / "disk.img", self.size)
        self.read_all(lab)
        self.assertGreater(client.status()["segments_received"], before)
        self.assertEqual(other.status()["multicast"], "working")


class ChangedImageTests(LabTestCase):
    """Images that change on the server while a host has them open."""

    def open_image(self) -> tuple[Lab, Reader]:
        """Read the first part of an image much larger than the cache."""
        lab = self.make_lab(1, 24 * MIB + 511)
        lab.start_server()
        lab.start_client("host1", "--cache-size", "4M")
        reader = lab.start_reader("host1", "disk.img", pause=MIB)
        reader.wait_paused()
        return lab, reader

    def assert_old_or_stale(self, reading: Reading) -> None:
        """Assert that a reading gave the old bytes or ESTALE."""
        if reading.error != "ESTALE":
            self.assert_right([reading])

    def test_replaced(self) -> None:
        """A replaced image gives the old bytes or ESTALE, and a new open the new bytes."""
        lab, reader = self.open_image()
        new = self.size + 2 * MIB
        sha256 = write_image(lab.images / "new.img", new)
        os.replace(lab.images / "new.img", lab.images / "disk.img")
        self.assert_old_or_stale(reader.result())
        again = lab.start_reader("host1", "disk.img").result()
        self.assertEqual((again.error, again.size, again.sha256), ("", new, sha256))

    def test_truncated(self) -> None:
        """A truncated image gives the old bytes or ESTALE, and a new open the remaining bytes."""
        lab, reader = self.open_image()
        os.truncate(lab.images / "disk.img", 9 * MIB + 13)
        self.assert_old_or_stale(reader.result())
        again = lab.start_reader("host1", "disk.img").result()
        self.assertEqual((again.error, again.size), ("", 9 * MIB + 13))
