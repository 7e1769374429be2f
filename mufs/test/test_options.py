"""What the command lines of server and client have in common."""

import sys
from io import StringIO
from pathlib import Path

from OpenSSL.crypto import FILETYPE_PEM
from twisted.internet.protocol import Factory
from twisted.internet.ssl import KeyPair
from twisted.trial.unittest import SynchronousTestCase

from mufs import client_tap, server_tap
from mufs.options import Options, parse_rate, parse_seconds, parse_size, status_endpoint


class Listening:
    """A reactor that records what it is asked to listen on."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, str]] = []

    def listenTCP(self, port: int, factory: object, backlog: int = 5, interface: str = "") -> None:
        """See L{IReactorTCP.listenTCP}."""
        self.asked.append((port, interface))

    def listenSSL(
        self,
        port: int,
        factory: object,
        contextFactory: object,
        backlog: int = 5,
        interface: str = "",
    ) -> None:
        """See L{IReactorSSL.listenSSL}."""
        self.asked.append((port, interface))

    def listenUNIX(self, path: str, factory: object, **how: object) -> None:
        """See L{IReactorUNIX.listenUNIX}."""
        self.asked.append((path, ""))


class NumberTests(SynchronousTestCase):
    """Sizes, rates and times."""

    def test_sizes(self) -> None:
        """A size is in bytes, K, M and G of 1024."""
        for text, size in [
            ("0", 0),
            ("1", 1),
            ("1K", 1024),
            ("256M", 1 << 28),
            ("2g", 2 << 30),
            ("1.5M", 3 << 19),
            ("64KiB", 1 << 16),
            ("10MB", 10 << 20),
            (" 5K ", 5120),
        ]:
            self.assertEqual(parse_size(text), size)

    def test_rates(self) -> None:
        """A rate is in bits per second, K, M and G of 1000."""
        for text, rate in [
            ("1", 1),
            ("100M", 100_000_000),
            ("2.5G", 2_500_000_000),
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
            "1T",
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
        """The command ends with status 1 and one line that contains all these texts."""
        error = self.assertRaises(SystemExit, options.parseOptions, arguments)
        assert isinstance(error.code, str), arguments
        self.assertEqual(error.code.count("\n"), 0)
        for each in (f"{options.name}: ", *telling):
            self.assertIn(each, error.code)


class HelpTests(SynchronousTestCase):
    """What C{--help} shows."""

    def test_help(self) -> None:
        """The help lists every option with its default."""
        for options in (server_tap.Options(), client_tap.Options()):
            out = StringIO()
            self.patch(sys, "stdout", out)
            self.assertRaises(SystemExit, options.parseOptions, ["--help"])
            for option, _, default, *_ in options.optParameters:
                self.assertIn(f"--{option}=", out.getvalue())
                self.assertIn(default or "", out.getvalue())


class StatusEndpointTests(SynchronousTestCase):
    """Where C{--status} listens."""

    def interface(self, text: str) -> str:
        """The address that an endpoint would listen on; empty stands for all."""
        listening = Listening()
        status_endpoint(listening, text).listen(Factory())
        ((port, interface),) = listening.asked
        self.assertEqual(port, 7080)
        return interface

    def test_this_host(self) -> None:
        """Without an interface it listens only for this host."""
        for text in ("7080", "tcp:7080", "tcp:port=7080", "tcp:7080:backlog=5"):
            self.assertEqual(self.interface(text), "127.0.0.1", text)
        self.assertEqual(self.interface("tcp6:7080"), "::1")

    def test_told_otherwise(self) -> None:
        """With an interface it listens on that, or on all if that is given."""
        for text, interface in [
            ("tcp:7080:interface=192.0.2.1", "192.0.2.1"),
            ("tcp:7080:192.0.2.1", "192.0.2.1"),
            ("tcp:7080:interface=0.0.0.0", "0.0.0.0"),
            ("tcp:7080:interface=", ""),
            (r"tcp6:7080:interface=\:\:", "::"),
            (r"tcp:7080:interface=\:\:1", "::1"),
        ]:
            self.assertEqual(self.interface(text), interface, text)

    def test_tls(self) -> None:
        """Over TLS it is the same."""
        key = KeyPair.generate()
        pem = Path(self.mktemp())
        pem.write_bytes(key.dump(FILETYPE_PEM) + key.selfSignedCert(1, CN="here").dumpPEM())
        listening = Listening()
        status_endpoint(listening, f"ssl:7080:privateKey={pem}").listen(Factory())
        self.assertEqual(listening.asked, [(7080, "127.0.0.1")])

    def test_socket(self) -> None:
        """A UNIX socket needs no interface."""
        listening = Listening()
        status_endpoint(listening, "unix:/run/status:mode=600").listen(Factory())
        self.assertEqual(listening.asked, [("/run/status", "")])
