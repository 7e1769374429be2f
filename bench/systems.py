"""mUFS and comparable systems: how each is started, and how its hosts get the image.

All implement `System`. This module has those whose hosts mount the image; copies.py has those
whose hosts copy it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import ClassVar

import attrs

from mufs.test.support.lab import SERVER, SERVER_ADDRESS, Lab
from mufs.test.support.netns import LabError, run
from mufs.test.support.processes import (
    HERE,
    SERVER_PORT,
    Installation,
    Program,
    Service,
    listening,
    mounted,
    wait_until,
)

IMAGE = "disk.img"
READY_TIMEOUT = 30.0
"""Seconds within which a program has to be ready."""

START_DELAY = 1.0
"""Seconds for all hosts' programs to start before the timed moment."""


@attrs.frozen
class Image:
    """The shared image: a file that the server's page cache holds."""

    path: Path
    size: int
    sha256: str


@attrs.define
class Deliveries:
    """Seconds and correctness for each host, and the processor time of jobs that have ended."""

    seconds: dict[str, float]
    right: dict[str, bool]
    cpu_server: float = 0.0
    cpu_hosts: float = 0.0


class System(ABC):
    """A way to deliver an image to hosts, in its own lab."""

    name: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]
    """Programs that have to be installed."""
    port: ClassVar[int] = 0
    """The server's TCP port, if its hosts need only one. Hosts use `connect_to`."""

    def __init__(self, lab: Lab, image: Image) -> None:
        self.lab = lab
        self.image = image
        self.connect_to = self.port
        os.link(image.path, lab.images / IMAGE)

    @classmethod
    def lacking(cls) -> list[str]:
        """The programs that are not installed."""
        return [program for program in cls.programs if not shutil.which(program)]

    @abstractmethod
    def start(self, hosts: list[str]) -> None:
        """Start everything that is not timed, and wait until it is ready."""

    @abstractmethod
    def deliver(self, hosts: list[str], timeout: float) -> Deliveries:
        """Deliver the whole image to these hosts at the same moment, and check every byte."""

    def start_server(self, *command: str, port: int | None = None) -> None:
        """Start a program on the server, and wait until it listens on the port."""
        server = self.lab.start_program("peer-server", SERVER, list(command))
        wanted = port or self.port
        server.wait_until(
            lambda: listening(server.pid, wanted), READY_TIMEOUT, f"listens on {wanted}"
        )


class Mount(System):
    """A system whose hosts mount the image."""

    def file(self, host: str) -> Path:
        """The path of the image at the host."""
        return self.lab.mount_point(host) / IMAGE

    def deliver(self, hosts: list[str], timeout: float) -> Deliveries:
        """Each host reads the image once from beginning to end, hashing as it reads."""
        start = time.monotonic() + START_DELAY
        readers = {host: self.lab.start_reader(host, IMAGE, start) for host in hosts}
        result = Deliveries({}, {})
        for host, reader in readers.items():
            reading = reader.result(max(1.0, start + timeout - time.monotonic()))
            if reading.error:
                raise LabError(f"{host}: {reading.error} after {reading.size} bytes")
            result.seconds[host] = reading.seconds
            result.right[host] = reading.sha256 == self.image.sha256
        return result


class Mufs(Mount):
    """mUFS with default options."""

    name = "mufs"
    programs = ()
    port = SERVER_PORT
    installation: ClassVar[Installation] = HERE
    options: tuple[str, ...] = ()
    """Further options of the client."""
    server_options: tuple[str, ...] = ()
    """Likewise."""
    server: Service
    """Set by `start`."""
    clients: dict[str, Service]
    """By host name; set by `start`."""

    def start(self, hosts: list[str]) -> None:
        self.lab.installation = self.installation
        self.server = self.lab.start_server(*self.server_options)
        options = ["--server", f"tcp:{SERVER_ADDRESS}:{self.connect_to}", *self.options]
        start = self.lab.start_client
        self.clients = {host: start(host, *options, wait=False) for host in hosts}
        for client in self.clients.values():
            self.lab.wait_mounted(client, READY_TIMEOUT)


class PeerMount(Mount):
    """A system whose client is a program that mounts and stays in the foreground."""

    @abstractmethod
    def serve(self) -> None:
        """Start the server, and wait until it listens."""

    @abstractmethod
    def client(self, host: str) -> list[str]:
        """The command that mounts on a host."""

    def where(self, host: str) -> Path:
        """The mount point of the command."""
        return self.lab.mount_point(host)

    def start(self, hosts: list[str]) -> None:
        self.serve()
        clients: dict[str, Program] = {}
        for host in hosts:
            clients[host] = self.lab.start_program(f"peer-{host}", host, self.client(host))
        for host, client in clients.items():
            point = self.where(host)
            client.wait_until(partial(mounted, point), READY_TIMEOUT, f"mounts {point}")


