"""C{mufs cache}: the images in a cache directory."""

import argparse
import sys
import time
from contextlib import closing
from datetime import datetime

from mufs.cache.client.directory import CacheDirectory
from mufs.cache.client.layout import Summary, UnusableDirectory, summaries, summaries_of
from mufs.cache.client.maintenance import remove, remove_all, verify
from mufs.commands.parser import converted
from mufs.options import typed
from mufs.units import format_bytes, shown

SECONDS_PER_DAY = 86400


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add C{cache} to the subcommands of C{mufs}."""
    cache = commands.add_parser(
        "cache",
        help="list, remove or check the images in a client's --cache-dir",
        description="List, remove or check the images in a client's --cache-dir.",
        example="mufs cache ls /var/cache/mufs/images",
    )
    verbs = cache.add_subparsers(metavar="VERB", required=True)
    ls = verbs.add_parser(
        "ls",
        help="list the images; a client may be using the directory",
        example="mufs cache ls /var/cache/mufs/images",
    )
    rm = verbs.add_parser(
        "rm", help="remove images", example="mufs cache rm /var/cache/mufs/images disk.img"
    )
    verify = verbs.add_parser(
        "verify",
        help="check all pages and remove damaged ones; exit status 1 if there were any",
        example="mufs cache verify /var/cache/mufs/images",
    )
    for parser, run in ((ls, _ls), (rm, _rm), (verify, _verify)):
        parser.add_argument("directory", metavar="DIR", help="the client's --cache-dir")
        parser.set_defaults(run=run)
    which = rm.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "names", metavar="NAME", nargs="*", default=[], help="an image, as `ls` shows it"
    )
    which.add_argument(
        "--all", action="store_true", help="all images, so that DIR may be used for any server"
    )
    which.add_argument(
        "--unused",
        metavar="DAYS",
        type=converted(_days),
        help="images that were not used for so many days",
    )


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1
    if not 0 <= days < 1e6:
        raise ValueError("is not a number of days")
    return days


def _shown(summary: Summary) -> str:
    """The path of an image, or its key if the path is unknown, as text on one line."""
    if summary.path is None:
        return "{:016x}-{:016x}".format(*summary.key)
    return shown(summary.path)


def _ls(given: argparse.Namespace) -> None:
    lines = [("held", "size", "", "last used", "image")]
    for each in sorted(_summaries(given.directory), key=_shown):
        used = datetime.fromtimestamp(min(each.used, 1 << 35)).strftime("%Y-%m-%d %H:%M")
        lines.append(
            (
                format_bytes(each.held),
                format_bytes(each.size),
                f"{100 * each.held // max(1, each.size)}%",
                used if each.used else "-",
                _shown(each),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        columns = [text.rjust(width) for text, width in zip(line, widths, strict=False)]
        print("  ".join([*columns, line[4]]))


def _rm(given: argparse.Namespace) -> None:
    with closing(_directory(given.directory)) as directory:
        found = summaries_of(directory.fd)
        if given.all:
            remove_all(directory)
            gone = found
        else:
            unknown = set(given.names) - {_shown(each) for each in found}
            if unknown:
                name = typed(min(unknown))
                sys.exit(
                    f"mufs cache: {given.directory}: no image {name}: `mufs cache ls` lists them"
                )
            oldest = None if given.unused is None else time.time() - given.unused * SECONDS_PER_DAY
            gone = [
                each
                for each in found
                if _shown(each) in given.names or (oldest is not None and each.used < oldest)
            ]
            remove(directory, (each.key for each in gone))
    print(f"{len(gone)} images removed, {format_bytes(sum(each.held for each in gone))}")


def _verify(given: argparse.Namespace) -> None:
    with closing(_directory(given.directory)) as directory:
        pages, damaged = verify(directory)
    print(f"{pages} pages checked, {damaged} of them damaged and removed")
    if damaged:
        sys.exit(1)


def _directory(path: str) -> CacheDirectory:
    try:
        return CacheDirectory(path)
    except UnusableDirectory as error:
        sys.exit(_unusable(path, error))


def _summaries(path: str) -> list[Summary]:
    try:
        return summaries(path)
    except UnusableDirectory as error:
        sys.exit(_unusable(path, error))


def _unusable(path: str, error: UnusableDirectory) -> str:
    kind = "DIR is a client's --cache-dir, such as /var/cache/mufs/images"
    return f"mufs cache: {typed(path)}: {error} ({kind})"
