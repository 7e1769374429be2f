"""The command line of the server."""

import os
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import Clock

from mufs import server_tap
from mufs.addresses import ListenAddress, TLSFiles
from mufs.commands.keys import make_keys
from mufs.communication.server.packer import Compression
from mufs.filesystem.server.library import ExportedDirectory
from mufs.server import ServerSettings
from mufs.test.test_options import OptionsTestCase
from mufs.wire.metadata import Caller


class ServerOptionsTests(OptionsTestCase):
    """The options of C{mufs-server}."""

    def server(self, *arguments: str) -> server_tap.Options:
        """The server's command line: the required options, then these."""
        options = server_tap.Options()
        options.parseOptions(["--images", str(self.images), *arguments])
        return options

    def assert_server_refuses(self, option: str, *values: str) -> None:
        """All these values of an option are refused, in a line that names option and value."""
        for value in values:
            arguments = ["--images", str(self.images), f"--{option}", value]
            self.assert_refused(server_tap.Options(), arguments, f"--{option}", value)

    def test_defaults(self) -> None:
        """With only the directory given, all other options have their defaults."""
        options = self.server()
        self.assertIsInstance(options["library"], ExportedDirectory)
        self.assertEqual(
            [options[name] for name in ("listen", "group", "port", "interface", "status")],
            [ListenAddress(7040), "239.5.5.0", 7041, None, None],
        )
        self.assertEqual((options["rate-min"], options["rate-max"]), (10**6, 10**10))

    def test_values(self) -> None:
        """Values are converted."""
        options = self.server(
            *("--group", "239.1.2.3", "--port", "65535", "--interface", "127.0.0.1"),
            *("--rate-max", "100M", "--rate-min", "100M", "--status", "tcp:0"),
        )
        self.assertEqual(
            [options[name] for name in ("group", "port", "interface", "rate-min", "rate-max")],
            ["239.1.2.3", 65535, "127.0.0.1", 10**8, 10**8],
        )

    def test_compress(self) -> None:
        """Compression is automatic, off, or always on at a level."""
        self.assertEqual(self.server()["compress"], Compression())
        for given, expected in (
            ("auto", Compression()),
            ("off", None),
            ("19", Compression(19, if_faster=False)),
        ):
            self.assertEqual(self.server("--compress", given)["compress"], expected)

    def test_bad_values(self) -> None:
        """An invalid value is refused in a line that names option and value."""
        self.assert_server_refuses("images", "/nonexistent", "/dev/null")
        self.assert_server_refuses("group", "192.0.2.1", "240.0.0.1", "ff02::1", "all", "")
        self.assert_server_refuses("port", "0", "65536", "-1", "http", "")
        self.assert_server_refuses("interface", "192.0.2.99", "192.0.2", "::1", "")
        self.assert_server_refuses("rate-max", "fast", "1P", "")
        self.assert_server_refuses("rate-min", "slow", "-1")
        self.assert_server_refuses("compress", "on", "0", "20", "-1", "")

    def test_rates(self) -> None:
        """A minimum rate of 0, or above the maximum, is refused."""
        for arguments in (["--rate-min", "0"], ["--rate-max", "10K"], ["--rate-min", "11G"]):
            arguments = ["--images", str(self.images), *arguments]
            self.assert_refused(server_tap.Options(), arguments, "--rate-min")

    def test_endpoints(self) -> None:
        """Text that is not an endpoint is refused, whatever Twisted's parsers raise."""
        pem = self.images / "not.pem"
        pem.write_text("not a key")
        self.assert_server_refuses("listen", "99999", "eth0", "localhost:7040")
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
            f"tls:7040:certificate={keys}/server.pem:trustRoots={keys}:privateKey={keys}/ca.key",
        )
        pem = Path(f"{keys}/a:b.pem")
        pem.write_bytes((keys / "server.pem").read_bytes())
        for authorities in (keys / "ca", keys / "ca/ca.pem"):
            files = ("--tls-cert", str(pem), "--tls-ca", str(authorities))
            options = self.server("--listen", "127.0.0.1:0", *files)
            self.assertEqual(options["listen"].tls, TLSFiles(str(pem), None, str(authorities)))
        for option in ("--tls-cert", "--tls-ca"):
            arguments = ["--images", str(self.images), option, str(pem)]
            self.assert_refused(server_tap.Options(), arguments, "--tls-cert", "--tls-ca")
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
        rules = self.images / "rules"
        arguments = ["--images", str(self.images), "--allow-from", str(rules)]
        secured = [*arguments, *tls]
        self.assert_refused(server_tap.Options(), secured, "--allow-from", "No such file")
        rules.touch()
        self.assert_refused(server_tap.Options(), arguments, "--allow-from", "TLS")
        arguments += tls
        rules.write_text("h:/a\nnonsense\n")
        self.assert_refused(server_tap.Options(), arguments, f"{rules}: line 2, nonsense, is not")

    def test_no_directory(self) -> None:
        """A missing or empty directory is refused."""
        self.assert_refused(server_tap.Options(), [], "--images")
        self.assert_refused(server_tap.Options(), ["--images", ""], "--images")

    def test_unknown(self) -> None:
        """Unknown options, and arguments, are refused."""
        for arguments in (["--nonsense"], ["--port"], ["argument"], ["--images", ".", "another"]):
            self.assert_refused(server_tap.Options(), arguments)


