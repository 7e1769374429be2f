"""Run mUFS and its peers at the same tasks: see README.md in this directory.

python bench/run.py                      the standard set
python bench/run.py share --rate 100 --hosts 1,2,4 --loss 0,10,50 --only mufs,nbdfuse
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from bench.cases import SHARE, SLOW, attempt
from bench.copies import Limit
from bench.measure import Row, image, revision, write_csv
from bench.mounting import MOUNT
from bench.report import line, picture, tables
from bench.systems import Image
from mufs.test.support.lab import missing

MIB = 1 << 20
REVISION = revision()
BUSY = 1000
"""From how many Mbit/s on the processors are what limits, and a run is repeated."""
CASES = {"share": SHARE, "slow": SLOW, "mount": MOUNT}
SYSTEMS = {kind.name: kind for case in CASES.values() for part in case for kind in part.systems}
STANDARD = [
    "share --rate 100 --hosts 1,2,4 --size 64",
    "share --rate 100 --hosts 4 --loss 10,50 --size 64",
    "share --rate 25 --hosts 1,4,8,16 --size 16 --only mufs,limit",
    "share --rate 1000,0 --hosts 1,2,4 --size 256",
    "slow --rate 100 --hosts 4 --size 32",
    "mount --rate 0 --hosts 1 --size 1024",
]
"""The command lines that stand for one without a case; its options are added to each."""


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _systems(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SYSTEMS):
        raise argparse.ArgumentTypeError(f"no such system: {', '.join(unknown)}")
    return names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description="Run mUFS and its peers at the same tasks.")
    made.add_argument("case", nargs="?", choices=CASES)
    add = made.add_argument
    add("--rate", type=_numbers, default=[100], help="Mbit/s of links, 0 is no limit [100]")
    add("--hosts", type=_numbers, default=[1, 2, 4], help="how many at once [1,2,4]")
    add("--loss", type=_numbers, default=[0], help="packets of 1000 that each host loses [0]")
    add("--size", type=int, default=256, help="of the image, in MiB [256]")
    add("--repeat", type=int, default=3, help="of runs at 1000 Mbit/s and above [3]")
    add("--only", type=_systems, default=list(SYSTEMS), help=",".join(SYSTEMS))
    add("--output", type=Path, default=Path(__file__).parent / "results", help="directory")
    return made


def measure(options: argparse.Namespace, given: Image) -> Iterator[Row]:
    """All combinations that the options name; systems in turn, so that ratios are fair."""
    wanted = [name for name in options.only if not SYSTEMS[name].lacking()]
    if any(options.loss):
        wanted = [name for name in wanted if name != Limit.name]  # it mends nothing
    # A slow host is nobody's burden without others.
    least = 2 if options.case == "slow" else 1
    numbers = [number for number in options.hosts if number >= least]
    for rate, loss, hosts in product(options.rate, options.loss, numbers):
        for run in range(1, 1 + (1 if 0 < rate < BUSY else options.repeat)):
            for figure in CASES[options.case]:
                for system in figure.systems:
                    row = Row(
                        revision=REVISION,
                        case=options.case,
                        what=figure.what,
                        system=system.name,
                        size=given.size,
                        rate=rate or None,
                        hosts=hosts,
                        loss=loss,
                        run=run,
                    )
                    if system.name in wanted:
                        yield from attempt(row, figure, system, given)


def main() -> int:
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where servers are
    options = parser().parse_args()
    if lacking := missing():
        parser().error(lacking)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    given = sys.argv[1:]
    lines = [given] if options.case else [[*shlex.split(words), *given] for words in STANDARD]
    for name in options.only:
        if programs := SYSTEMS[name].lacking():
            print(f"{name} is left out: no {', '.join(programs)} here (make bench-peers)")
    directory = options.output / time.strftime("%Y%m%d-%H%M%S")
    directory.mkdir(parents=True)
    rows: list[Row] = []
    for words in lines:
        plan = parser().parse_args(words)
        with image(plan.size * MIB) as shared:
            for row in measure(plan, shared):
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
