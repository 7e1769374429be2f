"""Systems whose hosts copy the image into a file in memory, and the limit of the machine."""

from __future__ import annotations

import hashlib
import os
import time
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from bench.jobs import COPIER, Done, Job
from bench.limit import RECEIVER, SENDER
from bench.systems import IMAGE, START_DELAY, Deliveries, System, serve_nbd, serve_nfs
from mufs.test.support.lab import SERVER, SERVER_ADDRESS
from mufs.test.support.netns import LabError, run


class Copy(System):
    """A system whose hosts copy the image."""

    gathers: ClassVar[bool] = False
    """Whether it looks for its hosts first; that time is not counted."""
    in_order: ClassVar[bool] = False
    """Whether the copy is complete once it has its full size, even if the command goes on."""

    def start(self, hosts: list[str]) -> None:
        self.copies.mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", str(self.copies))
        for host in hosts:
            (self.copies / host).mkdir()

    @property
    def copies(self) -> Path:
        return self.lab.directory / "copies"

    def copy(self, host: str) -> Path:
        """Where the host puts the image."""
        return self.copies / host / IMAGE

    @abstractmethod
    def jobs(self, hosts: list[str], start: float) -> dict[str, Job]:
        """Start the jobs on the hosts, and on the server if it needs one.

        They begin at `start`, on the monotonic clock.
        """

    def deliver(self, hosts: list[str], timeout: float) -> Deliveries:
        """Each host copies the image; the copies are checked when all have been timed."""
        start = time.monotonic() + START_DELAY
        jobs = self.jobs(hosts, start)
        result = Deliveries({}, {})
        done: dict[str, Done] = {}
        for host, job in jobs.items():
            done[host] = job.result(max(1.0, start + timeout - time.monotonic()))
            if host == SERVER:
                result.cpu_server += done[host].cpu
            else:
                result.cpu_hosts += done[host].cpu
        first = min(done[host].began for host in hosts) if self.gathers else 0.0
        for host in hosts:
            found = done[host].sha256 or file_sha256(self.copy(host))
            result.seconds[host] = done[host].seconds - first
            result.right[host] = found == self.image.sha256
        return result

    def _job(self, host: str, start: float, command: list[str]) -> Job:
        copy = "" if host == SERVER else self.copy(host)
        whole = self.image.size if self.in_order and host != SERVER else 0
        enter = self.lab.network.enter(host)
        return Job(f"{self.name} on {host}", enter, COPIER, start, copy, whole, *command)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file; raises `LabError` when it is not there."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise LabError(f"no copy at {path}") from None


class NfsCp(Copy):
    """NFS 4, copied: nfs-ganesha and nfs-cp of libnfs."""

    name = "nfs-cp"
    programs = ("rpcbind", "ganesha.nfsd", "nfs-cp")

    def start(self, hosts: list[str]) -> None:
        super().start(hosts)
        serve_nfs(self)

    def jobs(self, hosts: list[str], start: float) -> dict[str, Job]:
        source = f"nfs://{SERVER_ADDRESS}{self.lab.images / IMAGE}?version=4"
        return {
            host: self._job(host, start, ["nfs-cp", source, str(self.copy(host))]) for host in hosts
        }


class Nbdcopy(Copy):
    """NBD, copied: nbdkit and nbdcopy."""

    name = "nbdcopy"
    programs = ("nbdkit", "nbdcopy")
    port = 10809

    def start(self, hosts: list[str]) -> None:
        super().start(hosts)
        serve_nbd(self)

    def jobs(self, hosts: list[str], start: float) -> dict[str, Job]:
        source = f"nbd://{SERVER_ADDRESS}:{self.port}"
        return {
            host: self._job(host, start, ["nbdcopy", source, str(self.copy(host))])
            for host in hosts
        }


class Udpcast(Copy):
    """udpcast, which begins when all hosts have connected, and lingers when a host is done."""

    name = "udpcast"
    programs = ("udp-sender", "udp-receiver")
    gathers = True
    in_order = True

    def jobs(self, hosts: list[str], start: float) -> dict[str, Job]:
        common = ["--interface", "eth0", "--nokbd", "--no-progress", "--file"]
        sender = ["udp-sender", *common, str(self.lab.images / IMAGE), "--full-duplex"]
        sender += ["--min-receivers", str(len(hosts)), "--nopointopoint"]
        jobs = {SERVER: self._job(SERVER, start, sender)}
        for host in hosts:
            receiver = ["udp-receiver", *common, str(self.copy(host))]
            jobs[host] = self._job(host, start, receiver)
        return jobs


class Uftp(Copy):
    """uftp, with 95 % of the rate of the links, or as fast as possible without a limit."""

    name = "uftp"
    programs = ("uftp", "uftpd")
    gathers = True

    def start(self, hosts: list[str]) -> None:
        super().start(hosts)
        hook = self.lab.directory / "uftp-hook"
        hook.write_text('#!/bin/sh\necho complete > "$3.told"\n')
        hook.chmod(0o755)
        for host in hosts:
            os.mkfifo(self._told(host))
            command = ["uftpd", "-d", "-D", str(self.copies / host), "-I", "eth0"]
            command += ["-B", "4194304", "-s", str(hook)]
            self.lab.start_program(f"peer-{host}", host, command)
        time.sleep(1)

    def _told(self, host: str) -> Path:
        """A pipe that uftpd writes to when the host has the whole image."""
        return self.copy(host).with_name(f"{IMAGE}.told")

    def jobs(self, hosts: list[str], start: float) -> dict[str, Job]:
        rate = self.lab.rate
        kbps = "-1" if rate is None else str(round(rate * 950))
        sender = ["uftp", "-I", "eth0", "-R", kbps, "-B", "4194304", "-q"]
        jobs = {SERVER: self._job(SERVER, start, [*sender, str(self.lab.images / IMAGE)])}
        for host in hosts:
            jobs[host] = self._job(host, start, ["cat", str(self._told(host))])
        return jobs


class Limit(Copy):
    """Not a system: plain sockets at the same task, on a network without losses."""

    name = "limit"
    programs = ()

    def start(self, hosts: list[str]) -> None:
        pass

    def jobs(self, hosts: list[str], start: float) -> dict[str, Job]:
        network = self.lab.network
        arguments = (start, SERVER_ADDRESS, self.lab.images / IMAGE)
        jobs = {SERVER: Job(self.name, network.enter(SERVER), SENDER, *arguments)}
        for host in hosts:
            own = (start, network.addresses[host], self.image.size)
            jobs[host] = Job(f"{self.name} on {host}", network.enter(host), RECEIVER, *own)
        return jobs


COPIES: list[type[System]] = [NfsCp, Nbdcopy, Udpcast, Uftp, Limit]