class MakeServiceTests(OptionsTestCase):
    """What becomes of the options."""

    def make(self, *arguments: str) -> dict[str, Any]:
        """What the service is given for these options."""
        given: dict[str, Any] = {}

        def make(reactor: object, settings: ServerSettings, **more: Any) -> Service:
            given.update(more, settings=settings)
            return Service()

        self.patch(server_tap, "ServerService", make)
        options = server_tap.Options()
        options.parseOptions(["--images", str(self.images), *arguments])
        server_tap.makeService(options, Clock())
        return given

    def test_settings(self) -> None:
        """The settings are those of the options; the exported directory is known by its path."""
        link = Path(self.mktemp())
        link.symlink_to(self.images.absolute())
        given = self.make("--images", str(link), "--rate-max", "100M", "--interface", "127.0.0.1")
        self.assertEqual(given["settings"], ServerSettings(
            group="239.5.5.0", port=7041, interface="127.0.0.1", rate_min=10**6, rate_max=10**8,
            compression=Compression(), tls=False, images=os.path.realpath(self.images),
        ))  # fmt: skip
        self.assertIsNone(given["status"])

    def test_squash(self) -> None:
        """Root is squashed unless told otherwise, others only if told so."""
        root, user = Caller(0, 0, []), Caller(1000, 100, [])
        for flags, squashed in (
            ([], [True, False]),
            (["--no-root-squash"], [False, False]),
            (["--all-squash"], [True, True]),
        ):
            access = self.make(*flags)["access"]
            self.assertEqual([access.squash(each) != each for each in (root, user)], squashed)

    def test_secret(self) -> None:
        """Each run has its own secret of 32 bytes."""
        secrets = {self.make()["secret"] for _ in range(2)}
        self.assertEqual([len(secret) for secret in secrets], [32, 32])

    def test_tls(self) -> None:
        """TLS, the access rules and the status endpoint are passed on."""
        keys = self.images / "keys"
        make_keys(keys, ["host"], [])
        listen = f"tls:0:certificate={keys}/server.pem:trustRoots={keys}/ca"
        given = self.make("--listen", listen, "--allow", "*.lab:/a", "--status", "7080")
        self.assertTrue(given["settings"].tls)
        self.assertEqual([rule.name for rule in given["access"].rules], ["*.lab"])
        self.assertIsNotNone(given["status"])

    def test_state(self) -> None:
        """The state is in a file, in a directory that is made and that can be written to."""
        directory = Path(self.mktemp()) / "state"
        state = self.make("--state", str(directory))["state"]
        state.save([(1.0, {"queue": 2.0})])
        self.assertEqual([file.name for file in directory.iterdir()], ["mufs-server.json"])
        self.assertIsNone(self.make()["state"])
        arguments = ["--images", str(self.images), "--state", f"{self.images}/file/state"]
        (self.images / "file").touch()
        self.assert_refused(server_tap.Options(), arguments, "--state", "Not a directory")
