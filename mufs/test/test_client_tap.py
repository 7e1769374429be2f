"""The command line of the client."""

import errno
import os
import socket
import sys
from io import StringIO
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import Clock

from mufs import client_tap
from mufs.addresses import ServerAddress
from mufs.cache.client.directory import CacheDirectory
from mufs.client import ClientSettings
from mufs.commands.keys import make_keys
from mufs.filesystem.client.libfuse import Libfuse, NoLibfuse
from mufs.filesystem.client.mounting import MountSettings
from mufs.test.support.doubles import make_libfuse
from mufs.test.test_options import OptionsTestCase

SERVER = "tcp:192.0.2.1:7040"


class ClientOptionsTests(OptionsTestCase):
    """The options of C{mufs-client}."""

    def client(self, *arguments: str) -> client_tap.Options:
        """The client's command line: the required options, then these."""
        options = client_tap.Options()
        options.parseOptions(
            ["--server", "tcp:192.0.2.1:7040", "--mount", str(self.mount), *arguments]
        )
        return options

    def assert_client_refuses(self, option: str, *values: str) -> None:
        """All these values of an option are refused, in a line that names option and value."""
        for value in values:
            arguments = ["--server", "tcp:192.0.2.1:7040", "--mount", str(self.mount)]
            arguments += [f"--{option}", value]
            self.assert_refused(client_tap.Options(), arguments, f"--{option}", value)

    def test_defaults(self) -> None:
        """With only server and directory given, all other options have their defaults."""
        options = self.client()
        names = ("cache-size", "timeout", "interface", "status", "allow-other")
        self.assertEqual(options["server"], ServerAddress("192.0.2.1", 7040))
        cache = min(1024, client_tap.HOST_MEMORY >> 22) << 20
        self.assertEqual([options[name] for name in names], [cache, 0.0, None, None, 0])

    def test_values(self) -> None:
        """Values are converted; the directory becomes an absolute path."""
        options = self.client(
            *("--cache-size", "1M", "--timeout", "0.5", "--interface", "127.0.0.1"),
            *("--allow-other", "--status", "tcp:0:interface=127.0.0.1"),
        )
        names = ("cache-size", "timeout", "interface", "allow-other")
        self.assertEqual([options[name] for name in names], [1 << 20, 0.5, "127.0.0.1", 1])
        self.assertEqual(options["mount"], str(self.mount.absolute()))

    def test_bad_values(self) -> None:
        """An invalid value is refused in a line that names option and value."""
        self.assert_client_refuses("cache-size", "0", "1023K", "all", "1X", "-1", "", "9" * 40)
        self.assert_client_refuses("timeout", "-1", "soon", "nan", "")
        self.assert_client_refuses("interface", "192.0.2", "::1", "")
        self.assert_client_refuses(
            "server",
            "",
            "192.0.2.1:99999",
            "tcp",
            "tcp:192.0.2.1",
            "tcp:192.0.2.1:http",
            "udp:192.0.2.1:7040",
            "tls:h..h:7040",
        )
        self.assert_client_refuses("status", "tcp", "http")

    def test_libfuse(self) -> None:
        """The libfuse that is asked for is loaded; one that is missing ends the client."""
        loaded: list[int | None] = []

        def load(major: int | None) -> Libfuse:
            loaded.append(major)
            if major == 2:
                raise NoLibfuse("libfuse 2 is missing")
            return make_libfuse()

        self.patch(client_tap, "load", load)
        self.assertEqual(self.client()["fuse"].major, 3)
        self.client("--fuse", "3")
        arguments = ["--server", SERVER, "--mount", str(self.mount), "--fuse", "2"]
        self.assert_refused(client_tap.Options(), arguments, "--fuse 2", "libfuse 2 is missing")
        self.assertEqual(loaded, [None, 3, 2])
        self.assert_client_refuses("fuse", "1", "3.14", "")

    def test_interface_to_come(self) -> None:
        """An interface that this host does not have yet is a warning in one line."""
        said = StringIO()
        self.patch(sys, "stderr", said)
        self.assertEqual(self.client("--interface", "192.0.2.99")["interface"], "192.0.2.99")
        self.assertRegex(said.getvalue(), r"^mufs-client: --interface 192.0.2.99: .*such as .*\n$")
        said.truncate(0)
        self.client("--interface", "later0")
        self.assertEqual(said.getvalue(), "")

    def test_bad_certificate(self) -> None:
        """An invalid certificate is refused, too."""
        pem = self.images / "not.pem"
        pem.write_text("not a certificate")
        self.assert_client_refuses("server", f"tls:host:7040:certificate={pem}")
        self.assert_client_refuses("server", "ssl:host:7040", "tls:host:7040:trustRoots=/none")
        for option, files in (
            ("tls-cert", ("--tls-cert", str(pem))),
            ("tls-cert", ("--tls-ca", str(pem))),
        ):
            arguments = ["--server", "host", "--mount", str(self.mount), *files]
            self.assert_refused(client_tap.Options(), arguments, f"--{option}")
        keys = self.images / "keys"
        make_keys(keys, [], ["host"])
        for authorities in (str(pem), str(keys / "none"), "/dev"):
            arguments = ["--server", "host", "--mount", str(self.mount)]
            arguments += ["--tls-cert", f"{keys}/host.pem", "--tls-ca", authorities]
            self.assert_refused(client_tap.Options(), arguments, "--tls-ca", authorities)

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

    def test_memory_limit(self) -> None:
        """The default size fits into the memory that the process may use, beside the process."""
        self.patch(client_tap, "HOST_MEMORY", 8 << 30)
        for limit, size in (
            (None, 1024),
            (9223372036854771712, 1024),
            (512 << 20, 256),
            (256 << 20, 96),
            (100 << 20, 1),
            (4 << 30, 1024),
        ):
            self.patch(client_tap, "memory_limit", lambda: limit)  # noqa: B023
            self.assertEqual(client_tap.default_cache_size() >> 20, size)

    def test_too_much(self) -> None:
        """A cache that cannot become full is a warning: one larger than its disk or its memory."""
        directory = CacheDirectory(self.mktemp(), "tcp:192.0.2.1:7040", reserve=1 << 20)
        self.addCleanup(directory.close)
        disk = directory.space.size
        self.patch(client_tap, "memory_limit", lambda: 256 << 20)
        for size, storage, expected in (
            (64 << 20, None, ""),
            (128 << 20, None, "may use 256 MiB"),
            (1 << 20, directory, ""),
            (disk, directory, "has for it"),
        ):
            found = client_tap.too_large(size, storage)
            self.assertIn(expected, found)
            self.assertEqual(bool(found), bool(expected), found)
        self.patch(client_tap, "memory_limit", lambda: 100 << 20)
        self.assertIn("may use 100 MiB", client_tap.too_large(1 << 20, directory))
        self.patch(client_tap, "memory_limit", lambda: None)
        self.assertEqual(client_tap.too_large(1 << 40, None), "")


