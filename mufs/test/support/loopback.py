"""One server and its clients on 127.0.0.1, with real mounts, for tests that need no network.

Each `Loopback` has its own ports and group, so that several can run at the same time.
Every wait has a timeout, and `Loopback.close` leaves no process, mount or file behind.
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

from mufs.filesystem.client import libfuse
from mufs.filesystem.client.mountpoint import fusermount
from mufs.test.support.processes import Service, mounted

OPERATION_TIMEOUT = 8
"""Seconds after which an operation on a mount fails when the server does not answer."""

GUARD_TIMEOUT = 300.0
"""Seconds after which `Loopback.guard` ends all processes."""


def why_unavailable() -> str | None:
    """Return why this machine cannot mount, or None if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse"
    if shutil.which(fusermount()) is None:
        return "needs fusermount"
    return None if libfuse.find(2) and libfuse.find(3) else "needs libfuse 3 and libfuse 2"


def free_port(kind: socket.SocketKind) -> int:
    """Return a port that was free a moment ago."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def unmount(path: Path) -> None:
    """Remove all mounts at a path, even if they are in use."""
    for _ in range(8):
        if not mounted(path):
            return
        subprocess.run(["umount", "-l", str(path)], check=False, stderr=subprocess.DEVNULL)


class Loopback:
    """A server that exports `images`, and its clients by name."""

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
        """Return the mount point of that name, creating it if necessary."""
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

        `enter` is put before the command, to change the environment that it runs in.
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
        """Start `mufs-client`, and wait for its mount."""
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
        """Start `mufs-client` without waiting; the default mount point has the client's name."""
        arguments = ["mufs-client", "--server", f"tcp:127.0.0.1:{self.port}"]
        arguments += ["--mount", str(point or self.mount_point(name))]
        arguments += ["--timeout", str(OPERATION_TIMEOUT), *options]
        return self._start(name, arguments, enter, status_port)

    def guard(self) -> Timer:
        """Start a timer that ends all processes, so that no test hangs on a mount."""
        timer = Timer(GUARD_TIMEOUT, self._kill)
        timer.daemon = True
        timer.start()
        return timer

    def close(self) -> None:
        """End all processes, and remove mounts and files."""
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


def make_loopback(case: SynchronousTestCase) -> Loopback:
    """Make a `Loopback` for one test, closed at the end of the test."""
    loopback = Loopback()
    case.addCleanup(loopback.close)
    case.addCleanup(loopback.guard().cancel)
    return loopback


@cache
def shared_loopback() -> Loopback:
    """
    Return the `Loopback` shared by all tests that change nothing: its client `here` has
    --allow-other, its server --no-root-squash.

    trial has no fixtures for classes or modules, so it is made for the first test that needs it,
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


LIBFUSE2 = "libfuse2"
"""A further client of `shared_loopback`: it mounts with libfuse 2, not with the best there is."""


@cache
def start_libfuse2() -> None:
    """Start it for the first test that needs it."""
    shared_loopback().start_client(LIBFUSE2, "--allow-other", "--fuse", "2")
