"""Real server and hosts, and another host that captures or forges the server's packets."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mufs.commands.keys import make_keys
from mufs.test.support.lab import SERVER, SERVER_ADDRESS, Lab, write_image
from mufs.test.support.processes import SERVER_PORT, Program, Service, wait_until
from mufs.test.support.spoofer import payloads
from mufs.test.system.test_network import MIB, LabTestCase

MARK = b"nobody on the network may read this line\n"
NAME = "a-name-that-nobody-may-see.img"
UDP, TCP = 17, 6


class SpoofedTestCase(LabTestCase):
    """Has two hosts with mounts, and a third one that attacks."""

    def make(self, size: int = 8 * MIB + 1237) -> Lab:
        lab = self.make_lab(3, size)
        self.server = lab.start_server()
        self.clients = [lab.start_client(host) for host in lab.hosts[:2]]
        return lab

    def spoof(self, lab: Lab, *arguments: str) -> Program:
        """Start the spoofer on the third host."""
        name = "spoofer-" + "-".join(arguments)
        return lab.start_program(
            name.replace("/", ""),
            "host3",
            [sys.executable, "-m", "mufs.test.support.spoofer", *arguments],
        )

    def sent(self, spoofer: Program) -> int:
        """Return how many frames the spoofer has sent."""
        return max(map(int, re.findall(r"sent (\d+)", spoofer.output)), default=0)

    def read(self, lab: Lab, name: str = "disk.img") -> float:
        """Have both hosts read an image right, and return the slower one's seconds."""
        readers = [lab.start_reader(host, name) for host in lab.hosts[:2]]
        readings = [reader.result() for reader in readers]
        self.assert_right(readings)
        return max(reading.seconds for reading in readings)


class CaptureTests(SpoofedTestCase):
    """What a captured transfer reveals."""

    def capture(self, listen: tuple[str, ...] = (), server: tuple[str, ...] = ()) -> str:
        """
        Have two hosts read a file, one by multicast and one over TCP.

        @return: the file with the frames captured at the server's interface.
        """
        lab = self.make_lab(2, 0)
        content = MARK * (4 * MIB // len(MARK))
        (lab.images / NAME).write_bytes(content)
        # What is sent is to look like the file, but for the keys.
        lab.start_server("--compress", "off", *listen)
        lab.network.set_loss("host2", 1000)
        lab.start_clients(*server)
        file = str(lab.directory / "frames")
        arguments = ["-m", "mufs.test.support.spoofer", "capture", file]
        spy = lab.start_program("spy", SERVER, [sys.executable, *arguments])
        spy.wait_until(lambda: "listening" in spy.output, 20, "listens")
        for reader in lab.start_readers(NAME):
            self.assertEqual(reader.result().size, len(content))
        wait_until(
            lambda: all(
                sum(map(len, payloads(file, protocol))) >= len(content) for protocol in (UDP, TCP)
            ),
            20,
            "all was captured",
        )
        spy.stop()
        return file

    def assert_nothing_to_read(self, file: str, protocol: int) -> None:
        captured = b"".join(payloads(file, protocol))
        self.assertNotIn(NAME.encode(), captured)
        for at in range(len(MARK) - 12):
            self.assertNotIn(MARK[at : at + 12], captured)

    def test_multicast(self) -> None:
        """Multicast packets reveal neither contents nor names of files."""
        file = self.capture()
        self.assert_nothing_to_read(file, UDP)
        # Without TLS the request channel is not encrypted, which proves that the search works.
        over_tcp = b"".join(payloads(file, TCP))
        self.assertIn(NAME.encode(), over_tcp)
        self.assertIn(MARK, over_tcp)

    def test_tls(self) -> None:
        """With TLS, no packets reveal contents or names of files."""
        keys = Path(self.mktemp()).absolute()
        make_keys(keys, [SERVER_ADDRESS], ["host"])
        trust = f"trustRoots={keys}/ca"
        file = self.capture(
            ("--listen", f"tls:{SERVER_PORT}:certificate={keys}/server.pem:{trust}"),
            ("--server", f"tls:{SERVER_ADDRESS}:{SERVER_PORT}:certificate={keys}/host.pem:{trust}"),
        )
        for protocol in (UDP, TCP):
            self.assert_nothing_to_read(file, protocol)


class SpoofTests(SpoofedTestCase):
    """Forged packets while hosts read."""

    def attack(self, *ways: str) -> list[Service]:
        """Read images during an attack; assert right bytes and few repairs; return the clients."""
        lab = self.make()
        spoofer = self.spoof(lab, *ways)
        for number in range(3):
            name = f"{number}.img"
            self.sha256 = write_image(lab.images / name, self.size)
            self.read(lab, name)
        wait_until(lambda: self.sent(spoofer) > 100, 20, "the attack")
        figures = self.server.status()
        for client in figures["clients"]:
            self.assertLessEqual(client["repairs"], 3 * figures["transfers"])
        for host in lab.hosts[:2]:
            # The cache, the process without it, and the limits of reassembly.
            self.assertLess(lab.memory(host), 3 * self.size + 124 * MIB)
        spoofer.kill()
        self.sha256 = write_image(lab.images / "last.img", self.size)
        self.read(lab, "last.img")
        return self.clients

    def test_control_packets(self) -> None:
        """Forged, altered and spliced control packets are dropped, and spoil no transfer."""
        for client in self.attack("control"):
            figures = client.status()
            self.assertGreater(figures["datagrams_dropped"], 100)
            self.assertEqual(figures["transfers_rejected"], 0)
            self.assertEqual(figures["multicast"], "working")

    def test_replays(self) -> None:
        """Replayed datagrams spoil no transfer, and reads are right."""
        for client in self.attack("replay"):
            figures = client.status()
            self.assertEqual(figures["transfers_rejected"], 0)
            self.assertEqual(figures["multicast"], "working")

    def test_noise(self) -> None:
        """With forged segments of any numbers, reads are right, and multicast remains in use."""
        for client in self.attack("noise"):
            self.assertEqual(client.status()["multicast"], "working")

    def test_spoilt(self) -> None:
        """With a forged segment in each transfer, reads are right."""
        rejected = [client.status()["transfers_rejected"] for client in self.attack("spoil")]
        self.assertGreater(min(rejected), 0)

    def test_all_together(self) -> None:
        """With all attacks together, reads are right."""
        self.attack("replay", "control", "noise", "spoil")

    def test_restarted_server(self) -> None:
        """After a restart of the server, replays of its previous run leave reads right."""
        lab = self.make()
        spoofer = self.spoof(lab, "replay")
        self.read(lab)
        self.server.kill()
        wait_until(
            lambda: not any(client.status()["connected"] for client in self.clients), 20, "lost"
        )
        self.server = lab.start_server(name="another")
        wait_until(
            lambda: all(client.status()["connected"] for client in self.clients), 20, "connected"
        )
        for name in ("new.img", "newer.img"):
            self.sha256 = write_image(lab.images / name, self.size)
            self.read(lab, name)
        # Segment numbers restart, so old segments may spoil a transfer, which is then repaired.
        self.assertGreater(self.sent(spoofer), 100)
