"""What the command lines of server and client have in common."""

import re
import sys
from io import StringIO
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs import client_tap, server_tap
from mufs.addresses import WrongValue
from mufs.options import (
    Options,
    check_interface,
    parse_interface,
    parse_rate,
    parse_seconds,
    parse_size,
    typed,
)


class NumberTests(SynchronousTestCase):
    """Sizes, rates and times."""

    def test_sizes(self) -> None:
        """A size is in bytes, K, M, G and T of 1024."""
        for text, size in [
            ("0", 0),
            ("1", 1),
            ("1K", 1024),
            ("256M", 1 << 28),
            ("2g", 2 << 30),
            ("1.5M", 3 << 19),
            ("2T", 2 << 40),
            ("64KiB", 1 << 16),
            ("10MB", 10 << 20),
            (" 5K ", 5120),
        ]:
            self.assertEqual(parse_size(text), size)

    def test_rates(self) -> None:
        """A rate is in bits per second, K, M, G and T of 1000."""
        for text, rate in [
            ("1", 1),
            ("100M", 100_000_000),
            ("2.5G", 2_500_000_000),
            ("1T", 10**12),
            ("10Mbit/s", 10_000_000),
        ]:
            self.assertEqual(parse_rate(text), rate)

    def test_no_numbers(self) -> None:
        """Anything else, and a number that is too large, is a C{ValueError}."""
        for text in [
            "",
            " ",
            "M",
            "-1",
            "+1",
            "1e6",
            "0x10",
            "1P",
            "\N{ARABIC-INDIC DIGIT ONE}",
            "1 M",
            "1,5M",
            "nan",
            "inf",
            "1.M",
            ".5",
            "1KK",
            "9" * 400,
        ]:
            self.assertRaises(ValueError, parse_size, text)
            self.assertRaises(ValueError, parse_rate, text)

    def test_seconds(self) -> None:
        """A time is a number of seconds, and may be 0."""
        self.assertEqual([parse_seconds(text) for text in ("30", "0.5", "0")], [30, 0.5, 0])
        for text in ("-1", "nan", "inf", "1e9", "soon", "", "9" * 400):
            self.assertRaises(ValueError, parse_seconds, text)


class OptionsTestCase(SynchronousTestCase):
    """Has a directory of images, and a mount point."""

    def setUp(self) -> None:
        """Make both."""
        self.images, self.mount = Path(self.mktemp()), Path(self.mktemp())
        self.images.mkdir()
        self.mount.mkdir()

    def assert_refused(self, options: Options, arguments: list[str], *telling: str) -> None:
        """The command ends with status 1 and one line that has all these texts, and an example."""
        error = self.assertRaises(SystemExit, options.parseOptions, arguments)
        assert isinstance(error.code, str), arguments
        self.assertEqual(error.code.count("\n"), 0)
        for each in (f"{options.name}: ", "such as ", *telling):
            self.assertIn(each, error.code)


class InterfaceTests(SynchronousTestCase):
    """What C{--interface} takes."""

    def test_interfaces(self) -> None:
        """An IPv4 address and any name that an interface could have are taken as they are."""
        for text in ("192.0.2.1", "eth0", "enp0s31f6", "br-lan.100", "wlan0", "a" * 15):
            self.assertEqual(parse_interface(text), text)

    def test_no_interfaces(self) -> None:
        """Anything else is refused."""
        for text in ("", "192.0.2", "192.0.2.300", "::1", "fe80::1", "a" * 16, "a b", "../eth0"):
            self.assertRaises(WrongValue, parse_interface, text)
        for text in ("0.0.0.0", "239.5.5.0", "."):
            self.assertRaises(WrongValue, parse_interface, text)

    def test_of_this_host(self) -> None:
        """An address has to be one of this host; an interface may come later."""
        for text in ("127.0.0.1", "lo", "later0"):
            check_interface(text)
        self.assertRaises(WrongValue, check_interface, "192.0.2.99")


class TypedTests(SynchronousTestCase):
    """How a wrong value is repeated."""

    def test_typed(self) -> None:
        """It is one line, as it could be typed in a shell, and not too long."""
        self.assertEqual([typed("1X"), typed(""), typed("a b")], ["1X", "''", "'a b'"])
        self.assertEqual(typed("a\nb\x1b[2J"), r"'a\nb\x1b[2J'")
        self.assertLess(len(typed("9" * 4000)), 410)


class HelpTests(SynchronousTestCase):
    """What C{--help} and C{--version} show."""

    def shown(self, options: Options, *arguments: str) -> str:
        """What the command prints, with status 0."""
        out = StringIO()
        self.patch(sys, "stdout", out)
        error = self.assertRaises(SystemExit, options.parseOptions, list(arguments))
        self.assertEqual(error.code, 0)
        return out.getvalue()

    def test_help(self) -> None:
        """The help lists every option once, with its default, in 80 columns."""
        for options in (server_tap.Options(), client_tap.Options()):
            text = self.shown(options, "--help")
            self.assertTrue(text.startswith(f"Usage: {options.name} "))
            self.assertLess(max(map(len, text.splitlines())), 80)
            for option in options.longOpt:
                self.assertEqual(
                    len(re.findall(rf"(?m)^  --{option.rstrip('=')}(?![\w-])", text)), 1
                )
            for default in options.defaults.values():
                if isinstance(default, str):
                    self.assertIn(f"(default: {default})", " ".join(text.split()))
            self.assertEqual(self.shown(options, "-h"), text)

    def test_examples(self) -> None:
        """Each option with a value has an example, which is right."""
        for options in (server_tap.Options(), client_tap.Options()):
            with_value = {each.rstrip("=") for each in options.longOpt if each.endswith("=")}
            self.assertEqual(set(options.arguments), with_value)
            for option, (_, example) in options.arguments.items():
                if option in options.conversions:
                    options.conversions[option](example)

    def test_version(self) -> None:
        """The version is one line with the name of the command."""
        for options in (server_tap.Options(), client_tap.Options()):
            text = self.shown(options, "--version")
            self.assertRegex(
                text, rf"^{options.name} [0-9.]+ \(Python [0-9.]+, Twisted [0-9.]+\)\n$"
            )
