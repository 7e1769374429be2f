"""Pictures of figures, as SVG whose colours come from the page's style sheet."""

from collections.abc import Callable, Sequence
from math import ceil

from attrs import frozen

from mufs.status.history import LENGTH, Points
from mufs.status.markup import Markup, element, join
from mufs.status.widgets import NONE

WIDTH, HEIGHT = 600, 100
"""Units of a plot, stretched to the room that the page has."""

COLUMNS = 64
"""Squares in a row of a map."""

LEVELS = 4
"""Shades of a square between none and all."""


@frozen
class Line:
    """One line of a plot, and what it stands for; empty where it is the only one."""

    label: str
    points: Points


def plot(title: str, lines: Sequence[Line], text: Callable[[float], str]) -> Markup:
    """
    How figures went in the last ten minutes.

    @param text: a value for people.
    """
    top = max((value for line in lines for _, value in line.points), default=0.0)
    said = [
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
    head = element("figcaption", element("h3", title), *said)
    return element(
        "figure", head, element("div", f"up to {text(top)}", class_="top"), picture, axis
    )


def _path(points: Points, top: float) -> str:
    scale = HEIGHT / top if top > 0 else 0.0
    return " ".join(
        f"{(1 - age / LENGTH) * WIDTH:.0f},{HEIGHT - value * scale:.1f}"
        for age, value in points
        if age <= LENGTH
    )


def shares(parts: Sequence[tuple[str, float]]) -> Markup:
    """A bar whose parts are these numbers, and what each of them is."""
    total = sum(number for _, number in parts)
    drawn, said, at = [], [], 0.0
    for number, (label, value) in enumerate(parts):
        part = value / total if total else 0.0
        drawn.append(element(
            "rect", x=f"{at * WIDTH:.1f}", width=f"{part * WIDTH:.1f}", height=10,
            class_=f"part{number}",
        ))  # fmt: skip
        said.append(element(
            "span", element("i", class_=f"key part{number}"), f"{label} ",
            element("b", f"{value:,.0f}"), f" {part:.1%}" if total else "",
        ))  # fmt: skip
        at += part
    label = ", ".join(f"{label} {value:,.0f}" for label, value in parts)
    picture = element(
        "svg", *drawn, viewBox=f"0 0 {WIDTH} 10", preserveAspectRatio="none", role="img",
        class_="bar", aria_label=label,
    )  # fmt: skip
    return join(picture, element("div", *said, class_="legend"))


def cache_map(squares: Sequence[float], label: str) -> Markup:
    """
    Which parts of something are held, from left to right and from top to bottom.

    @param squares: for each part which fraction of it is held, 0 to 1.
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
