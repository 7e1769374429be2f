"""C{mufs status}: the figures of services, as tables or as JSON."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mufs.commands.parser import converted
from mufs.options import parse_seconds
from mufs.sockets import (
    Nobody,
    Unreachable,
    ask,
    hidden_directories,
    locate,
    socket_of_mount,
    sockets,
)
from mufs.status.widgets import count, ratio, seconds
from mufs.units import format_bytes

UNLIMITED_WIDTH = 10_000
"""Columns when standard output is not a terminal, so that nothing is cut."""

Found = dict[str, Any]
"""The figures of a service, or an error; C{service} and C{at} name the service."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add C{status} to the subcommands of C{mufs}."""
    parser = commands.add_parser(
        "status",
        help="show the state of servers and clients",
        description="Show the state of a server or a client; without WHERE, of all on this host.",
        example="mufs status /mnt/images",
    )
    parser.add_argument(
        "where", metavar="WHERE", nargs="?",
        help="a path on a mount; or where --status serves: a port of this host, HOST:PORT, "
        "http://HOST:PORT, unix:PATH",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--watch", metavar="SECONDS", nargs="?", type=converted(_seconds), const=2.0,
        help="show them every so many seconds until Ctrl-C (default: 2)",
    )  # fmt: skip
    parser.set_defaults(run=_run)


def _seconds(text: str) -> float:
    seconds = parse_seconds(text)
    if not 0.1 <= seconds <= 86400:
        raise ValueError("is not from 0.1 to 86400")
    return seconds


def console() -> Console:
    """Standard output: with colours and line breaks only if it is a terminal."""
    width = None if sys.stdout.isatty() else UNLIMITED_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def _run(given: argparse.Namespace) -> None:
    out = console()
    if given.watch is None:
        found = _found(given.where)
        _print(out, found, given)
        if any("error" in each for each in found):
            sys.exit(1)
        return
    try:
        if given.json or not out.is_terminal:
            while True:
                _print(out, _found(given.where), given)
                sys.stdout.flush()
                time.sleep(given.watch)
        with Live(console=out, auto_refresh=False) as live:
            while True:
                try:
                    shown = _tables(_found(given.where))
                except Unreachable as error:
                    shown = Text(str(error))
                live.update(shown, refresh=True)
                time.sleep(given.watch)
    except KeyboardInterrupt:
        pass


def _print(out: Console, found: list[Found], given: argparse.Namespace) -> None:
    if given.json:
        print(json.dumps(found if given.where is None else found[0], indent=1))
    else:
        out.print(_tables(found))


def _found(where: str | None) -> list[Found]:
    """@raise Unreachable: when no service answers."""
    if where is not None:
        return [_figures(_at(where))]
    found = []
    for at in sockets():
        try:
            found.append(_figures(at))
        except Nobody:
            continue  # the socket of a process that was killed
        except Unreachable as error:
            found.append(_no_answer(at, str(error)))
    found += [_no_answer(at, f"{at}: Permission denied") for at in hidden_directories()]
    if not found:
        raise Unreachable("no server and no client runs here")
    return found


def _no_answer(at: str, error: str) -> Found:
    return {"service": "?", "at": at, "error": error}


def _at(where: str) -> str:
    """The address of the service that the user names."""
    if where.isdecimal():
        return f"http://127.0.0.1:{where}"
    if ":" in where and not os.path.exists(where):
        return where
    return socket_of_mount(locate(where)[0])


def _figures(at: str) -> Found:
    figures = ask(at)
    service = "client" if "mount" in figures else "server"
    return {"service": service, "at": at, **figures}


# Tables.


def plain(text: object) -> Text:
    """Text from another host, with control characters escaped."""
    return Text("".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)))


def _tables(found: Iterable[Found]) -> RenderableType:
    shown: list[RenderableType] = []
    for each in found:
        if shown:
            shown.append("")
        try:
            shown.extend(_SHOWN[each["service"]](each))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise Unreachable(f"{each['at']}: not the figures of mUFS ({error!r})") from None
    return Group(*shown)


def _error(each: Found) -> list[RenderableType]:
    return [plain(each["error"])]


