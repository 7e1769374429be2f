"""The control sockets of services, and the commands that use them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mufs.control import Control, TaskResource, _ControlSite
from mufs.sockets import (
    MAX_SOCKET_PATH,
    VARIABLE,
    Nobody,
    Unreachable,
    _path,
    ask,
    escape,
    locate,
    new_socket,
)
from mufs.status.history import SAMPLE_INTERVAL
from mufs.test.status.test_site import SiteTestCase
from mufs.test.support.loopback import make_loopback, why_unavailable
from mufs.test.support.processes import CHECKOUT, MUFS, Service


def mufs(run: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command C{mufs} with the control sockets in a directory."""
    return subprocess.run(
        [*MUFS, *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), VARIABLE: str(run), **more},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


class PathTests(SynchronousTestCase):
    """The paths of sockets."""

    def setUp(self) -> None:
        """Make an empty directory for them."""
        self.run_directory = self.mktemp()
        self.patch(os, "environ", {**os.environ, VARIABLE: self.run_directory})

    def test_escape(self) -> None:
        """Mount points are escaped as systemd-escape --path does it."""
        paths = ["/", "/mnt/images", "/mnt//vm-images/", "/.a/.b", "/a b/é\n", "/x:y_z.0/\udcff"]
        names = ["-", "mnt-images", r"mnt-vm\x2dimages", r"\x2ea-.b", r"a\x20b-\xc3\xa9\x0a",
                 r"x:y_z.0-\xff"]  # fmt: skip
        self.assertEqual([escape(path) for path in paths], names)
        if shutil.which("systemd-escape") is None:
            raise SkipTest("needs systemd-escape")
        for path, name in zip(paths[:-2], names, strict=False):
            said = subprocess.check_output(["systemd-escape", "--path", path], text=True)
            self.assertEqual(said.rstrip("\n"), name)

    def test_made(self) -> None:
        """Directories are created readable for all users, whatever the umask."""
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        path = new_socket("client", "mnt")
        self.assertEqual(path, f"{self.run_directory}/client/mnt.sock")
        for directory in (self.run_directory, f"{self.run_directory}/client"):
            self.assertEqual(os.stat(directory).st_mode & 0o7777, 0o755)

    def test_impossible(self) -> None:
        """If no directory can be created, there is no socket."""
        Path(self.run_directory).write_text("")
        self.assertRaises(OSError, new_socket, "client", "mnt")

    def test_long(self) -> None:
        """A path that is too long for a socket is shortened, and stays unique."""
        paths = {_path("/run/mufs", "client", "x" * 200 + end) for end in ("a", "b")}
        self.assertEqual(len(paths), 2)
        self.assertTrue(all(len(path) == MAX_SOCKET_PATH for path in paths))

    def test_not_on_a_mount(self) -> None:
        """A path elsewhere is on no mount of mUFS."""
        self.assertRaises(Unreachable, locate, "/")
        self.assertRaises(Unreachable, locate, "/nowhere/at/all")

    def test_endpoints(self) -> None:
        """Text that is not an endpoint is distinguished from an endpoint where nobody listens."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for where in (f"tcp:127.0.0.1:{port}", f"tcp:host=127.0.0.1:port={port}",
                      f"http://127.0.0.1:{port}/x", "unix:/none", "/none"):  # fmt: skip
            self.assertRaises(Nobody, ask, where)
        for where in ("tcp:127.0.0.1", "tcp:127.0.0.1:x", "http://", "ssl:h:1", "http://h:x"):
            with self.assertRaises(Unreachable) as raised:
                ask(where)
            self.assertNotIsInstance(raised.exception, Nobody)


class SocketTests(SiteTestCase):
    """A site that control sockets serve, over connections in memory."""

    def setUp(self) -> None:
        """Make a site with a task."""
        super().setUp()
        self.requests: list[Any] = []
        self.doing: list[Deferred[Any]] = []
        self.cancelled = 0
        self.tasks = TaskResource(self.task)
        self.control: Any = _ControlSite(self.clock, self.site, {b"task": self.tasks})

    def task(self, request: Any, report: Any) -> Deferred[Any]:
        """Record the request."""

        def cancel(_: object) -> None:
            self.cancelled += 1

        self.requests.append((request, report))
        self.doing.append(Deferred(cancel))
        return self.doing[-1]

    def post(self, body: bytes, path: str = "/task") -> Any:
        """Send a request to the control site, and return the connection."""
        before, self.site = self.site, self.control
        transport = self.connect()
        self.site = before
        head = f"POST {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        transport.protocol.dataReceived(head.encode() + body)
        return transport

    def body(self, transport: Any) -> list[Any]:  # type: ignore[override]
        """Return the objects received since the last call, one from each line."""
        return [json.loads(line) for line in transport.taken().splitlines() if line[:1] == b"{"]

    def test_lines(self) -> None:
        """A task's reports are sent line by line, followed by its result."""
        transport = self.post(b'{"a": 1}')
        ((request, report),) = self.requests
        self.assertEqual(request, {"a": 1})
        report({"b": 2})
        self.assertEqual(self.body(transport), [{"b": 2}])
        self.doing[0].callback({"c": 3})
        self.assertEqual(self.body(transport), [{"c": 3}])
        self.assertFalse(transport.connected)

    def test_failures(self) -> None:
        """An error is sent as one line; the details of an internal error are only logged."""
        for error, text in (
            (FileNotFoundError(2, "no such file"), "no such file"), (ValueError("bad"), "bad"),
            (KeyError("x"), "the service failed; its log says how"),
        ):  # fmt: skip
            transport = self.post(b"{}")
            self.doing[-1].errback(error)
            (line,) = self.body(transport)
            self.assertEqual(line["error"], text)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_no_json(self) -> None:
        """A body that is not a JSON object is refused."""
        for body in (b"", b"[]", b"{", b"\xff"):
            self.assertIn(b" 400 ", self.post(body).taken().splitlines()[0])
        self.assertEqual(self.requests, [])

    def test_interrupted(self) -> None:
        """Closing the connection cancels the task."""
        transport = self.post(b"{}")
        transport.loseConnection()
        self.assertEqual(self.cancelled, 1)

    def test_stopped(self) -> None:
        """Stopping the service cancels it, too."""
        self.post(b"{}")
        self.tasks.stop()
        self.assertEqual(self.cancelled, 1)

    def test_not_taken(self) -> None:
        """Lines are left out while the other side does not read, except for the last one."""
        transport = self.post(b"{}")
        transport.producer.pauseProducing()
        for number in range(100):
            self.requests[0][1]({"n": number})
        self.assertEqual(self.body(transport), [])
        self.doing[0].callback({"end": 1})
        self.assertEqual(self.body(transport), [{"end": 1}])

    def test_only_here(self) -> None:
        """The --status endpoint does not offer tasks."""
        self.assertEqual(self.get("/task", "POST")[0], 404)

    def test_sampled_once(self) -> None:
        """Two ports share one sampling of figures, until both are closed."""

        def samples() -> int:
            before = len(self.site._history.recent.samples)
            self.clock.advance(SAMPLE_INTERVAL)
            return len(self.site._history.recent.samples) - before

        self.control.doStart()
        self.assertEqual(samples(), 1)
        self.site.doStop()
        self.assertEqual(samples(), 1)
        self.control.doStop()
        self.assertEqual(samples(), 0)
        self.site.doStart()

    def test_without(self) -> None:
        """If no socket can be created, that is logged, and the service continues."""
        path = self.mktemp()
        Path(path).write_text("")
        self.patch(os, "environ", {**os.environ, VARIABLE: path})
        control = Control(Clock(), "client", status=self.site, tasks={})
        control.listen("mnt")
        self.successResultOf(control.stop())


