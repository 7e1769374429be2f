"""One run: what the server's counters gained while the image was delivered to all hosts."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import msgspec

from bench.systems import Deliveries, Image, System
from mufs.test.support.lab import SERVER, Lab, write_image

WIRE_SIZE = 1454 / 1400
"""Bytes on the wire for a byte of an image, in full segments; TCP differs by less than 1 %."""


@attrs.frozen
class Row:
    """One run, or one figure of it: a line of the CSV file. Fields that do not apply are None."""

    revision: str
    """The checkout, as `git describe` prints it."""
    case: str
    system: str
    size: int
    """Bytes of the image."""
    hosts: int
    loss: int
    """Packets lost on the way to each host, per 1000."""
    run: int
    rate: float | None = None
    """Mbit/s of the links; None where they are not limited."""
    what: str = ""
    """The name of the figure, if the case has several."""
    seconds: float | None = None
    """Until the slowest host had the whole image."""
    sent: int | None = None
    """Bytes that the server's interface sent, headers included."""
    cpu_server: float | None = None
    """Seconds of processor time."""
    cpu_clients: float | None = None
    """Seconds of processor time, of all hosts together."""
    per_second: float | None = None
    """A rate that the case measures, per second."""
    unit: str = ""
    """Of `per_second`."""
    memory: int | None = None
    """Peak bytes of memory of the host that has most, without the cache of images."""
    libfuse: str = ""
    """The version of libfuse that the hosts use, if any."""
    right: bool = False
    """Whether every byte was checked and right."""
    error: str = ""
    """Why there is no figure, in one line."""

    def called(self, what: str) -> Row:
        """The same row for another figure of the case."""
        return attrs.evolve(self, what=what)


def read_csv(path: Path) -> list[Row]:
    """Read what `write_csv` wrote."""
    with open(path, newline="") as file:
        lines = [{key: text for key, text in row.items() if text} for row in csv.DictReader(file)]
    return msgspec.convert(lines, list[Row], strict=False)


def write_csv(rows: list[Row], path: Path) -> None:
    """Write all rows below a header line."""
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in attrs.fields(Row)])
        table.writeheader()
        table.writerows(attrs.asdict(row) for row in rows)


def revision() -> str:
    """This checkout, as `git describe` prints it; empty if it is not one."""
    command = ["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip()


@contextmanager
def image(size: int, given: Path | None = None) -> Iterator[Image]:
    """An image of random bytes, or a copy of a given one, on the file system that labs use."""
    with tempfile.TemporaryDirectory(prefix="mufs-bench-") as directory:
        path = Path(directory) / "image"
        if given is None:
            yield Image(path, size, write_image(path, size))
        else:
            subprocess.run(["cp", "--sparse=auto", given, path], check=True)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield Image(path, path.stat().st_size, digest)


def link_seconds(size: int, rate: float | None) -> float:
    """The least seconds that an image needs on a link; without a limit, those at 200 Mbit/s."""
    return size * 8 * WIRE_SIZE / ((rate or 200) * 1e6)


@attrs.frozen
class Usage:
    """What the server and some hosts have used since their lab was made."""

    sent: int
    """Bytes that the server's interface sent."""
    cpu_server: float
    cpu_clients: float


def usage(lab: Lab, hosts: list[str]) -> Usage:
    """What the server and these hosts have used so far."""
    return Usage(
        lab.network.bytes_sent(SERVER),
        lab.cpu_seconds(SERVER),
        sum(map(lab.cpu_seconds, hosts)),
    )


def filled(row: Row, lab: Lab, hosts: list[str], before: Usage) -> Row:
    """The row with what was used since `before`, and with what the hosts' programs are like."""
    now = usage(lab, hosts)
    return attrs.evolve(
        row,
        sent=now.sent - before.sent,
        cpu_server=now.cpu_server - before.cpu_server,
        cpu_clients=now.cpu_clients - before.cpu_clients,
        memory=max(map(lab.private_memory, hosts)) or None,
        libfuse=lab.libfuse(hosts[0]),
    )


def deliver(row: Row, system: System, hosts: list[str], timeout: float) -> tuple[Row, Deliveries]:
    """Deliver the image to these hosts; the system has been started. Return what it took."""
    before = usage(system.lab, hosts)
    got = system.deliver(hosts, timeout)
    row = filled(row, system.lab, hosts, before)
    assert row.cpu_server is not None and row.cpu_clients is not None
    return attrs.evolve(
        row,
        cpu_server=row.cpu_server + got.cpu_server,
        cpu_clients=row.cpu_clients + got.cpu_hosts,
    ), got
