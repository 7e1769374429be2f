"""The server's pages about one client and about one image."""

from collections.abc import Mapping
from typing import Any

from mufs.status.markup import Markup, element, join
from mufs.status.site import View
from mufs.status.widgets import (
    NONE,
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
    table,
)
from mufs.units import format_bytes, format_duration, shown

Row = dict[str, Any]


def client_details(now: Mapping[str, Any], view: View) -> Markup:
    """All that is known of the connections of a client, by its name and address."""
    name, address = view.query["client"], view.query.get("address", "")
    rows = [row for row in now["clients"] if (row["name"], row["address"]) == (name, address)]
    about_it = (event for event in view.events if event.client == (name, address))
    parts = [_connection(row) for row in rows] or [note("not connected now")]
    return join(
        element("h1", named(name)),
        note(f"a client of this server, from {shown(address) or NONE}"),
        element("p", link("to the whole server")),
        *parts,
        section("Last events", events(about_it)),
    )


def _connection(row: Row) -> Markup:
    whole = "on this connection"
    start = "since it started"
    hit_rate = percent(row["hits"] / row["reads"]) if row["reads"] else NONE
    opened = [(link(named(image), image=image),) for image in row["open_images"]]
    left_out = row["images"] - len(opened)
    return join(
        section(f"Connected for {format_duration(row['connected'])}"),
        element("p", "reads over: ", way(row)),
        cards([
            ("hit rate", hit_rate, start),
            ("reads", count(row["reads"]), start),
            ("lag", seconds(row["lag"]), "in the last report"),
            ("delivered to readers", format_bytes(row["bytes_delivered"]), whole),
            ("sent to it over TCP", format_bytes(row["bytes_over_tcp"]), whole),
            ("requests", count(row["requests"]), whole),
            ("repairs", count(row["repairs"]), whole),
            ("waits for", format_bytes(row["waiting"]), "now"),
            ("throttled", count(row["held_back"]), "its address"),
        ]),
        element("h3", "Open images"),
        table(("image",), opened) if opened else note("none"),
        note(f"and {left_out:,} more handles") if left_out > 0 else Markup(),
    )  # fmt: skip


def image_details(now: Mapping[str, Any], view: View) -> Markup:
    """What clients ask for of an image, and who has it open."""
    name = view.query["image"]
    rows = [row for row in now["images"] if row["name"] == name]
    readers = [row for row in now["clients"] if name in row["open_images"]]
    cells = [
        (
            link(named(row["name"]), client=row["name"], address=row["address"]),
            row["address"] or NONE,
            way(row),
        )
        for row in readers
    ]
    return join(
        element("h1", named(name)),
        note("an image of this server"),
        element("p", link("to the whole server")),
        *([_image(row) for row in rows] or [note("nobody has opened it yet")]),
        section(
            "Clients that have it open",
            table(("host", "address", "over"), cells) if cells else note("none"),
        ),
    )


def _image(row: Row) -> Markup:
    start = "since the start"
    return cards([
        ("size", format_bytes(row["size"]), "when it was opened last"),
        ("open", count(row["opens"]), "handles now"),
        ("asked for", bits(8 * row["demand"]), "in the last minute"),
        ("asked for in all", format_bytes(row["bytes_requested"]), start),
        ("requests", count(row["requests"]), start),
    ])  # fmt: skip


def way(row: Row) -> str | Markup:
    """Whether multicast reaches a client, and if not, why not."""
    why = shown(row["multicast"])
    if row["over_tcp"]:
        reason = "what multicast did not bring" if why == "working" else why
        return element("span", f"TCP: {reason.removeprefix('not working: ')}", class_="alarm")
    return "multicast" if why == "working" else why or NONE
