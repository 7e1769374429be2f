"""
The commands that the documentation shows.

In Markdown, indented blocks and blocks of C{bash} hold commands alone; in manual pages, literal
displays do, unless the comment C{not a command} precedes them. Code within a line counts, too, if
it is a command of mUFS or make with its arguments.

Commands of mUFS are parsed by their own parsers, which also convert the values; targets of make and
scripts must exist; other programs must be in L{OTHERS}. Two documents have tests of their own:
test_tutorial runs docs/tutorial.md, and test_protocol_document compares the bytes in
docs/protocol.md. test_keys runs the commands of the README that use TLS.
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from unittest.mock import patch

from twisted.python import usage
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import mufs
from mufs import client_tap, options, server_tap
from mufs.addresses import parse_listen, parse_server
from mufs.commands import main, mount
from mufs.commands.check import command as check_command

CHECKOUT = Path(mufs.__file__).parent.parent
ELSEWHERE = {"docs/tutorial.md", "docs/protocol.md"}
"""Documents whose blocks another test runs or compares."""

OTHERS = frozenset(
    [
        "apt-get",
        "blockdev",
        "bridge",
        "cp",
        "fusermount",
        "ip",
        "journalctl",
        "ln",
        "losetup",
        "ls",
        "mkdir",
        "mkfs.erofs",
        "mksquashfs",
        "mount",
        "nft",
        "pre-commit",
        "python3",
        "qemu-img",
        "qemu-system-x86_64",
        "scp",
        "sed",
        "ssh",
        "sysctl",
        "systemctl",
        "umount",
        "virsh",
    ]
)
"""Programs that are not of mUFS, of which nothing is checked."""

CODE = re.compile(r"`([^`]+)`")
INLINE = re.compile(r"(?:make|mufs-server|mufs-client|mount -t mufs) .+|mufs (?![a-z ]+$).+")
"""Code within a line that is a command, and not only the name of one, as C{mufs cache ls} is."""

TWISTD = ["twistd", "-n", "--pidfile="]
SERVICES = {"mufs-server": server_tap.Options, "mufs-client": client_tap.Options}


def documents() -> list[str]:
    """The documents with commands, as paths from the checkout."""
    if not (CHECKOUT / "README.md").exists():
        raise SkipTest("needs the checkout")
    folders = (CHECKOUT / name for name in ("docs", "bench", "findings", "newsfragments"))
    pages = [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs/man").iterdir()]
    pages += [path for folder in folders for path in folder.rglob("*.md")]
    pages = [path for path in pages if "results" not in path.parts]
    return sorted({str(path.relative_to(CHECKOUT)) for path in pages} - ELSEWHERE)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _lines(blocks: list[str]) -> list[str]:
    lines = "\n".join(blocks).replace("\\\n", "").splitlines()
    return [line.strip() for line in lines if line.strip()]


def markdown_commands(page: str) -> list[str]:
    """The commands of a page in Markdown, each as one line."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:(?<=\n\n)|\A)((?: {4,}.*\n|\n(?= {4}))+)", prose)
    return [*_lines(blocks), *filter(INLINE.fullmatch, map(_one_line, CODE.findall(prose)))]


def manual_commands(page: str) -> list[str]:
    """The commands of a manual page, each as one line."""
    pattern = r'(?<!^\.\\" not a command\n)^\.Bd -literal.*?\n(.*?)^\.Ed$'
    blocks = re.findall(pattern, page, re.MULTILINE | re.DOTALL)
    return _lines([block.replace(r"\e", "\\") for block in blocks])


def parse_service(program: str, arguments: list[str]) -> None:
    """
    Parse the command line of a service, and convert its values.

    Files, directories and certificates are those of the host that the command is for, so
    C{postOptions} of the service, which opens them, is left out.
    """
    given = SERVICES[program]()
    with patch.object(type(given), "postOptions", options.Options.postOptions):
        given.parseOptions(arguments)
    given.require(*(name for name in ("images", "server", "mount") if name in given))
    if program == "mufs-server":
        parse_listen(given["listen"], given["tls-cert"], given["tls-ca"])
    else:
        parse_server(given["server"], given["tls-cert"], given["tls-ca"])


