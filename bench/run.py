"""Run mUFS and its peers at the same tasks: see README.md in this directory.

    python bench/run.py                      the standard set
    python bench/run.py share --rate 100 --hosts 1,2,4 --loss 0,10,50 --only mufs,nbdfuse
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench import cases
from bench.copies import COPIES
from bench.measure import Row, image, revision, write_csv
from bench.mounting import mount
from bench.report import line, picture, tables
from bench.systems import MOUNTS, Image, System
from mufs.test.lab import missing

MIB = 1 << 20
BUSY = 1000
"""From how many Mbit/s on the processors are what limits, and a run is repeated."""
SYSTEMS: dict[str, type[System]] = {kind.name: kind for kind in (*MOUNTS, *COPIES)}
STANDARD = [
    "share --rate 100 --hosts 1,2,4 --size 64",
    "share --rate 100 --hosts 4 --loss 10,50 --size 64",
    "share --rate 100 --hosts 8,16 --size 64 --only mufs,limit",
    "share --rate 1000,0 --hosts 1,2,4 --size 256",
    "slow --rate 100 --hosts 4 --size 32 --only mufs,nbdfuse,udpcast,uftp",
    "mount --rate 0 --hosts 1 --size 1024",
]
"""The command lines that stand for an empty one."""


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _systems(text: str) -> list[type[System]]:
    return [SYSTEMS[word] for word in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description="Run mUFS and its peers at the same tasks.")
    made.add_argument("case", nargs="?", choices=["share", "slow", "mount"])
    add = made.add_argument
    add("--rate", type=_numbers, default=[100], help="Mbit/s of links, 0 is no limit [100]")
    add("--hosts", type=_numbers, default=[1, 2, 4], help="how many at once [1,2,4]")
    add("--loss", type=_numbers, default=[0], help="packets of 1000 that each host loses [0]")
    add("--size", type=int, default=256, help="of the image, in MiB [256]")
    add("--repeat", type=int, default=3, help="of runs at 1000 Mbit/s and above [3]")
    add("--only", type=_systems, default=list(SYSTEMS.values()), help=",".join(SYSTEMS))
    add("--output", type=Path, default=Path(__file__).parent / "results", help="directory")
    return made


def measure(options: argparse.Namespace, given: Image) -> Iterator[Row]:
    """All combinations that the options name; systems in turn, so that ratios are fair."""
    version = revision()
    for rate in options.rate:
        for loss in options.loss:
            for hosts in options.hosts:
                for run in range(1, 1 + (1 if 0 < rate < BUSY else options.repeat)):
                    for system in options.only:
                        yield from one(
                            Row(
                                revision=version,
                                case=options.case,
                                system=system.name,
                                size=given.size,
                                rate=rate or None,
                                hosts=hosts,
                                loss=loss,
                                run=run,
                            ),
                            system,
                            given,
                        )


def one(row: Row, system: type[System], given: Image) -> Iterator[Row]:
    """One run of a system."""
    if row.case == "share":
        yield from cases.attempt(row, system, given, cases.share)
    elif row.case == "slow":
        for what, case in cases.SLOW.items():
            yield from cases.attempt(row.called(what), system, given, case, snooping=True)
    else:
        yield from mount(row, system, given)


def main() -> int:
    options = parser().parse_args()
    if lacking := missing():
        parser().error(lacking)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    lines = [sys.argv[1:]] if options.case else [shlex.split(words) for words in STANDARD]
    for name in [system.name for system in options.only if system.lacking()]:
        print(f"{name} is not installed (make bench-peers): lacks {SYSTEMS[name].lacking()}")
    directory = options.output / time.strftime("%Y%m%d-%H%M%S")
    directory.mkdir(parents=True)
    rows: list[Row] = []
    for words in lines:
        plan = parser().parse_args(words)
        plan.only = [system for system in plan.only if not system.lacking()]
        with image(plan.size * MIB) as given:
            for row in measure(plan, given):
                rows.append(row)
                print(line(row), flush=True)
                write_csv(rows, directory / "results.csv")
    text = tables(rows)
    (directory / "tables.md").write_text(text)
    picture(rows, directory / "results.png")
    print(f"\n{text}\nin {directory}: results.csv, tables.md, results.png")
    return 0 if all(row.right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
