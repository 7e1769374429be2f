"""Boots without virtual machines: hosts read through their mounts what a boot once read."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import attrs

from bench.experiment.results import Outcome
from bench.experiment.sampling import ReadCounter, Sampler, host, requests
from bench.experiment.traces import Trace
from bench.jobs import Job
from bench.measure import link_seconds
from bench.systems import START_DELAY, Image, Mount
from mufs.test.support.lab import Lab

HOSTS = 4
RATE = 100.0
"""Mbit/s of every link."""
START_SPREAD_SECONDS = 0.05
"""Seconds within which the hosts begin, by default; the first one begins at once."""
SEED = 6
"""Seed of the delays of hosts."""
READER = Path(__file__).with_name("reader.py").read_text()


@attrs.frozen
class Plan:
    """What is replayed, and how."""

    trace: Trace
    think: float
    """Factor for the recorded pauses between reads; with 0 reads follow each other at once."""
    hosts: int = HOSTS
    rate: float | None = RATE
    apart: float = START_SPREAD_SECONDS

    @property
    def title(self) -> str:
        """A heading for the tables."""
        pauses = f"pauses times {self.think:g}" if self.think else "no pauses"
        begin = "" if self.apart == START_SPREAD_SECONDS else f", begun within {self.apart:g} s"
        return f"Replay of {self.trace.name} on {self.hosts} hosts, {pauses}{begin}"

    @property
    def delays(self) -> list[float]:
        """Seconds after Ts at which each host begins."""
        chance = random.Random(SEED)
        return [0.0, *(chance.uniform(0.2, 1.0) * self.apart for _ in range(self.hosts - 1))]

    @property
    def timeout(self) -> float:
        """Seconds for all hosts to end, even if they are served in turn."""
        return (
            60
            + self.apart
            + 200 * self.think
            + 2 * self.hosts * link_seconds(self.trace.bytes_read, self.rate)
        )


def name_of(number: int) -> str:
    """The name of a host in the tables, counted from 0."""
    return f"client{number + 1:02}"


def replay(plan: Plan, kind: type[Mount]) -> Outcome:
    """Run the plan with one system, in its own lab."""
    with tempfile.TemporaryDirectory(prefix="mufs-experiment-") as directory:
        path = Path(directory) / "image"
        plan.trace.write_image(path)
        # The sum is that of the bytes read, not of the whole image.
        image = Image(path, plan.trace.size, plan.trace.sha256(path))
        with Lab(plan.hosts, plan.rate) as lab:
            reads = ReadCounter(lab)
            system = kind(lab, image)
            system.start(lab.hosts)
            return _run(plan, system, reads)


def _run(plan: Plan, system: Mount, reads: ReadCounter) -> Outcome:
    lab, before = system.lab, reads.read()
    start = time.monotonic() + START_DELAY
    with Sampler(lab, start) as sampler:
        jobs = [
            Job(
                where,
                lab.network.enter(where),
                READER,
                *(start, system.file(where), plan.trace.path, delay, plan.think),
            )
            for where, delay in zip(lab.hosts, plan.delays, strict=True)
        ]
        done = [job.result(plan.timeout) for job in jobs]
    counted = reads.read().since(before)
    hosts = [
        host(system, where, name=name_of(number), seconds=job.seconds, known=len(plan.trace.reads))
        for number, (where, job) in enumerate(zip(lab.hosts, done, strict=True))
    ]
    return Outcome(
        system=system.name,
        hosts=hosts,
        started=start,
        server_reads=counted.calls,
        server_read_bytes=counted.size,
        server_requests=requests(system, counted.calls),
        server_bytes_sent=sum(sample.bytes_sent for sample in sampler.samples),
        unique_bytes=plan.trace.unique_bytes,
        samples=sampler.samples,
        right=all(job.sha256 == system.image.sha256 for job in done),
    )
