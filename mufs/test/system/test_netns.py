"""The simulated Ethernet that tests with real hosts use: see `mufs.test.support.netns`."""

from __future__ import annotations

import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.lab import why_unavailable
from mufs.test.support.netns import Network

GROUP, PORT = "239.5.5.0", 7041

SO_RCVBUFFORCE = 33
"""Sets a receive buffer beyond the system's limit, which does not hold a burst."""

RECEIVER = f"""
import socket, sys
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind(("{GROUP}", {PORT}))
membership = socket.inet_aton("{GROUP}") + socket.inet_aton(sys.argv[1])
own.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
own.setsockopt(socket.SOL_SOCKET, {SO_RCVBUFFORCE}, 1 << 20)
own.settimeout(1)
print("ready", flush=True)
received = 0
try:
    while True:
        received += len(own.recv(65536))
except TimeoutError:
    print(received)
"""

SENDER = f"""
import socket, sys
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
address = socket.inet_aton(sys.argv[1])
own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, address)
for _ in range(100):
    own.sendto(bytes(1000), ("{GROUP}", {PORT}))
"""


class NetworkTests(SynchronousTestCase):
    """The features of `Network`."""

    skip = why_unavailable()

    def setUp(self) -> None:
        self.addresses = {"a": "10.77.0.1", "b": "10.77.0.2", "c": "10.77.0.3"}
        self.network = Network(self.addresses, 100)
        self.addCleanup(self.network.close)

    def received(self) -> list[int]:
        """Send 100,000 bytes from the first host; return how many each of the others received."""
        receivers = [self.start(host, RECEIVER) for host in ("b", "c")]
        for receiver in receivers:
            assert receiver.stdout is not None
            receiver.stdout.readline()
        self.start("a", SENDER).communicate(timeout=10)
        return [int(receiver.communicate(timeout=10)[0]) for receiver in receivers]

    def start(self, host: str, program: str) -> subprocess.Popen[str]:
        command = [*self.network.enter(host), sys.executable, "-c", program, self.addresses[host]]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def test_multicast(self) -> None:
        """Multicast reaches all other hosts, is sent once, and is counted with headers."""
        before = self.network.bytes_sent("a")
        self.assertEqual(self.received(), [100_000, 100_000])
        self.assertApproximates(self.network.bytes_sent("a") - before, 104_200, 2000)

    def test_loss(self) -> None:
        """A host loses the configured fraction, and the others nothing."""
        self.network.set_loss("b", 500)
        some, all_of_it = self.received()
        self.assertEqual(all_of_it, 100_000)
        self.assertApproximates(some, 50_000, 30_000)
        self.network.set_loss("b", 1000)
        self.assertEqual(self.received(), [0, 100_000])
        self.network.set_loss("b", 0)
        self.assertEqual(self.received(), [100_000, 100_000])

    def test_link(self) -> None:
        """A host whose cable is unplugged receives nothing until it is plugged in again."""
        self.network.set_link("b", False)
        self.assertEqual(self.received(), [0, 100_000])
        self.network.set_link("b", True)
        self.assertEqual(self.received(), [100_000, 100_000])

    def test_close(self) -> None:
        """Closing ends all processes on the hosts, and leaves no namespace."""
        sleeper = subprocess.Popen([*self.network.enter("b"), "sleep", "60"])
        self.addCleanup(sleeper.kill)
        names = {self.network.namespace(host) for host in (*self.addresses, "switch")}
        self.assertEqual(names - set(os.listdir("/run/netns")), set())
        while sleeper.pid not in self.network.pids("b"):
            pass
        self.network.close()
        self.assertNotEqual(sleeper.wait(10), 0)
        self.assertEqual(names & set(os.listdir("/run/netns")), set())
