"""The server is away: its process is killed or hangs, or the network drops everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from mufs.test.support.lab import SERVER, Lab, write_image
from mufs.test.support.looking import Looker, Looks
from mufs.test.support.netns import LabError
from mufs.test.support.processes import Service, wait_until
from mufs.test.system.test_network import MIB, LabTestCase

OUTAGE_SECONDS = float(os.environ.get("MUFS_TEST_OUTAGE", "13"))
"""How long the server is away: for more than 10 s, so that a connection without answers ends."""

MAX_LOOK_SECONDS = 3.0
"""What a look at what is known may take on a busy machine; without the server it took 30 s."""

MAX_KILL_SECONDS = 3.0
"""The same for a process that is killed."""

READ = "import sys; print(len(open(sys.argv[1], 'rb', buffering=0).read(65536)))"
STAT = "import os, sys; os.stat(sys.argv[1])"
LIST = "import os, sys; os.listdir(sys.argv[1])"
SYNCHRONOUS = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
print(os.readv(descriptor, [mmap.mmap(-1, 65536)]))
"""


class OutageTestCase(LabTestCase):
    """Has a server with two images, and hosts of which some hold one of them."""

    def make(self, hosts: int, *options: str) -> None:
        """Start everything; host1 and host2 read the first image."""
        self.lab: Lab = self.make_lab(hosts, 8 * MIB + 77)
        self.other = write_image(self.lab.images / "other.img", 12 * MIB + 5)
        (self.lab.images / "directory").mkdir()
        self.server: Service = self.lab.start_server()
        self.clients = self.lab.start_clients(*options)
        self.lookers = [self.look(host) for host in self.lab.hosts[:2]]

    def look(self, host: str) -> Looker:
        """Look at a mount from now on."""
        looker = Looker(self.lab.mount_point(host), "disk.img", self.sha256)
        self.addCleanup(looker.close)
        return looker

    def start_waiting(self, host: str, program: str, name: str) -> subprocess.Popen[str]:
        """Start a program that has to wait for the server."""
        command = [sys.executable, "-I", "-S", "-c", program, str(self.lab.mount_point(host) / name)]
        waiter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(waiter.communicate, timeout=20)
        self.addCleanup(waiter.kill)
        return waiter

    def kill(self, waiter: subprocess.Popen[str], number: signal.Signals) -> float:
        """End a waiting program; the seconds that it took."""
        self.assertIsNone(waiter.poll())
        begin = time.monotonic()
        waiter.send_signal(number)
        waiter.wait(20)
        return time.monotonic() - begin

    def check(self, looks: Looks) -> None:
        """Looks found what is there, without waiting for anybody."""
        self.assertEqual(looks.faults, [])
        self.assertGreater(looks.looks, 1)
        self.assertLess(max(looks.longest.values()), MAX_LOOK_SECONDS, looks)


class AwayTests(OutageTestCase):
    """Four hosts that read: two what they hold, two what they do not."""

    def try_outage(self, leave: Callable[[], object], come: Callable[[], object]) -> None:
        """Let the server be away while everybody reads."""
        self.make(4)
        time.sleep(2.0)
        before = [looker.report() for looker in self.lookers]
        readers = [self.lab.start_reader(host, "other.img", pause=MIB) for host in self.lab.hosts[2:]]
        for reader in readers:
            reader.wait_paused()
        # Whatever is on its way by read-ahead comes before.
        time.sleep(1.0)
        leave()
        begin = time.monotonic()
        resumed = [self.start_waiting(host, READ, "directory/none") for host in self.lab.hosts]
        killed = {
            f"{program.split()[-1]} {number.name}": self.kill_later(program, name, number)
            for program, name in ((STAT, "directory/a"), (LIST, "directory"), (SYNCHRONOUS, "other.img"), (READ, "other.img"))
            for number in (signal.SIGKILL, signal.SIGTERM)
        }
        print(killed)


# The ways of being away are tests of their own, so that each reports for itself.
