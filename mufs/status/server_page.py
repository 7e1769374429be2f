"""The server's status page: what it sends, its clients and its images."""

from collections.abc import Callable, Mapping
from typing import Any

from mufs.status.history import History
from mufs.status.markup import Markup, element, join
from mufs.status.plots import Line, plot
from mufs.status.widgets import (
    NONE,
    bits,
    cards,
    count,
    named,
    note,
    percent,
    ratio,
    rows_left_out,
    seconds,
    section,
    table,
)
from mufs.units import format_bytes, shown

MAX_CLIENT_ROWS = 200
"""Clients shown: first those that read over TCP, then those whose reads wait longest."""

MAX_IMAGE_ROWS = 20
"""Images shown, the most requested first."""


def server_page(figures: Callable[[], Mapping[str, Any]], history: History) -> Markup:
    """The content of the page."""
    now = figures()
    clients, images = now["clients"], now["images"]
    multicast, over_tcp = history.rates("bytes_multicast"), history.rates("bytes_over_tcp")
    loss = history.shares("segments_lost", "segments_awaited")
    sent = now["bytes_multicast"] + now["bytes_over_tcp"]
    return join(
        element("h1", "mUFS server"),
        note(
            f"multicast goes out on {now['interface']}" if now["interface"]
            else "nothing is sent by multicast yet"
        ),
        cards({
            "clients": count(len(clients)),
            "waiting in the queue": count(now["queue"]),
            "rate at most": bits(now["rate"]),
            "sent by multicast": format_bytes(now["bytes_multicast"]),
            "sent over TCP": format_bytes(now["bytes_over_tcp"]),
            "delivered to readers": format_bytes(now["bytes_delivered"]),
            "sent for each byte delivered": ratio(sent, now["bytes_delivered"]),
            "read of images": format_bytes(now["image_read_bytes"]),
        }),
        section("The last ten minutes", element(
            "div",
            plot("Sent", [
                Line("multicast", [(age, 8 * value) for age, value in multicast]),
                Line("TCP", [(age, 8 * value) for age, value in over_tcp]),
            ], bits),
            plot("Rate at most", [Line("", history.values("rate"))], bits),
            plot("Segments lost", [Line("", loss)], percent),
            plot("Queue", [Line("", history.values("queue"))], count),
            class_="plots",
        )),
        section("Clients", _clients(clients)),
        section("Images", _images(images)),
    )  # fmt: skip


def _clients(rows: list[dict[str, Any]]) -> Markup:
    if not rows:
        return note("no client is connected")
    order = sorted(rows, key=lambda row: (not row["over_tcp"], -row["lag"], row["name"]))
    names = "host", "address", "image", "hit rate", "lag", "reads", "delivered", "over"
    cells = [
        (
            named(row["name"]),
            row["address"] or NONE,
            _image(row),
            percent(row["hits"] / row["reads"]) if row["reads"] else NONE,
            seconds(row["lag"]),
            count(row["reads"]),
            format_bytes(row["bytes_delivered"]),
            _way(row),
        )
        for row in order[:MAX_CLIENT_ROWS]
    ]
    numbers = "hit rate", "lag", "reads", "delivered"
    return join(table(names, cells, numbers), rows_left_out(rows, MAX_CLIENT_ROWS, "clients"))


def _image(row: dict[str, Any]) -> Markup:
    if row["image"] is None:
        return join("none yet")
    others = row["images"] - 1
    return join(named(row["image"]), f" and {others} more" if others > 0 else "")


def _way(row: dict[str, Any]) -> str | Markup:
    why = shown(row["multicast"])
    if row["over_tcp"]:
        reason = "what multicast did not bring" if why == "working" else why
        return element("span", f"TCP: {reason.removeprefix('not working: ')}", class_="alarm")
    return "multicast" if why == "working" else why or NONE


def _images(rows: list[dict[str, Any]]) -> Markup:
    if not rows:
        return note("no image was opened yet")
    order = sorted(rows, key=lambda row: (-row["demand"], -row["bytes_requested"], row["name"]))
    top = order[0]["demand"] or 1
    names = "image", "open", "asked for", "in all", "heat"
    cells = [
        (
            named(row["name"]),
            count(row["opens"]),
            bits(8 * row["demand"]),
            format_bytes(row["bytes_requested"]),
            element("meter", min=0, max=1, value=f"{row['demand'] / top:.3f}",
                    title=f"{row['demand'] / top:.0%} of the hottest"),
        )
        for row in order[:MAX_IMAGE_ROWS]
    ]  # fmt: skip
    numbers = "open", "asked for", "in all"
    return join(table(names, cells, numbers), rows_left_out(rows, MAX_IMAGE_ROWS, "images"))
