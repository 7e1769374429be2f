"""C{mufs pull} and C{mufs push}: what is requested, and how it is reported."""

import argparse
import io
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs.commands import fill
from mufs.commands.fill import _Bar, _note, _pull, _push, _server
from mufs.sockets import Nobody, Unreachable

DONE = {
    "ended": True, "connected": True, "held": 4096, "size": 4096, "asked": 1024, "overheard": 3072,
}  # fmt: skip


class FillTestCase(SynchronousTestCase):
    """Services that answer with records."""

    def setUp(self) -> None:
        """Record what is requested and printed."""
        self.requests: list[tuple[str, str, Any]] = []
        self.records: list[dict[str, Any]] = [DONE]
        self.out, self.errors = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", self.out)
        self.patch(sys, "stderr", self.errors)
        self.patch(fill, "follow", self.follow)
        self.patch(fill, "locate", lambda path: ("/mnt", path.removeprefix("/mnt/")))
        self.patch(fill, "socket_of_mount", lambda mount: f"socket of {mount}")

    def follow(self, where: str, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """Answer a request."""
        self.requests.append((where, path, body))
        yield from self.records

    def exit_status(self, run: Any, **given: Any) -> object:
        """The exit status of a command."""
        ended = self.assertRaises(SystemExit, run, argparse.Namespace(**given))
        return ended.code


class PullTests(FillTestCase):
    """C{mufs pull}."""

    def test_done(self) -> None:
        """Each image is requested from its mount, and a line says how it ended."""
        self.assertFalse(self.exit_status(_pull, images=["/mnt/a", "/mnt/b"], quiet=False))
        self.assertEqual(
            self.requests,
            [("socket of /mnt", "/pull", {"path": each}) for each in ("a", "b")],
        )
        lines = self.out.getvalue().splitlines()
        self.assertTrue(lines[0].startswith("a: 4.0 KiB of 4.0 KiB (100 %), "), lines)
        self.assertTrue(lines[1].endswith(", 75 % overheard"), lines)

    def test_quiet(self) -> None:
        """With --quiet nothing is printed."""
        self.assertFalse(self.exit_status(_pull, images=["/mnt/a"], quiet=True))
        self.assertEqual(self.out.getvalue() + self.errors.getvalue(), "")

    def test_error(self) -> None:
        """An image that fails is named, the others are pulled, and the status is 1."""
        self.records = [{"error": "no such file", "errno": 2}]
        self.assertTrue(self.exit_status(_pull, images=["/mnt/a", "/mnt/b"], quiet=True))
        self.assertEqual(
            self.errors.getvalue(), "mufs: /mnt/a: no such file\nmufs: /mnt/b: no such file\n"
        )

    def test_service_ends(self) -> None:
        """A client that ends before it is done is an error."""
        self.records = []
        self.assertTrue(self.exit_status(_pull, images=["/mnt/a"], quiet=True))
        self.assertIn("the service ended", self.errors.getvalue())

    def test_note(self) -> None:
        """The note says that the server is awaited, or what part was overheard, if any came."""
        self.assertEqual(_note({**DONE, "connected": False}), "waiting for the server")
        self.assertEqual(_note({**DONE, "asked": 0, "overheard": 0}), "")


class PushTests(FillTestCase):
    """C{mufs push}."""

    def setUp(self) -> None:
        """One server runs."""
        super().setUp()
        self.sockets = ["/run/mufs/server/10.0.0.1:7040.sock"]
        self.dead: set[str] = set()
        self.patch(fill, "sockets", lambda kind: self.sockets)
        self.patch(fill, "ask", self.ask)

    def ask(self, where: str) -> dict[str, Any]:
        """A dead server does not answer."""
        if where in self.dead:
            raise Nobody(where)
        return {}

    def test_done(self) -> None:
        """The image is requested for the named clients; failed ones are named."""
        failed = [{"name": "b\n", "address": "10.0.0.3", "error": "no room"}]
        self.records = [
            {"ended": True, "clients": 2, "succeeded": 1, "failed": failed, "held": 10, "size": 10}
        ]
        self.assertTrue(
            self.exit_status(_push, image="disk.img", to=["a"], server=None, quiet=False)
        )
        ((where, path, body),) = self.requests
        self.assertEqual((where, path), (self.sockets[0], "/push"))
        self.assertEqual((body["path"], body["to"]), ("disk.img", ["a"]))
        self.assertEqual(body["file"], os.path.realpath("disk.img"))
        self.assertIn("1/2 done, 1 failed", self.out.getvalue())
        self.assertEqual(self.errors.getvalue().strip(), "mufs: b\\n (10.0.0.3): no room")

    def test_server(self) -> None:
        """The only living server is used; of several one must be named."""
        self.sockets.append("/run/mufs/server/10.0.0.2:7040.sock")
        error = self.assertRaises(Unreachable, _server, None)
        self.assertIn("10.0.0.1:7040, 10.0.0.2:7040", str(error))
        self.assertEqual(_server("10.0.0.2:7040"), self.sockets[1])
        self.assertRaises(Unreachable, _server, "10.0.0.3:7040")
        self.dead = {self.sockets[0]}
        self.assertEqual(_server(None), self.sockets[1])
        self.dead = set(self.sockets)
        self.assertRaises(Unreachable, _server, None)


class BarTests(FillTestCase):
    """Progress without a terminal."""

    def test_interval(self) -> None:
        """A line is printed after each interval, with the rate since the beginning."""
        now = [100.0]
        self.patch(time, "monotonic", lambda: now[0])
        with _Bar("disk.img", quiet=False) as bar:
            for _ in range(4):
                now[0] += fill.REPORT_INTERVAL / 2
                bar.show(1 << 20, 4 << 20, (now[0] - 100) * 1024, note="")
        line = "disk.img: 1.0 MiB of 4.0 MiB (25 %), 1.0 KiB/s"
        self.assertEqual(self.out.getvalue().splitlines(), [line, line])
