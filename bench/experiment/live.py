"""The experiment with virtual machines: they boot at one moment from one image, over one system."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import attrs

from bench.experiment.images import GuestImage
from bench.experiment.machines import Machine, boot
from bench.experiment.results import Outcome
from bench.experiment.sampling import ReadCounter, Sampler, host, requests
from bench.experiment.traces import Trace
from bench.systems import LEAD, Image, Memory, Mount
from mufs.test.support.lab import Lab

PLACES = (("client01", 1), ("client02", 1), ("client04", 2))
"""Hosts, and how many machines boot on each: as in the paper."""
RATE = 100.0
"""Mbit/s of every link."""
LEGEND = """\
Each virtual machine has an overlay of its own (qcow2) over the image on its host's mount. It has
booted when it said on its console the SHA-256 of a list of files that it read, and the sum was
right. client04 has two machines on one mount, and is done when both have booted. Unique bytes are
the pages of 4 KiB that one machine read which booted alone. What NFS hosts read is counted at the
server alone: their mounts tell no figures.
"""


@attrs.frozen
class Plan:
    """What boots, and how."""

    scale: str
    image: GuestImage
    accelerator: str
    cache: str = "none"
    """Of the machines' disks: "none" is O_DIRECT, so that all that guests read comes to the mount;
    with "writeback" the hosts' page caches serve what two machines of a host read."""
    rate: float = RATE

    @property
    def title(self) -> str:
        """In one line."""
        count = sum(number for _, number in PLACES)
        disks = f"{self.accelerator}, cache={self.cache}"
        size = self.image.size >> 20
        return f"{count} machines ({disks}), {self.scale}: {size} MiB, {self.rate:g} Mbit/s"


@contextmanager
def _shared(image: GuestImage) -> Iterator[Image]:
    """A copy of the image where labs have their files, in the page cache."""
    with tempfile.TemporaryDirectory(prefix="mufs-experiment-") as directory:
        path = Path(directory) / "image"
        subprocess.run(["cp", "--sparse=always", image.path, path], check=True)
        subprocess.run(["cat", path], check=True, stdout=subprocess.DEVNULL)
        yield Image(path, image.size, "")


def lone_boot(plan: Plan) -> Trace:
    """What one machine reads while it boots alone, past any network; recorded once."""
    path = plan.image.path.with_suffix(f".{plan.cache}.trace")
    if not path.exists():
        with _shared(plan.image) as image, Lab(1) as lab:
            system = Memory(lab, image)
            system.trace = path.with_suffix(".new")
            system.start(lab.hosts)
            machine = Machine(lab, lab.hosts[0], "alone", system.file(lab.hosts[0]), plan.image)
            boot([machine], plan.accelerator, plan.cache, monotonic(), plan.image.timeout)
            system.trace.rename(path)
    return Trace(path.stem, path, plan.image.size)


def boot_all(plan: Plan, kind: type[Mount]) -> Outcome:
    """Boot the machines of all hosts over one system, in a lab of its own."""
    unique = lone_boot(plan).unique_bytes
    with _shared(plan.image) as image, Lab(len(PLACES), plan.rate) as lab:
        counter = ReadCounter(lab)
        system = kind(lab, image)
        system.start(lab.hosts)
        machines = [
            Machine(lab, host, f"{name}-vm{number}", system.file(host), plan.image)
            for host, (name, machines) in zip(lab.hosts, PLACES, strict=True)
            for number in range(1, machines + 1)
        ]
        before = counter.read()
        start = monotonic() + LEAD
        with Sampler(lab, start) as sampler:
            boot(machines, plan.accelerator, plan.cache, start, plan.image.timeout)
        counted = counter.read().since(before)
        hosts = [
            host(system, where, name, max(m.seconds for m in machines if m.host == where))
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
            right=True,  # as `boot` raises an error otherwise
        )
