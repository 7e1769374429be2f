"""What is counted at the server while hosts read, in the same way for mUFS and NFS.

Reads of the image are counted by strace, which stops the server at pread(2) and its relatives
alone: nothing else that either server does reads files by offset once it runs.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from pathlib import Path

import attrs

from bench.experiment.results import Host, Sample
from bench.systems import Mount, Mufs
from mufs.test.support.lab import SERVER, Lab

TRACER = "strace"
CALLS = "pread64,preadv,preadv2"
_RETURNED = re.compile(r"pread\w*(?:\(| resumed>).* = (\d+)$", re.MULTILINE)


def untraceable() -> str | None:
    """Say what this machine lacks to count reads, or None."""
    return None if shutil.which(TRACER) else f"needs {TRACER} (make bench-peers)"


@attrs.frozen
class FileReads:
    """System calls that read, and the bytes that they returned."""

    calls: int
    size: int

    def since(self, before: FileReads) -> FileReads:
        """Those after some others."""
        return FileReads(self.calls - before.calls, self.size - before.size)


class ReadCounter:
    """Counts how a lab's server, started after this, reads files by offset."""

    def __init__(self, lab: Lab) -> None:
        self._log = lab.directory / "server.reads"
        # As a grandchild (-D), so that the process that the lab knows is the server itself; and
        # outside of its namespace, so that the tracer's processor time is not taken for its own.
        lab.before[SERVER] = [
            *(TRACER, "-D", "-f", "--seccomp-bpf", "-qq", "-s", "0", "-e", "signal=none"),
            *("-e", f"trace={CALLS}", "-o", str(self._log)),
        ]

    def read(self) -> FileReads:
        """Those that have ended until now, of which at least one byte came."""
        return parse(self._log)


def parse(log: Path) -> FileReads:
    """What strace wrote."""
    sizes = [int(size) for size in _RETURNED.findall(log.read_text(errors="replace"))]
    return FileReads(sum(1 for size in sizes if size), sum(sizes))


@attrs.frozen
class _Counters:
    """Of the server, since it was started."""

    bytes_sent: int
    cpu: float


class Sampler:
    """
    Looks at the server's interface and processor time each second from a moment on, until it is
    left; then `samples` has all seconds, of which the last one may have been shorter.
    """

    def __init__(self, lab: Lab, start: float) -> None:
        """`start` is on the monotonic clock, and not long ago."""
        self._lab = lab
        self._start = start
        self._seen: list[_Counters] = []
        self.samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        self.samples = [
            Sample(second, after.bytes_sent - before.bytes_sent, after.cpu - before.cpu)
            for second, (before, after) in enumerate(zip(self._seen, self._seen[1:], strict=False))
        ]

    def _watch(self) -> None:
        while not self._ended.wait(self._start + len(self._seen) - time.monotonic()):
            self._look()

    def _look(self) -> None:
        sent = self._lab.network.bytes_sent(SERVER)
        self._seen.append(_Counters(sent, self._lab.cpu_seconds(SERVER)))


def requests(system: Mount, calls: int) -> int:
    """READs over the network; nfs-ganesha reads the file once for each of them."""
    if isinstance(system, Mufs):
        return sum(client["requests"] for client in system.server.status()["clients"])
    return calls


def host(system: Mount, where: str, name: str, seconds: float, known: int = 0) -> Host:
    """
    What a host of the lab came to, called `name`, by its client's own figures; where the client has
    none, so many reads are known of.
    """
    if not isinstance(system, Mufs):
        return Host(name, seconds, known)
    figures = system.clients[where].status()
    counted = {field: figures[field] for field in ("reads", "hits", "joined", "misses")}
    return Host(name, seconds, **counted)
