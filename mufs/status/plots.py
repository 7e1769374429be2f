"""Figures drawn as SVG; the colours come from the style sheet of the page."""

from collections.abc import Callable, Sequence
from math import ceil

from attrs import frozen

from mufs.status.history import HISTORY_SECONDS, Points
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


def plot(title: str, lines: Sequence[Line], text: Callable[[float], str]) -> Markup:
    """
    The course of figures over the last ten minutes.

    @param text: formats a value.
    """
    top = max((value for line in lines for _, value in line.points), default=0.0)
    legend = [
        element(
            "span",
            element("i", class_=f"key line{number}") if line.label else "",
            f"{line.label} ",
            element("b", text(line.points[-1][1]) if line.points else NONE),
        )
        for number, line in enumerate(lines)
    ]
    drawn = [
        element("polyline", points=_path(line.points, top), class_=f"line{number}")
        for number, line in enumerate(lines)
    ]
    picture = element(
        "svg",
        *drawn,
        viewBox=f"0 -2 {WIDTH} {HEIGHT + 4}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}, last ten minutes, up to {text(top)}",
    )
    axis = element("div", element("span", "10 min ago"), element("span", "now"), class_="axis")
    head = element("figcaption", element("h3", title), *legend)
    return element(
        "figure", head, element("div", f"up to {text(top)}", class_="top"), picture, axis
    )


def _path(points: Points, top: float) -> str:
    scale = HEIGHT / top if top > 0 else 0.0
    return " ".join(
        f"{(1 - age / HISTORY_SECONDS) * WIDTH:.0f},{HEIGHT - value * scale:.1f}"
        for age, value in points
        if age <= HISTORY_SECONDS
    )


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
