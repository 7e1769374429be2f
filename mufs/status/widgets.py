"""The elements of the status pages, besides plots, and how they format numbers."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from attrs import frozen

from mufs.status.markup import Markup, element, join
from mufs.status.recent import Event
from mufs.units import format_duration, shown

MAX_NAME_LENGTH = 60
"""Characters of a name that are shown."""

MAX_EVENT_ROWS = 20
"""Lines of the log that are shown."""

NONE = "\N{EN DASH}"
"""Shown in place of a number that is not known yet."""


def count(value: float) -> str:
    """A count."""
    return f"{value:,.0f}"


def bits(value: float) -> str:
    """Bits per second, in units of powers of 1000."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} Gbit/s"


def percent(value: float) -> str:
    """A fraction of 1, in percent."""
    return f"{value:.1%}"


def ratio(part: float, whole: float) -> str:
    """One amount as a multiple of another."""
    return f"{part / whole:.2f}" if whole else NONE


def seconds(value: float) -> str:
    """A duration."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def cards(tiles: Sequence[tuple[str, str, str]]) -> Markup:
    """Numbers in large type, each with its name, and with the time that it is about."""
    boxes = [
        element("div", element("span", name), element("b", value), element("small", when))
        for name, value, when in tiles
    ]
    return element("div", *boxes, class_="cards")


def since(seconds: float, now: Callable[[], float] = time.time) -> str:
    """When something began, as a time of day, with the date unless it was today."""
    began, today = time.localtime(seconds), time.localtime(now())
    form = "%H:%M" if began[:3] == today[:3] else "%Y-%m-%d %H:%M"
    return f"since {time.strftime(form, began)}"


def link(content: object, **query: str) -> Markup:
    """A link to the page of a part of this service; without a query, to that of all of it."""
    return element("a", content, href=f"?{urlencode(query)}" if query else "./")


def named(name: str | bytes) -> Markup:
    """A name, shortened in the middle if it is long; the tooltip has all of it."""
    text = shown(name)
    part = f"{text[: MAX_NAME_LENGTH // 2]}\N{HORIZONTAL ELLIPSIS}{text[-MAX_NAME_LENGTH // 2 :]}"
    return element("span", part if len(text) > MAX_NAME_LENGTH else text, class_="name", title=text)


def section(title: str, *content: Markup) -> Markup:
    """A section of the page."""
    return join(element("h2", title), *content)


def note(text: str) -> Markup:
    """A paragraph."""
    return element("p", text)


def rows_left_out(rows: Sequence[object], limit: int, what: str) -> Markup:
    """A note on the rows beyond the C{limit} that a table shows."""
    return note(f"and {len(rows) - limit:,} more {what}") if len(rows) > limit else Markup()


@frozen
class Cell:
    """A cell of a table that is sorted by a number."""

    content: object
    order: float


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()
) -> Markup:
    """
    A table, which the script of the page sorts by a column; on a narrow screen each row becomes a
    list.

    @param rows: of what is shown, or L{Cell}s.
    @param numbers: the columns whose cells are numbers.
    """
    kinds = ["number" if column in numbers else None for column in columns]
    head = (element("th", column, class_=kind) for column, kind in zip(columns, kinds, strict=True))
    body = (
        element("tr", *(
            _cell(cell, column, kind)
            for cell, column, kind in zip(row, columns, kinds, strict=True)
        ))
        for row in rows
    )  # fmt: skip
    return element(
        "div",
        element("table", element("thead", element("tr", *head)), element("tbody", *body)),
        class_="table",
    )


def _cell(cell: object, column: str, kind: str | None) -> Markup:
    content, order = (cell.content, f"{cell.order:g}") if isinstance(cell, Cell) else (cell, None)
    inner = element("span", content)
    return element("td", inner, class_=kind, data_label=column, data_order=order)


def events(lines: Iterable[Event]) -> Markup:
    """The last lines of the log, the last one first."""
    shown_lines = list(islice(lines, MAX_EVENT_ROWS))
    if not shown_lines:
        return note("nothing was logged yet")
    return element("ol", *(
        element(
            "li",
            element("time", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.time))),
            element("span", shown(line.text), class_="alarm" if line.is_warning else None),
        )
        for line in shown_lines
    ), class_="events")  # fmt: skip


def about(figures: Mapping[str, Any]) -> str:
    """The version of a service, its libfuse, its host, its use of TLS, and for how long it runs."""
    days = figures["certificate_days"]
    tls = "TLS" if figures["tls"] else "no TLS"
    if days is not None:
        tls += f", certificate for {days:.0f} more days" if days > 0 else ", certificate expired"
    libfuse = f" with libfuse {figures['libfuse']}" if figures["libfuse"] else ""
    return (
        f"mUFS {figures['version']}{libfuse} on {shown(figures['host'])}; {tls}; "
        f"up for {format_duration(figures['uptime'])}"
    )
