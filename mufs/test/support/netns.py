"""A network on one machine: namespaces, each with one interface, joined by a bridge.

Loss is made with nftables as packets come in, rates with a token bucket at both ends of every link,
as far as kernels have them without further modules.  It needs root.
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
    """What was waited for did not come, and why if that is known."""


def run(*command: str, given: str | None = None) -> str:
    """Run a system command to its end, and return its output."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """Namespaces of the names given, with the addresses given, in one Ethernet segment.

    `rate` limits every link, in Mbit/s and each direction.  Below 1000, packets are sent, counted
    and lost as those of the wire, not as the larger ones that the kernel hands on where it can.
    With `snooping`, the bridge sends multicast to members alone, a few seconds after they joined or
    left, and asks for them itself.
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
        """The head of a command that runs on the host, in the mount namespace of all."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(host)}", "--"]

    def _build(self, rate: float | None, snooping: bool) -> None:
        switch = self._add_namespace("switch")
        wanted = str(int(snooping))
        bridge = ["type", "bridge", "mcast_snooping", wanted, "mcast_querier", wanted]
        # In version 2, hosts that join at once may keep quiet, each for the other's report.
        bridge += ["mcast_igmp_version", "3"]
        run("ip", "-n", switch, "link", "add", "bridge", *bridge)
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        for host, address in self.addresses.items():
            own = self._add_namespace(host)
            link = ["link", "add", "eth0", "netns", own, "type", "veth"]
            run("ip", *link, "peer", "name", host, "netns", switch)
            run("ip", "-n", own, "address", "add", f"{address}/24", "broadcast", "+", "dev", "eth0")
            run("ip", "-n", own, "link", "set", "eth0", "up")
            run("ip", "-n", switch, "link", "set", "dev", host, "master", "bridge", "up")
            if rate is not None:
                self.set_rate(host, rate)

    def _add_namespace(self, host: str) -> str:
        name = self.namespace(host)
        run("ip", "netns", "add", name)
        self._hosts.append(host)
        run("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def set_rate(self, host: str, rate: float) -> None:
        """Limit the host's link to so many Mbit/s in each direction."""
        self._limit("switch", host, rate)
        self._limit(host, "eth0", rate)

    def _limit(self, host: str, interface: str, rate: float) -> None:
        burst = max(32, round(rate / 8))
        run(
            *("tc", "-n", self.namespace(host), "qdisc", "replace", "dev", interface, "root"),
            "tbf",
            *("rate", f"{rate}mbit", "burst", f"{burst}kb", "limit", "1024kb"),
        )
        # Packets that a link carries whole where the kernel could cut them later are cut here.
        if rate < 1000 and interface == "eth0":
            run("ip", "-n", self.namespace(host), "link", "set", interface, "gso_max_segs", "1")

    def set_loss(self, host: str, per_mille: int, packets: str = "ip protocol udp") -> None:
        """Drop so many of 1000 UDP packets that come to the host, at random; 1000 is all.

        `packets` chooses others than those of UDP, in the words of nftables; "" is all.
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
        """Pull the host's cable out of the switch, or put it in again."""
        state = "up" if up else "down"
        run("ip", "-n", self.namespace("switch"), "link", "set", "dev", host, state)

    def members(self, group: str) -> set[str]:
        """The hosts whose reports to the bridge say that they are in a multicast group."""
        switch = run(*self.enter("switch"), "bridge", "-j", "mdb", "show")
        return {each["port"] for each in json.loads(switch)[0]["mdb"] if each["grp"] == group}

    def bytes_sent(self, host: str) -> int:
        """Bytes that the host's interface has sent since it was made, headers included."""
        links = run("ip", "-n", self.namespace(host), "-j", "-s", "link", "show", "eth0")
        return int(json.loads(links)[0]["stats64"]["tx"]["bytes"])

    def pids(self, host: str) -> list[int]:
        """The processes that run on the host."""
        return [int(word) for word in run("ip", "netns", "pids", self.namespace(host)).split()]

    def close(self) -> None:
        """End all that runs on the hosts, and take the network away."""
        for host in self._hosts:
            for pid in self.pids(host):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        while self._hosts:
            run("ip", "netns", "delete", self.namespace(self._hosts.pop()))
