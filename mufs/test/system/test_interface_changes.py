"""Interfaces that are made anew, move to a bridge or change their address while hosts read."""

from __future__ import annotations

import os
import sys

from mufs.test.support.lab import SERVER, SERVER_ADDRESS, Lab
from mufs.test.support.netns import run
from mufs.test.support.processes import SERVER_PORT, Service, wait_until
from mufs.test.system.test_network import MIB, LabTestCase

RETURN_SECONDS = 30
"""Seconds to wait for multicast: it takes less than 5 on a machine that does nothing else."""

OTHER_ADDRESS = "10.77.0.2"
"""Another address of the server."""


class ChangeTestCase(LabTestCase):
    """Two hosts read while something of the network changes."""

    lab: Lab

    def start(self, *, server: str | None = None, client: str | None = None) -> None:
        """
        Start to read on all hosts.

        @param server: the C{--interface} of the server, if it has one; C{client}: that of host1.
        """
        self.lab = self.make_lab(2, 12 * MIB + 77, rate=40)
        self.server = self.lab.start_server(*(["--interface", server] if server else []))
        chosen = ["--interface", client] if client else []
        self.clients = [
            self.lab.start_client("host1", *chosen),
            self.lab.start_client("host2"),
        ]
        self.readers = self.start_reading(self.lab)

    def assert_all_right(self) -> None:
        """Assert that all reads end right."""
        self.assert_right([reader.result(60) for reader in self.readers])
        for service in (self.server, *self.clients):
            self.assertNotIn("Traceback", service.output)

    def assert_multicast(self, client: Service) -> None:
        """Assert that a client, once it reads something new, gets it by multicast."""
        before = client.status()["segments_received"]
        image = self.lab.images / "new.img"
        image.write_bytes(bytes(2 * MIB))
        reader = self.lab.start_reader(client.name, "new.img")
        self.assertEqual(reader.result(60).error, "")
        wait_until(
            lambda: client.status()["segments_received"] > before, RETURN_SECONDS, "multicast"
        )
        self.assertEqual(client.status()["multicast"], "working")

    def lines(self, service: Service, text: str) -> int:
        """How many lines of a service's log contain a text."""
        return sum(text in line for line in service.output.splitlines())


class MadeAnewTests(ChangeTestCase):
    """An interface that is taken away and made again, with the same name and address."""

    def make_anew(self, host: str) -> None:
        """Take away the interface of a host for a moment."""
        self.lab.network.remove_interface(host)
        self.lab.network.add_interface(host)

    def assert_client(self, chosen: str | None) -> None:
        """Assert that the interface of host1 may be made anew."""
        self.start(client=chosen)
        joined = self.lines(self.clients[0], "listening to")
        self.make_anew("host1")
        client = self.clients[0]
        wait_until(
            lambda: self.lines(client, "listening to") > joined, RETURN_SECONDS, "joined again"
        )
        self.assert_all_right()
        self.assert_multicast(client)

    def assert_server(self, chosen: str | None) -> None:
        """Assert that the interface of the server may be made anew."""
        self.start(server=chosen)
        self.make_anew(SERVER)
        wait_until(
            lambda: self.lines(self.server, "multicast to") == 2, RETURN_SECONDS, "sends again"
        )
        self.assert_all_right()
        for client in self.clients:
            self.assert_multicast(client)
            self.assertEqual(self.lines(client, "listening to"), 1)

    def test_client(self) -> None:
        """A client joins the group again, and no read fails."""
        self.assert_client(None)

    def test_client_with_interface(self) -> None:
        """So does one that was given the name of the interface to listen on."""
        self.assert_client("eth0")

    def test_server(self) -> None:
        """A server sends again, and its clients need not do anything."""
        self.assert_server(None)

    def test_server_with_interface(self) -> None:
        """So does one that was given an address to send on."""
        self.assert_server(SERVER_ADDRESS)


class MovedTests(ChangeTestCase):
    """Addresses that move."""

    def test_bridges(self) -> None:
        """Addresses of a client and of the server move to a bridge, and no read fails."""
        self.start(server=SERVER_ADDRESS, client="10.77.0.11")
        self.lab.network.move_to_bridge("host1")
        self.lab.network.move_to_bridge(SERVER)
        self.assert_all_right()
        self.assertEqual(self.lines(self.server, f"on interface {SERVER_ADDRESS} (br0)"), 1)
        for client in self.clients:
            self.assert_multicast(client)

    def test_another_address(self) -> None:
        """Where the address that the server sends from is gone, it tells clients another one."""
        self.lab = self.make_lab(2, 12 * MIB + 77, rate=40)
        address = ["ip", "-n", self.lab.network.namespace(SERVER), "address"]
        run(*address, "add", f"{OTHER_ADDRESS}/25", "dev", "eth0")
        self.server = self.lab.start_server()
        first = self.lab.start_client("host1")
        other = self.lab.start_client("host2", "--server", f"tcp:{OTHER_ADDRESS}:{SERVER_PORT}")
        self.clients = [first, other]
        self.readers = [self.lab.start_reader("host2", "disk.img")]
        wait_until(lambda: other.status()["segments_received"] > 100, 30, "multicast")
        run(*address, "delete", f"{SERVER_ADDRESS}/24", "dev", "eth0")
        self.assert_all_right()
        self.assertEqual(self.lines(self.server, f"on interface {OTHER_ADDRESS} (eth0)"), 1)
        self.assert_multicast(other)
        self.assertEqual(self.lines(other, "listening to"), 1)


