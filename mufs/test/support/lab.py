"""Real hosts running mUFS on one machine.

A `Lab` is one server (10.77.0.1) and N hosts (from 10.77.0.11), each in its own network namespace.
Its processes are the ones a user starts from the command line, with real mounts and sockets.
Every wait has a timeout, and `Lab.close` leaves no process, mount, namespace or file behind.
It needs root.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mufs.test.support.netns import LabError, Network, run
from mufs.test.support.processes import (
    HERE,
    SERVER_PORT,
    Program,
    Reader,
    Service,
    mount_points,
    mounted,
)

SERVER = "server"
SERVER_ADDRESS = "10.77.0.1"
TOOLS = ("ip", "tc", "nft", "nsenter", "umount")


def why_unavailable() -> str | None:
    """Return why a `Lab` cannot run on this machine, or None if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else None


def write_image(path: Path, size: int) -> str:
    """Write an image of random bytes, and return its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "wb") as image:
        for begin in range(0, size, 1 << 20):
            data = os.urandom(min(1 << 20, size - begin))
            digest.update(data)
            image.write(data)
    return digest.hexdigest()


class Lab:
    """A server and hosts (host1, host2, ...) in their own network.

    `rate` limits every link, in Mbit/s.  The logs of the processes are copied to the directory
    `logs`.  `snooping` is passed to `Network`.
    """

    def __init__(
        self,
        hosts: int,
        rate: float | None = None,
        logs: Path | None = None,
        snooping: bool = False,
    ) -> None:
        self.hosts = [f"host{number}" for number in range(1, hosts + 1)]
        self.rate = rate
        self.before: dict[str, list[str]] = {}
        """By host: the head of every command started on it, for example a tracer."""
        self.installation = HERE
        """The mUFS that is started."""
        self._logs = logs
        self._programs: list[Program] = []
        self._readers: list[Reader] = []
        addresses = {host: f"10.77.0.{11 + number}" for number, host in enumerate(self.hosts)}
        self.network = Network({SERVER: SERVER_ADDRESS, **addresses}, rate, snooping)
        self.directory = Path(tempfile.mkdtemp(prefix="mufs-lab-"))
        self.images = self.directory / "images"
        for directory in [self.images, *map(self.mount_point, self.hosts)]:
            directory.mkdir()
        atexit.register(self.close)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def mount_point(self, host: str) -> Path:
        return self.directory / host

    def cpu_seconds(self, host: str) -> float:
        """Processor time used by the host's processes, in seconds."""
        ticks = 0
        for pid in self.network.pids(host):
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self, host: str) -> int:
        """Peak memory of the host's processes in bytes, including their anonymous files."""
        files: dict[int, int] = {}
        for pid in self.network.pids(host):
            with suppress(FileNotFoundError, ProcessLookupError):
                for entry in os.scandir(f"/proc/{pid}/fd"):
                    if "mufs-cache (deleted)" in os.readlink(entry.path):
                        held = os.stat(entry.path)
                        files[held.st_ino] = held.st_blocks * 512
        return self.private_memory(host) + sum(files.values())

    def private_memory(self, host: str) -> int:
        """Peak memory of the host's processes in bytes, without anonymous and shared files."""
        private = 0
        for pid in self.network.pids(host):
            with suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/{pid}/status").read_text()
                kib = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE))
                private += int(kib["VmHWM"]) - int(kib["RssShmem"]) << 10
        return private

    def libfuse(self, host: str) -> str:
        """The version of libfuse that a process of the host has loaded, or an empty string."""
        for pid in self.network.pids(host):
            with suppress(FileNotFoundError, ProcessLookupError):
                maps = Path(f"/proc/{pid}/maps").read_text()
                if found := re.search(r"/libfuse3?\.so\.([\d.]+)$", maps, re.MULTILINE):
                    return found[1]
        return ""

    def _enter(self, host: str) -> list[str]:
        return [*self.before.get(host, []), *self.network.enter(host)]

    def _start(self, name: str, host: str, arguments: list[str]) -> Service:
        service = Service(
            name, self._enter(host), self.directory, arguments, installation=self.installation
        )
        self._programs.append(service)
        return service

    def start_program(self, name: str, host: str, command: list[str]) -> Program:
        """Start a program other than mUFS on the host."""
        program = Program(name, [*self._enter(host), *command], self.directory)
        self._programs.append(program)
        return program

    def start_server(self, *options: str, wait: bool = True, name: str = SERVER) -> Service:
        """Start `mufs-server` on `images`, and wait until it listens."""
        arguments = ["mufs-server", "--images", str(self.images), *options]
        service = self._start(name, SERVER, arguments)
        if wait:
            service.wait_until(service.listens, 20, "listens")
        return service

    def start_client(self, host: str, *options: str, wait: bool = True) -> Service:
        """Start `mufs-client` on the host, and wait for its mount."""
        arguments = ["mufs-client", "--server", f"tcp:{SERVER_ADDRESS}:{SERVER_PORT}"]
        arguments += ["--mount", str(self.mount_point(host)), *options]
        service = self._start(host, host, arguments)
        if wait:
            self.wait_mounted(service)
        return service

    def start_clients(self, *options: str) -> list[Service]:
        """Start `mufs-client` on all hosts, and wait for all mounts."""
        services = [self.start_client(host, *options, wait=False) for host in self.hosts]
        for service in services:
            self.wait_mounted(service)
        return services

    def wait_mounted(self, client: Service, timeout: float = 20.0) -> None:
        point = self.mount_point(client.name)
        client.wait_until(
            lambda: client.holds_mount() and mounted(point), timeout, f"mounts {point}"
        )

    def start_reader(
        self, host: str, name: str, start: float | None = None, pause: int = 0
    ) -> Reader:
        """Start to read a file through the host's mount.

        `start` is the time on the monotonic clock at which to open it, `pause` the number of bytes
        after which the reader waits for `Reader.result`.
        """
        moment = time.monotonic() if start is None else start
        reader = Reader(self.mount_point(host) / name, moment, pause)
        self._readers.append(reader)
        return reader

    def start_readers(self, name: str, apart: float = 0.0) -> list[Reader]:
        """Start to read a file on all hosts, each `apart` seconds after the previous one."""
        first = time.monotonic() + 0.5
        return [
            self.start_reader(host, name, first + number * apart)
            for number, host in enumerate(self.hosts)
        ]

    def close(self) -> None:
        """End all processes, and remove mounts, namespaces and files."""
        atexit.unregister(self.close)
        for program in self._programs:
            program.kill()
        self.network.close()
        for point in reversed(mount_points()):
            if point.startswith(f"{self.directory}/"):
                with suppress(LabError):
                    run("umount", "-l", point)
        for reader in self._readers:
            reader.kill()
        if self._logs is not None and self.directory.exists():
            self._logs.mkdir(parents=True, exist_ok=True)
            for log in self.directory.glob("*.log"):
                shutil.copy(log, self._logs)
        shutil.rmtree(self.directory, ignore_errors=True)
