"""C{mufs status}: how figures are shown."""

import io
import os
import sys
from typing import Any

from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from mufs.commands import status
from mufs.commands.parser import Parser
from mufs.commands.status import _at, _found, _seconds, _tables, plain
from mufs.sockets import Nobody, Unreachable
from mufs.units import format_bytes

CLIENT: dict[str, Any] = {
    "service": "client", "at": "/run/mufs/client/mnt.sock", "mount": "/mnt", "connected": True,
    "reads": 1234, "hits": 1000, "joined": 34, "misses": 200, "hit_rate": 0.8104, "lag": 0.0123,
    "bytes_requested": 3 << 20, "bytes_overheard": 5 << 10, "bytes_over_tcp": 0,
    "bytes_delivered": 9 << 20, "bytes_zero": 1 << 20, "bytes_multicast": 1536 << 10,
    "image_bytes_multicast": 4 << 20, "cache_bytes": 1 << 30, "cache_size": 2 << 30, "evictions": 7,
    "segments_lost": 5,
    "segments_received": 1000, "server": "tcp:images:7040", "tls": True, "multicast": "working",
    "libfuse": "3.14",
}  # fmt: skip


def text(found: list[dict[str, Any]]) -> str:
    """The tables, without colours."""
    out = io.StringIO()
    Console(file=out, width=200).print(_tables(found))
    return out.getvalue()


class TableTests(SynchronousTestCase):
    """Tables of figures."""

    def test_bytes(self) -> None:
        """Bytes are shown in the largest unit of which there is at least one."""
        shown = [format_bytes(count) for count in (0, 1023, 1024, 1010 << 10, 1536 << 10, 5 << 40)]
        self.assertEqual(shown, ["0 B", "1023 B", "1.0 KiB", "1010.0 KiB", "1.5 MiB", "5.0 TiB"])

    def test_client(self) -> None:
        """A client's figures have their names and units."""
        lines = [line.split() for line in text([CLIENT]).splitlines()]
        self.assertEqual(lines[0], ["client", "/mnt"])
        self.assertEqual(lines[1], ["reads", "1,234", "asked", "for", "3.0", "MiB"])
        self.assertEqual(lines[2], ["hits", "1,000", "overheard", "5.0", "KiB"])
        self.assertEqual(lines[4], ["misses", "200", "cache", "1.0", "GiB", "of", "2.0", "GiB"])
        self.assertEqual(lines[5], ["hit", "rate", "81.0", "%", "evicted", "blocks", "7"])
        self.assertEqual(lines[6], ["lag", "12", "ms", "lost", "segments", "5", "(0.5", "%)"])
        self.assertEqual(lines[7], ["delivered", "9.0", "MiB", "by", "multicast", "1.5", "MiB"])
        zero = ["known", "to", "be", "zero", "1.0", "MiB"]
        self.assertEqual(lines[8], [*zero, "unpacked", "to", "4.0", "MiB"])
        self.assertEqual(lines[9], ["libfuse", "3.14"])
        self.assertEqual(lines[10], ["server", "tcp:images:7040,", "TLS"])

    def test_error(self) -> None:
        """A service that does not answer is shown with the reason, beside the others."""
        shown = text([{"service": "?", "at": "x", "error": "x: no answer"}, CLIENT])
        self.assertTrue(shown.startswith("x: no answer\n\nclient /mnt\n"), shown)

    def test_others(self) -> None:
        """Figures of something other than mUFS are refused."""
        found = {"service": "server", "at": "http://x", "clients": 7}
        self.assertRaises(Unreachable, _tables, [found])

    def test_plain(self) -> None:
        """Control characters of other hosts are escaped."""
        self.assertEqual(plain("a\x1b[31mb\n\u202e[bold]").plain, "a\\x1b[31mb\\n\\u202e[bold]")


class AddressTests(SynchronousTestCase):
    """Which services are asked."""

    def test_at(self) -> None:
        """A number is a port of this host; URLs and endpoints are used as they are."""
        self.assertEqual(_at("8080"), "http://127.0.0.1:8080")
        for where in ("http://host:1", "tcp:host:1", "unix:/path"):
            self.assertEqual(_at(where), where)

    def test_all(self) -> None:
        """Without WHERE all services are asked; the sockets of dead ones are ignored."""
        answers: dict[str, Any] = {
            "dead": Nobody("dead"), "ill": Unreachable("ill: no answer"),
            "one": {"mount": "/mnt"}, "two": {"clients": []},
        }  # fmt: skip

        def ask(where: str) -> Any:
            if isinstance(answers[where], Exception):
                raise answers[where]
            return answers[where]

        self.patch(status, "sockets", lambda: list(answers))
        self.patch(status, "ask", ask)
        self.patch(status, "hidden_directories", lambda: ["/run/mufs/server"])
        found = [(each["service"], each["at"]) for each in _found(None)]
        self.assertEqual(
            found, [("?", "ill"), ("client", "one"), ("server", "two"), ("?", "/run/mufs/server")]
        )

    def test_no_success(self) -> None:
        """When one of several services could not be asked, the command fails."""
        parser = Parser()
        commands: Any = parser.add_subparsers()
        status.add_parser(commands)
        shown = io.StringIO()
        self.patch(status, "console", lambda: Console(file=shown, width=200))
        self.patch(status, "hidden_directories", list)
        self.patch(status, "sockets", lambda: ["one", "closed"])

        def ask(where: str) -> Any:
            if where == "closed":
                raise Unreachable("closed: Permission denied")
            return CLIENT

        self.patch(status, "ask", ask)
        given = parser.parse_args(["status"])
        error = self.assertRaises(SystemExit, given.run, given)
        self.assertEqual(error.code, 1)
        self.assertIn("client /mnt", shown.getvalue())
        self.assertIn("closed: Permission denied", shown.getvalue())

    def test_nothing(self) -> None:
        """That nothing runs is an error."""
        self.patch(status, "sockets", list)
        self.patch(status, "hidden_directories", list)
        self.assertRaises(Unreachable, _found, None)

    def test_seconds(self) -> None:
        """The interval of --watch is from 0.1 seconds to a day."""
        self.assertEqual([_seconds("0.1"), _seconds("86400")], [0.1, 86400])
        for wrong in ("0", "0.05", "86401", "nan"):
            self.assertRaises(ValueError, _seconds, wrong)


class ConsoleTests(SynchronousTestCase):
    """Where to print."""

    def test_no_terminal(self) -> None:
        """Nothing is cut, and there are no colours, unless standard output is a terminal."""
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        with os.fdopen(write, "w") as pipe:
            self.patch(sys, "stdout", pipe)
            out = status.console()
            self.assertEqual((out.width, out.is_terminal), (status.UNLIMITED_WIDTH, False))
