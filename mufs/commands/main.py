"""The command C{mufs}: one subcommand for each task besides running the services."""

import signal
import sys

from mufs.commands import cache, fill, keys, status
from mufs.commands.authority import UnusableKeys
from mufs.commands.check import command as check
from mufs.commands.parser import Parser
from mufs.options import one_line, version
from mufs.sockets import Unreachable


def _parser() -> Parser:
    parser = Parser(
        prog="mufs",
        description="Tools for mUFS. Its server and client are mufs-server and mufs-client; "
        "mount -t mufs mounts.",
        epilog="mufs COMMAND --help describes a command.",
        example="mufs status",
    )
    parser.add_argument(
        "--version", action="version", version=version("mufs"), help="print the version"
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
    except (UnusableKeys, Unreachable) as error:
        sys.exit(f"mufs: {one_line(str(error))}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"mufs: {one_line(f'{where}{error.strerror or error}')}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
