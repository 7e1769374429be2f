"""The results as tables in Markdown and as a picture.

    python bench/report.py results.csv ...

Where something was measured several times the median is shown, for each figure separately.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import attrs

from bench.measure import Row, link_seconds, read_csv

MB = 1e6


def line(row: Row) -> str:
    """A row as a line, printed while the bench runs."""
    words = f"{row.case:<6}{network(row):<24}{row.hosts:>2} hosts  {row.system:<13}{row.what}"
    if row.error:
        return f"{words}  FAILED: {row.error}"
    figures = []
    if row.seconds is not None:
        figures.append(f"{row.seconds:8.2f} s")
    if row.per_second is not None:
        figures.append(f"{row.per_second:9,.0f} {row.unit}")
    if row.sent is not None:
        figures.append(f"{row.sent / MB:8.1f} MB sent")
    if row.cpu_server is not None and row.cpu_clients is not None:
        figures.append(f"CPU {row.cpu_server:.2f} + {row.cpu_clients:.2f} s")
    if row.rate and row.seconds is not None and row.case == "share":
        figures.append(f"{row.seconds / link_seconds(row.size, row.rate):.2f} of the link")
    if row.memory is not None:
        figures.append(f"{row.memory / MB:.0f} MB of memory")
    if row.libfuse:
        figures.append(f"libfuse {row.libfuse}")
    return f"{words}  {', '.join(figures)}, {'right' if row.right else 'WRONG BYTES'}"


def network(row: Row) -> str:
    """Rate and loss of a run's links."""
    rate = f"{row.rate:g} Mbit/s" if row.rate else "no limit"
    return f"{rate}, {row.loss / 10:g} % lost" if row.loss else rate


LEGEND = """\
Cells show seconds of the slowest host, MB that the server sent, and seconds of processor time of
the server + all hosts. Where a rate is shown, it is what was read in a second. In parentheses: the
time or rate divided by that of mUFS.
"""


def tables(rows: list[Row]) -> str:
    """All cases, in Markdown."""
    parts = [LEGEND]
    for title in dict.fromkeys(map(_title, rows)):
        same = [row for row in rows if _title(row) == title]
        parts.append(f"### {title}\n\n{_table(same)}")
    return "\n".join(parts)


def _title(row: Row) -> str:
    return f"{row.case}: {row.size >> 20} MiB, {network(row)}"


def _hosts_in_words(row: Row) -> str:
    return f"{row.hosts} host{'s' if row.hosts > 1 else ''}"


def _table(rows: list[Row]) -> str:
    """A table of systems by hosts, or of figures by systems if the case has several figures."""
    if any(row.what for row in rows):
        return _grid(rows, lambda row: row.what, lambda row: row.system)
    return _grid(rows, lambda row: row.system, _hosts_in_words)