class ProcessTestCase(SynchronousTestCase):
    """Has a server and one image."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Start the server."""
        self.loopback = make_loopback(self)
        (self.loopback.images / "disk.img").write_bytes(os.urandom(1_000_000))
        self.run_directory = self.loopback.directory / "run"
        self.server = self.loopback.start_server()

    def mufs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        return mufs(self.run_directory, *arguments)

    def socket(self, service: Service) -> Path:
        """The control socket of a client."""
        name = escape(str(self.loopback.mount_point(service.name)))
        return self.run_directory / "client" / f"{name}.sock"


class ServiceTests(ProcessTestCase):
    """Sockets of services."""

    def test_status(self) -> None:
        """All running services are shown, or those that a path, an endpoint or a URL names."""
        client = self.loopback.start_client("here")
        point = self.loopback.mount_point("here")
        self.assertEqual((point / "disk.img").stat().st_size, 1_000_000)
        (point / "disk.img").read_bytes()
        found = json.loads(self.mufs("status", "--json").stdout)
        self.assertEqual([each["service"] for each in found], ["server", "client"])
        self.assertEqual(found[1]["at"], str(self.socket(client)))
        self.assertEqual(found[1]["mount"], str(point))
        self.assertEqual(found[1].keys() - {"service", "at"}, client.status().keys())
        link = self.loopback.directory / "link"
        link.symlink_to(point)
        for where in (str(point), f"{point}/disk.img/x", f"{link}/none", f"unix:{client._status}"):
            one = json.loads(self.mufs("status", where, "--json").stdout)
            self.assertEqual((one["service"], one["reads"]), ("client", found[1]["reads"]))
        shown = self.mufs("status").stdout
        self.assertIn(f"client {point}\n", shown)
        self.assertIn("disk.img", shown)
        self.assertNotIn("\x1b", shown)
        elsewhere = self.mufs("status", "/proc")
        self.assertEqual((elsewhere.returncode, elsewhere.stdout), (1, ""))
        self.assertIn("mufs: /proc is not on a mount of mUFS, such as ", elsewhere.stderr)

    def test_watch(self) -> None:
        """With --watch they are shown repeatedly until interrupted, also without a terminal."""
        watching = subprocess.Popen(
            [*MUFS,
             "status", "--watch", "0.1"],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), VARIABLE: str(self.run_directory)},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(watching.communicate)
        self.addCleanup(watching.kill)
        assert watching.stdout is not None
        titles = 0
        while titles < 3:
            titles += watching.stdout.readline().startswith("server ")
        watching.send_signal(signal.SIGINT)
        self.assertEqual(watching.wait(10), 0)

    def test_terminal(self) -> None:
        """A terminal gets colours, and no line that is wider than the terminal."""
        name = "a-rather-long-name-of-an-image-" * 4 + ".qcow2"
        (self.loopback.images / name).write_bytes(b"content")
        self.loopback.start_client("here")
        (self.loopback.mount_point("here") / name).read_bytes()
        for columns in (80, 120):
            ours, terminal = os.openpty()
            self.addCleanup(os.close, ours)
            try:
                subprocess.run(
                    [*MUFS, "status"],
                    env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TERM": "xterm",
                         "COLUMNS": str(columns), VARIABLE: str(self.run_directory)},
                    stdout=terminal, check=True, timeout=30,
                )  # fmt: skip
            finally:
                os.close(terminal)
            shown = b""
            with contextlib.suppress(OSError):  # EIO at the end
                while part := os.read(ours, 1 << 16):
                    shown += part
            lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
            self.assertIn(b"\x1b[", shown)
            self.assertLessEqual(max(map(len, lines)), columns)
            self.assertIn("a-rather-long-name", shown.decode())

    def test_modes(self) -> None:
        """Sockets are only for the user of the service, and are removed when it ends."""
        client = self.loopback.start_client("here")
        path = self.socket(client)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        client.stop()
        self.server.stop()
        left = [each for each in self.run_directory.rglob("*") if not each.is_dir()]
        self.assertEqual(left, [])
        nothing = self.mufs("status")
        self.assertEqual(nothing.returncode, 1)
        self.assertEqual(nothing.stderr, "mufs: no server and no client runs here\n")

    def test_killed(self) -> None:
        """A killed service leaves a socket; the next one replaces it, even if its PID is in use."""
        client = self.loopback.start_client("here")
        path, point = self.socket(client), self.loopback.mount_point("here")
        client.kill()
        self.assertRaises(Nobody, ask, str(path))
        lock = Path(f"{path}.lock")
        lock.unlink()
        lock.symlink_to(str(os.getpid()))
        found = json.loads(self.mufs("status", "--json").stdout)
        self.assertEqual([each["service"] for each in found], ["server"])
        self.loopback.start_client("here", point=point)
        self.assertEqual(ask(str(path))["mount"], str(point))

    def test_impossible(self) -> None:
        """If the directory cannot be created, one line is logged, and the client mounts."""
        shutil.rmtree(self.run_directory)
        self.run_directory.write_text("")
        client = self.loopback.start_client("here")
        self.assertEqual(client.output.count("no control socket at"), 1)
        self.assertNotIn("Traceback", client.output)
        client.stop()

    def test_silent(self) -> None:
        """A service that does not answer is shown as such, and the others as they are."""
        client = self.loopback.start_client("here")
        client.signal(signal.SIGSTOP)
        self.addCleanup(client.signal, signal.SIGCONT)
        found = json.loads(self.mufs("status", "--json").stdout)
        self.assertEqual([each["service"] for each in found], ["server", "?"])
        self.assertIn("no answer", found[1]["error"])
        client.signal(signal.SIGCONT)
