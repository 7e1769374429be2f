"""The server's status page: what it sends, its clients and its images."""

from collections.abc import Callable, Mapping
from typing import Any

from mufs.status.history import Series
from mufs.status.markup import Markup, element, join
from mufs.status.plots import Line, in_bits, plot
from mufs.status.server_details import client_details, image_details, way
from mufs.status.site import View
from mufs.status.widgets import (
    NONE,
    Cell,
    about,
    bits,
    cards,
    count,
    events,
    link,
    named,
    note,
    percent,
    ratio,
    rows_left_out,
    seconds,
    section,
    since,
    table,
)
from mufs.units import format_bytes, shown

MAX_CLIENT_ROWS = 200
"""Clients shown: first those that read over TCP, then those whose reads wait longest."""

MAX_IMAGE_ROWS = 20
"""Images shown, the most requested first."""

OF_DAY = (
    "bytes_multicast", "image_bytes_multicast", "bytes_over_tcp", "bytes_delivered",
    "segments_lost", "segments_awaited", "queue",
)  # fmt: skip
"""The figures of which a day is shown."""

REPORT_SAMPLES = 5
"""Samples over which a rate is taken of what clients report every five seconds."""


def server_page(figures: Callable[[], Mapping[str, Any]], view: View) -> Markup:
    """The content of the page that the query asks for."""
    now = figures()
    if "client" in view.query:
        return client_details(now, view)
    if "image" in view.query:
        return image_details(now, view)
    return _overview(now, view)


def _overview(now: Mapping[str, Any], view: View) -> Markup:
    sent = now["bytes_multicast"] + now["bytes_over_tcp"]
    start = since(now["started"])
    interface = now["interface"]
    recent, day = view.history.recent, view.history.day
    return join(
        element("h1", "mUFS server"),
        note(about(now)),
        note(
            f"{shown(now['directory'])}; multicast to {now['group']} goes out on {interface}"
            if interface
            else f"{shown(now['directory'])}; nothing is sent by multicast yet"
        ),
        cards([
            ("clients", count(len(now["clients"])), "now"),
            ("waiting in the queue", count(now["queue"]), "now"),
            ("sent by multicast", format_bytes(now["bytes_multicast"]), start),
            ("of images, before packing", format_bytes(now["image_bytes_multicast"]), start),
            ("zeros left out", format_bytes(now["bytes_zero"]), start),
            ("compressed to", _compressed_to(now), start),
            ("sent over TCP", format_bytes(now["bytes_over_tcp"]), start),
            ("delivered to readers", format_bytes(now["bytes_delivered"]), start),
            ("sent for each byte delivered", ratio(sent, now["bytes_delivered"]), start),
            ("read of images", format_bytes(now["image_read_bytes"]), start),
        ]),
        section(
            "The last ten minutes, and the last day",
            element("div", *_plots(recent, day), class_="plots"),
        ),
        section("Clients", _clients(now["clients"])),
        section("Images", _images(now["images"])),
        section("Last events", events(view.events)),
    )  # fmt: skip


def _compressed_to(now: Mapping[str, Any]) -> str:
    before = now["bytes_compressed"]
    return percent(now["bytes_compressed_to"] / before) if before else NONE


def _plots(*all_series: Series) -> list[Markup]:
    return [
        make(series)
        for make in (_sent, _delivered, _lost, _queue)
        for series in all_series
    ]  # fmt: skip


def _sent(series: Series) -> Markup:
    amounts = (
        ("multicast", "bytes_multicast"),
        ("TCP", "bytes_over_tcp"),
        ("before packing", "image_bytes_multicast"),
    )
    lines = [Line(label, in_bits(series.rates(name))) for label, name in amounts]
    return plot("Sent", lines, bits, series.seconds)


def _delivered(series: Series) -> Markup:
    points = in_bits(series.rates("bytes_delivered", samples=REPORT_SAMPLES))
    return plot("Delivered to readers", [Line("", points)], bits, series.seconds)


def _lost(series: Series) -> Markup:
    points = series.shares("segments_lost", "segments_awaited")
    return plot("Segments lost", [Line("", points)], percent, series.seconds)


def _queue(series: Series) -> Markup:
    return plot("Queue", [Line("", series.values("queue"))], count, series.seconds)


def _clients(rows: list[dict[str, Any]]) -> Markup:
    if not rows:
        return note("no client is connected")
    order = sorted(rows, key=lambda row: (not row["over_tcp"], -row["lag"], row["name"]))
    names = "host", "address", "image", "hit rate", "lag", "reads", "delivered", "over"
    cells = [
        (
            link(named(row["name"]), client=row["name"], address=row["address"]),
            row["address"] or NONE,
            _image(row),
            Cell(percent(row["hits"] / row["reads"]), row["hits"] / row["reads"])
            if row["reads"]
            else Cell(NONE, -1),
            Cell(seconds(row["lag"]), row["lag"]),
            Cell(count(row["reads"]), row["reads"]),
            Cell(format_bytes(row["bytes_delivered"]), row["bytes_delivered"]),
            way(row),
        )
        for row in order[:MAX_CLIENT_ROWS]
    ]
    numbers = "hit rate", "lag", "reads", "delivered"
    return join(table(names, cells, numbers), rows_left_out(rows, MAX_CLIENT_ROWS, "clients"))


def _image(row: dict[str, Any]) -> Markup:
    if row["image"] is None:
        return join("none yet")
    others = row["images"] - 1
    image = link(named(row["image"]), image=row["image"])
    return join(image, f" and {others} more" if others > 0 else "")


def _images(rows: list[dict[str, Any]]) -> Markup:
    if not rows:
        return note("no image was opened yet")
    order = sorted(rows, key=lambda row: (-row["demand"], -row["bytes_requested"], row["name"]))
    top = order[0]["demand"] or 1
    names = "image", "size", "open", "asked for", "in all", "heat"
    cells = [
        (
            link(named(row["name"]), image=row["name"]),
            Cell(format_bytes(row["size"]), row["size"]),
            Cell(count(row["opens"]), row["opens"]),
            Cell(bits(8 * row["demand"]), row["demand"]),
            Cell(format_bytes(row["bytes_requested"]), row["bytes_requested"]),
            Cell(
                element("meter", min=0, max=1, value=f"{row['demand'] / top:.3f}",
                        title=f"{row['demand'] / top:.0%} of the hottest"),
                row["demand"],
            ),
        )
        for row in order[:MAX_IMAGE_ROWS]
    ]  # fmt: skip
    numbers = "size", "open", "asked for", "in all"
    return join(table(names, cells, numbers), rows_left_out(rows, MAX_IMAGE_ROWS, "images"))
