"""The sockets of services, and what commands ask there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from threading import Event, Thread
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mufs import sockets
from mufs.filesystem.client.mountpoint import AUTOMOUNT, TYPE, Mounted
from mufs.options import typed
from mufs.sockets import (
    SYSTEM_DIRECTORY,
    VARIABLE,
    Nobody,
    Unreachable,
    ask,
    directories,
    escape,
    follow,
    locate,
    new_socket,
    socket_of_mount,
)


class DirectoryTests(SynchronousTestCase):
    """Where the sockets are."""

    def directories(self, user: int, **environment: str) -> list[str]:
        """The directories for a user in an environment."""
        self.patch(os, "environ", environment)
        self.patch(os, "geteuid", lambda: user)
        return directories()

    def test_user(self) -> None:
        """A user has a directory beside that of the system, where the session has one."""
        found = self.directories(1000, XDG_RUNTIME_DIR="/run/user/1000")
        self.assertEqual(found, [SYSTEM_DIRECTORY, "/run/user/1000/mufs"])
        self.assertEqual(self.directories(1000), [SYSTEM_DIRECTORY])

    def test_root(self) -> None:
        """Root has that of the system alone."""
        found = self.directories(0, XDG_RUNTIME_DIR="/run/user/0")
        self.assertEqual(found, [SYSTEM_DIRECTORY])

    def test_variable(self) -> None:
        """The variable takes the place of all of them."""
        for user in (0, 1000):
            found = self.directories(user, XDG_RUNTIME_DIR="/run", **{VARIABLE: "/tmp/a"})
            self.assertEqual(found, ["/tmp/a"])


class PathTests(SynchronousTestCase):
    """The sockets that there are, and that of a new service."""

    def setUp(self) -> None:
        """Have two directories that do not exist yet."""
        self.first, self.second = Path(self.mktemp()), Path(self.mktemp())
        self.patch(sockets, "directories", lambda: [str(self.first), str(self.second)])

    def add(self, directory: Path, kind: str, name: str) -> str:
        """Put a socket there; its path."""
        path = directory / kind / f"{name}.sock"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return str(path)

    def test_first(self) -> None:
        """A new socket is in the first directory, which is made."""
        self.assertEqual(new_socket("server", "a"), f"{self.first}/server/a.sock")
        self.assertEqual(new_socket("server", "b"), f"{self.first}/server/b.sock")
        self.assertFalse(self.second.exists())

    def test_second(self) -> None:
        """Where the first one cannot be made or written to, it is in the second."""
        self.first.touch()
        self.assertEqual(new_socket("client", "a"), f"{self.second}/client/a.sock")

    def test_not_writable(self) -> None:
        """A directory that cannot be written to is not used."""
        self.patch(os, "access", lambda path, mode: not path.startswith(str(self.first)))
        self.assertEqual(new_socket("client", "a"), f"{self.second}/client/a.sock")
        self.patch(os, "access", lambda path, mode: False)
        error = self.assertRaises(PermissionError, new_socket, "client", "a")
        self.assertEqual(error.filename, f"{self.second}/client")

    def test_modes(self) -> None:
        """A directory that exists keeps its mode."""
        self.first.mkdir(0o700)
        new_socket("client", "a")
        self.assertEqual(self.first.stat().st_mode & 0o777, 0o700)

    def test_order(self) -> None:
        """Servers come first, then clients, in each directory by name; other files do not count."""
        client = self.add(self.first, "client", "mnt")
        second = self.add(self.second, "server", "a")
        others = [self.add(self.first, "server", name) for name in ("c", "b")]
        Path(f"{client}.lock").touch()
        servers = [*sorted(others), second]
        self.assertEqual(sockets.sockets(), [*servers, client])
        self.assertEqual(sockets.sockets("server"), servers)
        self.assertEqual(sockets.sockets("client"), [client])

    def test_hidden(self) -> None:
        """Directories that this user may not list are told from those that are not there."""
        self.add(self.first, "server", "a")
        self.assertEqual(sockets.hidden_directories(), [])

        def listdir(path: str) -> list[str]:
            raise (PermissionError if path.endswith("client") else FileNotFoundError)(path)

        self.patch(os, "listdir", listdir)
        hidden = [os.path.join(each, "client") for each in sockets.directories()]
        self.assertEqual(sockets.hidden_directories(), hidden)

    def test_mount(self) -> None:
        """The socket of a client is found by its mount point, in any directory."""
        path = self.add(self.second, "client", escape("/mnt/images"))
        self.add(self.second, "server", escape("/mnt/other"))
        self.assertEqual(socket_of_mount("/mnt/images"), path)
        error = self.assertRaises(Unreachable, socket_of_mount, "/mnt/other")
        self.assertEqual(str(error), "/mnt/other: the client there has no control socket")


class LocateTests(SynchronousTestCase):
    """The mount that a path is on."""

    def setUp(self) -> None:
        """Have two mounts of mUFS, one of another file system, and one that waits to be made."""
        self.directory = os.path.realpath(self.mktemp())
        os.mkdir(self.directory)
        table = {"a b": TYPE, "a b/c": TYPE, "other": "ext4", "auto": AUTOMOUNT}
        listed = [
            (os.fsencode(f"{self.directory}/{name}"), Mounted(1, "0:1", kind))
            for name, kind in table.items()
        ]
        self.patch(sockets, "mounts", lambda: listed)

    def test_beneath(self) -> None:
        """A path is split into mount and rest, even if it does not exist or is the mount."""
        mount = f"{self.directory}/a b"
        for path, rest in (
            (mount, ""), (f"{mount}/", ""), (f"{mount}/x/y", "x/y"), (f"{mount}/./x/../y", "y"),
        ):  # fmt: skip
            self.assertEqual(locate(path), (mount, rest))

    def test_link(self) -> None:
        """Links to a mount are followed."""
        link = f"{self.directory}/link"
        os.symlink(f"{self.directory}/a b", link)
        self.assertEqual(locate(f"{link}/x"), (f"{self.directory}/a b", "x"))

    def test_elsewhere(self) -> None:
        """A path on no mount of mUFS is an error that names it."""
        for name in ("other/x", "auto/x", "a", "a bc/x"):
            error = self.assertRaises(Unreachable, locate, f"{self.directory}/{name}")
            path = typed(f"{self.directory}/{name}")
            expected = f"{path} is not on a mount of mUFS, such as {self.directory}/a b"
            self.assertEqual(str(error), expected)


class Service(ThreadingUnixStreamServer):
    """
    Answers HTTP at a UNIX socket, as the test wants it.

    @ivar asked: method, path and body of each request.
    """

    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.answer: Callable[[Any], object] = lambda handler: None
        super().__init__(path, Handler)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Service

    def do_GET(self) -> None:
        """Answer a request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, body))
        self.server.answer(self)

    do_POST = do_GET

    def respond(self, status: int, *lines: bytes) -> None:
        """Send a response."""
        self.send_response(status)
        self.end_headers()
        for line in lines:
            self.wfile.write(line)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class AskTests(SynchronousTestCase):
    """Requests to a service, and its answers."""

    def setUp(self) -> None:
        """Have a service."""
        socket = self.mktemp()
        self.path = f"unix:{socket}"
        self.service = Service(socket)
        self.addCleanup(self.service.server_close)
        thread = Thread(target=self.service.serve_forever, args=(0.01,))
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.service.shutdown)

    def respond(self, status: int, *lines: bytes) -> None:
        """Have the service respond with this."""
        self.service.answer = lambda handler: handler.respond(status, *lines)

    def test_figures(self) -> None:
        """The figures of a service are those of its /status.json."""
        self.respond(200, b'{"reads": 1}')
        self.assertEqual(ask(self.path), {"reads": 1})
        self.assertEqual(ask(self.path.replace(":", ":path=")), {"reads": 1})
        self.assertEqual(self.service.asked, [("GET", "/status.json", b"")] * 2)

    def test_not_found(self) -> None:
        """An error response is reported with its status, whatever its body."""
        self.respond(404, b'{"reads": 1}')
        error = self.assertRaises(Unreachable, ask, self.path)
        self.assertEqual(str(error), f"{self.path}: 404 Not Found")

    def test_not_ours(self) -> None:
        """An answer that is not a JSON object does not come from mUFS."""
        for text in (b"", b"<html>", b"[]", b"1", b'{"reads":', b"\xff"):
            self.respond(200, text)
            error = self.assertRaises(Unreachable, ask, self.path)
            self.assertIn("what answers is not mUFS", str(error))

    def test_not_http(self) -> None:
        """An answer that is not HTTP is an error, and so is a connection that is closed."""
        self.service.answer = lambda handler: handler.wfile.write(self.raw)
        for self.raw in (b"SSH-2.0-x\r\n", b""):
            error = self.assertRaises(Unreachable, ask, self.path)
            self.assertNotIsInstance(error, Nobody)

    def test_silent(self) -> None:
        """A service that does not answer is given up after a while."""
        ended = Event()
        self.service.answer = lambda handler: ended.wait(30)
        self.addCleanup(ended.set)
        self.patch(sockets, "SERVICE_TIMEOUT", 0.05)
        error = self.assertRaises(Unreachable, ask, self.path)
        self.assertEqual(str(error), f"{self.path}: no answer within 0.05 s")

    def test_task(self) -> None:
        """A task is posted as JSON, and its reports come one by one."""
        self.respond(200, b'{"held": 1}\n', b'{"ended": true}\n')
        reports = follow(self.path, "/pull", {"path": "/a"})
        self.assertEqual([next(reports), next(reports)], [{"held": 1}, {"ended": True}])
        error = self.assertRaises(Unreachable, next, reports)
        self.assertEqual(str(error), f"{self.path}: ended")
        ((method, path, body),) = self.service.asked
        self.assertEqual((method, path, json.loads(body)), ("POST", "/pull", {"path": "/a"}))

    def test_cancelled(self) -> None:
        """Closing the iterator closes the connection, which cancels the task."""
        ended = Event()

        def answer(handler: Any) -> None:
            handler.respond(200, b"{}\n")
            if handler.rfile.read(1) == b"":
                ended.set()

        self.service.answer = answer
        reports = follow(self.path, "/pull", {})
        self.assertEqual(next(reports), {})
        self.assertFalse(ended.is_set())
        reports.close()
        self.assertTrue(ended.wait(30))
