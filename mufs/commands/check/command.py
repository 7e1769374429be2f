"""C{mufs check}: its options, its output and its exit status."""

import argparse
import json
import os
import shlex
import signal
import sys
import traceback
from typing import Any, NoReturn

from twisted.internet.task import react

from mufs.addresses import ServerAddress, WrongValue, parse_server
from mufs.clock import use_monotonic_clock
from mufs.commands.check.finding import Finding, Level
from mufs.commands.check.look import check
from mufs.commands.check.session import MAX_RATE
from mufs.commands.parser import Parser, converted
from mufs.communication.interfaces import interfaces
from mufs.options import parse_interface, parse_seconds, typed


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add C{check} to the subcommands of C{mufs}."""
    check = commands.add_parser(
        "check",
        help="find out why multicast works between this host and a server, or does not",
        description="Find out why multicast works between this host and a server, or does not. "
        "Ends with status 1 if something is a problem.",
        example="mufs check --server images.example.org",
    )
    check.add_argument(
        "--server", metavar="ADDRESS",
        help="HOST, HOST:PORT or [IPV6]:PORT (default: look at this host alone)",
    )  # fmt: skip
    check.add_argument(
        "--tls-cert", metavar="FILE", help="certificate and private key of this host: use TLS"
    )
    check.add_argument(
        "--tls-ca", metavar="FILE|DIR",
        help="authorities that may sign the server's certificate (default: those of the system)",
    )  # fmt: skip
    check.add_argument(
        "--interface", metavar="NAME|ADDRESS", type=converted(parse_interface),
        help="interface to listen on (default: that of the route to the server)",
    )  # fmt: skip
    check.add_argument(
        "--seconds", type=converted(parse_seconds), default=5.0,
        help=f"how long to read, at {MAX_RATE // 10**6} Mbit/s at the most (default: 5)",
    )  # fmt: skip
    check.add_argument("--image", metavar="PATH", help="what to read (default: the largest image)")
    check.add_argument("--json", action="store_true", help="all findings at the end, as JSON")
    check.set_defaults(run=run)


def _address(given: argparse.Namespace) -> ServerAddress | None:
    """The server that is named; exits if it is malformed."""
    parser: Parser = given.parser
    if given.tls_ca and not given.tls_cert:
        parser.error("--tls-ca needs --tls-cert")
    if given.server is None:
        if given.tls_cert:
            parser.error("--tls-cert needs --server")
        return None
    try:
        return parse_server(given.server, given.tls_cert, given.tls_ca)
    except WrongValue as error:
        if error.example is not None:
            parser.example = f"mufs check --server {shlex.quote(error.example)}"
        parser.error(f"--server {typed(given.server)}: {error}")


def _interface(given: argparse.Namespace) -> str | None:
    """The address of the interface that is named; exits if this host does not have it."""
    parser: Parser = given.parser
    name: str | None = given.interface
    there = [each for each in interfaces() if name in (each.name, each.address)]
    if name is None or there:
        return there[0].address if there else None
    known = ", ".join(sorted({each.name for each in interfaces()}))
    parser.example = "mufs check --interface eth0"
    parser.error(f"--interface {typed(name)}: there is none with an IPv4 address, but {known}")


def run(given: argparse.Namespace) -> NoReturn:
    """Carry out the command line: the findings as they are made, and the exit status."""
    given.address = _address(given)
    given.interface = _interface(given)
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
            print("only this host was checked: --server ADDRESS checks the route to a server")
    return 1 if problems else 0
