"""A server and hosts in earnest, and another host that listens, or sends in the server's name."""

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
    """Two hosts that mount, and a third one that does not."""

    def make(self, size: int = 8 * MIB + 1237) -> Lab:
        lab = self.make_lab(3, size)
        self.server = lab.start_server()
        self.clients = [lab.start_client(host) for host in lab.hosts[:2]]
        return lab

    def spoof(self, lab: Lab, *arguments: str) -> Program:
        """Start the third host."""
        name = "spoofer-" + "-".join(arguments)
        return lab.start_program(
            name.replace("/", ""),
            "host3",
            [sys.executable, "-m", "mufs.test.support.spoofer", *arguments],
        )

    def sent(self, spoofer: Program) -> int:
        """How many frames it has sent."""
        return max(map(int, re.findall(r"sent (\d+)", spoofer.output)), default=0)

    def read(self, lab: Lab, name: str = "disk.img") -> float:
        """Both hosts read an image, right; the slower one's seconds."""
        readers = [lab.start_reader(host, name) for host in lab.hosts[:2]]
        readings = [reader.result() for reader in readers]
        self.assert_right(readings)
        return max(reading.seconds for reading in readings)


class CaptureTests(SpoofedTestCase):
    """What somebody learns who only listens."""

    def capture(self, listen: tuple[str, ...] = (), server: tuple[str, ...] = ()) -> str:
        """
        Two hosts read a file, one by multicast and one over TCP.

        @return: the file that has what went by the server's interface meanwhile.
        """
        lab = self.make_lab(2, 0)
        content = MARK * (4 * MIB // len(MARK))
        (lab.images / NAME).write_bytes(content)
        lab.start_server(*listen)
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
            20, "all was captured",
        )  # fmt: skip
        spy.stop()
        return file

    def assert_nothing_to_read(self, file: str, protocol: int) -> None:
        heard = b"".join(payloads(file, protocol))
        self.assertNotIn(NAME.encode(), heard)
        for at in range(len(MARK) - 12):
            self.assertNotIn(MARK[at : at + 12], heard)

    def test_multicast(self) -> None:
        """Neither bytes nor names of files are in what is sent to the group."""
        file = self.capture()
        self.assert_nothing_to_read(file, UDP)
        # The request channel is in the clear without TLS: so what is looked for would be found.
        over_tcp = b"".join(payloads(file, TCP))
        self.assertIn(NAME.encode(), over_tcp)
        self.assertIn(MARK, over_tcp)

    def test_tls(self) -> None:
        """With TLS on the request channel they are nowhere."""
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
    """What comes of it when somebody sends in the server's name while hosts read."""

    def attack(self, *ways: str) -> list[Service]:
        """Have images read meanwhile, right, without more repairs than transfers; the clients."""
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
            # Cache, what the process is without it, and what may be kept of the group.
            self.assertLess(lab.memory(host), 3 * self.size + 124 * MIB)
        spoofer.kill()
        self.sha256 = write_image(lab.images / "last.img", self.size)
        self.read(lab, "last.img")
        return self.clients

    def test_control_packets(self) -> None:
        """Forged, flipped and spliced announcements and completions: they are known for it."""
        for client in self.attack("control"):
            figures = client.status()
            self.assertGreater(figures["datagrams_dropped"], 100)
            self.assertEqual(figures["transfers_rejected"], 0)
            self.assertEqual(figures["multicast"], "working")

    def test_replays(self) -> None:
        """Everything that was ever sent, again: nothing of it is taken in."""
        for client in self.attack("replay"):
            figures = client.status()
            self.assertEqual(figures["transfers_rejected"], 0)
            self.assertEqual(figures["multicast"], "working")

    def test_noise(self) -> None:
        """Segments with numbers near and far, where nothing belongs."""
        for client in self.attack("noise"):
            self.assertEqual(client.status()["multicast"], "working")

    def test_spoilt(self) -> None:
        """A forged segment in each transfer: the bytes come all the same."""
        rejected = [client.status()["transfers_rejected"] for client in self.attack("spoil")]
        self.assertGreater(min(rejected), 0)

    def test_all_together(self) -> None:
        """All of it, mixed: the bytes come all the same."""
        self.attack("replay", "control", "noise", "spoil")

    def test_restarted_server(self) -> None:
        """A recording of one run is of no use in the next one."""
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
        # Segment numbers begin anew, so old segments may spoil a transfer, which is sent again.
        self.assertGreater(self.sent(spoofer), 100)
