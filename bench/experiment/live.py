"""The experiment with virtual machines, which boot at one moment from one image."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import attrs

from bench.experiment.images import GuestImage
from bench.experiment.machines import Hardware, Machine, boot
from bench.experiment.results import Outcome
from bench.experiment.sampling import ReadCounter, Sampler, host, requests
from bench.experiment.traces import Trace
from bench.systems import START_DELAY, Image, Memory, Mount
from mufs.test.support.lab import Lab

PLACES = (("client01", 1), ("client02", 1), ("client04", 2))
"""Hosts, and how many machines boot on each, as in the paper."""
RATE = 100.0
"""Mbit/s of every link."""
LEGEND = """\
Each virtual machine has its own overlay (qcow2) over the image on its host's mount. It has
booted when its console shows the right SHA-256 of a list of files that it read. client04 has two
machines on one mount, and is done when both have booted. Unique bytes are the pages of 4 KiB that
a single machine reads when it boots alone. Reads of NFS hosts are counted only at the server,
because their mounts have no figures.
"""


@attrs.frozen
class Plan:
    """What boots, and how."""

    scale: str
    image: GuestImage
    hardware: Hardware
    rate: float = RATE

    @property
    def title(self) -> str:
        """A heading for the tables."""
        count = sum(number for _, number in PLACES)
        kind = self.hardware
        disks = f"{kind.accelerator}, cache={kind.cache}, read-ahead {kind.read_ahead} KiB"
        size = self.image.size >> 20
        return f"{count} machines ({disks}), {self.scale}: {size} MiB, {self.rate:g} Mbit/s"


@contextmanager
def _shared(image: GuestImage) -> Iterator[Image]:
    """A copy of the image on the file system that labs use, in the page cache."""
    with tempfile.TemporaryDirectory(prefix="mufs-experiment-") as directory:
        path = Path(directory) / "image"
        subprocess.run(["cp", "--sparse=always", image.path, path], check=True)
        subprocess.run(["cat", path], check=True, stdout=subprocess.DEVNULL)
        yield Image(path, image.size, "")


def lone_boot(plan: Plan) -> Trace:
    """The reads of a machine that boots alone, without a network; recorded once."""
    kind = plan.hardware
    path = plan.image.path.with_suffix(f".{kind.cache}-{kind.read_ahead}.trace")
    if not path.exists():
        with _shared(plan.image) as image, Lab(1) as lab:
            system = Memory(lab, image)
            system.trace = path.with_suffix(".new")
            system.start(lab.hosts)
            machine = Machine(
                lab, lab.hosts[0], "alone", base=system.file(lab.hosts[0]), image=plan.image
            )
            boot([machine], plan.hardware, start=monotonic(), timeout=plan.image.timeout)
            system.trace.rename(path)
    return Trace(path.stem, path, plan.image.size)


def boot_all(plan: Plan, kind: type[Mount]) -> Outcome:
    """Boot the machines of all hosts over one system, in its own lab."""
    unique = lone_boot(plan).unique_bytes
    with _shared(plan.image) as image, Lab(len(PLACES), plan.rate) as lab:
        counter = ReadCounter(lab)
        system = kind(lab, image)
        system.start(lab.hosts)
        machines = [
            Machine(lab, host, f"{name}-vm{number}", base=system.file(host), image=plan.image)
            for host, (name, machines) in zip(lab.hosts, PLACES, strict=True)
            for number in range(1, machines + 1)
        ]
        before = counter.read()
        start = monotonic() + START_DELAY
        with Sampler(lab, start) as sampler:
            boot(machines, plan.hardware, start=start, timeout=plan.image.timeout)
        counted = counter.read().since(before)
        hosts = [
            host(
                system,
                where,
                name=name,
                seconds=max(m.seconds for m in machines if m.host == where),
            )
            for where, (name, _) in zip(lab.hosts, PLACES, strict=True)
        ]
        asked = requests(system, counted.calls)
        for machine in machines:
            machine.finish()
        return Outcome(
            system=system.name,
            hosts=hosts,
            started=start,
            server_reads=counted.calls,
            server_read_bytes=counted.size,
            server_requests=asked,
            server_bytes_sent=sum(sample.bytes_sent for sample in sampler.samples),
            unique_bytes=unique,
            samples=sampler.samples,
            right=True,  # otherwise `boot` raises
        )
