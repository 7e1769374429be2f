"""
The command lines of server and client: their values, their help, and one line that says what is
wrong.
"""

import errno
import os
import platform
import re
import shlex
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from getopt import GetoptError
from ipaddress import IPv4Address
from typing import Any, ClassVar, NoReturn, TypeVar

import twisted
from twisted.python import usage

from mufs import __version__
from mufs.addresses import WrongValue
from mufs.communication.certificates import UnusableAuthority, UnusableFile

T = TypeVar("T")

WIDTH = 79
"""Columns of the help."""

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B|bit/s)?", re.IGNORECASE | re.ASCII)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_INTERFACE = re.compile(r"[^\s/:]{1,15}")
_MAX_SHOWN = 400
"""Characters of a wrong value that are repeated."""


STATUS_OPTIONS = [
    [
        "status",
        None,
        None,
        "Where to serve the status page: PORT, for this host only, or ADDRESS:PORT (default: "
        "nowhere)",
    ],
    [
        "state",
        None,
        None,
        "Directory to keep the last day of the status page in (default: none)",
    ],
]
"""The options of the status page, which server and client have."""

STATUS_ARGUMENTS = {
    "status": ("PORT|ADDRESS:PORT", "7080"),
    "state": ("DIR", "/var/lib/mufs"),
}
"""The names of their values, and examples."""


def parse_size(text: str) -> int:
    """Bytes: C{256M} is 256 * 1024**2. Raises L{WrongValue}."""
    return _number(text, 1024)


def parse_rate(text: str) -> int:
    """Bits per second: C{100M} is 100 * 1000**2. Raises L{WrongValue}."""
    return _number(text, 1000)


def _number(text: str, unit: int) -> int:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise WrongValue("is not a number, optionally followed by K, M, G or T")
    number = float(match[1]) * unit ** _POWER[match[2].upper()]
    if number >= 1 << 63:
        raise WrongValue("is too large")
    return int(number)


def parse_seconds(text: str) -> float:
    """A number of seconds, 0 or more. Raises L{WrongValue}."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 1e9:
        raise WrongValue("is not a number of seconds")
    return seconds


def parse_interface(text: str) -> str:
    """
    An IPv4 address of this host, or the name of an interface, which need not exist yet. Raises
    L{WrongValue}.
    """
    if re.fullmatch(r"[\d.]*", text):
        try:
            address = IPv4Address(text)
        except ValueError:
            raise WrongValue("is neither an IPv4 address nor the name of an interface") from None
        if address.is_multicast or address.is_unspecified:
            raise WrongValue("is not the address of an interface")
    elif not _INTERFACE.fullmatch(text):
        raise WrongValue("is neither an IPv4 address nor the name of an interface")
    return text


def check_interface(text: str) -> None:
    """
    @raise WrongValue: when it is an address that this host does not have.
    """
    if re.fullmatch(r"[\d.]+", text):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((text, 0))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    names = [name for _, name in socket.if_nameindex() if name != "lo"]
                    raise WrongValue(
                        "this host has no such address; `ip -4 address` lists those that it has, "
                        "and a name will do",
                        (names or ["lo"])[0],
                    ) from None


def one_line(text: str) -> str:
    """Text with its control characters escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def typed(text: str) -> str:
    """A wrong value as it was typed in a shell."""
    shown = one_line(text)
    return shlex.quote(shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}...")


def version(name: str) -> str:
    """The answer to C{--version}."""
    python = platform.python_version()
    return f"{name} {__version__} (Python {python}, Twisted {twisted.__version__})"


def parse_state_directory(text: str) -> str:
    """
    A directory that can be written to, as an absolute path; made if it is not there. Raises
    L{WrongValue}.
    """
    path = os.path.abspath(text)
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except OSError as error:
        raise WrongValue(f"cannot be made ({error.strerror})") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise WrongValue("cannot be written")
    return path


