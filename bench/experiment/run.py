"""Repeat section 6 of the paper on this machine: see docs/experiments.md.

python bench/experiment/run.py --mode live --scale paper        virtual machines
python bench/experiment/run.py --mode replay                    the standard set of replays
python bench/experiment/run.py --mode replay --trace debian --think 0,0.1 --only mufs
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from bench.experiment import images, live, machines
from bench.experiment.replay import START_SPREAD_SECONDS, Plan, replay
from bench.experiment.results import Outcome
from bench.experiment.sampling import untraceable
from bench.experiment.tables import LEGEND, picture, tables
from bench.experiment.traces import SIZES, trace
from bench.systems import Mount, Mufs, Nfs
from mufs.test.support.lab import why_unavailable
from mufs.test.support.netns import LabError

SYSTEMS: dict[str, type[Mount]] = {"nfs": Nfs, "mufs": Mufs}
STANDARD = [("debian", 0.0), ("tiny", 0.5)]
"""Traces and factors for their pauses that are replayed by default, in two minutes."""
Panel = tuple[str, list[Outcome]]
"""The title of an experiment, and its outcomes."""


def _thinks(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _systems(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SYSTEMS):
        raise argparse.ArgumentTypeError(f"no such system: {', '.join(unknown)}")
    return names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description="Repeat section 6 of the paper.")
    add = made.add_argument
    add("--mode", choices=["replay", "live"], default="replay")
    add("--trace", choices=SIZES, help="the boot to replay")
    add("--think", type=_thinks, help="factors for the recorded pauses, separated by commas [0]")
    add(
        "--apart",
        type=float,
        default=START_SPREAD_SECONDS,
        help=f"seconds within which hosts begin [{START_SPREAD_SECONDS}]",
    )
    add("--only", type=_systems, default=list(SYSTEMS), help=f"systems: {','.join(SYSTEMS)}")
    add(
        "--scale",
        choices=images.SCALES,
        default="small",
        help="size of the virtual machines' image [small]",
    )
    add("--cache", choices=["none", "writeback"], default="none",
        help="cache mode of the virtual machines' disks [none]")  # fmt: skip
    add("--accelerator", choices=machines.ACCELERATORS,
        help="what runs the virtual machines [kvm if it runs a firmware fast enough]")  # fmt: skip
    add("--read-ahead", type=int, default=machines.READ_AHEAD,
        help="KiB that the kernels of virtual machines read ahead [%(default)s]")  # fmt: skip
    directory = Path(__file__).parents[1] / "results"
    add("--output", type=Path, default=directory, help="directory for the results")
    return made


def replays(options: argparse.Namespace, systems: list[str]) -> Iterator[Panel]:
    """A panel for each trace and factor."""
    plans = STANDARD
    if options.trace or options.think:
        plans = [(options.trace or "debian", think) for think in options.think or [0.0]]
    for name, think in plans:
        plan = Plan(trace(name), think, apart=options.apart)
        yield plan.title, [replay(plan, SYSTEMS[system]) for system in systems]


def boots(options: argparse.Namespace, systems: list[str]) -> Iterator[Panel]:
    """One panel, of virtual machines."""
    print(f"making the image ({options.scale}) unless it exists", flush=True)
    image = images.make_image(options.scale)
    hardware = machines.Hardware(_accelerator(options), options.cache, options.read_ahead)
    plan = live.Plan(options.scale, image, hardware)
    print("booting one machine alone unless its reads were recorded", flush=True)
    live.lone_boot(plan)
    outcomes = []
    for system in systems:
        print(f"booting all machines over {system}", flush=True)
        outcomes.append(live.boot_all(plan, SYSTEMS[system]))
    yield plan.title, outcomes


def _accelerator(options: argparse.Namespace) -> str:
    """The accelerator to use, which is printed."""
    name: str = options.accelerator
    if name is None:
        name, reason = machines.choose_accelerator()
        print(f"accelerator: {name}{reason and f' ({reason})'}", flush=True)
    return name


def _lacking(options: argparse.Namespace) -> str | None:
    """What this run needs and this machine lacks, or None."""
    if options.mode == "live" and (
        programs := [*machines.lacking(), *images.lacking(options.scale)]
    ):
        return f"needs {', '.join(programs)} (bench/install-peers experiment)"
    return why_unavailable() or untraceable()


def main() -> int:
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where servers are
    options = parser().parse_args()
    if lacking := _lacking(options):
        parser().error(lacking)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    systems = []
    for name in options.only:
        if programs := SYSTEMS[name].lacking():
            print(f"{name} is left out: no {', '.join(programs)} here (make bench-peers)")
        else:
            systems.append(name)
    directory = options.output / time.strftime("experiment-%Y%m%d-%H%M%S")
    directory.mkdir(parents=True)
    legend = f"{LEGEND}\n{live.LEGEND}" if options.mode == "live" else LEGEND
    print(legend)
    panels: list[Panel] = []
    panels_of = boots if options.mode == "live" else replays
    try:
        for title, outcomes in panels_of(options, systems):
            panels.append((title, outcomes))
            print(f"## {title}\n\n{tables(outcomes)}", flush=True)
    except LabError as error:
        print(f"FAILED: {error}")
        return 1
    write(legend, panels, directory)
    print(f"in {directory}: tables.md, outcomes.json, figure6.png")
    return 0 if all(outcome.right for _, outcomes in panels for outcome in outcomes) else 1


def write(legend: str, panels: list[Panel], directory: Path) -> None:
    """Write the tables, all figures as JSON, and the picture."""
    text = "\n".join(f"## {title}\n\n{tables(outcomes)}" for title, outcomes in panels)
    (directory / "tables.md").write_text(f"{legend}\n{text}")
    figures = [
        {"title": title, "outcomes": [attrs.asdict(outcome) for outcome in outcomes]}
        for title, outcomes in panels
    ]
    (directory / "outcomes.json").write_text(json.dumps(figures, indent=1))
    picture(panels, directory / "figure6.png")


if __name__ == "__main__":
    sys.exit(main())
