"""Measure what mUFS promises, at full size, and print each figure beside its bound.

    python bench/acceptance.py [--size MIB] [--rate MBITS] [--hosts N] [CASE ...]

Runs one server and N hosts in network namespaces on this machine (as root). The exit status is 1
if a bound is not met. With --rate 0 the links have no limit, and times have no bounds.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import attrs

from mufs.test.support.lab import SERVER, Lab, why_unavailable, write_image
from mufs.test.support.netns import LabError
from mufs.test.support.processes import Reader, Reading, Service, mounted, wait_until

MIB = 1 << 20
WIRE_SIZE = 1454 / 1400
"""Bytes on the wire for a byte of an image: mUFS, UDP, IP and Ethernet headers of full segments."""
SIZE_DEFICIT = 1237
"""Bytes subtracted from an image's size, so that its last page, block and segment are short."""
IMAGE = "disk.img"


@attrs.frozen
class Figure:
    """A line of the table; the bound is None where the figure is only reported."""

    what: str
    value: float
    unit: str
    bound: float | None = None

    @property
    def met(self) -> bool:
        return self.bound is None or self.value <= self.bound

    def __str__(self) -> str:
        line = f"  {self.what:<52}{self.value:>9.2f} {self.unit:<3}"
        if self.bound is not None:
            line += f"{self.bound:>9.2f} {self.unit:<3}  {'met' if self.met else 'NOT MET'}"
        return line


@attrs.frozen
class Check:
    """A line of the table that is either met or not."""

    what: str
    met: bool

    def __str__(self) -> str:
        return f"  {self.what:<52}{'yes' if self.met else 'no':>9}{'yes':>13}      " + (
            "met" if self.met else "NOT MET"
        )


Lines = Iterator[Figure | Check]