def check(command: str) -> None:
    """
    Check that a command exists and takes its arguments.

    @raise SystemExit: if an option of a service or of C{mufs} is wrong.
    @raise usage.UsageError: if an option of a service is missing.
    @raise mount.Wrong: if an option of mount(8) is wrong.
    @raise ValueError: if the program, the script or the target of make is not known, or an address
        is none.
    """
    words = shlex.split(command, comments=True)
    if words[:3] == TWISTD:
        words = words[3:]
    program, arguments = Path(words[0]).name, words[1:]
    if program in SERVICES:
        parse_service(program, arguments)
    elif program == "mufs":
        parsed = main._parser().parse_args(arguments)
        if parsed.run is check_command.run and parsed.server is not None:
            parse_server(parsed.server, parsed.tls_cert, parsed.tls_ca)
    elif program == "mount" and arguments[:2] == ["-t", "mufs"]:
        mounted = mount._parser().parse_args(arguments[2:])
        given, _ = mount.client_options(mounted.source, mounted.options)
        parse_service("mufs-client", [*given, f"--mount={mounted.directory}"])
    elif program == "make":
        makefile = (CHECKOUT / "Makefile").read_text()
        for target in arguments:
            if "=" not in target and not re.search(rf"^{target}:", makefile, re.MULTILINE):
                raise ValueError(f"make has no target {target}")
    elif words[0] == ".venv/bin/python":
        module = arguments[1].replace(".", "/") + ".py" if arguments[0] == "-m" else arguments[0]
        if not (CHECKOUT / module).is_file():
            raise ValueError(f"there is no {module}")
    elif program not in OTHERS and not words[0].startswith("/opt/mufs/bin/"):
        raise ValueError("is neither of mUFS nor of the programs that are known")


class DocumentedCommandTests(SynchronousTestCase):
    """All documents and manual pages but those of L{ELSEWHERE}."""

    def test_all(self) -> None:
        """Each command exists, and takes the options and values that are shown."""
        wrong, right = [], 0
        for name in documents():
            text = (CHECKOUT / name).read_text(encoding="utf-8")
            for command in (markdown_commands if name.endswith(".md") else manual_commands)(text):
                try:
                    check(command)
                    right += 1
                except (ValueError, SystemExit, usage.UsageError, mount.Wrong) as error:
                    wrong.append(f"{name}: {command}: {error}")
        self.assertEqual(wrong, [])
        self.assertGreater(right, 80)

    def test_wrong(self) -> None:
        """A command that does not exist, or has a wrong option, value or target, is found."""
        self.assertRaises(mount.Wrong, check, "mount -t mufs host:/ /mnt -o suid")
        for command in ("make no-such-target", "no-such-program", ".venv/bin/python no/such.py"):
            self.assertRaises(ValueError, check, command)
        with patch.object(argparse.ArgumentParser, "_print_message"):
            for command in (
                "mufs no-such-command",
                "mufs-server --no-such-option",
                "mufs-server --images /srv --rate-max fast",
                "mount -t mufs host:/ /mnt -o timeout=never",
            ):
                self.assertRaises(SystemExit, check, command)
        self.assertRaises(usage.UsageError, check, "mufs-server")
        for command in ("mufs-client --server tcp:h --mount /mnt", "mufs check --server h:port"):
            self.assertRaises(ValueError, check, command)

    def test_markdown(self) -> None:
        """
        Commands are found in indented blocks, where backslashes join lines, in blocks of bash, and
        as code within a line.
        """
        page = (
            "A:\n\n    one \\\n      two\n\n    three\n\n```bash\nfour\n```\n\n```text\nno\n```\n\n"
            "`no`, `mufs status`, `make\ndemo`, `mufs status 7080`\n"
        )
        expected = ["four", "one       two", "three", "make demo", "mufs status 7080"]
        self.assertEqual(markdown_commands(page), expected)

    def test_manual(self) -> None:
        """Commands are found in literal displays, but for those that a comment exempts."""
        display = ".Bd -literal -offset indent\none \\e\n  two\n.Ed\n"
        page = f'A:\n{display}.\\" not a command\n.Bd -literal\nno\n.Ed\n'
        self.assertEqual(manual_commands(page), ["one   two"])
