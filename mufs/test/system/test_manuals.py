"""The manual pages and docs/operations/ list all options, and no others."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator

from twisted.python import usage
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mufs import client_tap, server_tap
from mufs.commands.main import _parser
from mufs.test.support.processes import CHECKOUT

BLOCK_PAGES = CHECKOUT / "docs/man"
OF_ALL = {"help", "version"}


def of_service(options: usage.Options) -> set[str]:
    """Return the names of a service's options."""
    return {name.rstrip("=") for name in options.longOpt}


def commands(
    parser: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the commands that can be run, such as C{"cache ls"}, and their parsers."""
    beneath = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not beneath or parser.get_default("run"):
        yield name, parser
    for action in beneath:
        for word, each in action.choices.items():
            yield from commands(each, f"{name} {word}".strip())


def of_command(parser: argparse.ArgumentParser) -> set[str]:
    """Return the long names of a command's options, without C{--help}."""
    names = {name for action in parser._actions for name in action.option_strings}
    return {name[2:] for name in names if name.startswith("--")} - {"help", "version"}


def page(name: str) -> str:
    """Return the source of a manual page."""
    if not BLOCK_PAGES.is_dir():
        raise SkipTest("needs the checkout")
    return (BLOCK_PAGES / name).read_text()


def listed(text: str) -> set[str]:
    """Return the options listed in an mdoc text."""
    return set(re.findall(r"^\.It Fl -([\w-]+)", text, re.MULTILINE))


class ManualTests(SynchronousTestCase):
    """The manual pages in docs/man/."""

    def test_server(self) -> None:
        """mufs-server(8) has the options of `mufs-server`, and no others."""
        self.assertEqual(listed(page("mufs-server.8")), of_service(server_tap.Options()))

    def test_client(self) -> None:
        """mufs-client(8) has the options of `mufs-client`, and no others."""
        self.assertEqual(listed(page("mufs-client.8")), of_service(client_tap.Options()))

    def test_commands(self) -> None:
        """mufs(1) has a section for each command, with the options of that command."""
        sections = page("mufs.1").partition("\n.Sh OPTIONS\n")[2].partition("\n.Sh ")[0]
        documented = {}
        for section in re.split(r"^\.Ss ", sections, flags=re.MULTILINE)[1:]:
            name, _, text = section.partition("\n")
            documented[name] = listed(text)
        there = {name: of_command(parser) for name, parser in commands(_parser())}
        self.assertGreater(len(there), 3)
        self.assertEqual(documented, there)

    def test_mount(self) -> None:
        """mount.mufs(8) has all options after C{-o}: the client's and its own."""
        named = set(re.findall(r"^\.It Cm (\w+)", page("mount.mufs.8"), re.MULTILINE))
        of_client = of_service(client_tap.Options()) - OF_ALL - {"server", "mount", "source"}
        own = {"port", "bg", "hard", "soft", "timeo"}
        self.assertEqual(named, {name.replace("-", "_") for name in of_client} | own)

    def test_complete(self) -> None:
        """Each page has all standard sections."""
        for name in ("mufs.1", "mufs-server.8", "mufs-client.8", "mount.mufs.8"):
            sections = re.findall(r"^\.Sh (.*)$", page(name), re.MULTILINE)
            expected = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "FILES"]
            self.assertEqual(sections, [*expected, "EXIT STATUS", "EXAMPLES", "SEE ALSO"], name)

    def test_form(self) -> None:
        """mandoc has no warnings."""
        if shutil.which("mandoc") is None:
            raise SkipTest("needs mandoc")
        page("mufs.1")
        done = subprocess.run(
            ["mandoc", "-Tlint", "-Wwarning", *sorted(BLOCK_PAGES.iterdir())],
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual((done.stdout, done.returncode), ("", 0))


class TableTests(SynchronousTestCase):
    """The tables of options in docs/operations/."""

    def assert_table(self, page: str, section: str, options: usage.Options) -> None:
        """Assert that the table in a section has these options with their defaults."""
        if not BLOCK_PAGES.is_dir():
            raise SkipTest("needs the checkout")
        text = (CHECKOUT / "docs" / "operations" / page).read_text()
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        rows = dict(re.findall(r"^\| `--([\w-]+).*?` \| (.*?) \|", text, re.MULTILINE))
        self.assertEqual(set(rows), of_service(options) - OF_ALL)
        for name, default in options.defaults.items():
            if isinstance(default, str) and name != "cache-size":  # depends on the machine
                self.assertEqual(rows[name], f"`{default}`")

    def test_server(self) -> None:
        """The table of the server has its options and defaults."""
        self.assert_table("server.md", "Server options", server_tap.Options())

    def test_client(self) -> None:
        """The table of the client has its options and defaults."""
        self.assert_table("client.md", "Client options", client_tap.Options())
