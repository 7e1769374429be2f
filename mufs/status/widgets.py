"""The elements of the status pages, besides plots, and how they format numbers."""

from collections.abc import Mapping, Sequence

from mufs.status.markup import Markup, element, join
from mufs.units import shown

MAX_NAME_LENGTH = 60
"""Characters of a name that are shown."""

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


def cards(values: Mapping[str, str]) -> Markup:
    """Numbers in large type, each with its name."""
    boxes = [
        element("div", element("span", name), element("b", value)) for name, value in values.items()
    ]
    return element("div", *boxes, class_="cards")


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


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()
) -> Markup:
    """
    A table; on a narrow screen each row becomes a list.

    @param numbers: the columns whose cells are numbers.
    """
    kinds = ["number" if column in numbers else None for column in columns]
    head = (element("th", column, class_=kind) for column, kind in zip(columns, kinds, strict=True))
    body = (
        element("tr", *(
            element("td", element("span", cell), class_=kind, data_label=column)
            for cell, column, kind in zip(row, columns, kinds, strict=True)
        ))
        for row in rows
    )  # fmt: skip
    return element(
        "div",
        element("table", element("thead", element("tr", *head)), element("tbody", *body)),
        class_="table",
    )
