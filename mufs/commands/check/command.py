"""C{mufs check}: its options, its output and its exit status."""

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from twisted.internet.task import react

from mufs.clock import use_monotonic_clock
from mufs.commands.check.finding import Finding, Level
from mufs.commands.check.look import check
from mufs.commands.check.session import MAX_RATE
from mufs.options import parse_address, parse_seconds


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add C{check} to the subcommands of C{mufs}."""
    check = commands.add_parser(
        "check",
        help="find out why multicast works between this host and a server, or does not",
        description="Find out why multicast works between this host and a server, or does not. "
        "Ends with status 1 if something is a problem.",
    )
    check.add_argument(
        "--server", metavar="ENDPOINT",
        help="as of mufs-client, such as tcp:HOST:7040 (default: look at this host alone)",
    )  # fmt: skip
    check.add_argument(
        "--interface", metavar="ADDRESS", type=_of(parse_address),
        help="address of the interface to listen on (default: that of the route to the server)",
    )  # fmt: skip
    check.add_argument(
        "--seconds", type=_of(parse_seconds), default=5.0,
        help=f"how long to read, at {MAX_RATE // 10**6} Mbit/s at the most (default: 5)",
    )  # fmt: skip
    check.add_argument("--image", metavar="PATH", help="what to read (default: the largest image)")
    check.add_argument("--json", action="store_true", help="all findings at the end, as JSON")
    check.set_defaults(run=run)


def _of(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return convert


def run(given: argparse.Namespace) -> NoReturn:
    """Carry out the command line: the findings as they are made, and the exit status."""
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        found.append(finding)
        if not given.json:
            print("\n".join(finding.lines()), flush=True)

    async def main(reactor: Any) -> None:
        use_monotonic_clock(reactor)
        reactor.addSystemEventTrigger("before", "shutdown", _interrupted)
        try:
            await check(reactor, given, tell)
        except Exception:
            # The end of the reactor is for who interrupts it.
            traceback.print_exc()
            _leave(1)
        _leave(_ended(found, given))

    try:
        react(main)
    except KeyboardInterrupt:
        _interrupted()


def _interrupted() -> NoReturn:
    print("mufs check: interrupted", file=sys.stderr)
    _leave(128 + signal.SIGINT)


def _leave(status: int) -> NoReturn:
    # A name that is being looked up in another thread cannot be taken back: nobody waits for it.
    sys.stdout.flush()
    os._exit(status)


def _ended(found: list[Finding], given: argparse.Namespace) -> int:
    """Print what is left to print, and return the exit status."""
    problems, warnings = (
        sum(each.level is level for each in found) for level in (Level.PROBLEM, Level.WARNING)
    )
    if given.json:
        findings = [each.fields() for each in found]
        print(json.dumps({"server": given.server, "findings": findings}, indent=2))
    else:
        print(f"problems: {problems}, warnings: {warnings}")
        if given.server is None:
            print("this host alone was looked at: --server ENDPOINT looks at the way to a server")
    return 1 if problems else 0
