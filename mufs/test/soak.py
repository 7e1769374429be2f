"""The soak test: hosts read for a long time while faults are injected; every range is checked::

    make soak MINUTES=60 [SEED=n]

The seed, which is printed, determines faults and reads.  It ends with a summary, and with a nonzero
status after wrong bytes, a read that hung or failed, memory growth, a traceback in a log, or a
process or mount left behind.  It needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from mufs.status.history import HISTORY_SECONDS
from mufs.test.support.lab import SERVER, Lab, why_unavailable
from mufs.test.support.netns import LabError, run
from mufs.test.support.processes import Service, mounted

MIB = 1 << 20
IMAGES = {"a.img": 24 * MIB + 1, "b.img": 9 * MIB + 4095, "c.img": 3 * MIB + 77}

READ_TIMEOUT = 45.0
"""Seconds that a read may take: the client's timeout of 30, and the duration of a fault."""

MAX_GROWTH = 2 * MIB
"""
Bytes by which the memory of a process may grow from the first to the last third of its life:
allocators and buffers fluctuate. A leak of 100 bytes for each read exceeds this within an hour.
"""

SETTLING_SECONDS = HISTORY_SECONDS
"""
Seconds until a process has filled what it keeps: the history of its figures, the server its window
of 64 MiB, which takes some minutes of what is sent here, and clients the transfers that they know,
which they forget when the server is started anew.
"""


@attrs.frozen
class Sample:
    """
    The resources of a process: memory in bytes, and the age in seconds of it or of the server,
    whichever is younger.
    """

    age: float
    memory: int
    files: int
    threads: int


def sample(pid: int, age: float) -> Sample:
    """Measure a process.

    @raise OSError: when it does not exist.
    """
    text = Path(f"/proc/{pid}/status").read_text()
    anonymous = re.search(r"^RssAnon:\s+(\d+) kB$", text, re.MULTILINE)
    threads = re.search(r"^Threads:\s+(\d+)$", text, re.MULTILINE)
    if anonymous is None or threads is None:
        raise ProcessLookupError
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(age, int(anonymous[1]) << 10, files, int(threads[1]))


def growth(samples: list[Sample]) -> tuple[float, str]:
    """
    Return the growth from the first to the last third of the life of a process and of the server
    that it had last, without the first `SETTLING_SECONDS`: bytes, and a line that describes it.  A
    short life counts as no growth.
    """
    settled = [each for each in samples if each.age > SETTLING_SECONDS]
    third = len(settled) // 3
    if third < 10:
        return 0.0, "ran too briefly to measure"
    first, last = settled[:third], settled[-third:]
    early, late = (statistics.median(each.memory for each in part) for part in (first, last))
    minutes = (settled[-1].age - settled[0].age) / 60
    line = (
        f"{early / MIB:.1f} MiB in the first third of {minutes:.0f} minutes, {late / MIB:.1f} MiB "
        f"in the last ({(late - early) / MIB:+.1f}, at most {MAX_GROWTH / MIB:+.1f})"
    )
    for name in ("files", "threads"):
        most = [max(getattr(each, name) for each in part) for part in (first, last)]
        line += f", {name} {most[0]} to {most[1]}"
        if most[1] > most[0] + 8:
            return float("inf"), line
    return late - early, line


