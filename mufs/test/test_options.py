"""The command lines of server and client."""

import sys
from io import StringIO
from pathlib import Path

from OpenSSL.crypto import FILETYPE_PEM
from twisted.internet.protocol import Factory
from twisted.internet.ssl import KeyPair
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs import client_tap, server_tap
from mufs.commands.keys import make_keys
from mufs.filesystem.server.library import ExportedDirectory
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
        """A time is a number of seconds above 0."""
        self.assertEqual([parse_seconds(text) for text in ("30", "0.5", "1e3")], [30, 0.5, 1000])
        for text in ("0", "-1", "nan", "inf", "1e9", "soon", "", "9" * 400):
            self.assertRaises(ValueError, parse_seconds, text)


class OptionsTestCase(SynchronousTestCase):
    """Has a directory of images, and a mount point."""

    def setUp(self) -> None:
        """Make both."""
        self.images, self.mount = Path(self.mktemp()), Path(self.mktemp())
        self.images.mkdir()
        self.mount.mkdir()

    def server(self, *arguments: str) -> server_tap.Options:
        """The server's command line: the required options, then these."""
        options = server_tap.Options()
        options.parseOptions(["--images", str(self.images), *arguments])
        return options

    def client(self, *arguments: str) -> client_tap.Options:
        """The client's command line: the required options, then these."""
        options = client_tap.Options()
        options.parseOptions(
            ["--server", "tcp:192.0.2.1:7040", "--mount", str(self.mount), *arguments]
        )
        return options

    def assert_refused(self, options: Options, arguments: list[str], *telling: str) -> None:
        """The command ends with status 1 and one line that contains all these texts."""
        error = self.assertRaises(SystemExit, options.parseOptions, arguments)
        assert isinstance(error.code, str), arguments
        self.assertEqual(error.code.count("\n"), 0)
        for each in (f"{options.name}: ", *telling):
            self.assertIn(each, error.code)

    def assert_server_refuses(self, option: str, *values: str) -> None:
        """All these values of an option are refused, in a line that names option and value."""
        for value in values:
            arguments = ["--images", str(self.images), f"--{option}", value]
            self.assert_refused(server_tap.Options(), arguments, f"--{option}", value)

    def assert_client_refuses(self, option: str, *values: str) -> None:
        """All these values of an option are refused, in a line that names option and value."""
        for value in values:
            arguments = ["--server", "tcp:192.0.2.1:7040", "--mount", str(self.mount)]
            arguments += [f"--{option}", value]
            self.assert_refused(client_tap.Options(), arguments, f"--{option}", value)


class ServerOptionsTests(OptionsTestCase):
    """The options of C{twistd mufs-server}."""

    def test_defaults(self) -> None:
        """With only the directory given, all other options have their defaults."""
        options = self.server()
        self.assertIsInstance(options["library"], ExportedDirectory)
        self.assertEqual(
            [options[name] for name in ("listen", "group", "port", "interface", "status")],
            ["tcp:7040", "239.5.5.0", 7041, None, None],
        )
        self.assertEqual((options["rate-min"], options["rate-max"]), (10**6, 10**10))

    def test_values(self) -> None:
        """Values are converted."""
        options = self.server(
            *("--group", "239.1.2.3", "--port", "65535", "--interface", "192.0.2.1"),
            *("--rate-max", "100M", "--rate-min", "100M", "--status", "tcp:0"),
        )
        self.assertEqual(
            [options[name] for name in ("group", "port", "interface", "rate-min", "rate-max")],
            ["239.1.2.3", 65535, "192.0.2.1", 10**8, 10**8],
        )

    def test_bad_values(self) -> None:
        """An invalid value is refused in a line that names option and value."""
        self.assert_server_refuses("images", "/nonexistent", "/dev/null")
        self.assert_server_refuses("group", "192.0.2.1", "240.0.0.1", "ff02::1", "all", "")
        self.assert_server_refuses("port", "0", "65536", "-1", "http", "")
        self.assert_server_refuses("interface", "eth0", "192.0.2", "::1", "")
        self.assert_server_refuses("rate-max", "fast", "1T", "")
        self.assert_server_refuses("rate-min", "slow", "-1")

    def test_rates(self) -> None:
        """A minimum rate of 0, or above the maximum, is refused."""
        for arguments in (["--rate-min", "0"], ["--rate-max", "10K"], ["--rate-min", "11G"]):
            arguments = ["--images", str(self.images), *arguments]
            self.assert_refused(server_tap.Options(), arguments, "--rate-min", "--rate-max")

    def test_endpoints(self) -> None:
        """Text that is not an endpoint is refused, whatever Twisted's parsers raise."""
        pem = self.images / "not.pem"
        pem.write_text("not a key")
        self.assert_server_refuses("listen", "7040")
        for option in ("listen", "status"):
            self.assert_server_refuses(
                option,
                "",
                "tcp",
                "tcp:",
                "tcp:http",
                "udp:7040",
                "unix",
                "tcp:1:2:3:4:5",
                "tcp:7040:interfaces=lo",
                "ssl:443:privateKey=/nonexistent",
                "systemd:INET:index=0",
            )
        self.assert_server_refuses("listen", "systemd:INET:name=mufs")
        self.assert_server_refuses("status", f"ssl:443:privateKey={pem}")
        self.assert_server_refuses("listen", "tcp:7040\\")

    def test_tls(self) -> None:
        """TLS that would not check clients is refused, and so is TLS that lacks files for that."""
        keys = self.images / "keys"
        make_keys(keys, ["host"], [])
        (keys / "empty").mkdir()
        good = f"certificate={keys}/server.pem:trustRoots={keys}/ca"
        server = f"certificate={keys}/server.pem"
        self.assert_server_refuses(
            *("listen", f"ssl:7040:{good}", f"ssl:7040:privateKey={keys}/server.pem"),
            *("tls:7040", f"tls:7040:{server}", f"tls:7040:trustRoots={keys}/ca", f"tls:{good}"),
            *(f"tls:http:{good}", f"tls:7040:{good}:verify=no", f"tls:7040:{keys}"),
            f"tls:7040:more:{good}",
            *(f"tls:7040:{server}:trustRoots={keys}/{none}" for none in ("none", "empty")),
            f"tls:7040:certificate={keys}/ca/ca.pem:trustRoots={keys}/ca",
            f"tls:7040:{good}:privateKey={keys}/ca.key",
        )
        pem = Path(f"{keys}/a:b.pem")
        pem.write_bytes((keys / "server.pem").read_bytes())
        for tls in (good, rf"certificate={keys}/a\:b.pem:trustRoots={keys}/ca:interface=127.0.0.1"):
            self.server("--listen", f"tls:0:{tls}")

    def test_allow(self) -> None:
        """Rules are collected; an invalid one is refused, and so is any without TLS."""
        keys = self.images / "keys"
        make_keys(keys, ["host"], [])
        tls = ("--listen", f"tls:0:certificate={keys}/server.pem:trustRoots={keys}/ca")
        options = self.server(*tls, "--allow", "*.lab:/a", "--allow", "h:/b:ro")
        self.assertEqual([rule.path for rule in options["allow"]], [(b"a",), (b"b",)])
        for rule, telling in (("nonsense", "NAME:/PATH"), ("h:/a:rw", "exported read-only")):
            arguments = ["--images", str(self.images), *tls, "--allow", rule]
            self.assert_refused(server_tap.Options(), arguments, "--allow", rule, telling)
        arguments = ["--images", str(self.images), "--allow", "h:/a"]
        self.assert_refused(server_tap.Options(), arguments, "--allow", "TLS")

    def test_no_directory(self) -> None:
        """A missing or empty directory is refused."""
        self.assert_refused(server_tap.Options(), [], "--images")
        self.assert_refused(server_tap.Options(), ["--images", ""], "--images")

    def test_unknown(self) -> None:
        """Unknown options, and arguments, are refused."""
        for arguments in (["--nonsense"], ["--port"], ["argument"], ["--images", ".", "another"]):
            self.assert_refused(server_tap.Options(), arguments)

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