class MakeServiceTests(OptionsTestCase):
    """What becomes of the options."""

    def make(self, *arguments: str) -> dict[str, Any]:
        """What the service is given for these options."""
        given: dict[str, Any] = {}

        def make(reactor: object, settings: ClientSettings, **more: Any) -> Service:
            given.update(more, settings=settings)
            return Service()

        self.patch(client_tap, "ClientMount", make)
        options = client_tap.Options()
        options.parseOptions(
            ["--server", SERVER, "--mount", str(self.mount), "--cache-size", "1M", *arguments]
        )
        client_tap.makeService(options, Clock())
        return given

    def test_settings(self) -> None:
        """The settings are those of the options; the cache is in memory, as large as is set."""
        given = self.make("--timeout", "5", "--noexec")
        shown = "192.0.2.1:7040"
        mount = MountSettings(
            given["settings"].mount.libfuse, str(self.mount.absolute()), shown,
            allow_other=False, noexec=True,
        )  # fmt: skip
        self.assertEqual(given["settings"], ClientSettings(
            server=shown, mount=mount, interface=None, cache_size=1 << 20, timeout=5.0,
            offline_for=3600.0, host=socket.gethostname(), tls=False,
        ))  # fmt: skip
        self.assertEqual(given["cache"].capacity, 1 << 20)
        self.assertIsNone(given["status"])

    def test_source(self) -> None:
        """The device name that mount(8) shows can be set."""
        self.assertEqual(self.make("--source", "images")["settings"].mount.source, "images")

    def test_tls(self) -> None:
        """A client with an endpoint or with files of TLS knows that it uses TLS."""
        self.assertTrue(self.make("--server", "tls:192.0.2.1:7040")["settings"].tls)
        keys = self.images / "keys"
        make_keys(keys, [], ["host"])
        for authorities in (keys / "ca", keys / "ca/ca.pem"):
            files = ("--tls-cert", f"{keys}/host.pem", "--tls-ca", str(authorities))
            self.assertTrue(self.make("--server", "192.0.2.1", *files)["settings"].tls)

    def test_cache_directory(self) -> None:
        """A cache directory is created; if that is impossible, one line says so."""
        directory = self.mktemp()
        self.make("--cache-dir", directory)
        self.assertTrue(Path(directory).is_dir())
        with self.assertRaises(SystemExit) as raised:
            self.make("--cache-dir", str(self.images / "none" / "cache"))
        self.assertRegex(str(raised.exception.code), r"^mufs-client: --cache-dir .*/none/cache: ")

    def test_no_memory(self) -> None:
        """A cache for which there is no memory ends the command with one line."""

        def refuse(size: int, storage: object) -> None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        self.patch(client_tap, "BlockCache", refuse)
        error = self.assertRaises(SystemExit, self.make)
        self.assertEqual(
            error.code,
            "mufs-client: --cache-size 1M: is more than there is here "
            f"({os.strerror(errno.ENOMEM)}), such as --cache-size 4G",
        )

    def test_state(self) -> None:
        """The state is in a file of this mount, in a directory that is made."""
        directory = Path(self.mktemp()) / "a" / "state"
        state = self.make("--state", str(directory))["state"]
        state.save([(1.0, {"reads": 2.0})])
        (file,) = directory.iterdir()
        self.assertTrue(file.name.startswith("mufs-client-"), file.name)
        self.assertIsNone(self.make()["state"])
