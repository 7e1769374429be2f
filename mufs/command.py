"""The command C{mufs}: what is done beside running the services, one subcommand each."""

import argparse
import signal
import sys
from pathlib import Path

from mufs import fill, kept, show
from mufs.check import command as check
from mufs.keys import Unusable, make_keys
from mufs.sockets import Unreachable


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mufs",
        description="Tools for mUFS. Server and client are run by twistd: "
        "`twistd mufs-server --help`, `twistd mufs-client --help`.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    keys = commands.add_parser(
        "keys",
        help="make keys and certificates for TLS",
        description="Make keys and certificates for TLS: an authority, unless DIR has one, and "
        "what is signed by it. Nothing is overwritten.",
    )
    keys.add_argument("--dir", type=Path, default=Path("keys"), help="where (default: keys)")
    keys.add_argument(
        "--server", metavar="NAMES", default="",
        help="names and addresses by which clients reach the server, joined by commas",
    )  # fmt: skip
    keys.add_argument(
        "--client", metavar="NAME", action="append", default=[],
        help="name of a client; may be given several times, and later for further ones",
    )  # fmt: skip
    keys.set_defaults(run=_keys)
    kept.add_parser(commands)
    show.add_parser(commands)
    fill.add_parsers(commands)
    check.add_parser(commands)
    return parser


def _keys(given: argparse.Namespace) -> None:
    servers = [name for name in given.server.split(",") if name]
    if not servers and not given.client:
        raise Unusable("nothing to make: give --server, --client or both")
    print("\n".join(make_keys(given.dir, servers, given.client)))


def main() -> None:
    """Carry out the command line; ends with status 1 and one line if that is impossible."""
    given = _parser().parse_args()
    try:
        given.run(given)
    except (Unusable, Unreachable, OSError) as error:
        sys.exit(f"mufs: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
