"""The command C{mufs}: one subcommand for each task besides running the services."""

import argparse
import signal
import sys

from mufs.commands import cache, fill, keys, status
from mufs.commands.authority import UnusableKeys
from mufs.commands.check import command as check
from mufs.sockets import Unreachable


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mufs",
        description="Tools for mUFS. Its server and client are run by mufs-server and mufs-client, "
        "or as plugins of twistd; mount -t mufs mounts.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for each in (status, check, fill, cache, keys):
        each.add_parser(commands)
    return parser


def main() -> None:
    """Run the command line. Exits with status 1 and one line on errors."""
    given = _parser().parse_args()
    try:
        given.run(given)
    except (UnusableKeys, Unreachable, OSError) as error:
        sys.exit(f"mufs: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
