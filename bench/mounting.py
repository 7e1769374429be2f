"""How fast a mount is for a single host that reads; each figure is measured in its own lab."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs

from bench.cases import Figure
from bench.measure import Row
from bench.systems import MOUNTS, READY_TIMEOUT, Memory, Mount, Mufs, System
from mufs.test.support.lab import SERVER, SERVER_ADDRESS
from mufs.test.support.netns import LabError
from mufs.test.support.processes import listening

MIB = 1 << 20
HOST = "host1"
REMOTE_READ_SIZE = 64 * MIB
"""Bytes that are read from a remote server."""
RELAY_PORT = 7000
RELAY_DELAY = 0.005
"""Seconds in each direction: 10 ms to the server and back."""
RELAY = Path(__file__).with_name("relay.py")
READ_TIMEOUT = 240.0
"""Seconds."""


def _run(*command: str) -> str:
    """Run a program that reads, and return its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=READ_TIMEOUT)
    if done.returncode:
        raise LabError(f"{command[0]}: {done.stderr}")
    return done.stdout


def _right(system: Mount, size: int) -> bool:
    """Whether the first `size` bytes of the mounted image, read again, are right."""
    found = []
    for path in (system.file(HOST), system.image.path):
        digest = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            for _ in range(0, size, MIB):
                digest.update(file.read(MIB))
        found.append(digest.digest())
    return found[0] == found[1]


def _dd(row: Row, system: Mount, size: int) -> Row:
    """`dd` of the first `size` bytes of the image."""
    begin = time.monotonic()
    _run("dd", f"if={system.file(HOST)}", "of=/dev/null", "bs=1M", f"count={size // MIB}")
    seconds = time.monotonic() - begin
    right = _right(system, size)
    return attrs.evolve(
        row, seconds=seconds, per_second=size / seconds / 1e6, unit="MB/s", right=right
    )


def _fio(row: Row, system: Mount, *, pattern: str, block: str, jobs: int) -> Row:
    """Reads by fio for at most 10 s. Each job has its part of the image, and reads no byte twice.

    fio drops the file from the kernel's page cache first.
    """
    size = system.image.size // jobs
    options = [f"--filename={system.file(HOST)}", "--readonly", "--allow_file_create=0"]
    options += [f"--rw={pattern}", f"--bs={block}", f"--numjobs={jobs}", f"--size={size}"]
    options += [f"--offset_increment={size}", "--runtime=10", "--group_reporting"]
    output = _run("fio", "--name=read", "--ioengine=psync", "--output-format=json", *options)
    read = json.loads(output)["jobs"][0]["read"]
    random = pattern == "randread"
    return attrs.evolve(
        row,
        seconds=read["runtime"] / 1e3,
        per_second=read["iops"] if random else read["bw_bytes"] / 1e6,
        unit="reads/s" if random else "MB/s",
        right=_right(system, system.image.size),
    )


def cold_sequential(row: Row, system: System) -> Iterator[Row]:
    """`dd bs=1M` of the whole image by a client that has just mounted."""
    assert isinstance(system, Mount)
    system.start([HOST])
    yield _dd(row, system, system.image.size)


def cold_random(row: Row, system: System) -> Iterator[Row]:
    """Random reads of 4 KiB by a client that has just mounted."""
    assert isinstance(system, Mount)
    system.start([HOST])
    yield _fio(row, system, pattern="randread", block="4k", jobs=1)


def far(row: Row, system: System, multicast: bool = True) -> Iterator[Row]:
    """`dd` by a client whose TCP connection goes through a relay; multicast does not."""
    assert isinstance(system, Mount)
    arguments = [str(RELAY_PORT), SERVER_ADDRESS, str(system.port), str(RELAY_DELAY)]
    relay = system.lab.start_program("relay", SERVER, [sys.executable, str(RELAY), *arguments])
    relay.wait_until(lambda: listening(relay.pid, RELAY_PORT), READY_TIMEOUT, "listens")
    system.connect_to = RELAY_PORT
    if not multicast:
        system.lab.network.set_loss(HOST, 1000)
    system.start([HOST])
    yield _dd(row, system, min(REMOTE_READ_SIZE, system.image.size))


def cached(row: Row, system: System, *, pattern: str, block: str, jobs: int) -> Iterator[Row]:
    """Reads that the client answers from its cache; the kernel's page cache is empty."""
    assert isinstance(system, Mount)
    if isinstance(system, Mufs):
        system.options = ("--cache-size", f"{2 * system.image.size // MIB}M")
    system.start([HOST])
    if not _right(system, system.image.size):
        raise LabError("wrong bytes")
    yield _fio(row, system, pattern=pattern, block=block, jobs=jobs)


_ALL: list[type[System]] = [*MOUNTS]
_REMOTE: list[type[System]] = [system for system in MOUNTS if system.port]
_MUFS: list[type[System]] = [Mufs]

MOUNT = [
    Figure(cold_sequential, _ALL, "cold, dd bs=1M"),
    Figure(cold_random, _ALL, "cold, random 4 KiB"),
    Figure(far, _REMOTE, "server 10 ms away, dd bs=1M"),
    Figure(partial(far, multicast=False), _MUFS, "server 10 ms away, no multicast, dd bs=1M"),
    *(
        Figure(
            partial(cached, pattern=pattern, block=block, jobs=jobs),
            [Mufs, Memory],
            f"client's cache, {words}, {jobs} job{'s' if jobs > 1 else ''}",
        )
        for words, pattern, block in (
            ("sequential 1 MiB", "read", "1M"),
            ("random 4 KiB", "randread", "4k"),
        )
        for jobs in (1, 8)
    ),
]