class ClientOptionsTests(OptionsTestCase):
    """The options of C{twistd mufs-client}."""

    def test_defaults(self) -> None:
        """With only server and directory given, all other options have their defaults."""
        options = self.client()
        names = ("cache-size", "timeout", "interface", "status", "allow-other")
        cache = min(1024, client_tap.HOST_MEMORY >> 22) << 20
        self.assertEqual([options[name] for name in names], [cache, 30.0, None, None, 0])

    def test_values(self) -> None:
        """Values are converted; the directory becomes an absolute path."""
        options = self.client(
            *("--cache-size", "1M", "--timeout", "0.5", "--interface", "192.0.2.2"),
            *("--allow-other", "--status", "tcp:0:interface=127.0.0.1"),
        )
        names = ("cache-size", "timeout", "interface", "allow-other")
        self.assertEqual([options[name] for name in names], [1 << 20, 0.5, "192.0.2.2", 1])
        self.assertEqual(options["mount"], str(self.mount.absolute()))

    def test_bad_values(self) -> None:
        """An invalid value is refused in a line that names option and value."""
        self.assert_client_refuses("cache-size", "0", "1023K", "all", "-1", "", "9" * 400)
        self.assert_client_refuses("timeout", "0", "-1", "soon", "nan", "")
        self.assert_client_refuses("interface", "eth0", "192.0.2", "::1", "")
        self.assert_client_refuses(
            "server",
            "",
            "192.0.2.1",
            "tcp",
            "tcp:192.0.2.1",
            "tcp:192.0.2.1:http",
            "udp:192.0.2.1:7040",
            "tls:h..h:7040",
        )
        self.assert_client_refuses("status", "tcp", "http")

    def test_bad_certificate(self) -> None:
        """An invalid certificate is refused, too."""
        pem = self.images / "not.pem"
        pem.write_text("not a certificate")
        self.assert_client_refuses("server", f"tls:host:7040:certificate={pem}")
        self.assert_client_refuses("server", "ssl:host:7040", "tls:host:7040:trustRoots=/none")

    def test_mount_points(self) -> None:
        """A mount point that is missing, not empty or not a directory is refused."""
        full = self.images / "full"
        full.mkdir()
        (full / "file").touch()
        self.assert_client_refuses(
            "mount", str(full), str(full / "file"), str(full / "none"), "/dev/null"
        )

    def test_required(self) -> None:
        """A missing or empty server or directory is refused."""
        mount = ["--mount", str(self.mount)]
        server = ["--server", "tcp:192.0.2.1:7040"]
        self.assert_refused(client_tap.Options(), mount, "--server")
        self.assert_refused(client_tap.Options(), server, "--mount")
        self.assert_refused(client_tap.Options(), [*server, "--mount", ""], "--mount")

    def test_too_large(self) -> None:
        """A cache larger than the memory of any host is refused like other invalid values."""
        arguments = ["--server", "tcp:192.0.2.1:7040", "--mount", str(self.mount)]
        options = client_tap.Options()

        def make() -> None:
            options.parseOptions([*arguments, "--cache-size", "99999999999G"])
            client_tap.makeService(options, Clock())

        error = self.assertRaises(SystemExit, make)
        self.assertIn("--cache-size", str(error.code))
