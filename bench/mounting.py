"""How fast a mount is for a single host that reads; each figure is measured in its own lab."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs

from bench.cases import Figure
from bench.measure import Row, filled, usage
from bench.systems import MOUNTS, READY_TIMEOUT, Memory, Mount, Mufs, Sshfs, System
from mufs.test.support.lab import SERVER, SERVER_ADDRESS
from mufs.test.support.netns import LabError
from mufs.test.support.processes import listening

MIB = 1 << 20
HOST = "host1"
REMOTE_READ_SIZE = 256 * MIB
"""Bytes that are read from a remote server."""
RELAY_PORT = 7000
RELAY_DELAY = 0.005
"""Seconds in each direction: 10 ms to the server and back."""
RELAY = Path(__file__).with_name("relay.py")
READ_TIMEOUT = 240.0
"""Seconds."""
LISTED_FILES = 10_000


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
    before = usage(system.lab, [HOST])
    begin = time.monotonic()
    _run("dd", f"if={system.file(HOST)}", "of=/dev/null", "bs=1M", f"count={size // MIB}")
    seconds = time.monotonic() - begin
    row = filled(row, system.lab, [HOST], before)
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
    before = usage(system.lab, [HOST])
    output = _run("fio", "--name=read", "--ioengine=psync", "--output-format=json", *options)
    row = filled(row, system.lab, [HOST], before)
    read = json.loads(output)["jobs"][0]["read"]
    random = pattern == "randread"
    return attrs.evolve(
        row,
        seconds=read["runtime"] / 1e3,
        per_second=read["iops"] if random else read["bw_bytes"] / 1e6,
        unit="reads/s" if random else "MB/s",
        right=_right(system, system.image.size),
    )


def cold(row: Row, system: System, read: Callable[[Row, Mount], Row]) -> Iterator[Row]:
    """Reads by a client that has just mounted."""
    assert isinstance(system, Mount)
    system.start([HOST])
    yield read(row, system)


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


def cached(row: Row, system: System, read: Callable[[Row, Mount], Row]) -> Iterator[Row]:
    """Reads that the client answers from its cache; the kernel's page cache is empty."""
    assert isinstance(system, Mount)
    if isinstance(system, Mufs):
        system.options = ("--cache-size", f"{2 * system.image.size // MIB}M")
    system.start([HOST])
    if not _right(system, system.image.size):
        raise LabError("wrong bytes")
    with open(system.file(HOST), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    yield read(row, system)


def listing(row: Row, system: System) -> Iterator[Row]:
    """`ls -l` of a directory of many files, by a client that has just mounted, and again."""
    assert isinstance(system, Mount)
    directory = "many"
    (system.lab.images / directory).mkdir()
    expected = {f"image-{size:05}": size for size in range(LISTED_FILES)}
    for name, size in expected.items():
        path = system.lab.images / directory / name
        path.touch()
        os.truncate(path, size)
    system.start([HOST])
    for what in (row.what, f"{row.what}, again"):
        before = usage(system.lab, [HOST])
        begin = time.monotonic()
        output = _run("ls", "-l", str(system.lab.mount_point(HOST) / directory))
        seconds = time.monotonic() - begin
        fields = [line.split() for line in output.splitlines()[1:]]
        right = {words[-1]: int(words[4]) for words in fields} == expected
        done = filled(row.called(what), system.lab, [HOST], before)
        yield attrs.evolve(done, seconds=seconds, right=right)


_ALL: list[type[System]] = [*MOUNTS]
_REMOTE: list[type[System]] = [system for system in MOUNTS if system.port]
_MUFS: list[type[System]] = [Mufs]


def _random(jobs: int) -> Callable[[Row, Mount], Row]:
    return partial(_fio, pattern="randread", block="4k", jobs=jobs)


def _dd_all(row: Row, system: Mount) -> Row:
    return _dd(row, system, system.image.size)


MOUNT = [
    Figure(partial(cold, read=_dd_all), _ALL, "cold, dd bs=1M"),
    Figure(partial(cold, read=_random(1)), _ALL, "cold, random 4 KiB, 1 job"),
    Figure(partial(cold, read=_random(8)), _ALL, "cold, random 4 KiB, 8 jobs"),
    Figure(far, _REMOTE, "server 10 ms away, dd bs=1M"),
    Figure(partial(far, multicast=False), _MUFS, "server 10 ms away, no multicast, dd bs=1M"),
    *(
        Figure(partial(cached, read=read), [Mufs, Memory], f"client's cache, {words}")
        for words, read in (
            ("dd bs=1M", _dd_all),
            ("sequential 1 MiB, 8 jobs", partial(_fio, pattern="read", block="1M", jobs=8)),
            ("random 4 KiB, 1 job", _random(1)),
            ("random 4 KiB, 8 jobs", _random(8)),
        )
    ),
    Figure(listing, [Mufs, Sshfs], f"ls -l of {LISTED_FILES:,} files"),
]