class Options(usage.Options):
    """
    Options of which a wrong one ends the command with one line and status 1.

    @cvar synopsis: the options that are required, as the help shows them.
    @cvar example: the same as they may look.
    @cvar conversions: the function that makes the text of an option its value, by option.
    @cvar arguments: for each option with a value, what it is called in the help, and an example.
    @cvar groups: the options in the order of the help, by heading.
    """

    name: ClassVar[str]
    synopsis: ClassVar[str]
    longdesc: ClassVar[str]
    example: ClassVar[str]
    conversions: ClassVar[dict[str, Any]] = {}
    arguments: ClassVar[dict[str, tuple[str, str]]] = {}
    groups: ClassVar[dict[str, list[str]]] = {}

    def parseOptions(self, options: "list[str] | None" = None) -> None:
        """Parse the command line, or exit with a line that says what is wrong with it."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            cause = error.__context__
            text = self._not_parsed(cause) if isinstance(cause, GetoptError) else str(error)
            self.exit(text)

    def exit(self, message: object) -> NoReturn:
        """End the command with status 1 and one line."""
        sys.exit(f"{self.name}: {one_line(str(message))}")

    def parseArgs(self, *arguments: str) -> None:
        """@raise UsageError: when there is any argument besides the options."""
        if arguments:
            raise usage.UsageError(
                f"{typed(arguments[0])} does not belong to any option, such as {self._example()}"
            )

    def postOptions(self) -> None:
        """Convert the values."""
        for option, convert in self.conversions.items():
            text = self[option]
            if text is not None:
                self[option] = self.checked(option, text, partial(convert, text))

    def checked(self, option: str, text: str, make: Callable[[], T]) -> T:
        """
        What C{make} makes of the value of an option.

        @raise UsageError: when it raises C{ValueError}, which says what is wrong with the value.
        """
        try:
            return make()
        except UnusableFile as error:
            if self.get("tls-cert"):
                option = "tls-ca" if isinstance(error, UnusableAuthority) else "tls-cert"
                raise self.wrong(option, self[option], error) from None
            raise self.wrong(option, text, error) from None
        except ValueError as error:
            raise self.wrong(option, text, error) from None

    def require(self, *options: str) -> None:
        """@raise UsageError: when one of these options is not given."""
        for option in options:
            if not self[option]:
                raise usage.UsageError(f"--{option} is required, such as {self._example(option)}")

    def require_with(self, option: str, needed: str) -> None:
        """@raise UsageError: when an option is given without another that it needs."""
        if self[option] and not self[needed]:
            right = self._example(needed)
            raise usage.UsageError(f"--{option} needs --{needed}, too, such as {right}")

    def wrong(self, option: str, text: str, why: object) -> usage.UsageError:
        """An error that names an option and its value, says why, and gives a right example."""
        example = getattr(why, "example", None)
        right = self._example(option) if example is None else f"--{option} {shlex.quote(example)}"
        if isinstance(why, UnusableFile) and option not in ("tls-cert", "tls-ca"):
            right = f"{self._example('tls-cert')} {self._example('tls-ca')}"
        reason = str(why).removeprefix(f"{text}: ")
        return usage.UsageError(f"--{option} {typed(text)}: {reason}, such as {right}")

    def opt_help(self) -> None:
        """Print this help"""
        print(self)
        sys.exit(0)

    opt_h = opt_help

    def opt_version(self) -> None:
        """Print the versions of mUFS, Python and Twisted"""
        print(version(self.name))
        sys.exit(0)

    def __str__(self) -> str:
        text = f"Usage: {self.name} {self.synopsis}\n\n{textwrap.fill(self.longdesc, WIDTH)}\n"
        for title, names in self._grouped():
            text += f"\n{title}:\n" + "".join(map(self._described, names))
        return text + f"\nExample:\n  {self.name} {self.example}"

    def _grouped(self) -> Iterator[tuple[str, list[str]]]:
        yield from self.groups.items()
        grouped = {name for names in self.groups.values() for name in names}
        yield (
            "Other",
            [each.rstrip("=") for each in self.longOpt if each.rstrip("=") not in grouped],
        )

    def _described(self, name: str) -> str:
        head = f"  --{name} {self.arguments[name][0]}" if name in self.arguments else f"  --{name}"
        text = " ".join((self.docs[name] or "").split())
        default = self.defaults.get(name)
        text += f" (default: {default})" if isinstance(default, str) else ""
        head = f"{head:<26}" if len(head) < 25 else f"{head}\n{'':26}"
        return head + textwrap.fill(text, WIDTH - 26).replace("\n", f"\n{'':26}") + "\n"

    def _example(self, option: str | None = None) -> str:
        """A right use of an option; of the first one if none is given."""
        option = next(iter(self.arguments)) if option is None else option
        if option in self.arguments:
            return f"--{option} {shlex.quote(self.arguments[option][1])}"
        return f"--{option}"

    def _not_parsed(self, error: GetoptError) -> str:
        """What is wrong with an option that getopt cannot parse."""
        known = [each.rstrip("=") for each in self.longOpt]
        option = error.opt
        if option in known and option in self.arguments:
            return f"--{option} needs a value, such as {self._example(option)}"
        if option in known:
            return f"--{option} takes no value, such as {self._example()} --{option}"
        if len(option) < 2:
            return f"there is no option -{option}, such as {self._example()}"
        begin = [each for each in known if each.startswith(option)]
        if len(begin) > 1:
            return (
                f"--{option} may stand for --{' or --'.join(begin)}, such as "
                f"{self._example(begin[0])}"
            )
        near = get_close_matches(option, known, 1)
        if near:
            right = self._example(near[0])
            return (
                f"there is no option --{typed(option)}: did you mean --{near[0]}, such as {right}?"
            )
        return (
            f"there is no option --{typed(option)}: {self.name} --help lists all, such as "
            f"{self._example()}"
        )
