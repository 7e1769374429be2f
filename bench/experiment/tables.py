"""The tables of the paper's section 6 and its figure 6, beside the paper's values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.experiment.results import Host, Outcome

MB = 1e6
PAPER_READS = {"nfs": 877, "mufs": 83}
PAPER_FIRST, PAPER_FOLLOWERS = 0.059, 0.83
"""Hit rates."""
NAMES = {"nfs": "NFS", "mufs": "mUFS"}
NONE = "-"
READ_TIMES = "read times of the image"
OTHERS = [
    *("bytes read of it, MB", "mean read, KiB", "requests for reads"),
    *("bytes sent, MB", "bytes sent / unique bytes of one boot", "processor time, s"),
]
"""Further lines of Table V."""
LEGEND = """\
Server and hosts are on one machine. The NFS server is nfs-ganesha, because it can run in a network
namespace. The hosts mount it by the NFS driver of qemu-storage-daemon and its FUSE export, which
needs no NFS client in the kernel. Reads of the image at the server are the system calls (pread,
preadv) that the server makes on it, counted by strace for both systems in the same way.
Bytes sent are those of the server's interface, with all headers; unique bytes are those of the
image that one boot reads, each counted once. The paper's 877 / 83 cannot come from sharing among
four hosts alone, which accounts for 4 at most: reads over mUFS are larger, so compare the bytes.

A *hit* was answered from the client's cache, a *joined* read waited for bytes that were already
on their way, a *miss* had to ask the server. *First* is the host with the lowest hit rate, which
was ahead of the others; these are the *followers*.
"""


def tables(outcomes: Sequence[Outcome]) -> str:
    """The tables of one experiment, in Markdown, with at most one outcome of each system."""
    of = {outcome.system: outcome for outcome in outcomes}
    parts = [_table_iv(of), _table_v(of), _time(of)]
    if wrong := [NAMES[outcome.system] for outcome in outcomes if not outcome.right]:
        parts.insert(0, f"WRONG BYTES were read over {' and '.join(wrong)}.\n")
    return "\n".join(parts)


def first_and_followers(outcome: Outcome) -> tuple[Host, list[Host]]:
    """The host that was ahead, and the others."""
    first = min(outcome.hosts, key=lambda host: host.hit_rate)
    return first, [host for host in outcome.hosts if host is not first]


def followers_rate(outcome: Outcome) -> float:
    """The hit rate of all followers together, 0 to 1."""
    _, others = first_and_followers(outcome)
    reads = sum(host.reads for host in others)
    return sum(host.hits for host in others) / reads if reads else 0.0


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _table_iv(of: dict[str, Outcome]) -> str:
    """Start-up time and reads of each host."""
    rows = []
    for system, outcome in of.items():
        for host in outcome.hosts:
            words = [f"{host.name}, {NAMES[system]}", f"{host.seconds:.2f} s"]
            words.append(f"{host.reads:,}" if host.reads else NONE)
            told = system == "mufs"
            words += [f"{count:,}" if told else NONE for count in (host.hits, host.joined)]
            words += [f"{host.misses:,}" if told else NONE]
            rows.append([*words, f"{host.hit_rate:.1%}" if told else NONE])
    table = "### Table IV: the hosts\n\n" + _grid(
        ["", "start-up", "read times", "memory hit times", "joined", "missed", "hit rate"], rows
    )
    if mufs := of.get("mufs"):
        first, others = first_and_followers(mufs)
        table += (
            f"\nHit rate of the first host ({first.name}): {first.hit_rate:.1%}"
            f" (paper {PAPER_FIRST:.1%})"
        )
        if others:
            table += f"; of the followers {followers_rate(mufs):.1%} (paper {PAPER_FOLLOWERS:.0%})"
        asked = sum(host.misses for host in others) / max(1, sum(host.reads for host in others))
        table += f". Reads of the followers that had to ask: {asked:.1%}.\n"
    return table


def _table_v(of: dict[str, Outcome]) -> str:
    """The server's figures."""
    figures = {system: _server(outcome) for system, outcome in of.items()}
    both = {"nfs", "mufs"} <= set(of)
    rows = []
    for what in [READ_TIMES, *OTHERS]:
        row = [what, *(f"{own[what]:,.2f}".removesuffix(".00") for own in figures.values())]
        if both:
            row.append(f"{figures['nfs'][what] / max(1e-9, figures['mufs'][what]):.2f}")
            nfs, mufs = PAPER_READS["nfs"], PAPER_READS["mufs"]
            row.append(f"{nfs} / {mufs} = {nfs / mufs:.1f}" if what == READ_TIMES else NONE)
        rows.append(row)
    head = ["", *(NAMES[system] for system in of), *(["NFS / mUFS", "paper"] if both else [])]
    return "### Table V: the server\n\n" + _grid(head, rows)


def _server(outcome: Outcome) -> dict[str, float]:
    reads, size = outcome.server_reads, outcome.server_read_bytes
    sent = outcome.server_bytes_sent
    values = [size / MB, size / 1024 / max(1, reads), outcome.server_requests]
    cpu = sum(sample.cpu for sample in outcome.samples)
    values += [sent / MB, sent / outcome.unique_bytes, cpu]
    return {READ_TIMES: reads, **dict(zip(OTHERS, values, strict=True))}


def _time(of: dict[str, Outcome]) -> str:
    """T = max(Ti) - Ts."""
    words = [f"{NAMES[system]} {outcome.seconds:.2f} s" for system, outcome in of.items()]
    text = f"### T = max(Ti) - Ts\n\n{', '.join(words)}"
    if {"nfs", "mufs"} <= set(of):
        text += f": mUFS / NFS = {of['mufs'].seconds / of['nfs'].seconds:.2f}"
    return text + "\n"


def picture(panels: Sequence[tuple[str, Sequence[Outcome]]], path: Path) -> None:
    """Draw figure 6 as PNG: bandwidth and processor of the server, a column for each panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only the picture needs it
    from matplotlib.figure import Figure

    figure = Figure((1 + 5.5 * len(panels), 7), layout="constrained")
    FigureCanvasAgg(figure)
    fields = figure.subplots(2, len(panels), squeeze=False)
    for column, (title, outcomes) in enumerate(panels):
        above, below = fields[0][column], fields[1][column]
        for outcome in outcomes:
            edges = [0.0, *(sample.second + 1.0 for sample in outcome.samples)]
            color = {"nfs": "C1", "mufs": "C0"}[outcome.system]
            look = {"label": NAMES[outcome.system], "color": color, "linewidth": 1.8}
            sent = [sample.bytes_sent * 8 / 1e6 for sample in outcome.samples]
            above.stairs(sent, edges, **look)
            below.stairs([sample.cpu * 100 for sample in outcome.samples], edges, **look)
        above.set(title=title, ylabel="sent by the server [Mbit/s]", ylim=(0, None))
        below.set(xlabel="time since Ts [s]", ylabel="server CPU [% of one core]", ylim=(0, None))
        for axes in (above, below):
            axes.set_xlim(0, None)
            axes.grid(alpha=0.3)
            axes.legend()
    figure.savefig(path, dpi=110, format="png")
