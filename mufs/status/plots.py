"""Figures drawn as SVG; the colours come from the style sheet of the page."""

from collections.abc import Callable, Sequence
from math import ceil, floor, log10

from attrs import frozen

from mufs.status.history import Points
from mufs.status.markup import Markup, element, join
from mufs.status.widgets import NONE

WIDTH, HEIGHT = 600, 100
"""Units of a plot, which the page stretches to the room that it has."""

COLUMNS = 64
"""Squares in a row of a map."""

LEVELS = 4
"""Shades of a square, from nothing held to all held."""


@frozen
class Line:
    """A line of a plot; its label may be empty where it is the only one."""

    label: str
    points: Points


def plot(title: str, lines: Sequence[Line], text: Callable[[float], str], seconds: float) -> Markup:
    """
    The course of figures until now.

    The script of the page shows values where the pointer is, from C{data-top} and C{data-unit}.

    @param text: formats a value; its name tells the script how to do the same.
    @param seconds: the time that is shown.
    """
    known = [value for line in lines for _, value in line.points if value is not None]
    top = _round_up(max(known, default=0.0))
    legend = [
        element(
            "span",
            element("i", class_=f"key line{number}") if line.label else "",
            f"{line.label} ",
            element("b", text(value) if (value := _last(line.points)) is not None else NONE),
        )
        for number, line in enumerate(lines)
    ]
    drawn = [
        element("polyline", points=path, class_=f"line{number}")
        for number, line in enumerate(lines)
        for path in _paths(line.points, top or 1.0, seconds)
    ]
    span = _ago(seconds)
    picture = element(
        "svg",
        element("path", d=f"M0 0H{WIDTH}M0 {HEIGHT / 2:g}H{WIDTH}", class_="grid"),
        *drawn,
        viewBox=f"0 -2 {WIDTH} {HEIGHT + 4}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}, from {span} ago to now, up to {text(max(known, default=0.0))}",
        data_top=f"{top:g}",
        data_unit=text.__name__,
        data_seconds=f"{seconds:g}",
    )
    marks = text(top), text(top / 2), text(0)
    # Where the middle has no label of its own, as that of one client, it has none.
    middle = marks[1] if marks[1] not in marks[::2] else ""
    scale = [marks[0], middle, marks[2]] if top else ["", "", marks[2] if known else ""]
    axis = f"{span} ago", f"{_ago(seconds / 2)} ago", "now"
    return element(
        "figure",
        element("figcaption", element("h3", title), *legend),
        element(
            "div",
            element("div", *(element("span", mark) for mark in scale), class_="scale"),
            picture,
            element("output", ""),
            class_="plot",
        ),
        element("div", *(element("span", mark) for mark in axis), class_="axis"),
    )


def _last(points: Points) -> float | None:
    return points[-1][1] if points else None


def _ago(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"


def _round_up(top: float) -> float:
    """The next 1, 2 or 5 times a power of ten; 0 stays 0."""
    if top <= 0:
        return 0.0
    power = 10.0 ** floor(log10(top))
    return next(step * power for step in (1, 2, 5, 10) if top <= step * power * (1 + 1e-9))


def _paths(points: Points, top: float, seconds: float) -> list[str]:
    """The points of each line between two gaps; one alone is drawn as a dot."""
    runs: list[list[str]] = [[]]
    for age, value in points:
        if value is None:
            runs.append([])
        elif 0 <= age <= seconds:
            x, y = (1 - age / seconds) * WIDTH, HEIGHT * (1 - value / top)
            runs[-1].append(f"{x:.0f},{y:.1f}")
    return [" ".join(run if len(run) > 1 else run * 2) for run in runs if run]


def shares(parts: Sequence[tuple[str, float]]) -> Markup:
    """A bar divided in proportion to numbers, and a legend."""
    total = sum(number for _, number in parts)
    drawn, legend, at = [], [], 0.0
    for number, (label, value) in enumerate(parts):
        part = value / total if total else 0.0
        drawn.append(element(
            "rect", x=f"{at * WIDTH:.1f}", width=f"{part * WIDTH:.1f}", height=10,
            class_=f"part{number}",
        ))  # fmt: skip
        legend.append(element(
            "span", element("i", class_=f"key part{number}"), f"{label} ",
            element("b", f"{value:,.0f}"), f" {part:.1%}" if total else "",
        ))  # fmt: skip
        at += part
    label = ", ".join(f"{label} {value:,.0f}" for label, value in parts)
    picture = element(
        "svg", *drawn, viewBox=f"0 0 {WIDTH} 10", preserveAspectRatio="none", role="img",
        class_="bar", aria_label=label,
    )  # fmt: skip
    return join(picture, element("div", *legend, class_="legend"))


def cache_map(squares: Sequence[float], label: str) -> Markup:
    """
    A map of which parts of an image are held, from left to right and from top to bottom.

    @param squares: the fraction held of each part, 0 to 1.
    """
    runs: list[list[str]] = [[] for _ in range(LEVELS + 1)]
    shades = [LEVELS if part >= 1 else min(LEVELS - 1, ceil(part * LEVELS)) for part in squares]
    at = 0
    while at < len(squares):
        row, column = divmod(at, COLUMNS)
        end = min(len(squares), (row + 1) * COLUMNS)
        length = 1
        while at + length < end and shades[at + length] == shades[at]:
            length += 1
        runs[shades[at]].append(f"M{column} {row}.5h{length}")
        at += length
    rows = max(1, -(-len(squares) // COLUMNS))
    drawn = [
        element("path", d="".join(run), class_=f"shade{shade}")
        for shade, run in enumerate(runs)
        if run
    ]
    columns = min(COLUMNS, len(squares)) or 1
    return element(
        "svg", *drawn, viewBox=f"0 0 {columns} {rows}", preserveAspectRatio="none", role="img",
        class_="map", height=f"{0.7 * rows:.1f}em", aria_label=label,
    )  # fmt: skip


def in_bits(points: Points, bytes_each: float = 1.0) -> Points:
    """Rates in bits, of rates of bytes or of what has so many bytes each."""
    return [(age, None if value is None else 8 * bytes_each * value) for age, value in points]
