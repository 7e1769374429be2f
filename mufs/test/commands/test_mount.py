"""C{mount.mufs}: what mount(8) passes, and what the client is started with."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs.commands import mount as module
from mufs.commands.mount import Failed, Wrong, client_options, main


class OptionTests(SynchronousTestCase):
    """The options of mount(8), and those of the client."""

    def told(self, options: str, source: str = "images:/") -> list[str]:
        """The client's options but those that it always has."""
        arguments, _ = client_options(source, [options])
        self.assertEqual(arguments.pop(), f"--source={source}")
        return arguments

    def test_defaults(self) -> None:
        """Options that mount(8) adds by itself are not passed to the client."""
        server = "--server=images:7040"
        self.assertEqual(self.told("rw"), [server])
        self.assertEqual(self.told("rw,nosuid,nodev,_netdev,nofail,user=joe,users"), [server])
        self.assertEqual(self.told("defaults,ro,noatime,x-systemd.automount,x-gvfs-show"), [server])

    def test_options(self) -> None:
        """Options have the names of the command line, with hyphens or underscores."""
        self.assertEqual(
            self.told("cache_size=1G,cache-dir=/var/cache/x,allow_other,noexec,timeout=5,port=7000"),
            ["--cache-size=1G", "--cache-dir=/var/cache/x", "--allow-other", "--noexec",
             "--timeout=5", "--server=images:7000"],
        )  # fmt: skip

    def test_tls(self) -> None:
        """The files of TLS are passed on; options of former versions name what replaces them."""
        self.assertEqual(
            self.told("tls_cert=/etc/a:b.pem,tls-ca=/etc/ca"),
            ["--tls-cert=/etc/a:b.pem", "--tls-ca=/etc/ca", "--server=images:7040"],
        )
        for former, now in (
            ("certificate", "cert"),
            ("private_key", "cert"),
            ("trust-roots", "ca"),
        ):
            with self.assertRaises(Wrong) as caught:
                self.told(f"{former}=/etc/x")
            self.assertIn(f"is tls_{now}= now", str(caught.exception))

    def test_ipv6(self) -> None:
        """An address of IPv6 has brackets."""
        self.assertEqual(self.told("port=1", "[fd00::1]:/"), ["--server=[fd00::1]:1"])

    def test_background(self) -> None:
        """bg is for the helper, not for the client."""
        self.assertFalse(client_options("images:/", ["rw"])[1])
        self.assertTrue(client_options("images:/", ["rw,bg"])[1])

    def test_hard(self) -> None:
        """soft limits the time of an operation, to 30 s or to what is given; hard never does."""
        server = "--server=images:7040"
        for options, expected in (
            ("hard", [server]),
            ("soft", ["--timeout=30", server]),
            ("soft,timeo=50", ["--timeout=5", server]),
            ("timeout=7,soft", ["--timeout=7", server]),
            ("timeout=7,hard", [server]),
        ):
            self.assertEqual(self.told(options), expected, options)

    def test_unknown(self) -> None:
        """An option that is unknown, or has no value, or one too many, is named."""
        for option in (
            "size=1", "suid", "dev", "cache_size", "cache_size=", "allow_other=1", "port=http",
            "timeo=soon", "soft=1", "port=99999", "server=evil:1", "mount=/", "context=x",
        ):  # fmt: skip
            with self.assertRaises(Wrong, msg=option) as caught:
                self.told(f"rw,{option}")
            self.assertIn(option, str(caught.exception))
            self.assertIn("such as ", str(caught.exception))

    def test_sloppy(self) -> None:
        """With -s unknown options are ignored."""
        self.assertEqual(
            client_options("images:/", ["vers=3"], True), client_options("images:/", [])
        )

    def test_remount(self) -> None:
        """A remount is refused."""
        self.assertRaises(Failed, self.told, "rw,remount")

    def test_source(self) -> None:
        """A source that is not a server, or is a directory of one, is refused."""
        for source in (
            "images", ":/", "/dev/sda", "images:", "images:disks", "images:/disks", "images:7040:/",
            "fd00::1:/", "[fd00::1:/", "192.0.2:/",
        ):  # fmt: skip
            error = self.assertRaises(Wrong, client_options, source, [])
            self.assertIn("such as ", str(error))


class CommandTests(SynchronousTestCase):
    """The command line; no client is started."""

    def setUp(self) -> None:
        """Record the mounts."""
        self.mounts: list[tuple[Any, ...]] = []
        self.patch(module, "mount", lambda *arguments: self.mounts.append(arguments))

    def run_main(self, *arguments: str) -> tuple[int, str]:
        """The exit status and the standard error of a command line."""
        self.patch(sys, "argv", ["mount.mufs", *arguments])
        with tempfile.TemporaryFile("w+") as errors:
            self.patch(sys, "stderr", errors)
            status = 0
            try:
                main()
            except SystemExit as ended:
                assert isinstance(ended.code, int)
                status = ended.code
            errors.seek(0)
            return status, errors.read()

    def test_mount(self) -> None:
        """The client's options, the absolute mount point and bg are passed on."""
        self.assertEqual(self.run_main("images:/", "/mnt/../mnt/x", "-o", "ro,bg", "-n"), (0, ""))
        ((directory, arguments, background),) = self.mounts
        self.assertEqual((directory, background), ("/mnt/x", True))
        self.assertEqual(arguments, ["--server=images:7040", "--source=images:/"])

    def test_fake(self) -> None:
        """With -f options are checked, and nothing is mounted."""
        self.assertEqual(self.run_main("images:/", "/mnt", "-f")[0], 0)
        self.assertEqual(self.run_main("images:/", "/mnt", "-f", "-o", "suid")[0], 1)
        self.assertEqual(self.mounts, [])

    def test_wrong(self) -> None:
        """A wrong command line ends with status 1 of mount(8), and one line."""
        for arguments in (("images:/",), ("images", "/mnt"), ("images:/", "/mnt", "-o", "dev")):
            status, errors = self.run_main(*arguments)
            self.assertEqual((status, errors.count("\n")), (1, 1), errors)
            self.assertTrue(errors.startswith("mount.mufs: "), errors)

    def test_failed(self) -> None:
        """A mount that fails ends with status 32 of mount(8), and names the source."""

        def fail(*arguments: Any) -> None:
            raise Failed("no answer")

        self.patch(module, "mount", fail)
        self.assertEqual(
            self.run_main("images:/", "/mnt"), (32, "mount.mufs: images:/: no answer\n")
        )
