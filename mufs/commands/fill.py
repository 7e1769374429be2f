"""C{mufs pull} and C{mufs push}: fill caches before images are read."""

import argparse
import errno
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from mufs.commands.status import console, plain
from mufs.sockets import (
    SERVER,
    Nobody,
    Unreachable,
    ask,
    follow,
    locate,
    socket_of_mount,
    sockets,
    unbracketed,
)
from mufs.units import format_bytes

REPORT_INTERVAL = 5.0
"""Seconds between lines when standard output is not a terminal."""

Record = dict[str, Any]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add C{pull} and C{push} to the subcommands of C{mufs}."""
    pull = commands.add_parser(
        "pull",
        help="fill the cache of a client with images",
        description="Fill the cache of the client at a mount with images, before they are read. "
        "Reads have priority. Ctrl-C interrupts; what the cache has is not fetched again.",
        example="mufs pull /mnt/images/disk.img",
    )
    pull.add_argument("images", metavar="IMAGE", nargs="+", help="path on a mount")
    pull.add_argument("--quiet", action="store_true", help="print only errors")
    pull.set_defaults(run=_pull)
    push = commands.add_parser(
        "push",
        help="fill the caches of a server's clients with an image",
        description="Have the clients of the server on this host fill their caches with an image, "
        "which is sent once for all of them. Clients that connect meanwhile join. Ctrl-C stops it.",
        example="mufs push disk.img",
    )
    push.add_argument("image", metavar="IMAGE", help="path beneath --images, or of the file")
    push.add_argument(
        "--to", metavar="CLIENT", nargs="+", help="names of clients (default: all that may read it)"
    )
    push.add_argument(
        "--server", metavar="ADDRESS:PORT", help="the server, if several run on this host"
    )
    push.add_argument("--quiet", action="store_true", help="print only errors")
    push.set_defaults(run=_push)


class _Rate(ProgressColumn):
    """Bytes per second, in the units of the other columns."""

    def render(self, task: Task) -> Text:
        """See C{ProgressColumn.render}."""
        return Text(f"{format_bytes(task.speed or 0)}/s")


class _Bar:
    """Progress: a bar on a terminal, otherwise a line every few seconds."""

    def __init__(self, name: str, quiet: bool) -> None:
        """@param quiet: print nothing."""
        out = console()
        self._out = Console(quiet=True) if quiet else out
        self._name = name
        self._since = self._reported = time.monotonic()
        narrow = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=narrow),
            BarColumn(10),
            DownloadColumn(binary_units=True, table_column=Column(no_wrap=True)),
            _Rate(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            console=self._out,
            expand=True,
            transient=True,
            disable=quiet or not out.is_terminal,
        )
        self._task = self._progress.add_task(plain(name).plain, total=None, note="")

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, held: float, size: float, came: float, *, note: str, last: bool = False) -> None:
        """
        Show that C{held} of C{size} bytes are cached.

        @param came: bytes received since the start.
        @param last: print a final line.
        """
        self._progress.update(self._task, completed=held, total=size or None, note=note)
        late = time.monotonic() - self._reported >= REPORT_INTERVAL
        if last or (late and self._progress.disable):
            self._reported = time.monotonic()
            rate = came / max(0.001, self._reported - self._since)
            text = f"{self._name}: {_of(held, size)}, {format_bytes(rate)}/s, {note}"
            self._out.print(plain(text.removesuffix(", ")))
            sys.stdout.flush()


def _of(held: float, size: float) -> str:
    share = f" ({100 * held / size:.0f} %)" if size else ""
    return f"{format_bytes(held)} of {format_bytes(size)}{share}"


def _pull(given: argparse.Namespace) -> None:
    failed = False
    for path in given.images:
        try:
            _pull_one(path, given.quiet)
        except Unreachable as error:
            print(f"mufs: {error}", file=sys.stderr)
            failed = True
    sys.exit(failed)


def _pull_one(path: str, quiet: bool) -> None:
    mount, rest = locate(path)
    with _Bar(rest, quiet) as bar:

        def show(said: Record, last: bool = False) -> None:
            came = said["asked"] + said["overheard"]
            bar.show(said["held"], said["size"], came, note=_note(said), last=last)

        last = _follow_to_end(socket_of_mount(mount), "/pull", body={"path": rest}, show=show)
        if "error" not in last:
            show(last, last=True)
    if last.get("errno") == errno.ELOOP and os.path.realpath(path) != os.path.abspath(path):
        _pull_one(os.path.realpath(path), quiet)
    elif "error" in last:
        raise Unreachable(f"{path}: {last['error']}")


def _push(given: argparse.Namespace) -> None:
    body = {"path": given.image, "file": os.path.realpath(given.image), "to": given.to}
    first: float | None = None
    with _Bar(given.image, given.quiet) as bar:

        def show(said: Record, failed: int, last: bool = False) -> None:
            nonlocal first
            good = said["clients"] - failed
            held = said["held"] / max(1, good)
            first = held if first is None and not last else first
            note = f"{said['succeeded']}/{said['clients']} done"
            note += f", {failed} failed" if failed else ""
            bar.show(held, said["size"], held - (first or 0), note=note, last=last)

        where = _server(given.server)
        last = _follow_to_end(
            where, "/push", body=body, show=lambda said: show(said, said["failed"])
        )
        if "error" in last:
            raise Unreachable(f"{given.image}: {last['error']}")
        show(last, len(last["failed"]), last=True)
    for each in last["failed"]:
        where = f" ({each['address']})" if each["address"] else ""
        print(plain(f"mufs: {each['name']}{where}: {each['error']}"), file=sys.stderr)
    sys.exit(bool(last["failed"]))


def _server(name: str | None) -> str:
    """The control socket of the server with this name, or of the only one."""
    found = {}
    for where in sockets(SERVER):
        with suppress(Nobody):
            ask(where)
            found[os.path.basename(where).removesuffix(".sock")] = where
    name = name and unbracketed(name)
    if name is not None and name not in found:
        known = f", such as {next(iter(found))}" if found else ""
        raise Unreachable(f"{name}: no server listens there on this host{known}")
    if not found:
        raise Unreachable("no server runs here")
    if name is None and len(found) > 1:
        raise Unreachable(f"several servers run here: name one with --server {', '.join(found)}")
    return found[name or next(iter(found))]


def _note(said: Record) -> str:
    if not said["connected"]:
        return "waiting for the server"
    came = said["asked"] + said["overheard"]
    return f"{100 * said['overheard'] / came:.0f} % overheard" if came else ""


def _follow_to_end(
    where: str, path: str, *, body: Record, show: Callable[[Record], None]
) -> Record:
    """Request something, show its progress, and return the last record."""
    # Closing the connection, as Ctrl-C does, interrupts it.
    with closing(follow(where, path, body)) as records:
        for record in records:
            if "ended" in record or "error" in record:
                return record
            show(record)
    raise Unreachable(f"{where}: the service ended")