def _grid(rows: list[Row], down: Callable[[Row], str], across: Callable[[Row], str]) -> str:
    columns = list(dict.fromkeys(map(across, rows)))
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    for name in dict.fromkeys(map(down, rows)):
        own = [row for row in rows if down(row) == name]
        cells = ([row for row in own if across(row) == column] for column in columns)
        lines.append([name, *(_cell(cell, rows) for cell in cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(runs: list[Row], all_rows: list[Row]) -> str:
    """All runs of one system at one task."""
    if not runs:
        return ""
    well = [row for row in runs if row.right]
    if not well:
        return "failed" if runs[0].error else "wrong bytes"
    same = (runs[0].what, runs[0].hosts)
    mufs = [r for r in all_rows if r.system == "mufs" and r.right and (r.what, r.hosts) == same]
    if well[0].per_second is not None:
        words = f"{_median(r.per_second for r in well):,.0f} {well[0].unit}"
        words += _times([r.per_second for r in well], [r.per_second for r in mufs])
    else:
        words = f"{_median(r.seconds for r in well):.2f} s"
        words += _times([r.seconds for r in well], [r.seconds for r in mufs])
        words += f", {_median(r.sent for r in well) / MB:.0f} MB"
    if well[0].cpu_server is not None:
        words += f", {_median(r.cpu_server for r in well):.1f}"
        words += f" + {_median(r.cpu_clients for r in well):.1f}"
    failed = len(runs) - len(well)
    return f"{words}, {failed} of {len(runs)} failed" if failed else words


def _times(own: list[float | None], mufs: list[float | None]) -> str:
    """The ratio to mUFS; empty for mUFS itself, or if its figure is missing."""
    return f" ({_median(own) / _median(mufs):.2f})" if mufs and own != mufs else ""


def _median(values: Iterable[float | None]) -> float:
    return median(value for value in values if value is not None)


def ratios(rows: list[Row]) -> str:
    """What mUFS takes, divided by what its other revisions take, in Markdown.

    Each run is compared with that of the other revision beside it; the cells show the median, and
    all of them if there are more. Where a rate is measured, time and processor time are those of a
    read or of a megabyte.
    """
    parts = []
    runs = {(_task(row), row.run): row for row in rows if row.system == "mufs" and row.right}
    for other in dict.fromkeys(row.system for row in rows if row.system.startswith("mufs@")):
        pairs: dict[str, list[tuple[Row, Row]]] = defaultdict(list)
        for row in rows:
            own = runs.get((_task(row), row.run))
            if row.system == other and row.right and own is not None:
                pairs[_task(row)].append((own, row))
        if not pairs:
            continue
        parts.append(f"\n### mufs divided by {other}\n\n| | {' | '.join(COMPARED)} |\n|")
        parts.append("---|" * (1 + len(COMPARED)) + "\n")
        for task, both in pairs.items():
            cells = [_ratio(both, measure) for measure in COMPARED.values()]
            parts.append(f"| {task} | {' | '.join(cells)} |\n")
    return "".join(parts)


def _task(row: Row) -> str:
    """What was done in a run, by whichever system."""
    parts = [_title(row), _hosts_in_words(row), row.what]
    return ", ".join(filter(None, parts))


def _for_work(row: Row, figure: float | None) -> float | None:
    """A figure of a run; that of a read, or of a megabyte, where the run measures a rate."""
    if figure is None or not row.per_second or not row.seconds:
        return figure
    return figure / (row.per_second * row.seconds)


def _processor_time(row: Row, seconds: float | None) -> float | None:
    """Processor time for `_for_work`; None if it is too little to be compared."""
    return None if (seconds or 0) < MIN_PROCESSOR_SECONDS else _for_work(row, seconds)


MIN_PROCESSOR_SECONDS = 0.1
"""The kernel counts in steps of 0.01 s."""

COMPARED: dict[str, Callable[[Row], float | None]] = {
    "time": lambda row: _for_work(row, row.seconds),
    "server's processor time": lambda row: _processor_time(row, row.cpu_server),
    "hosts' processor time": lambda row: _processor_time(row, row.cpu_clients),
    "bytes sent": lambda row: row.sent,
    "memory of a host": lambda row: row.memory,
}
"""By column of the table of ratios."""


def _ratio(pairs: list[tuple[Row, Row]], measure: Callable[[Row], float | None]) -> str:
    found = [(measure(own), measure(other)) for own, other in pairs]
    each = [own / other for own, other in found if own is not None and other]
    if not each:
        return ""
    all_runs = f" ({', '.join(f'{ratio:.2f}' for ratio in each)})" if len(each) > 1 else ""
    return f"{median(each):.2f}{all_runs}"


@attrs.frozen
class Panel:
    """One panel of the picture, with a line for each system."""

    title: str
    rows: list[Row]
    x: Callable[[Row], float]
    x_label: str
    y: Callable[[Row], float | None]
    y_label: str


def _panels(rows: list[Row]) -> list[Panel]:
    """Time and bytes, by hosts for each rate, and by losses for one number of hosts."""
    time, sent = "time of the slowest host [s]", "sent by the server [MB]"
    panels = []
    for title in dict.fromkeys(_title(row) for row in rows if not row.loss):
        same = [row for row in rows if _title(row) == title]
        if len({row.hosts for row in same}) > 1:
            panels.append(Panel(title, same, _hosts, "hosts", _seconds, time))
            panels.append(Panel(title, same, _hosts, "hosts", _sent, sent))
    lossy = [row for row in rows if row.loss]
    if lossy:
        last = lossy[-1]
        same = [
            row
            for row in rows
            if (row.rate, row.hosts, row.size) == (last.rate, last.hosts, last.size)
            and row.system in {row.system for row in lossy}
        ]
        title = f"{_title(attrs.evolve(last, loss=0))}, {last.hosts} hosts"
        panels.append(Panel(title, same, _loss, "packets lost [%]", _seconds, time))
        panels.append(Panel(title, same, _loss, "packets lost [%]", _sent, sent))
    return panels


def _hosts(row: Row) -> float:
    return row.hosts


def _loss(row: Row) -> float:
    return row.loss / 10


def _seconds(row: Row) -> float | None:
    return row.seconds


def _sent(row: Row) -> float:
    return (row.sent or 0) / MB


def picture(rows: list[Row], path: Path) -> None:
    """Draw the figures of `share` as PNG, if there is something to compare."""
    panels = _panels([row for row in rows if row.case == "share" and row.right])
    if not panels:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only the picture needs it
    from matplotlib.figure import Figure

    columns = len(panels) // 2
    figure = Figure((1 + 4.5 * columns, 9), layout="constrained")
    FigureCanvasAgg(figure)
    fields = figure.subplots(2, columns, squeeze=False)
    systems = list(dict.fromkeys(row.system for row in rows))
    for number, panel in enumerate(panels):
        axes = fields[number % 2][number // 2]
        for order, system in enumerate(systems):
            points = defaultdict(list)
            for row in panel.rows:
                if row.system == system:
                    points[panel.x(row)].append(panel.y(row))
            axes.plot(
                sorted(points),
                [_median(points[x]) for x in sorted(points)],
                marker="osv^D<>pX*"[order % 10],
                color=f"C{order % 10}",
                linewidth=3 if system == "mufs" else 1.2,
                label=system,
            )
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label, ylim=(0, None))
        axes.set_xticks(sorted({panel.x(row) for row in panel.rows}))
        axes.grid(alpha=0.3)
    handles, labels = fields[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=110, format="png")


def main() -> int:
    rows = [row for name in sys.argv[1:] for row in read_csv(Path(name))]
    if not rows:
        print(__doc__)
        return 1
    print(tables(rows))
    picture(rows, Path("results.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
