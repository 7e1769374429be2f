"""One server and its clients on 127.0.0.1, with real mounts, for tests that need no network.

Ports and group are those of one `Loopback` alone, so that several may be there at the same time.
All waiting has a bound, and `Loopback.close` leaves no process, mount or file behind.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Timer

from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.processes import Service, mounted

TIMEOUT = 8
"""Seconds that an operation on a mount may take, however long the server is silent."""

GUARD_TIMEOUT = 300.0
"""Seconds after which `Loopback.guard` ends clients that keep somebody waiting."""


def missing() -> str | None:
    """Say what this machine lacks to mount, or None."""
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse"
    return None if shutil.which("fusermount") else "needs fusermount"


def free_port(kind: socket.SocketKind) -> int:
    """A port that was free a moment ago."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def unmount(path: Path) -> None:
    """Take away all that is mounted at a path, in use or not."""
    for _ in range(8):
        if not mounted(path):
            return
        subprocess.run(["umount", "-l", str(path)], check=False, stderr=subprocess.DEVNULL)


class Loopback:
    """A server that shares `images`, and the clients that were started, by name."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mufs-mount-"))
        self.directory.chmod(0o755)
        self.images = self.directory / "images"
        self.images.mkdir()
        self.port = free_port(socket.SOCK_STREAM)
        digits = random.SystemRandom()
        self.group = ".".join(["239", *(str(digits.randrange(1, 255)) for _ in range(3))])
        self.services: dict[str, Service] = {}
        self._mount_points: list[Path] = []
        atexit.register(self.close)

    def mount_point(self, name: str) -> Path:
        """The directory of that name to mount at; it is made when there is none."""
        path = self.directory / name
        path.mkdir(exist_ok=True)
        if path not in self._mount_points:
            self._mount_points.append(path)
        return path

    def start_server(
        self,
        name: str = "server",
        wait: bool = True,
        enter: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        status_port: int | None = None,
    ) -> Service:
        """Start `mufs-server` on `images`, and wait until it listens.

        `enter` is the head of its command, for one that changes what it runs with.
        """
        arguments = ["mufs-server", "--images", str(self.images)]
        arguments += ["--listen", f"tcp:{self.port}:interface=127.0.0.1"]
        arguments += ["--group", self.group, "--port", str(free_port(socket.SOCK_DGRAM))]
        arguments += options
        service = self._start(name, arguments, enter, status_port)
        if wait:
            service.wait_until(lambda: _serves(service), 20, "listens")
        return service

    def start_client(
        self,
        name: str,
        *options: str,
        point: Path | None = None,
        status_port: int | None = None,
    ) -> Service:
        """Start `mufs-client`, and wait until it has mounted."""
        service = self.launch_client(name, *options, point=point, status_port=status_port)
        point = point or self.mount_point(name)
        service.wait_until(lambda: service.holds_mount() and mounted(point), 20, f"mounts {point}")
        return service

    def launch_client(
        self,
        name: str,
        *options: str,
        point: Path | None = None,
        enter: tuple[str, ...] = (),
        status_port: int | None = None,
    ) -> Service:
        """Start `mufs-client`, at the mount point of its name if no other is given."""
        arguments = ["mufs-client", "--server", f"tcp:127.0.0.1:{self.port}"]
        arguments += ["--mount", str(point or self.mount_point(name))]
        arguments += ["--timeout", str(TIMEOUT), *options]
        return self._start(name, arguments, enter, status_port)

    def guard(self) -> Timer:
        """End all processes in a while, so that nobody waits for a mount for ever; starts now."""
        timer = Timer(GUARD_TIMEOUT, self._kill)
        timer.daemon = True
        timer.start()
        return timer

    def close(self) -> None:
        """End all processes, and take away mounts and files."""
        atexit.unregister(self.close)
        self._kill()
        for path in self._mount_points:
            unmount(path)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(
        self,
        name: str,
        arguments: list[str],
        enter: tuple[str, ...] = (),
        status_port: int | None = None,
    ) -> Service:
        service = Service(name, list(enter), self.directory, arguments, status_port)
        self.services[name] = service
        return service

    def _kill(self) -> None:
        for service in self.services.values():
            service.kill()


def _serves(service: Service) -> bool:
    with suppress(OSError):
        return bool(service.status())
    return False


def own(case: SynchronousTestCase) -> Loopback:
    """One for a test alone, which is taken away with it."""
    loopback = Loopback()
    case.addCleanup(loopback.close)
    case.addCleanup(loopback.guard().cancel)
    return loopback


@cache
def shared() -> Loopback:
    """
    The loopback of all tests that only look: its client `here` lets other users in, and root
    counts as root on its server.

    trial has no fixtures of a class or a module, so it is made when the first test asks for it,
    and closed at the end of the process.
    """
    loopback = Loopback()
    try:
        loopback.start_server(options=("--no-root-squash",))
        loopback.start_client("here", "--allow-other")
    except BaseException:
        loopback.close()
        raise
    return loopback
