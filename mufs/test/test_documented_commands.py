"""
The commands that the documentation shows.

Indented blocks of the pages named here, and their blocks of C{bash}, hold commands alone. Those of
mUFS are parsed by the parsers that the commands have; targets of make must exist; further programs
are those of L{OTHERS}. test_tutorial runs all of docs/tutorial.md, and test_keys what the README
shows of C{mufs keys}.
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from unittest.mock import patch

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import mufs
from mufs import client_tap, server_tap
from mufs.commands import main, mount

CHECKOUT = Path(mufs.__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/operations/{name}.md" for name in (
    "index", "install", "quick-start", "server", "client", "tls-and-access", "cache", "monitoring",
    "network", "virtual-machines", "systemd", "reference",
))]  # fmt: skip

OTHERS = frozenset(
    [
        "apt-get",
        "bridge",
        "cp",
        "fusermount",
        "ip",
        "journalctl",
        "ln",
        "ls",
        "mkdir",
        "nft",
        "python3",
        "qemu-img",
        "qemu-system-x86_64",
        "sed",
        "ssh",
        "sysctl",
        "systemctl",
        "umount",
    ]
)
"""Programs that are not of mUFS, of which nothing is checked."""

TWISTD = ["twistd", "-n", "--pidfile="]
SERVICES = {"mufs-server": server_tap.Options, "mufs-client": client_tap.Options}


def commands(page: str) -> list[str]:
    """The commands of a page, each as one line."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:(?<=\n\n)|\A)((?: {4,}.*\n|\n(?= {4}))+)", prose)
    lines = "\n".join(blocks).replace("\\\n", "").splitlines()
    return [line.strip() for line in lines if line.strip()]


def check(command: str) -> None:
    """
    See that a command can be what it says.

    @raise SystemExit: if an option of a service or of C{mufs} is wrong.
    @raise mount.Wrong: if one of mount(8) is.
    @raise ValueError: if the program or the target of make is not known.
    """
    words = shlex.split(command, comments=True)
    if words[:3] == TWISTD:
        words = words[3:]
    program, arguments = Path(words[0]).name, words[1:]
    if program in SERVICES:
        options = SERVICES[program]()
        # What must exist on the host that it is for does not exist here.
        with patch.object(type(options), "postOptions", lambda self: None):
            options.parseOptions(arguments)
    elif program == "mufs":
        main._parser().parse_args(arguments)
    elif program == "mount" and arguments[:2] == ["-t", "mufs"]:
        parsed = mount._parser().parse_args(arguments[2:])
        mount.client_options(parsed.source, parsed.options)
    elif program == "make":
        makefile = (CHECKOUT / "Makefile").read_text()
        for target in arguments:
            if "=" not in target and not re.search(rf"^{target}:", makefile, re.MULTILINE):
                raise ValueError(f"make has no target {target}")
    elif program not in OTHERS and not words[0].startswith("/opt/mufs/bin/"):
        raise ValueError("is neither of mUFS nor of the programs that are known")


class DocumentedCommandTests(SynchronousTestCase):
    """README.md, CONTRIBUTING.md and docs/operations/."""

    def test_all(self) -> None:
        """Each command is one that exists, with options that it has."""
        if not (CHECKOUT / "README.md").exists():
            raise SkipTest("needs the checkout")
        wrong = []
        for name in PAGES:
            for command in commands((CHECKOUT / name).read_text(encoding="utf-8")):
                try:
                    check(command)
                except (ValueError, SystemExit, mount.Wrong) as error:
                    wrong.append(f"{name}: {command}: {error}")
        self.assertEqual(wrong, [])

    def test_pages(self) -> None:
        """No page of docs/operations/ is left out."""
        found = {str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("docs/operations/*.md")}
        self.assertLessEqual(found, set(PAGES))

    def test_wrong(self) -> None:
        """A command that does not exist, or has another option or target, is found."""
        self.assertRaises(mount.Wrong, check, "mount -t mufs host:/ /mnt -o suid")
        for command in ("make no-such-target", "no-such-program"):
            self.assertRaises(ValueError, check, command)
        with patch.object(argparse.ArgumentParser, "_print_message"):
            for command in ("mufs no-such-command", "mufs-server --no-such-option"):
                self.assertRaises(SystemExit, check, command)

    def test_blocks(self) -> None:
        """Commands are found in indented blocks and those of bash, and joined at backslashes."""
        page = (
            "A:\n\n    one \\\n      two\n\n    three\n\n```bash\nfour\n```\n\n```text\nno\n```\n"
        )
        self.assertEqual(commands(page), ["four", "one       two", "three"])