class Nbdfuse(PeerMount):
    """NBD, mounted: nbdkit and nbdfuse."""

    name = "nbdfuse"
    programs = ("nbdkit", "nbdfuse")
    port = 10809

    def serve(self) -> None:
        serve_nbd(self)

    def client(self, host: str) -> list[str]:
        return ["nbdfuse", "-r", str(self.file(host)), f"nbd://{SERVER_ADDRESS}:{self.connect_to}"]


class Nfs(PeerMount):
    """NFS 3, mounted without the kernel's client: nfs-ganesha and qemu-storage-daemon."""

    name = "nfs"
    programs = ("rpcbind", "ganesha.nfsd", "qemu-storage-daemon")

    def serve(self) -> None:
        serve_nfs(self)

    def where(self, host: str) -> Path:
        return self.file(host)

    def client(self, host: str) -> list[str]:
        self.file(host).touch()
        source = f"driver=nfs,node-name=n0,server.type=inet,server.host={SERVER_ADDRESS}"
        export = f"type=fuse,id=e0,node-name=n0,mountpoint={self.file(host)},writable=off"
        path = self.lab.images / IMAGE
        return [
            *("qemu-storage-daemon", "--blockdev", f"{source},path={path},read-only=on"),
            *("--export", export),
        ]


class Sshfs(PeerMount):
    """SFTP, mounted: sshd and sshfs."""

    name = "sshfs"
    programs = ("sshfs", "sshd", "ssh-keygen")
    port = 22

    def serve(self) -> None:
        os.makedirs("/run/sshd", exist_ok=True)  # sshd requires it
        for key in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._file(key)))
        self._file("config").write_text(
            f"HostKey {self._file('host')}\nAuthorizedKeysFile {self._file('user')}.pub\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n"
            "Subsystem sftp internal-sftp\n"
        )
        sshd = shutil.which("sshd")
        assert sshd is not None
        self.start_server(sshd, "-D", "-e", "-f", str(self._file("config")))

    def _file(self, what: str) -> Path:
        return self.lab.directory / f"ssh-{what}"

    def client(self, host: str) -> list[str]:
        options = f"ro,IdentityFile={self._file('user')},StrictHostKeyChecking=no"
        return [
            *("sshfs", "-f", "-o", f"{options},UserKnownHostsFile=/dev/null"),
            *("-p", str(self.connect_to)),
            *(f"root@{SERVER_ADDRESS}:{self.lab.images}", str(self.lab.mount_point(host))),
        ]


class Memory(Mount):
    """No network: a bare file system with the image in memory."""

    name = "memory"
    programs = ()
    trace: Path | None = None
    """The file in which reads are recorded, if any."""

    def start(self, hosts: list[str]) -> None:
        for host in hosts:
            point = self.lab.mount_point(host)
            script = str(Path(__file__).with_name("memory_mount.py"))
            command = [sys.executable, script, str(self.image.path), str(point)]
            if self.trace is not None:
                command.append(str(self.trace))
            program = self.lab.start_program(f"peer-{host}", host, command)
            program.wait_until(partial(mounted, point), READY_TIMEOUT, f"mounts {point}")


def serve_nbd(system: System) -> None:
    """Share the image by nbdkit."""
    image = str(system.lab.images / IMAGE)
    system.start_server("nbdkit", "-f", "-r", "-i", SERVER_ADDRESS, "-p", "10809", "file", image)


GANESHA = """
NFS_CORE_PARAM {{ Protocols = 3, 4; Enable_NLM = false; Enable_RQUOTA = false; }}
NFSv4 {{ Graceless = true; }}
EXPORT {{
    Export_Id = 1; Path = {path}; Pseudo = {path}; Access_Type = RO; Squash = No_Root_Squash;
    Protocols = 3, 4; SecType = sys; FSAL {{ Name = VFS; }}
}}
"""
NFS_SERVER = """
mount -t tmpfs tmpfs /run && mkdir -p /run/ganesha && mount -t tmpfs tmpfs /var/lib/nfs &&
mkdir -p /var/lib/nfs/ganesha && rpcbind -w && exec ganesha.nfsd -F -f "$0" -L STDERR -p /run/pid
"""
"""Runs in its own mount namespace, because both programs keep their state in fixed places."""


def serve_nfs(system: System) -> None:
    """Share the image's directory by nfs-ganesha, under its own path."""
    config = system.lab.directory / "ganesha.conf"
    config.write_text(GANESHA.format(path=system.lab.images))
    system.start_server("unshare", "--mount", "sh", "-c", NFS_SERVER, str(config), port=2049)
    # It listens before it registers the port for NFS 3 mounts with rpcbind.
    ask = [*system.lab.network.enter(SERVER), "rpcinfo", "-T", "tcp", SERVER_ADDRESS, "mountd", "3"]
    wait_until(lambda: _succeeds(ask), READY_TIMEOUT, "nfs-ganesha offers mounts")


def _succeeds(command: list[str]) -> bool:
    return not subprocess.run(command, capture_output=True, timeout=READY_TIMEOUT).returncode


MOUNTS: list[type[Mount]] = [Mufs, Nfs, Nbdfuse, Sshfs]
