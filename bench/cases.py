"""The cases in which several hosts bring one image to themselves at the same time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial

import attrs

from bench.copies import COPIES, Udpcast, Uftp
from bench.measure import Figures, Row, deliver, link_seconds
from bench.systems import MOUNTS, Image, Mufs, Nbdfuse, System
from mufs.test.support.lab import Lab
from mufs.test.support.netns import LabError

Measure = Callable[[Row, System], Iterator[Row]]
"""Measures a system that has not been started yet; the row says what the run is called."""

SLOW_PART = 10
"""The slow host's link has one such part of the rate."""
JOINED = 5.0
"""Seconds after which a bridge sends multicast to members alone: see `Network`."""


@attrs.frozen
class Figure:
    """Something to know of several systems."""

    measure: Measure
    systems: list[type[System]]
    what: str = ""
    """Its name, where a case has several."""
    snooping: bool = False
    """As `Network` has it."""


def attempt(row: Row, figure: Figure, system: type[System], image: Image) -> Iterator[Row]:
    """Measure a system in a lab of its own; a failure is a row with an error."""
    try:
        with Lab(row.hosts, row.rate, snooping=figure.snooping) as lab:
            try:
                yield from figure.measure(row, system(lab, image))
            except (LabError, OSError, subprocess.SubprocessError) as error:
                yield attrs.evolve(row, error=_one_line(f"{error}\n{_tails(lab)}"))
    except (LabError, OSError, subprocess.SubprocessError) as error:
        yield attrs.evolve(row, error=_one_line(str(error)))


def _tails(lab: Lab) -> str:
    """The last line of every log."""
    tails = []
    for log in sorted(lab.directory.glob("*.log")):
        lines = log.read_text(errors="replace").split("\n")
        tails += [f"{log.stem}: {line}" for line in [x for x in lines if x.strip()][-1:]]
    return "\n".join(tails)


def _one_line(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.split("\n") if line.strip()]
    kept = lines if len(lines) <= 8 else [lines[0], "...", *lines[-6:]]
    return " | ".join(kept)[:1000]


def _timeout(row: Row) -> float:
    """Seconds for a delivery: all hosts may be served one after the other, and with losses."""
    rate = row.rate / SLOW_PART if row.rate and row.case == "slow" else row.rate
    return 30 + (1 + row.loss / 10) * 1.5 * row.hosts * link_seconds(row.size, rate)


def _filled(row: Row, figures: Figures, hosts: list[str]) -> Row:
    """The row with what a delivery was to these hosts."""
    return attrs.evolve(
        row,
        seconds=max(figures.deliveries.seconds[host] for host in hosts),
        right=all(figures.deliveries.right[host] for host in hosts),
        sent=figures.sent,
        cpu_server=figures.cpu_server,
        cpu_clients=figures.cpu_clients,
    )


def share(row: Row, system: System) -> Iterator[Row]:
    """All hosts get the image at one moment."""
    hosts = system.lab.hosts
    system.start(hosts)
    for host in hosts:
        system.lab.network.set_loss(host, row.loss, "")
    yield _filled(row, deliver(system, hosts, _timeout(row)), hosts)


def slow(row: Row, system: System, takes_part: bool) -> Iterator[Row]:
    """All hosts get the image; the last one has a slow link, and a row of its own or no part."""
    *others, last = system.lab.hosts
    assert row.rate is not None
    system.lab.network.set_rate(last, row.rate / SLOW_PART)
    hosts = system.lab.hosts if takes_part else others
    system.start(hosts)
    time.sleep(JOINED)
    figures = deliver(system, hosts, _timeout(row))
    yield _filled(row, figures, others)
    if takes_part:
        yield _filled(row.called("the slow host itself"), figures, [last])


_SLOW: list[type[System]] = [Mufs, Nbdfuse, Udpcast, Uftp]

SHARE = [Figure(share, [*MOUNTS, *COPIES])]
SLOW = [
    Figure(partial(slow, takes_part=False), _SLOW, "the others, without the slow host", True),
    Figure(partial(slow, takes_part=True), _SLOW, "the others, with the slow host", True),
]