class HostReader:
    """The reading process of one host, and its reports."""

    def __init__(self, mount: Path, truth: Path, seed: str) -> None:
        script = Path(__file__).with_name("soak_reader.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(mount), str(truth), seed],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.figures: dict[str, float] = dict.fromkeys(
            ("reads", "bytes", "opens", "shorts", "longest"), 0.0
        )
        self.errors: list[tuple[float, str]] = []
        self.wrong: list[object] = []
        self.reported_at = time.monotonic()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            what: dict[str, Any] = json.loads(line)
            self.reported_at = at = what.pop("at")
            if "error" in what:
                self.errors.append((at, what["error"]))
            elif "wrong" in what:
                self.wrong.append(what["wrong"])
            else:
                self.figures = what

    def stop(self, timeout: float) -> bool:
        """End it, and return whether it ended in time."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            ended = self._process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            ended = False
        else:
            self._thread.join(5)
        return ended

    def kill(self) -> None:
        self._process.kill()


class Soak:
    """One run; `faults` counts the injected faults, `problems` is empty after a good run."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.seed = seed
        self.chance = random.Random(seed)
        self.truth = lab.directory / "truth"
        self.truth.mkdir()
        self.versions = dict.fromkeys(IMAGES, 0)
        self.services: dict[str, Service] = {}
        self.born: dict[str, float] = {}
        self.samples: dict[str, list[Sample]] = {}
        self.absent: dict[str, list[tuple[float, float]]] = {host: [] for host in lab.hosts}
        self.readers: dict[str, HostReader] = {}
        self.faults: Counter[str] = Counter()
        self.problems: list[str] = []

    # Each fault is a generator that yields the seconds to wait before it continues.

    def server_killed(self) -> Iterator[float]:
        self.services[SERVER].kill()
        yield self.chance.uniform(0, 8)
        self.start_server()

    def server_stopped(self) -> Iterator[float]:
        yield from self.stopped(SERVER)

    def client_stopped(self) -> Iterator[float]:
        yield from self.stopped(self.chance.choice(self.lab.hosts))

    def stopped(self, name: str) -> Iterator[float]:
        self.services[name].signal(signal.SIGSTOP)
        yield self.chance.uniform(1, 10)
        self.services[name].signal(signal.SIGCONT)

    def stutter(self) -> Iterator[float]:
        name = self.chance.choice([SERVER, *self.lab.hosts])
        for _ in range(100):
            self.services[name].signal(signal.SIGSTOP)
            yield self.chance.uniform(0.001, 0.02)
            self.services[name].signal(signal.SIGCONT)
            yield self.chance.uniform(0.001, 0.02)

    def client_killed(self) -> Iterator[float]:
        # The first host's client is never killed, so that its growth can be measured.
        host = self.chance.choice(self.lab.hosts[1:])
        begin = time.monotonic()
        self.services[host].kill()
        yield self.chance.uniform(0, 3)
        self.start_client(host)
        self.absent[host].append((begin, time.monotonic() + 1))

    def link_down(self) -> Iterator[float]:
        name = self.chance.choice([SERVER, *self.lab.hosts])
        link = ["ip", "-n", self.lab.network.namespace(name), "link", "set", "eth0"]
        run(*link, "down")
        yield self.chance.uniform(1, 10)
        run(*link, "up")

    def loss(self) -> Iterator[float]:
        hosts = [host for host in self.lab.hosts if self.chance.random() < 0.5]
        for host in hosts:
            self.lab.network.set_loss(host, self.chance.choice([10, 50, 200, 1000]))
        yield self.chance.uniform(2, 15)
        for host in hosts:
            self.lab.network.set_loss(host, 0)

    def image_replaced(self) -> Iterator[float]:
        self.replace(self.chance.choice(list(IMAGES)))
        yield 0.0

    def replace(self, image: str) -> None:
        """Replace an image by its next version, and forget the fourth last one."""
        self.versions[image] = version = self.versions[image] + 1
        data = random.Random(f"{self.seed} {image} {version}").randbytes(IMAGES[image])
        (self.truth / f"new.{image}").write_bytes(data)
        (self.truth / f"new.{image}").rename(self.truth / f"{image}.{version}")
        (self.lab.images / "new").write_bytes(data)
        (self.lab.images / "new").rename(self.lab.images / image)
        (self.truth / f"{image}.{version - 4}").unlink(missing_ok=True)

    def start_server(self) -> None:
        self.services[SERVER] = self.lab.start_server()
        for name in self.services:
            self.born[name] = time.monotonic()
            self.samples[name] = []

    def start_client(self, host: str) -> None:
        client = self.lab.start_client(host, "--cache-size", "16M", wait=False)
        self.services[host] = client
        self.born[host] = time.monotonic()
        self.samples[host] = []
        self.lab.wait_mounted(client, 60)

    def run(self, seconds: float) -> bool:
        """Inject faults for C{seconds}; return whether no problem was found."""
        for image in IMAGES:
            self.replace(image)
        self.start_server()
        for host in self.lab.hosts:
            self.start_client(host)
        for host in self.lab.hosts:
            seed = f"{self.seed} {host}"
            self.readers[host] = HostReader(self.lab.mount_point(host), self.truth, seed)
        begin = time.monotonic()
        kinds = self.kinds()
        while (left := begin + seconds - time.monotonic()) > 0:
            self.wait(min(left, self.chance.uniform(1, 8)))
            # Nothing is killed in the second half: leaks show only in long-lived processes.
            choices = [
                kind for kind in kinds if left > seconds / 2 or "killed" not in kind.__name__
            ]
            fault = self.chance.choice(choices)
            self.faults[fault.__name__] += 1
            for pause in fault():
                self.wait(pause)
        self.end()
        return not self.problems

    def kinds(self) -> list[Callable[[], Iterator[float]]]:
        return [
            self.server_killed,
            self.server_stopped,
            self.client_killed,
            self.client_stopped,
            self.stutter,
            self.link_down,
            self.loss,
            self.image_replaced,
            self.image_replaced,
        ]

    def wait(self, seconds: float) -> None:
        """Wait, sampling the processes meanwhile.

        @raise LabError: when a read hangs.
        """
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            for name, service in self.services.items():
                samples = self.samples[name]
                age = now - self.born[name]
                if service.running and (not samples or age > samples[-1].age + 1):
                    with suppress(OSError):
                        samples.append(sample(service.pid, age))
            for host, reader in self.readers.items():
                if now - reader.reported_at > READ_TIMEOUT:
                    raise LabError(f"a read of {host} hangs for {READ_TIMEOUT:g} s")
            if now >= until:
                return
            time.sleep(min(0.1, until - now))

    def end(self) -> None:
        """End all processes, and check the result of the run."""
        for host, reader in self.readers.items():
            if not reader.stop(READ_TIMEOUT):
                self.problems.append(f"{host}: the reader did not end")
        for name, service in reversed(self.services.items()):
            try:
                service.stop(15)
            except LabError as error:
                self.problems.append(str(error))
                continue
            if service.wait() not in (0, -signal.SIGTERM):
                self.problems.append(f"{name} ended with {service.wait()}")
        for host in self.lab.hosts:
            if mounted(self.lab.mount_point(host)):
                self.problems.append(f"{host} left its mount")
        for name in (SERVER, *self.lab.hosts):
            if self.lab.network.pids(name):
                self.problems.append(f"{name} left processes")
            if "Traceback" in (output := self.services[name].output):
                where = output.index("Traceback")
                self.problems.append(f"{name}: {output[max(0, where - 300) : where + 2000]}")
        for host, reader in self.readers.items():
            self.problems += [f"{host}: wrong bytes: {each}" for each in reader.wrong]
            for at, failure in reader.errors:
                away = any(begin <= at <= end for begin, end in self.absent[host])
                if failure != "ESTALE" and not away:
                    self.problems.append(f"{host}: a read failed with {failure}")
        for name, samples in self.samples.items():
            grown, line = growth(samples)
            if grown > MAX_GROWTH:
                self.problems.append(f"{name} grows: {line}")

    def summary(self) -> str:
        """Describe the run."""
        lines = [f"faults: {', '.join(f'{n} {name}' for name, n in sorted(self.faults.items()))}"]
        for host, reader in self.readers.items():
            f, errors = reader.figures, Counter(error for _, error in reader.errors)
            lines.append(
                f"{host}: {f['reads']:.0f} reads, {f['bytes'] / MIB:.0f} MiB, {f['opens']:.0f} "
                f"opens, {f['shorts']:.0f} short reads, longest {f['longest']:.1f} s, "
                f"errors {dict(errors)}"
            )
        lines += [f"{name} held {growth(each)[1]}" for name, each in self.samples.items()]
        lines += [f"NOT WELL: {each}" for each in self.problems] or ["all well"]
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Read for a long time while faults are injected.")
    parser.add_argument("--minutes", type=float, default=60, help="[%(default)s]")
    parser.add_argument("--seed", type=int, help="seed of an earlier run [random]")
    parser.add_argument("--hosts", type=int, default=4, help="[%(default)s]")
    parser.add_argument("--rate", type=float, default=100, help="Mbit/s of links [%(default)s]")
    parser.add_argument("--logs", type=Path, help="directory for the logs")
    options = parser.parse_args()
    if reason := why_unavailable():
        parser.error(reason)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.minutes:g} minutes, {options.hosts} hosts", flush=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    with Lab(options.hosts, options.rate, options.logs) as lab:
        soak = Soak(lab, seed)
        try:
            soak.run(options.minutes * 60)
        except (LabError, OSError) as error:
            soak.problems.append(str(error))
        finally:
            for reader in soak.readers.values():
                reader.kill()
        print(soak.summary())
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
