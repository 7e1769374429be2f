"""The client's status page: how its reads were answered, and what its cache holds."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import frozen

from mufs.status.history import Series
from mufs.status.markup import Markup, element, join
from mufs.status.plots import COLUMNS, Line, cache_map, in_bits, plot, shares
from mufs.status.site import View
from mufs.status.widgets import (
    NONE,
    about,
    bits,
    cards,
    count,
    events,
    link,
    named,
    note,
    percent,
    seconds,
    section,
    since,
)
from mufs.units import format_bytes, shown
from mufs.wire.pages import ALL_PAGES, BLOCK, BLOCK_PAGES, PAGE
from mufs.wire.segments import SEGMENT

MAX_MAPS = 8
"""Images of which a map is drawn: the ones opened last."""

MAX_MAP_ROWS = 16
"""Rows of a map; for a large image a square stands for several blocks."""

OF_DAY = (
    "hits", "reads", "joined", "misses", "segments_received", "segments_lost", "bytes_over_tcp",
)  # fmt: skip
"""The figures of which a day is shown."""

MAX_SAMPLES_PER_SQUARE = 4
"""Blocks of a square that are looked up, evenly spread: the map of a large image is a sample."""


@frozen
class HeldImage:
    """
    An image that the cache holds at least in part.

    @ivar size: bytes.
    @ivar missing: returns which of the given pages of a block are not held.
    """

    path: bytes
    size: int
    is_open: bool
    missing: Callable[[int, int], int]


def client_page(
    figures: Callable[[], Mapping[str, Any]],
    images: Callable[[], Iterable[HeldImage]],
    view: View,
) -> Markup:
    """The content of the page that the query asks for."""
    if "image" in view.query:
        return _image_page(view.query["image"], images())
    return _overview(figures(), list(images())[:MAX_MAPS], view)


def _overview(now: Mapping[str, Any], held: list[HeldImage], view: View) -> Markup:
    alarm = None if now["multicast_works"] else "alarm"
    why = now["why_disconnected"]
    text = f"no connection to the server: {shown(why)}" if why else "no connection to the server"
    lost = element("p", text, class_="alarm")
    start = since(now["started"])
    series = view.history.recent, view.history.day
    return join(
        element("h1", "mUFS client"),
        note(about(now)),
        note(f"{shown(now['mount'])} from {shown(now['server'])}"),
        element("p", f"multicast: {shown(now['multicast'])}", class_=alarm),
        Markup() if now["connected"] else lost,
        cards([
            ("hit rate", percent(now["hit_rate"]) if now["reads"] else NONE, start),
            ("reads", count(now["reads"]), start),
            ("lag", seconds(now["lag"]), "the last five seconds"),
            ("delivered to readers", format_bytes(now["bytes_delivered"]), start),
            ("known to be zero", format_bytes(now["bytes_zero"]), start),
            ("in the cache", format_bytes(now["cache_bytes"]), "now"),
            ("received by multicast", format_bytes(now["bytes_multicast"]), start),
            ("unpacked to", format_bytes(now["image_bytes_multicast"]), start),
            ("overheard", format_bytes(now["bytes_overheard"]), start),
            ("over TCP", format_bytes(now["bytes_over_tcp"]), start),
        ]),
        section(
            "Reads, by where they were answered",
            shares([
                ("hit: in the cache", now["hits"]),
                ("joined: on its way already", now["joined"]),
                ("miss: asked of the server", now["misses"]),
            ]),
            note(
                "A read of what is known to be zero is a hit. What the kernel answers from its own "
                "page cache is not seen here."
            ),
        ),
        section("The last ten minutes, and the last day", element(
            "div",
            *(make(each) for make in (_hit_rate, _reads, _received, _lost) for each in series),
            class_="plots",
        )),
        section(
            "Cache",
            note(f"{format_bytes(now['cache_bytes'])} of {format_bytes(now['cache_size'])}"),
            _given_up(now["evictions_for_space"], start),
            *(map(_map, held) if held else [note("no image was opened yet")]),
        ),
        section("Last events", events(view.events)),
    )  # fmt: skip


def _given_up(blocks: int, start: str) -> Markup:
    if not blocks:
        return Markup()
    text = f"{count(blocks)} blocks given up as the disk was filling up, {start}"
    return element("p", text, class_="alarm")


def _hit_rate(series: Series) -> Markup:
    points = series.shares("hits", "reads")
    return plot("Hit rate", [Line("", points)], percent, series.seconds)


def _reads(series: Series) -> Markup:
    lines = [Line(way, series.rates(way)) for way in ("hits", "joined", "misses")]
    return plot("Reads a second", lines, count, series.seconds)


def _received(series: Series) -> Markup:
    lines = [
        Line("multicast", in_bits(series.rates("segments_received"), SEGMENT)),
        Line("TCP", in_bits(series.rates("bytes_over_tcp"))),
    ]
    return plot("Received", lines, bits, series.seconds)


def _lost(series: Series) -> Markup:
    points = series.shares("segments_lost", "segments_lost", "segments_received")
    return plot("Segments lost", [Line("", points)], percent, series.seconds)


def _image_page(name: str, images: Iterable[HeldImage]) -> Markup:
    found = [image for image in images if shown(image.path) == name]
    return join(
        element("h1", named(name)),
        note("an image at this client: dark squares are in the cache"),
        element("p", link("to the whole client")),
        *([_map(image, fold=False) for image in found] or [note("not opened yet")]),
    )


def _map(image: HeldImage, *, fold: bool = True) -> Markup:
    """
    How much of an image is held, and where.

    @param fold: leave the map out if all of it is held.
    """
    squares, exact = held_parts(image)
    blocks = -(-image.size // BLOCK)
    part = sum(squares) / len(squares) if squares else 1.0
    is_full = exact and all(square >= 1 for square in squares)
    how_much = "all held" if is_full else f"{'' if exact else 'about '}{part:.1%} held"
    head = element(
        "div",
        element("b", link(named(image.path), image=shown(image.path))),
        f" {format_bytes(image.size)}, {how_much}{'' if image.is_open else '; closed'}",
    )
    if is_full and fold:
        return element("div", head, class_="held")
    per = -(-blocks // len(squares)) if squares else 0
    scale = element("span", f"a square: {format_bytes(per * BLOCK)}", class_="axis")
    picture = cache_map(squares, f"{part:.0%} of {shown(image.path)} is held")
    return element("div", head, picture, scale, class_="held")


def held_parts(image: HeldImage) -> tuple[list[float], bool]:
    """
    The fractions held of at most C{MAX_MAP_ROWS * COLUMNS} parts of an image.

    @return: the fractions, and whether all blocks were looked up.
    """
    blocks = -(-image.size // BLOCK)
    per = max(1, -(-blocks // (MAX_MAP_ROWS * COLUMNS)))
    step = -(-per // MAX_SAMPLES_PER_SQUARE)
    last = -(-image.size // PAGE) - (blocks - 1) * BLOCK_PAGES
    found = []
    for first in range(0, blocks, per):
        looks = range(first, min(first + per, blocks), step)
        beyond = BLOCK_PAGES - last if looks[-1] == blocks - 1 else 0
        lacking = sum(image.missing(block, ALL_PAGES).bit_count() for block in looks) - beyond
        found.append(1 - lacking / (len(looks) * BLOCK_PAGES - beyond))
    return found, step == 1