@attrs.define
class Acceptance:
    """The cases are the public methods; their docstrings are their titles."""

    size: int
    rate: float | None
    hosts: int
    lossless: float | None = None
    """Seconds that the slowest host took in lockstep; None until measured."""
    _sha256: str = ""

    def _lab(self, hosts: int, size: int | None = None) -> Lab:
        """A lab with an image that the server's page cache holds."""
        lab = Lab(hosts, self.rate)
        self._sha256 = write_image(lab.images / IMAGE, size or self.size)
        return lab

    def _link_limit(self, factor: float) -> float | None:
        """The seconds that one image takes on a link, times a factor; None without a limit."""
        return factor * self.size * 8 * WIRE_SIZE / (self.rate * 1e6) if self.rate else None

    def _result(self, reader: Reader) -> Reading:
        """The reading; the timeout allows for all hosts being served over TCP in turn."""
        return reader.result(120 + (self._link_limit(3 * self.hosts) or 180))

    def _right(self, *readings: Reading) -> bool:
        return all(r.error == "" and r.sha256 == self._sha256 for r in readings)

    def _start_reading(self, lab: Lab) -> list[Reader]:
        """Start readers on all hosts, and return when a third of the image has been sent."""
        third = lab.network.bytes_sent(SERVER) + (lab.images / IMAGE).stat().st_size // 3
        readers = lab.start_readers(IMAGE)
        wait_until(lambda: lab.network.bytes_sent(SERVER) > third, 120, "a third of the image sent")
        return readers

    def _share(
        self,
        *,
        loss: int = 0,
        apart: float = 0.0,
        bound: float | None = None,
        copies: float | None = None,
    ) -> Lines:
        """All hosts read the image.

        `bound` limits the seconds of the slowest host, `copies` the bytes sent, in images.
        """
        with self._lab(self.hosts) as lab:
            lab.start_server()
            clients = lab.start_clients()
            for host in lab.hosts:
                lab.network.set_loss(host, loss)
            before = lab.network.bytes_sent(SERVER)
            server, *others = [lab.cpu_seconds(host) for host in (SERVER, *lab.hosts)]
            readings = [self._result(reader) for reader in lab.start_readers(IMAGE, apart)]
            sent = (lab.network.bytes_sent(SERVER) - before) / self.size
            slowest = max(reading.seconds for reading in readings)
            if not loss and not apart:
                self.lossless = slowest
            yield Check(f"every SHA-256 right, {self.hosts} hosts", self._right(*readings))
            yield Figure("slowest host", slowest, "s", bound)
            yield Figure("sent by the server's interface, in images", sent, "x", copies)
            yield Figure("processor, server", lab.cpu_seconds(SERVER) - server, "s")
            used = sum(map(lab.cpu_seconds, lab.hosts)) - sum(others)
            yield Figure("processor, all clients", used, "s")
            figures = [client.status() for client in clients]
            over_tcp = sum(f["bytes_over_tcp"] for f in figures) / self.size
            yield Figure("received over TCP by all clients, in images", over_tcp, "x")
            for name in ("reads", "hits", "joined", "misses", "segments_lost", "repairs_sent"):
                yield Figure(f"{name}, all clients", sum(f[name] for f in figures), "")

    def lockstep(self) -> Lines:
        """Hosts that read one image at the same moment"""
        yield from self._share(bound=self._link_limit(1.15), copies=1.10)

    def loss1(self) -> Lines:
        """The same with 1 % of UDP lost on the way to each host"""
        if self.lossless is None:
            yield from self.lockstep()
        assert self.lossless is not None
        yield from self._share(loss=10, bound=1.25 * self.lossless)

    def loss10(self) -> Lines:
        """The same with 10 % of UDP lost on the way to each host"""
        yield from self._share(loss=100)

    def no_udp(self) -> Lines:
        """The same with all UDP lost"""
        yield from self._share(loss=1000)

    def staggered(self) -> Lines:
        """Hosts that start 2 s apart, or less where the image is smaller than 256 MiB"""
        yield from self._share(
            apart=2.0 * min(1, self.size / (256 * MIB - SIZE_DEFICIT)), copies=1.6
        )

    def start(self) -> Lines:
        """Start, mount and first ls: the slowest of three"""
        server_seconds, client_seconds, seen = [], [], True
        with self._lab(1, MIB) as lab:
            command = ["ls", "-l", str(lab.mount_point("host1"))]
            for _ in range(3):
                begin = time.monotonic()
                server = lab.start_server()
                ready = time.monotonic()
                client = lab.start_client("host1")
                listing = subprocess.run(command, capture_output=True, text=True, timeout=60)
                client_seconds.append(time.monotonic() - ready)
                server_seconds.append(ready - begin)
                seen = seen and IMAGE in listing.stdout
                client.stop()
                server.stop()
        yield Check("ls shows the image", seen)
        yield Figure("server, until it listens", max(server_seconds), "s", 2)
        yield Figure("client, until ls has ended", max(client_seconds), "s", 2)

    def stop(self) -> Lines:
        """From SIGTERM to the end of the process"""
        disturbances: dict[str, Callable[[Service], None]] = {
            "the other side running": lambda other: None,
            "the other side killed": lambda other: other.kill(),
            "the other side frozen": lambda other: other.signal(signal.SIGSTOP),
        }
        for side in ("client", "server"):
            for reading in (False, True):
                for words, disturb in disturbances.items():
                    with self._lab(1, 32 * MIB) as lab:
                        server, client = lab.start_server(), lab.start_client("host1")
                        if reading:
                            self._start_reading(lab)
                        stopped, other = (client, server) if side == "client" else (server, client)
                        disturb(other)
                        time.sleep(0.5)
                        what = f"{side}, {'reads wait' if reading else 'idle'}, {words}"
                        try:
                            seconds = stopped.stop(30)
                        except LabError:
                            seconds = float("inf")
                        yield Figure(what, seconds, "s", 2)
                        if side == "client":
                            yield Check("no mount left", not mounted(lab.mount_point("host1")))

    def restart(self) -> Lines:
        """kill -9 of the server during the reads, restarted 3 s later"""
        with self._lab(self.hosts) as lab:
            server = lab.start_server()
            lab.start_clients()
            readers = self._start_reading(lab)
            server.kill()
            time.sleep(3)
            lab.start_server()
            readings = [self._result(reader) for reader in readers]
        yield Check(f"every SHA-256 right, {self.hosts} hosts", self._right(*readings))
        yield Figure("slowest host", max(reading.seconds for reading in readings), "s")

    def killed_client(self) -> Lines:
        """kill -9 of a client, then a new one on the same mount point"""
        with self._lab(2) as lab:
            lab.start_server()
            clients = lab.start_clients()
            readers = self._start_reading(lab)
            clients[0].kill()
            lab.start_client("host1")
            again = self._result(lab.start_reader("host1", IMAGE))
            yield Check("the new client reads right", self._right(again))
            yield Check("the other host reads right", self._right(self._result(readers[1])))

    def changed(self) -> Lines:
        """An image that changes on the server while it is open"""
        for truncate in (False, True):
            with self._lab(1) as lab:
                image, what = lab.images / IMAGE, "truncated" if truncate else "replaced"
                lab.start_server()
                lab.start_client("host1", "--cache-size", "16M")
                reader = lab.start_reader("host1", IMAGE, pause=MIB)
                reader.wait_paused()
                if truncate:
                    os.truncate(image, self.size // 3)
                else:
                    new = write_image(lab.images / "new", self.size + MIB)
                    os.replace(lab.images / "new", image)
                old = self._result(reader)
                yield Check(
                    f"{what}: ESTALE or the old bytes", old.error == "ESTALE" or self._right(old)
                )
                again = self._result(lab.start_reader("host1", IMAGE))
                right = again.size == self.size // 3 if truncate else again.sha256 == new
                yield Check(f"{what}: a new open sees the new one", again.error == "" and right)

    def small_cache(self) -> Lines:
        """A cache smaller than the image"""
        cache = max(4, self.size // MIB // 8)
        with self._lab(2) as lab:
            lab.start_server()
            lab.start_clients("--cache-size", f"{cache}M")
            readings = [self._result(reader) for reader in lab.start_readers(IMAGE)]
            memory = max(map(lab.memory, lab.hosts)) / MIB
        yield Check("every SHA-256 right, 2 hosts", self._right(*readings))
        yield Figure(f"memory of a client with {cache} MiB of cache", memory, "MiB", cache + 95.0)


def main() -> int:
    cases = [name for name in vars(Acceptance) if name[0] != "_" and name.islower()]
    names = [name for name in cases if callable(getattr(Acceptance, name))]
    parser = argparse.ArgumentParser(description="Measure what mUFS promises.")
    parser.add_argument(
        "--size", type=int, default=256, help="size of the image, in MiB [%(default)s]"
    )
    parser.add_argument(
        "--rate", type=float, default=100, help="Mbit/s of the links, 0 for no limit [%(default)s]"
    )
    parser.add_argument(
        "--hosts", type=int, default=4, help="number of hosts that read [%(default)s]"
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=" ".join(names))
    options = parser.parse_args()
    unknown = set(options.cases) - set(names)
    if unknown or (reason := why_unavailable()):
        parser.error(f"no such case: {' '.join(unknown)}" if unknown else str(reason))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    acceptance = Acceptance(options.size * MIB - SIZE_DEFICIT, options.rate or None, options.hosts)
    well = True
    print(f"{'':<54}{'figure':>9}{'bound':>13}")
    for name in options.cases or names:
        case = getattr(acceptance, name)
        print(f"{name}: {case.__doc__}", flush=True)
        try:
            for line in case():
                print(line, flush=True)
                well = well and line.met
        except (LabError, OSError) as error:
            print(f"  NOT MET: {error}", flush=True)
            well = False
    print("all bounds met" if well else "bounds were not met")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