class RouteTests(ChangeTestCase):
    """Hosts with more than one interface."""

    def add_second(self, name: str, address: str) -> None:
        """Give a host an interface eth1."""
        host, switch = map(self.lab.network.namespace, (name, "switch"))
        peer = ["peer", "name", f"{name}-1", "netns", switch]
        run("ip", "link", "add", "eth1", "netns", host, "type", "veth", *peer)
        run("ip", "-n", host, "address", "add", f"{address}/24", "dev", "eth1")
        run("ip", "-n", host, "link", "set", "eth1", "up")
        run("ip", "-n", switch, "link", "set", "dev", f"{name}-1", "master", "bridge", "up")

    def test_two_in_one_network(self) -> None:
        """Of two interfaces in a network that is used by which the route leads, as it changes."""
        self.lab = self.make_lab(1, 2 * MIB + 77)
        self.add_second("host1", "10.77.0.21")
        self.server = self.lab.start_server()
        client = self.lab.start_client("host1")
        self.assertEqual(self.lines(client, "on interface 10.77.0.11 (eth0)"), 1)
        self.assert_multicast(client)
        route = ["ip", "-n", self.lab.network.namespace("host1"), "route"]
        run(*route, "delete", "10.77.0.0/24", "dev", "eth0")
        wait_until(
            lambda: self.lines(client, "on interface 10.77.0.21 (eth1)") == 1,
            RETURN_SECONDS,
            "listens where the route leads",
        )
        self.assert_multicast(client)

    def test_network_of_its_own(self) -> None:
        """
        A server may send on another network than clients connect by: they listen there, also one
        whose C{--interface} is not there yet when it starts.
        """
        self.lab = self.make_lab(2, 2 * MIB + 77)
        self.add_second(SERVER, "10.78.0.1")
        self.add_second("host1", "10.78.0.11")
        self.server = self.lab.start_server("--interface", "10.78.0.1")
        client = self.lab.start_client("host1")
        early = self.lab.start_client("host2", "--interface", "10.78.0.12")
        self.assertEqual(self.lines(client, "on interface 10.78.0.11 (eth1)"), 1)
        self.assert_multicast(client)
        self.assertEqual(self.lines(early, "no interface 10.78.0.12 is up"), 1)
        self.add_second("host2", "10.78.0.12")
        wait_until(
            lambda: self.lines(early, "on interface 10.78.0.12 (eth1)") == 1,
            RETURN_SECONDS,
            "listens on the new interface",
        )
        self.assert_multicast(early)


class RefusedTests(ChangeTestCase):
    """What the system of a host refuses for a while."""

    def read_until(self, service: Service, text: str) -> None:
        """Read new images on host1 until a line of a service's log contains a text."""
        for number in range(60):
            if self.lines(service, text):
                return
            (self.lab.images / f"{number}.img").write_bytes(os.urandom(MIB))
            reading = self.lab.start_reader("host1", f"{number}.img").result(60)
            self.assertEqual(reading.error, "")
        self.fail(f"no {text!r} in {service.output}")

    def start_one(self) -> Service:
        """Start a server and one client."""
        self.lab = self.make_lab(1, MIB)
        self.server = self.lab.start_server()
        return self.lab.start_client("host1")

    def test_firewall_of_server(self) -> None:
        """A firewall that refuses what the server sends is in its log, and when it does no more."""
        self.start_one()
        enter = self.lab.network.enter(SERVER)
        rules = """
        table inet filter {
            chain output {
                type filter hook output priority 0
                ip daddr 239.5.5.0 drop
            }
        }
        """
        run(*enter, "nft", "-f", "-", given=rules)
        self.read_until(self.server, "cannot send to the group on interface 10.77.0.1 (eth0)")
        self.assertEqual(self.lines(self.server, "Operation not permitted"), 1)
        run(*enter, "nft", "flush", "ruleset")
        self.read_until(self.server, "sending to the group on interface 10.77.0.1 (eth0) works")
        self.assertEqual(self.lines(self.server, "cannot send"), 1)

    def test_mtu(self) -> None:
        """Where the MTU is large enough again, the kernel cuts datagrams again."""
        self.start_one()
        for mtu, text in (("1280", "UDP_SEGMENT is refused"), ("1500", "UDP_SEGMENT works again")):
            for host in (SERVER, "host1"):
                ip = ["ip", "-n", self.lab.network.namespace(host)]
                run(*ip, "link", "set", "eth0", "mtu", mtu)
            self.read_until(self.server, text)

    def test_port_taken(self) -> None:
        """A client whose UDP port another program has listens once it is free."""
        self.lab = self.make_lab(1, MIB)
        taking = "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        taking += "s.bind(('', 7041)); print('taken', flush=True); time.sleep(600)"
        other = self.lab.start_program("other", "host1", [sys.executable, "-c", taking])
        other.wait_until(lambda: "taken" in other.output, 20, "takes the port")
        self.server = self.lab.start_server()
        client = self.lab.start_client("host1")
        self.assertEqual(self.lines(client, "Address already in use"), 1)
        other.kill()
        wait_until(
            lambda: self.lines(client, "listening to") == 1, RETURN_SECONDS, "the port is free"
        )
        self.assert_multicast(client)
