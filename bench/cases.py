"""The cases in which several hosts get one image at the same time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial

import attrs

from bench.copies import COPIES, Udpcast, Uftp
from bench.measure import Row, deliver, link_seconds
from bench.systems import MOUNTS, Deliveries, Image, Mufs, Nbdfuse, System
from mufs.test.support.lab import Lab
from mufs.test.support.netns import LabError

Measure = Callable[[Row, System], Iterator[Row]]
"""Measures a system that has not been started; the row describes the run."""

SLOW_LINK_DIVISOR = 10
"""The rate of the links divided by that of the slow host's."""
SNOOPING_DELAY = 5.0
"""Seconds after which a bridge sends multicast only to members (see `Network`)."""


@attrs.frozen
class Figure:
    """One measurement, and the systems that it is made of."""

    measure: Measure
    systems: list[type[System]]
    what: str = ""
    """Its name, if the case has several figures."""
    snooping: bool = False
    """Whether the bridge does IGMP snooping (see `Network`)."""


def attempt(row: Row, figure: Figure, system: type[System], image: Image) -> Iterator[Row]:
    """Measure a system in its own lab; a failure yields a row with an error."""
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
    """Seconds for a delivery in which all hosts are served in turn, with losses."""
    rate = row.rate / SLOW_LINK_DIVISOR if row.rate and row.case == "slow" else row.rate
    return 30 + (1 + row.loss / 10) * 1.5 * row.hosts * link_seconds(row.size, rate)


def _timed(row: Row, got: Deliveries, hosts: list[str]) -> Row:
    """The row with the time until the last of these hosts had the image."""
    return attrs.evolve(
        row,
        seconds=max(got.seconds[host] for host in hosts),
        right=all(got.right[host] for host in hosts),
    )


def share(row: Row, system: System) -> Iterator[Row]:
    """All hosts get the image at the same moment."""
    hosts = system.lab.hosts
    system.start(hosts)
    for host in hosts:
        system.lab.network.set_loss(host, row.loss, "")
    yield _timed(*deliver(row, system, hosts, _timeout(row)), hosts)


def slow(row: Row, system: System, takes_part: bool) -> Iterator[Row]:
    """All hosts get the image over fast links, except the last one, which has a slow link.

    If it takes part it has a row of its own.
    """
    *others, last = system.lab.hosts
    assert row.rate is not None
    system.lab.network.set_rate(last, row.rate / SLOW_LINK_DIVISOR)
    hosts = system.lab.hosts if takes_part else others
    system.start(hosts)
    time.sleep(SNOOPING_DELAY)
    row, got = deliver(row, system, hosts, _timeout(row))
    yield _timed(row, got, others)
    if takes_part:
        yield _timed(row.called("the slow host itself"), got, [last])


_SLOW: list[type[System]] = [Mufs, Nbdfuse, Udpcast, Uftp]

SHARE = [Figure(share, [*MOUNTS, *COPIES])]
SLOW = [
    Figure(partial(slow, takes_part=False), _SLOW, "the others, without the slow host", True),
    Figure(partial(slow, takes_part=True), _SLOW, "the others, with the slow host", True),
]
