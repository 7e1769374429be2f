"""Counts what the server does while hosts read, in the same way for mUFS and NFS.

Reads of the image are counted by strace, which stops the server only at pread(2) and its variants.
Neither server reads any other file by offset once it runs.
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
    """What this machine lacks to count reads, or None."""
    return None if shutil.which(TRACER) else f"needs {TRACER} (make bench-peers)"


@attrs.frozen
class FileReads:
    """System calls that read, and the bytes that they returned."""

    calls: int
    size: int

    def since(self, before: FileReads) -> FileReads:
        """What was added after `before`."""
        return FileReads(self.calls - before.calls, self.size - before.size)


class ReadCounter:
    """Counts the reads by offset of a lab's server, which is started after this."""

    def __init__(self, lab: Lab) -> None:
        self._log = lab.directory / "server.reads"
        # strace runs as a grandchild (-D), so that the lab's process is the server itself, and
        # outside the namespace, so that strace's processor time is not counted as the server's.
        lab.before[SERVER] = [
            *(TRACER, "-D", "-f", "--seccomp-bpf", "-qq", "-s", "0", "-e", "signal=none"),
            *("-e", f"trace={CALLS}", "-o", str(self._log)),
        ]

    def read(self) -> FileReads:
        """The reads so far that returned at least one byte."""
        return parse(self._log)


def parse(log: Path) -> FileReads:
    """Parse strace's output."""
    sizes = [int(size) for size in _RETURNED.findall(log.read_text(errors="replace"))]
    return FileReads(sum(1 for size in sizes if size), sum(sizes))


@attrs.frozen
class _Counters:
    """The server's totals since it was started."""

    bytes_sent: int
    cpu: float


class Sampler:
    """
    A context manager that samples the server's interface and processor time each second.

    After its end `samples` has all seconds. The last one may have been shorter.
    """

    def __init__(self, lab: Lab, start: float) -> None:
        """Begin at `start`, a recent moment on the monotonic clock."""
        self._lab = lab
        self._start = start
        self._seen: list[_Counters] = []
        self.samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()
        self.samples = [
            Sample(second, after.bytes_sent - before.bytes_sent, after.cpu - before.cpu)
            for second, (before, after) in enumerate(zip(self._seen, self._seen[1:], strict=False))
        ]

    def _run(self) -> None:
        while not self._ended.wait(self._start + len(self._seen) - time.monotonic()):
            self._sample()

    def _sample(self) -> None:
        sent = self._lab.network.bytes_sent(SERVER)
        self._seen.append(_Counters(sent, self._lab.cpu_seconds(SERVER)))


def requests(system: Mount, calls: int) -> int:
    """The number of READs over the network; nfs-ganesha reads the file once for each."""
    if isinstance(system, Mufs):
        return sum(client["requests"] for client in system.server.status()["clients"])
    return calls


def host(system: Mount, where: str, *, name: str, seconds: float, known: int = 0) -> Host:
    """
    The result of a host of the lab, called `name` in the tables, from its client's figures.

    If the client has none, the number of reads is `known`.
    """
    if not isinstance(system, Mufs):
        return Host(name, seconds, known)
    figures = system.clients[where].status()
    counted = {field: figures[field] for field in ("reads", "hits", "joined", "misses")}
    return Host(name, seconds, **counted)
