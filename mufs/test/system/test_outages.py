"""The server is away: its process is killed or hangs, or the network drops everything."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from attrs import asdict

from mufs.test.support.lab import SERVER, write_image
from mufs.test.support.looking import Looker, Looks
from mufs.test.support.processes import wait_until
from mufs.test.system.test_network import MIB, LabTestCase

QEMU = "qemu-system-x86_64"

OUTAGE_SECONDS = float(os.environ.get("MUFS_TEST_OUTAGE", "10"))
"""How long the server is away, and then until all have given up their connections."""

MAX_LOOK_SECONDS = 3.0
"""What an operation that nobody has to be asked for may take on a busy machine."""

READ = "os.pread(os.open(path, os.O_RDONLY), 65536, {offset})"
READ_PAST_CACHE = """
import mmap
os.preadv(os.open(path, os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 65536)], {offset})
"""
WAITS = {
    "stat": ("stat-{signal}/image", "os.stat(path)"),
    "list": ("list-{signal}", "os.listdir(path)"),
    "open": ("never-opened.img", "open(path)"),
    "read": ("disk.img", READ),
    "read past the page cache": ("disk.img", READ_PAST_CACHE),
}
"""
Operations that need the server: the path, and the program. The kernel lets no two look into a
directory at the same time.
"""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class AwayTests(LabTestCase):
    """Four hosts: two read what they hold, two what they do not; of each one uses libfuse 2."""

    def prepare(self) -> None:
        """Have two hosts read what they hold, and two in the middle of a read."""
        self.lab = self.make_lab(4, 24 * MIB + 77, rate=50)
        held = write_image(self.lab.images / "held.img", 4 * MIB + 5)
        write_image(self.lab.images / "never-opened.img", 5)
        for number in SIGNALS:
            (self.lab.images / f"stat-{number.name}").mkdir()
            (self.lab.images / f"list-{number.name}").mkdir()
        self.server = self.lab.start_server()
        self.clients = [
            self.lab.start_client(host, "--fuse", libfuse)
            for host, libfuse in zip(self.lab.hosts, "3232", strict=True)
        ]
        points = [self.lab.mount_point(host) for host in self.lab.hosts]
        for point in points:
            os.listdir(point)
        self.lookers = [Looker(point, "held.img", held) for point in points[:2]]
        for looker in self.lookers:
            self.addCleanup(looker.close)
            looker.report()
        third = self.lab.network.bytes_sent(SERVER) + self.size // 3
        self.readers = [self.lab.start_reader(host, "disk.img") for host in self.lab.hosts[2:]]
        network = self.lab.network
        wait_until(lambda: network.bytes_sent(SERVER) > third, 60, "a third of the image sent")
        self.before = [looker.report() for looker in self.lookers]

    def start_waiting(
        self, point: Path, what: str, number: signal.Signals
    ) -> subprocess.Popen[bytes]:
        """Start a program that has to wait for the server, at the end of the image."""
        name, program = WAITS[what]
        program = f"import os, sys; path = sys.argv[1]\n{program.format(offset=24 * MIB - 65536)}"
        command = [sys.executable, "-I", "-S", "-c", program]
        command.append(str(point / name.format(signal=number.name)))
        waiter = subprocess.Popen(command, stderr=subprocess.PIPE)
        self.addCleanup(waiter.communicate, timeout=20)
        self.addCleanup(waiter.kill)
        return waiter

    def kill_waiting(self, point: Path) -> dict[str, float]:
        """Kill programs that wait; the seconds that each took to end."""
        waiting = {
            f"{what}, {number.name}": (number, self.start_waiting(point, what, number))
            for what in WAITS
            for number in SIGNALS
        }
        time.sleep(1.5)
        took = {}
        for what, (number, waiter) in waiting.items():
            self.assertIsNone(waiter.poll(), what)
            began = time.monotonic()
            waiter.send_signal(number)
            waiter.wait(20)
            took[what] = time.monotonic() - began
        return took

    def wait_connected(self, expected: bool) -> None:
        """Wait until all clients have a connection, or none."""
        for client in self.clients:
            wait_until(
                lambda status=client.status: status()["connected"] == expected,  # type: ignore[misc]
                20,
                f"{client.name}: connected is {expected}",
            )

    def check(self, looks: list[Looks]) -> None:
        """Looks found what is there, and waited for nobody."""
        for each in looks:
            self.assertEqual(each.faults, [])
            self.assertGreater(each.looks, 1)
            self.assertLess(max(each.longest.values()), MAX_LOOK_SECONDS, each)

    def be_away(self, leave: Callable[[], object], come: Callable[[], object]) -> None:
        """
        Let the server be away. What the hosts see of that is written to a file, too.
        """
        self.prepare()
        leave()
        began = time.monotonic()
        took = {host: self.kill_waiting(self.lab.mount_point(host)) for host in self.lab.hosts[2:]}
        for each in took.values():
            self.assertLess(max(each.values()), MAX_LOOK_SECONDS, each)
        time.sleep(max(0.0, began + OUTAGE_SECONDS - time.monotonic()))
        self.wait_connected(False)
        during = [looker.report() for looker in self.lookers]
        self.check(during)
        self.assertEqual([reader.running for reader in self.readers], [True] * 2)
        come()
        began = time.monotonic()
        self.assert_right([reader.result() for reader in self.readers])
        after = time.monotonic() - began
        self.wait_connected(True)
        self.check([looker.report() for looker in self.lookers])
        self.assertEqual([client.output.count("is lost") for client in self.clients], [1] * 4)
        seen = {
            "before": [asdict(each) for each in self.before],
            "during": [asdict(each) for each in during],
            "seconds until killed": took,
            "seconds until the readers ended": after,
        }
        Path(self.mktemp()).write_text(json.dumps(seen, indent=2))

    def test_killed(self) -> None:
        """A server that died: what is held is read and shown, all else goes on afterwards."""
        self.be_away(lambda: self.server.kill(), lambda: self.lab.start_server())

    def test_hung(self) -> None:
        """The same of one that answers nothing, while its connections stay."""
        self.be_away(
            lambda: self.server.signal(signal.SIGSTOP),
            lambda: self.server.signal(signal.SIGCONT),
        )

    def test_dropped(self) -> None:
        """The same where the network drops all packets to it."""
        self.be_away(
            lambda: self.lab.network.set_loss(SERVER, 1000, ""),
            lambda: self.lab.network.set_loss(SERVER, 0),
        )


class ManyWaitingTests(LabTestCase):
    """More readers wait than the kernel has requests for read-ahead under way by default."""

    libfuse = "3"

    def test_many(self) -> None:
        """What is held is read at once beside them, and all can be killed."""
        lab = self.make_lab(1, 24 * MIB)
        held = write_image(lab.images / "held.img", MIB + 5)
        server = lab.start_server()
        lab.start_clients("--fuse", self.libfuse)
        point = lab.mount_point("host1")
        looker = Looker(point, "held.img", held)
        self.addCleanup(looker.close)
        looker.report()
        (point / "disk.img").open("rb").close()
        server.kill()
        command = [sys.executable, "-I", "-S", "-c"]
        command += [
            "import os, sys, threading\n"
            f"image = os.open({str(point / 'disk.img')!r}, os.O_RDONLY)\n"
            "def read(number):\n"
            "    os.pread(image, 4096, number << 19)\n"
            "for number in range(40):\n"
            "    threading.Thread(target=read, args=(number,)).start()\n"
            "print('ready', flush=True)\n"
        ]
        waiter = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.addCleanup(waiter.communicate, timeout=20)
        self.addCleanup(waiter.kill)
        assert waiter.stdout is not None
        waiter.stdout.readline()
        time.sleep(1.0)
        looker.report(10)
        time.sleep(0.5)
        looks = looker.report(10)
        self.assertEqual(looks.faults, [])
        self.assertLess(max(looks.longest.values()), MAX_LOOK_SECONDS)
        waiter.kill()
        waiter.wait(MAX_LOOK_SECONDS)


class ManyWaitingLibfuse2Tests(ManyWaitingTests):
    """The same with libfuse 2."""

    libfuse = "2"


class SoftTests(LabTestCase):
    """A server that is away for longer than --timeout."""

    def test_soft(self) -> None:
        """A read fails after one timeout, further ones at once; what is held is read."""
        lab = self.make_lab(1, 4 * MIB)
        held = write_image(lab.images / "held.img", MIB + 5)
        server = lab.start_server()
        lab.start_clients("--timeout", "6")
        point = lab.mount_point("host1")
        looker = Looker(point, "held.img", held)
        self.addCleanup(looker.close)
        looker.report()
        with (point / "disk.img").open("rb", buffering=0) as image:
            server.kill()
            began = time.monotonic()
            self.assertRaises(OSError, image.read, 4096)
            took = time.monotonic() - began
            self.assertTrue(5 < took < 11, took)
            self.assertRaises(OSError, image.read, 4096)
            self.assertLess(time.monotonic() - began - took, MAX_LOOK_SECONDS)
        self.assertEqual(looker.report().faults, [])


BOOT_SECTOR = bytes([0xB0, ord("K"), 0xE6, 0xE9, 0xF4, 0xEB, 0xFD]).ljust(510, b"\0") + b"\x55\xaa"
"""A guest that writes K to the debug console (mov al,'K'; out 0xe9,al; hlt; jmp)."""


class GuestTests(LabTestCase):
    """A virtual machine, as docs/operations/virtual-machines.md starts it."""

    skip = LabTestCase.skip or (None if shutil.which(QEMU) else f"needs {QEMU}")

    def ask(self, command: str) -> dict[str, object]:
        """Send a command of QMP; its answer."""
        self.monitor.write(json.dumps({"execute": command}) + "\n")
        self.monitor.flush()
        while True:
            answer: dict[str, object] = json.loads(self.monitor.readline())
            if "return" in answer:
                return answer

    def test_paused(self) -> None:
        """With rerror=stop a guest is paused when a read fails, and goes on after cont."""
        lab = self.make_lab(1, 1)
        (lab.images / "boot.img").write_bytes(BOOT_SECTOR + bytes(MIB))
        server = lab.start_server()
        lab.start_clients("--timeout", "3")
        image = lab.mount_point("host1") / "boot.img"
        os.listdir(image.parent)
        image.open("rb").close()
        server.kill()
        control, console = lab.directory / "qmp", lab.directory / "console"
        machine = ["-machine", "accel=tcg", "-m", "64", "-display", "none"]
        machine += ["-debugcon", f"file:{console}", "-qmp", f"unix:{control},server=on,wait=off"]
        machine += ["-drive", f"file={image},format=raw,readonly=on,if=virtio,rerror=stop"]
        lab.start_program("guest", "host1", [QEMU, *machine])
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            wait_until(lambda: not connection.connect_ex(str(control)), 30, "QEMU runs")
            self.monitor = connection.makefile("rw")
            self.addCleanup(self.monitor.close)
            self.monitor.readline()
            self.ask("qmp_capabilities")
            wait_until(lambda: "io-error" in str(self.ask("query-status")), 60, "it is paused")
            lab.start_server()
            wait_until(lambda: image.read_bytes()[:7] == BOOT_SECTOR[:7], 30, "it is back")
            self.ask("cont")
            wait_until(lambda: console.read_bytes().endswith(b"K"), 60, "the guest goes on")
