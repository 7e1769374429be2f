"""What the pages of server and client are made of, besides plots."""

from collections.abc import Mapping, Sequence

from mufs.status.markup import Markup, element, join, shown

LONG = 60
"""Characters of a name that are shown at the most."""

NONE = "\N{EN DASH}"
"""Shown where there is no number yet."""


def count(value: float) -> str:
    """A number of things."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes, by powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.2f} TiB"


def bits(value: float) -> str:
    """Bits a second, by powers of 1000."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} Gbit/s"


def percent(value: float) -> str:
    """A fraction of 1."""
    return f"{value:.1%}"


def seconds(value: float) -> str:
    """A time."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def cards(values: Mapping[str, str]) -> Markup:
    """Numbers in large, each with its name."""
    boxes = [
        element("div", element("span", name), element("b", value)) for name, value in values.items()
    ]
    return element("div", *boxes, class_="cards")


def named(name: str | bytes) -> Markup:
    """A name, of which the middle is left out if it is long; the whole of it is its title."""
    text = shown(name)
    part = f"{text[: LONG // 2]}\N{HORIZONTAL ELLIPSIS}{text[-LONG // 2 :]}"
    return element("span", part if len(text) > LONG else text, class_="name", title=text)


def section(title: str, *content: Markup) -> Markup:
    """A part of the page."""
    return join(element("h2", title), *content)


def note(text: str) -> Markup:
    """A remark."""
    return element("p", text)


def rest(rows: Sequence[object], most: int, what: str) -> Markup:
    """What is said where only so many rows are shown."""
    return note(f"and {len(rows) - most:,} more {what}") if len(rows) > most else Markup()


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()
) -> Markup:
    """
    A table, or on a narrow screen each row below the other.

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
