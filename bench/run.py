"""Run mUFS and comparable systems at the same tasks: see README.md in this directory.

python bench/run.py                      the standard set
python bench/run.py share --rate 100 --hosts 1,2,4 --loss 0,10,50 --only mufs,nbdfuse
python bench/run.py share --against v1.0 --rate 0 --hosts 1
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from bench.cases import SHARE, SLOW, attempt
from bench.copies import Limit
from bench.measure import Row, image, revision, write_csv
from bench.mounting import MOUNT
from bench.report import line, picture, ratios, tables
from bench.revisions import mufs_at, mufs_with
from bench.systems import Image, Mufs, System
from mufs.test.support.lab import why_unavailable
from mufs.test.support.netns import LabError

MIB = 1 << 20
REVISION = revision()
REPEATED_RATE = 1000
"""Mbit/s from which on the processors are the bottleneck, and runs are repeated by default."""
REPEATS = 3
CASES = {"share": SHARE, "slow": SLOW, "mount": MOUNT}
SYSTEMS: dict[str, type[System]] = {
    kind.name: kind for case in CASES.values() for part in case for kind in part.systems
}
NAMES = ",".join(SYSTEMS)
STANDARD = [
    "share --rate 100 --hosts 1,2,4 --size 64",
    "share --rate 100 --hosts 4 --loss 10,50 --size 64",
    "share --rate 25 --hosts 1,4,8,16 --size 16 --only mufs,limit",
    "share --rate 1000,0 --hosts 1,2,4 --size 256",
    "slow --rate 100 --hosts 4 --size 32",
    "mount --rate 0 --size 1024",
]
"""The command lines that run if no case is given; the given options are added to each."""


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _systems(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SYSTEMS):
        raise argparse.ArgumentTypeError(f"no such system: {', '.join(unknown)}")
    return names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description="Run mUFS and comparable systems at the same tasks.")
    made.add_argument("case", nargs="?", choices=CASES)
    add = made.add_argument
    add("--rate", type=_numbers, default=[100], help="Mbit/s of the links, 0 for no limit [100]")
    add("--hosts", type=_numbers, default=[1, 2, 4], help="numbers of hosts [1,2,4]")
    add("--loss", type=_numbers, default=[0], help="packets lost at each host, per 1000 [0]")
    add("--size", type=int, default=256, help="size of the image, in MiB [256]")
    add("--repeat", type=int, help=f"number of runs [{REPEATS} from 1000 Mbit/s on, else 1]")
    add("--only", type=_systems, help=f"systems [all, or mufs --against another]: {NAMES}")
    add("--what", default="", help="only the figures of the case whose names contain this text")
    add("--against", metavar="REVISION", help="a revision of mUFS to take turns with this one")
    add(
        "--against-options",
        metavar="OPTIONS",
        help="take turns with mUFS whose server has these options, '--compress=off' for example",
    )
    add("--image", type=Path, metavar="FILE", help="what is shared [random bytes, --size of them]")
    add(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        help="directory for the results",
    )
    return made


def measure(
    options: argparse.Namespace, given: Image, others: Sequence[type[Mufs]] = ()
) -> Iterator[Row]:
    """Measure all combinations of the options. Systems take turns, so that ratios are fair.

    `others` are mUFS as well: another revision, or with other options.
    """
    wanted = [name for name in _names(options) if not SYSTEMS[name].lacking()]
    if any(options.loss):
        wanted = [name for name in wanted if name != Limit.name]  # it repairs nothing
    # Without other hosts a slow host delays nobody.
    least = 2 if options.case == "slow" else 1
    numbers = [1] if options.case == "mount" else [n for n in options.hosts if n >= least]
    for rate, loss, hosts in product(options.rate, options.loss, numbers):
        repeats = options.repeat or (1 if 0 < rate < REPEATED_RATE else REPEATS)
        for run in range(1, 1 + repeats):
            for figure in CASES[options.case]:
                if options.what not in figure.what:
                    continue
                for system in _with_others(figure.systems, others):
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
                    if system in others or system.name in wanted:
                        yield from attempt(row, figure, system, given)


def _names(options: argparse.Namespace) -> list[str]:
    """The systems to measure."""
    has_others = options.against or options.against_options
    names: list[str] = options.only or ([Mufs.name] if has_others else list(SYSTEMS))
    return names


def _with_others(
    systems: list[type[System]], others: Sequence[type[Mufs]]
) -> Iterator[type[System]]:
    for system in systems:
        yield system
        if system is Mufs:
            yield from others


def main() -> int:
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where servers are
    options = parser().parse_args()
    if reason := why_unavailable():
        parser().error(reason)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    try:
        others = [mufs_at(options.against)] if options.against else []
    except LabError as error:
        sys.exit(f"--against: {error}")
    if options.against_options:
        others.append(mufs_with(options.against_options))
    given = sys.argv[1:]
    lines = [given] if options.case else [[*shlex.split(words), *given] for words in STANDARD]
    for name in _names(options):
        if programs := SYSTEMS[name].lacking():
            print(f"{name} is left out: no {', '.join(programs)} here (make bench-peers)")
    directory = options.output / time.strftime("%Y%m%d-%H%M%S")
    directory.mkdir(parents=True)
    rows: list[Row] = []
    for words in lines:
        plan = parser().parse_args(words)
        with image(plan.size * MIB, plan.image) as shared:
            for row in measure(plan, shared, others):
                rows.append(row)
                print(line(row), flush=True)
                write_csv(rows, directory / "results.csv")
    text = tables(rows) + ratios(rows)
    (directory / "tables.md").write_text(text)
    picture(rows, directory / "results.png")
    print(f"\n{text}\nin {directory}: results.csv, tables.md, results.png")
    return 0 if all(row.right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
