"""The client's status page: how its reads were answered, and what its cache holds."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import frozen

from mufs.status.history import History
from mufs.status.markup import Markup, element, join
from mufs.status.plots import COLUMNS, Line, cache_map, plot, shares
from mufs.status.widgets import (
    NONE,
    bits,
    cards,
    count,
    named,
    note,
    percent,
    seconds,
    section,
)
from mufs.units import format_bytes, shown
from mufs.wire.pages import ALL_PAGES, BLOCK, PAGE, PAGES
from mufs.wire.segments import SEGMENT

MAX_MAPS = 8
"""Images of which a map is drawn: the ones opened last."""

MAX_MAP_ROWS = 16
"""Rows of a map; for a large image a square stands for several blocks."""

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
    history: History,
) -> Markup:
    """The content of the page."""
    now = figures()
    held = list(images())[:MAX_MAPS]
    reads = [Line(way, history.rates(way)) for way in ("hits", "joined", "misses")]
    loss = history.shares("segments_lost", "segments_lost", "segments_received")
    segments, over_tcp = history.rates("segments_received"), history.rates("bytes_over_tcp")
    alarm = None if now["multicast_works"] else "alarm"
    lost = element("p", "no connection to the server", class_="alarm")
    return join(
        element("h1", "mUFS client"),
        note(f"{shown(now['mount'])} from {shown(now['server'])}"),
        element("p", f"multicast: {shown(now['multicast'])}", class_=alarm),
        Markup() if now["connected"] else lost,
        cards({
            "hit rate": percent(now["hit_rate"]) if now["reads"] else NONE,
            "reads": count(now["reads"]),
            "lag": seconds(now["lag"]),
            "delivered to readers": format_bytes(now["bytes_delivered"]),
            "in the cache": format_bytes(now["cache_bytes"]),
            "overheard": format_bytes(now["bytes_overheard"]),
            "over TCP": format_bytes(now["bytes_over_tcp"]),
        }),
        section(
            "Reads, by where they were answered",
            shares([
                ("hit: in the cache", now["hits"]),
                ("joined: on its way already", now["joined"]),
                ("miss: asked of the server", now["misses"]),
            ]),
            note("What the kernel answers from its own page cache is not seen here."),
        ),
        section("The last ten minutes", element(
            "div",
            plot("Hit rate", [Line("", history.shares("hits", "reads"))], percent),
            plot("Reads a second", reads, count),
            plot("Received", [
                Line("multicast", [(age, 8 * SEGMENT * value) for age, value in segments]),
                Line("TCP", [(age, 8 * value) for age, value in over_tcp]),
            ], bits),
            plot("Segments lost", [Line("", loss)], percent),
            class_="plots",
        )),
        section(
            "Cache",
            note(f"{format_bytes(now['cache_bytes'])} of {format_bytes(now['cache_size'])}"),
            *(map(_map, held) if held else [note("no image was opened yet")]),
        ),
    )  # fmt: skip


def _map(image: HeldImage) -> Markup:
    squares, exact = held_parts(image)
    blocks = -(-image.size // BLOCK)
    part = sum(squares) / len(squares) if squares else 0.0
    about = "" if exact else "about "
    head = element(
        "div",
        element("b", named(image.path)),
        f" {format_bytes(image.size)}, {about}{part:.1%} held{'' if image.is_open else '; closed'}",
    )
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
    last = -(-image.size // PAGE) - (blocks - 1) * PAGES
    found = []
    for first in range(0, blocks, per):
        looks = range(first, min(first + per, blocks), step)
        beyond = PAGES - last if looks[-1] == blocks - 1 else 0
        lacking = sum(image.missing(block, ALL_PAGES).bit_count() for block in looks) - beyond
        found.append(1 - lacking / (len(looks) * PAGES - beyond))
    return found, step == 1
