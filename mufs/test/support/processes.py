"""The processes of a `Lab`: mUFS as a user starts it, other programs, and readers of mounts.

All calls block; every wait has a timeout.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from mufs.sockets import VARIABLE
from mufs.test.support.netns import LabError

SERVER_PORT = 7040
TWISTD = os.path.join(os.path.dirname(sys.executable), "twistd")
MUFS = [sys.executable, "-c", "from mufs.commands.main import main; main()"]
"""The command C{mufs}, run in any directory."""

CHECKOUT = Path(__file__).resolve().parents[3]


@attrs.frozen
class Installation:
    """A mUFS that is installed, from which a `Service` can be started."""

    twistd: str
    """The path of the program."""
    sources: Path | None = None
    """The directory to import mUFS from, if it is not where Python looks by itself."""


HERE = Installation(TWISTD, CHECKOUT)

READER = """
import errno, hashlib, json, sys, time
path, start, pause = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
digest, size, error = hashlib.sha256(), 0, ""
time.sleep(max(0.0, start - time.monotonic()))
try:
    with open(path, "rb", buffering=0) as image:
        while True:
            if 0 < pause <= size:
                pause = 0
                print("paused", flush=True)
                sys.stdin.readline()
            data = image.read(1 << 20)
            if not data:
                break
            digest.update(data)
            size += len(data)
except OSError as failure:
    error = errno.errorcode.get(failure.errno, str(failure))
seconds = time.monotonic() - start
print(json.dumps(dict(size=size, sha256=digest.hexdigest(), error=error, seconds=seconds)))
"""


def wait_until(condition: Callable[[], object], timeout: float, what: str) -> None:
    """Wait until the condition holds; raise `LabError` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"timed out after {timeout:g} s: {what}")
        time.sleep(0.02)


def mount_points() -> list[str]:
    """Return all mount points in the order of mounting, without accessing any mount."""
    with open("/proc/self/mountinfo") as mounts:
        return [line.split()[4] for line in mounts]


def mounted(path: Path) -> bool:
    """Return whether something is mounted at a path, without accessing the mount."""
    return str(path) in mount_points()


@attrs.frozen
class Reading:
    """The result of reading a whole file."""

    size: int
    sha256: str
    error: str
    """The name of the errno that ended it early, or an empty string."""
    seconds: float
    """Seconds from its start time to its end."""


class Reader:
    """A process that reads one file from beginning to end."""

    def __init__(self, path: Path, start: float, pause: int) -> None:
        self.path = path
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", READER, str(path), str(start), str(pause)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_paused(self, timeout: float = 60.0) -> None:
        """Wait until it has read the bytes before its pause."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise LabError(f"the read of {self.path} did not reach its pause")
        line = self._process.stdout.readline()
        if line.strip() != "paused":
            raise LabError(f"the read of {self.path} ended early: {line!r}")

    def result(self, timeout: float = 120.0) -> Reading:
        """Resume it if it paused, and wait for its end."""
        try:
            output, _ = self._process.communicate("\n", timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"the read of {self.path} did not end in {timeout:g} s") from None
        return Reading(**json.loads(output))

    def kill(self) -> None:
        """Kill it; a blocked read ends only when its mount is gone."""
        self._process.kill()
        self._process.communicate(timeout=10)


class _StatusConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def listening(pid: int, port: int) -> bool:
    """Return whether a TCP port is open in the network namespace of a process."""
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError), open(f"/proc/{pid}/net/{table}") as sockets:
            for line in itertools.islice(sockets, 1, None):
                _, local, _, state = line.split()[:4]
                if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                    return True
    return False


class Program:
    """A process that runs until it is stopped, and its log."""

    def __init__(
        self,
        name: str,
        command: list[str],
        directory: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """The log of this process, and of earlier ones with the same name."""
        return self.log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], object], timeout: float, what: str) -> None:
        """Wait until the condition holds; raise `LabError` if the process ends or time runs out."""
        try:
            wait_until(lambda: condition() or not self.running, timeout, f"{self.name} {what}")
        except LabError as late:
            raise LabError(f"{late}\n{self.output[-3000:]}") from None
        if not self.running:
            raise LabError(f"{self.name} ended: {self._process.poll()}\n{self.output[-3000:]}")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Wait until it ends, and return its exit status."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} still runs after {timeout:g} s") from None

    def stop(self, timeout: float = 10.0) -> float:
        """Send SIGTERM, and return the seconds until it ended."""
        begin = time.monotonic()
        self.signal(signal.SIGTERM)
        self.wait(timeout)
        return time.monotonic() - begin

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)


class Service(Program):
    """One mUFS process; `enter` is the head of a command that runs on its host.

    It serves its status at a Unix socket in `directory`, or at `status_port` on loopback; its
    control socket is in `directory`/run.
    """

    def __init__(
        self,
        name: str,
        enter: list[str],
        directory: Path,
        arguments: list[str],
        status_port: int | None = None,
        installation: Installation = HERE,
    ) -> None:
        self._status = directory / f"{name}.status"
        self._status.unlink(missing_ok=True)
        self.status_port = status_port
        endpoint = f"unix:{self._status}" if status_port is None else str(status_port)
        twistd = [installation.twistd, "-n", "--pidfile="]
        path: list[str | None] = []
        if installation.sources is not None:  # else that of this process would lead elsewhere
            path = [str(installation.sources), os.environ.get("PYTHONPATH")]
        command = [*enter, *twistd, *arguments, "--status", endpoint]
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            VARIABLE: str(directory / "run"),
        }
        super().__init__(name, command, directory, environment)

    def status(self) -> dict[str, Any]:
        """Return the figures of its `/status.json`."""
        figures: dict[str, Any] = json.loads(self.get("/status.json"))
        return figures

    def get(self, path: str) -> str:
        """Return the status response at a path."""
        connection = self.connect_status()
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise LabError(f"{self.name}: status {response.status}")
        return body.decode()

    def connect_status(self) -> http.client.HTTPConnection:
        """Return a connection to its status endpoint."""
        if self.status_port is None:
            return _StatusConnection(self._status)
        return http.client.HTTPConnection("127.0.0.1", self.status_port, timeout=5)

    def listens(self) -> bool:
        """Return whether `SERVER_PORT` is open on its host."""
        return listening(self.pid, SERVER_PORT)

    def holds_mount(self) -> bool:
        """Return whether it serves a mount, unlike one left behind by a dead process."""
        with suppress(FileNotFoundError, ProcessLookupError):
            return any(
                os.readlink(entry.path) == "/dev/fuse"
                for entry in os.scandir(f"/proc/{self.pid}/fd")
            )
        return False
