"""A network on one machine: namespaces, each with one interface, joined by a bridge.

nftables drops incoming packets, and a token bucket at both ends of every link limits its rate; no
further kernel modules are needed.  It needs root.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from itertools import count

_serial = count()


class LabError(Exception):
    """A command failed, or a wait timed out; the text gives the reason if known."""


def run(*command: str, given: str | None = None) -> str:
    """Run a command, and return its output."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """Namespaces in one Ethernet segment; `addresses` gives their IP addresses by name.

    `rate` limits every link in each direction, in Mbit/s.  Below 1000, the kernel does not merge
    packets, so that they are sent, counted and lost as on a wire.  With `snooping`, the bridge is
    the IGMP querier, and forwards multicast only to members, a few seconds after they joined.
    """

    def __init__(
        self, addresses: dict[str, str], rate: float | None = None, snooping: bool = False
    ) -> None:
        self.addresses = addresses
        self._prefix = f"mufs-{os.getpid()}-{next(_serial)}-"
        self._hosts: list[str] = []
        try:
            self._build(rate, snooping)
        except BaseException:
            self.close()
            raise

    def namespace(self, host: str) -> str:
        return self._prefix + host

    def enter(self, host: str) -> list[str]:
        """Return the head of a command that runs on the host, in the common mount namespace."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(host)}", "--"]

    def _build(self, rate: float | None, snooping: bool) -> None:
        switch = self._add_namespace("switch")
        wanted = str(int(snooping))
        bridge = ["type", "bridge", "mcast_snooping", wanted, "mcast_querier", wanted]
        # In version 2, a host that hears another one's report does not send its own.
        bridge += ["mcast_igmp_version", "3"]
        run("ip", "-n", switch, "link", "add", "bridge", *bridge)
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        self._rate = rate
        for host in self.addresses:
            self._add_namespace(host)
            self.add_interface(host)

    def add_interface(self, host: str) -> None:
        """Give the host an interface eth0, with its address and rate, and plug it in."""
        own, switch = self.namespace(host), self.namespace("switch")
        link = ["link", "add", "eth0", "netns", own, "type", "veth"]
        run("ip", *link, "peer", "name", host, "netns", switch)
        address = f"{self.addresses[host]}/24"
        run("ip", "-n", own, "address", "add", address, "broadcast", "+", "dev", "eth0")
        run("ip", "-n", own, "link", "set", "eth0", "up")
        run("ip", "-n", switch, "link", "set", "dev", host, "master", "bridge", "up")
        if self._rate is not None:
            self.set_rate(host, self._rate)

    def remove_interface(self, host: str) -> None:
        """Remove the interface of a host, and with it its address and routes."""
        run("ip", "-n", self.namespace(host), "link", "delete", "eth0")

    def move_to_bridge(self, host: str) -> None:
        """Make eth0 a port of a bridge br0 on the host, which gets its address."""
        own, address = self.namespace(host), f"{self.addresses[host]}/24"
        run("ip", "-n", own, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", own, "link", "set", "br0", "up")
        run("ip", "-n", own, "link", "set", "eth0", "master", "br0")
        run("ip", "-n", own, "address", "delete", address, "dev", "eth0")
        run("ip", "-n", own, "address", "add", address, "broadcast", "+", "dev", "br0")

    def _add_namespace(self, host: str) -> str:
        name = self.namespace(host)
        run("ip", "netns", "add", name)
        self._hosts.append(host)
        run("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def set_rate(self, host: str, rate: float) -> None:
        """Limit the host's link to `rate` Mbit/s in each direction."""
        self._limit("switch", host, rate)
        self._limit(host, "eth0", rate)

    def _limit(self, host: str, interface: str, rate: float) -> None:
        burst = max(32, round(rate / 8))
        run(
            *("tc", "-n", self.namespace(host), "qdisc", "replace", "dev", interface, "root"),
            "tbf",
            *("rate", f"{rate}mbit", "burst", f"{burst}kb", "limit", "1024kb"),
        )
        # Have the kernel segment packets before they enter the link.
        if rate < 1000 and interface == "eth0":
            run("ip", "-n", self.namespace(host), "link", "set", interface, "gso_max_segs", "1")

    def set_loss(self, host: str, per_mille: int, packets: str = "ip protocol udp") -> None:
        """Drop `per_mille` of 1000 incoming UDP packets of the host, at random; 1000 drops all.

        `packets` is an nftables expression that selects other packets; "" selects all.
        """
        chosen = f"numgen random mod 1000 < {per_mille}" if per_mille < 1000 else ""
        rules = "table netdev loss\ndelete table netdev loss\n"
        if per_mille:
            rules += f"""
            table netdev loss {{
                chain incoming {{
                    type filter hook ingress device eth0 priority 0;
                    {packets} {chosen} counter drop
                }}
            }}
            """
        run(*self.enter(host), "nft", "-f", "-", given=rules)

    def set_link(self, host: str, up: bool) -> None:
        """Unplug the host's cable from the switch, or plug it in again."""
        state = "up" if up else "down"
        run("ip", "-n", self.namespace("switch"), "link", "set", "dev", host, state)

    def members(self, group: str) -> set[str]:
        """Return the hosts that the bridge knows as members of a multicast group."""
        switch = run(*self.enter("switch"), "bridge", "-j", "mdb", "show")
        return {each["port"] for each in json.loads(switch)[0]["mdb"] if each["grp"] == group}

    def bytes_sent(self, host: str) -> int:
        """Return the bytes that the host's interface has sent, headers included."""
        links = run("ip", "-n", self.namespace(host), "-j", "-s", "link", "show", "eth0")
        return int(json.loads(links)[0]["stats64"]["tx"]["bytes"])

    def pids(self, host: str) -> list[int]:
        """Return the IDs of the processes on the host."""
        return [int(word) for word in run("ip", "netns", "pids", self.namespace(host)).split()]

    def close(self) -> None:
        """Kill all processes on the hosts, and remove the network."""
        for host in self._hosts:
            for pid in self.pids(host):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        while self._hosts:
            run("ip", "netns", "delete", self.namespace(self._hosts.pop()))