def _client(f: Found) -> list[RenderableType]:
    why = f.get("why_disconnected")
    connected = "yes" if f["connected"] else f"no: {why}" if why else "no"
    return [
        _title("client", f["mount"]),
        _pairs([
            ("reads", count(f["reads"]), "asked for", format_bytes(f["bytes_requested"])),
            ("hits", count(f["hits"]), "overheard", format_bytes(f["bytes_overheard"])),
            ("joined", count(f["joined"]), "over TCP", format_bytes(f["bytes_over_tcp"])),
            ("misses", count(f["misses"]), "cache", _of(f["cache_bytes"], f["cache_size"])),
            ("hit rate", _share(f["hit_rate"]), "evicted blocks", count(f["evictions"])),
            ("lag", seconds(f["lag"]), "lost segments", _part(f["segments_lost"],
                                                          f["segments_received"])),
            ("delivered", format_bytes(f["bytes_delivered"]), "by multicast",
             format_bytes(f["bytes_multicast"])),
            ("known to be zero", format_bytes(f["bytes_zero"]), "unpacked to",
             format_bytes(f["image_bytes_multicast"])),
            ("libfuse", f["libfuse"], "", ""),
        ]),
        _lines([
            ("server", f"{f['server']}{', TLS' if f['tls'] else ''}"),
            ("connected", connected),
            ("multicast", f["multicast"]),
        ]),
    ]  # fmt: skip


def _server(f: Found) -> list[RenderableType]:
    over_tcp = sum(bool(each["over_tcp"]) for each in f["clients"])
    shown: list[RenderableType] = [
        _title("server", f["at"].rpartition("/")[2].removesuffix(".sock")),
        _pairs([
            ("clients", count(len(f["clients"])), "by multicast",
             format_bytes(f["bytes_multicast"])),
            ("over TCP now", count(over_tcp), "over TCP", format_bytes(f["bytes_over_tcp"])),
            ("requests", count(f["requests"]), "read of images",
             format_bytes(f["image_read_bytes"])),
            ("merged", _part(f["requests_merged"], f["requests"]), "lost segments",
             _part(f["segments_lost"], f["segments_awaited"])),
            ("queue", count(f["queue"]), "sent again", _part(f["segments_repaired"],
                                                             f["segments_sent"])),
            ("delivered", format_bytes(f["bytes_delivered"]), "sent for each byte of it",
             ratio(f["bytes_multicast"] + f["bytes_over_tcp"], f["bytes_delivered"])),
            ("before packing", format_bytes(f["image_bytes_multicast"]), "zeros left out",
             format_bytes(f["bytes_zero"])),
            ("compressed", f"{format_bytes(f['bytes_compressed'])} to "
             f"{format_bytes(f['bytes_compressed_to'])}", "compressing took",
             seconds(f["compression_seconds"])),
            ("rate at most", f"{f['rate'] / 1e6:,.0f} Mbit/s", "interface", f["interface"] or "-"),
        ]),
    ]  # fmt: skip
    clients = _table(
        "host", "address", "image", ">hit rate", ">lag", ">delivered", "via", ">over TCP"
    )
    for each in f["clients"]:
        rate = each["hits"] / each["reads"] if each["reads"] else 0.0
        clients.add_row(
            plain(each["name"]), plain(each["address"]), plain(each["image"] or "-"),
            _share(rate), seconds(each["lag"]), format_bytes(each["bytes_delivered"]),
            "TCP" if each["over_tcp"] else "multicast", format_bytes(each["bytes_over_tcp"]),
        )  # fmt: skip
    images = _table("image", ">open", ">requests", ">asked for", ">demand")
    for each in f["images"]:
        images.add_row(
            plain(each["name"]), count(each["opens"]), count(each["requests"]),
            format_bytes(each["bytes_requested"]), f"{format_bytes(each['demand'])}/s",
        )  # fmt: skip
    tables = [each for each in (clients, images) if each.row_count]
    return shown + [Padding(each, (1, 0, 0, 2), expand=False) for each in tables]


_SHOWN = {"client": _client, "server": _server, "?": _error}


def _title(kind: str, name: str) -> Text:
    return Text.assemble((f"{kind} ", "bold"), plain(name))


def _pairs(rows: list[tuple[str, str, str, str]]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for style, justify in (("dim", "left"), ("", "right"), ("dim", "left"), ("", "right")):
        table.add_column(style=style, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(plain, row))
    return Padding(table, (0, 0, 0, 2), expand=False)


def _lines(rows: list[tuple[str, object]]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, plain(value))
    return Padding(table, (0, 0, 0, 2), expand=False)


def _table(*columns: str) -> Table:
    """A table; columns whose names begin with C{>} are numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        number = name.startswith(">")
        table.add_column(
            name.lstrip(">"), justify="right" if number else "left", no_wrap=number,
            overflow="fold",
        )  # fmt: skip
    return table


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _part(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else f"{part:,}"


def _of(part: int, whole: int) -> str:
    return f"{format_bytes(part)} of {format_bytes(whole)}"
