"""Measure how much a hostile client slows down honest readers.

    python -m bench.hostile --rate 100,0 --size 64 reads repairs

Three hosts read an image at the same moment, three times: alone, beside the attacker, alone again;
each time another image of the same size. The speed that they keep is the mean time of the slowest
without the attacker, divided by its time with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import Any

import attrs

from bench.attacker import DIRECTORY, FLOODS, VICTIM
from mufs.test.support.lab import SERVER, Lab, why_unavailable, write_image
from mufs.test.support.netns import LabError
from mufs.test.support.processes import CHECKOUT

MIB = 1 << 20
READERS = 3
MIN_KEPT = 0.90
"""The part of their speed that honest readers have to keep."""
NAMES = 10_000
"""Files in the attacker's directory."""
VICTIM_SIZE = 1024 * MIB
"""Bytes of the attacker's image."""
SETTLE_SECONDS = 1.0
"""Seconds from the start or end of the attack to the next reads."""
READ_TIMEOUT = 100.0
"""Seconds for all readers, and of an attack at most."""
KINDS = [*FLOODS, "connections"]


@attrs.frozen
class Run:
    """The result of one attack."""

    kind: str
    rate: float | None
    packets: float
    alone: float
    beside: float
    right: bool
    cpu_server: float
    cpu_attacker: float
    memory: int

    @property
    def kept(self) -> float:
        """The part of their speed that the readers kept."""
        return self.alone / self.beside

    def __str__(self) -> str:
        network = f"{self.rate:g} Mbit/s" if self.rate else "no limit"
        how = f"{self.packets:g}/s" if self.packets else "max"
        word = (
            "" if self.kept >= MIN_KEPT and self.right else "  NOT MET" if self.right else "  WRONG"
        )
        return (
            f"{self.kind:<12}{network:>11}{how:>10}{self.alone:8.2f}{self.beside:8.2f}"
            f"{self.kept:7.2f}{self.cpu_server:8.2f}{self.cpu_attacker:8.2f}"
            f"{self.memory / MIB:8.0f}{word}"
        )


HEAD = (
    f"{'attack':<12}{'links':>11}{'packets':>10}{'alone s':>8}{'beside':>8}{'kept':>7}"
    f"{'server':>8}{'attack.':>8}{'MiB':>8}"
)


def read(lab: Lab, image: str, sha256: str) -> tuple[float, bool]:
    """Have all honest hosts read an image.

    @return: the seconds of the slowest, and whether all bytes were right.
    """
    start = time.monotonic() + 0.5
    readers = [lab.start_reader(host, image, start) for host in lab.hosts[:READERS]]
    readings = [reader.result(READ_TIMEOUT) for reader in readers]
    right = all(reading.sha256 == sha256 for reading in readings)
    return max(reading.seconds for reading in readings), right


def attack(kind: str, *, rate: float | None, packets: float, size: int) -> Run:
    """Measure one attack in its own lab."""
    with Lab(READERS + 1, rate) as lab:
        *_, attacker = lab.hosts
        sums = [write_image(lab.images / f"{number}.img", size) for number in range(3)]
        with open(lab.images / os.fsdecode(VICTIM), "wb") as other:
            other.truncate(VICTIM_SIZE)
        (lab.images / os.fsdecode(DIRECTORY)).mkdir()
        for number in range(NAMES):
            (lab.images / os.fsdecode(DIRECTORY) / f"{number:05}").touch()
        lab.start_server()
        for host in lab.hosts[:READERS]:
            lab.start_client(host)
        before, right = read(lab, "0.img", sums[0])
        command = [sys.executable, "-m", "bench.attacker", kind, str(READ_TIMEOUT), str(packets)]
        program = lab.start_program(
            "attacker", attacker, ["env", f"PYTHONPATH={CHECKOUT}", *command]
        )
        time.sleep(SETTLE_SECONDS)
        used = lab.cpu_seconds(SERVER), lab.cpu_seconds(attacker)
        beside, also = read(lab, "1.img", sums[1])
        cpu = lab.cpu_seconds(SERVER) - used[0], lab.cpu_seconds(attacker) - used[1]
        if not program.running:
            raise LabError(f"the attacker ended early\n{program.output[-2000:]}")
        program.signal(signal.SIGTERM)
        program.wait(10)
        time.sleep(SETTLE_SECONDS)
        after, too = read(lab, "2.img", sums[2])
        return Run(
            kind,
            rate,
            packets,
            (before + after) / 2,
            beside,
            right and also and too,
            *cpu,
            lab.memory(SERVER),
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measure how much a hostile client slows down honest readers."
    )
    add: Any = parser.add_argument
    add("--rate", default="100", help="Mbit/s of the links, 0 for no limit [%(default)s]")
    add(
        "--packets",
        default="0",
        help="packets a second of the attacker, 0 for no limit [%(default)s]",
    )
    add("--size", type=int, default=64, help="size of the image, in MiB [%(default)s]")
    add("kinds", nargs="*", metavar="ATTACK", help=" ".join(KINDS))
    options = parser.parse_args()
    if reason := why_unavailable():
        parser.error(reason)
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"no such attack: {' '.join(unknown)}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    print(HEAD)
    well = True
    for rate in map(float, options.rate.split(",")):
        for packets in map(float, options.packets.split(",")):
            for kind in options.kinds or KINDS:
                try:
                    run = attack(kind, rate=rate or None, packets=packets, size=options.size * MIB)
                except (LabError, OSError) as error:
                    print(f"{kind:<12}{rate:g} Mbit/s: {error}", flush=True)
                    well = False
                    continue
                print(run, flush=True)
                well = well and run.right and run.kept >= MIN_KEPT
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
