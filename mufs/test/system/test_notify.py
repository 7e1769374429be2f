"""The notifications to systemd, on a real socket."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from mufs import notify
from mufs.commands.keys import make_keys
from mufs.communication.certificates import UnusableFile
from mufs.notify import STARTING_INTERVAL, STATUS_INTERVAL, Notifier, Supervision
from mufs.test.support.loopback import make_loopback, why_unavailable
from mufs.test.support.processes import Service, wait_until


class Systemd:
    """Receives notifications as systemd does."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)
        self.close = self._socket.close
        self.received: list[str] = []

    def listen(self) -> list[str]:
        """Return the assignments received since the last call."""
        assignments: list[str] = []
        while True:
            try:
                assignments += self._socket.recv(65536).decode().split("\n")
            except BlockingIOError:
                self.received += assignments
                return assignments

    def has_received(self, assignment: str) -> bool:
        """Return whether this assignment was ever received."""
        self.listen()
        return assignment in self.received


class FakeService:
    """A service whose state is set by a test."""

    def __init__(self) -> None:
        self.ready: Deferred[None] = Deferred()
        self.line = "waiting"

    def state(self) -> str:
        """See L{mufs.notify.Supervised}."""
        return self.line


class SupervisionTests(SynchronousTestCase):
    """The notifications of a service."""

    def setUp(self) -> None:
        """Listen as systemd does."""
        directory = tempfile.mkdtemp(prefix="mufs-notify-")
        self.addCleanup(shutil.rmtree, directory)
        self.address = f"{directory}/notify"
        self.systemd = Systemd(self.address)
        self.addCleanup(self.systemd.close)
        self.addCleanup(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))
        self.service = FakeService()
        self.clock = Clock()

    def start(self, renew: Callable[[], None] | None = None, **environment: str) -> Supervision:
        """Start a supervision, which is stopped after the test."""
        environment = {"NOTIFY_SOCKET": self.address, **environment}
        made = Supervision(self.clock, self.service, renew, environment=environment)
        made.startService()
        self.addCleanup(self.stop, made)
        return made

    def stop(self, supervision: Supervision) -> None:
        """Stop a supervision, unless the test has done so."""
        if supervision.running:
            supervision.stopService()

    def test_ready(self) -> None:
        """READY is sent when the service is ready, and not before, followed by its state."""
        self.start()
        self.assertEqual(self.systemd.listen(), ["STATUS=waiting"])
        self.service.line = "serving"
        self.service.ready.callback(None)
        self.assertEqual(self.systemd.listen(), ["READY=1", "STATUS=serving"])

    def test_status(self) -> None:
        """The state is sent only when it has changed, and in one line."""
        self.start()
        self.service.ready.callback(None)
        self.systemd.listen()
        self.clock.advance(STATUS_INTERVAL)
        self.assertEqual(self.systemd.listen(), [])
        self.service.line = "of two\nREADY=1 lines"
        self.clock.advance(STATUS_INTERVAL)
        self.assertEqual(self.systemd.listen(), ["STATUS=of two READY=1 lines"])

    def test_starting(self) -> None:
        """Until the service is ready, changes of its state are sent at shorter intervals."""
        self.start()
        self.systemd.listen()
        self.service.line = "still waiting"
        self.clock.advance(STARTING_INTERVAL)
        self.assertEqual(self.systemd.listen(), ["STATUS=still waiting"])

    def test_stopping(self) -> None:
        """STOPPING is sent at the end, and nothing after it."""
        supervision = self.start(WATCHDOG_USEC="2000000")
        self.systemd.listen()
        supervision.stopService()
        self.assertEqual(self.systemd.listen(), ["STOPPING=1"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_watchdog(self) -> None:
        """The watchdog gets two notifications within its interval."""
        self.start(WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
        self.systemd.listen()
        self.clock.pump([0.5] * 6)
        self.assertEqual(self.systemd.listen(), ["WATCHDOG=1"] * 2)

    def test_watchdog_of_another(self) -> None:
        """A watchdog for another process gets no notifications."""
        self.start(WATCHDOG_USEC="3000000", WATCHDOG_PID="1")
        self.clock.advance(3)
        self.assertNotIn("WATCHDOG=1", self.systemd.listen())

    def test_abstract(self) -> None:
        """An address that begins with @ is an abstract socket."""
        name = self.address.replace("/", "-")
        abstract = Systemd(f"\0{name}")
        self.addCleanup(abstract.close)
        self.start(NOTIFY_SOCKET=f"@{name}")
        self.assertEqual(abstract.listen(), ["STATUS=waiting"])

    def test_nobody_listens(self) -> None:
        """Without a socket nothing is sent, and no timer runs."""
        self.start(NOTIFY_SOCKET="", WATCHDOG_USEC="3000000")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.systemd.listen(), [])

    def test_closed(self) -> None:
        """A closed socket is not logged, whether or not its file still exists."""
        self.start()
        self.systemd.close()
        with capturedLogs() as events:
            self.service.ready.callback(None)
            self.start()
            os.unlink(self.address)
            self.start()
        self.assertEqual(events, [])

    def test_full(self) -> None:
        """A full socket is logged, and tried again."""
        self.patch(notify, "NOTIFY_TIMEOUT", 0.01)
        fill = Notifier({"NOTIFY_SOCKET": self.address})
        with capturedLogs() as events:
            while not events:
                fill.tell("STATUS=full")
            self.assertIn("cannot tell systemd", str(formatEvent(events[0])))
        self.systemd.listen()
        fill.tell("READY=1")
        self.assertEqual(self.systemd.listen(), ["READY=1"])

    def test_reload(self) -> None:
        """The start of a reload is sent with its time, and then its end."""
        renewed: list[None] = []
        supervision = self.start(lambda: renewed.append(None))
        self.service.ready.callback(None)
        self.systemd.listen()
        supervision.reload()
        begin, when, end = self.systemd.listen()
        self.assertEqual((begin, end), ("RELOADING=1", "READY=1"))
        self.assertRegex(when, r"^MONOTONIC_USEC=\d+$")
        self.assertEqual(len(renewed), 1)

    def test_reload_before_ready(self) -> None:
        """A reload before the service is ready does not send READY."""
        supervision = self.start(lambda: None)
        self.systemd.listen()
        supervision.reload()
        self.assertEqual(self.systemd.listen(), [])

    def test_reload_in_vain(self) -> None:
        """A reload with unreadable certificates does not end the service."""

        def renew() -> None:
            raise UnusableFile("no such file")

        supervision = self.start(renew)
        self.service.ready.callback(None)
        supervision.reload()
        self.assertEqual(self.systemd.listen()[-1], "READY=1")


class ServiceTests(SynchronousTestCase):
    """Server and client as processes."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Listen as systemd does, and make certificates."""
        self.loopback = make_loopback(self)
        self.keys = self.loopback.directory / "keys"
        make_keys(self.keys, ["127.0.0.1"], ["host"])
        self.addresses = {
            name: str(self.loopback.directory / f"{name}.notify") for name in ("server", "client")
        }
        self.server_systemd, self.client_systemd = map(Systemd, self.addresses.values())
        self.addCleanup(self.server_systemd.close)
        self.addCleanup(self.client_systemd.close)

    def enter(self, name: str) -> tuple[str, ...]:
        """Return the head of a command that sets the environment of a unit."""
        return ("env", f"NOTIFY_SOCKET={self.addresses[name]}", "WATCHDOG_USEC=1000000")

    def endpoint(self, name: str) -> str:
        """Return the certificates as part of an endpoint string."""
        return f"certificate={self.keys}/{name}.pem:trustRoots={self.keys}/ca"

    def start_server(self) -> Service:
        """Start the server with TLS."""
        listen = f"tls:{self.loopback.port}:interface=127.0.0.1:{self.endpoint('server')}"
        return self.loopback.start_server(
            enter=self.enter("server"), options=("--listen", listen), wait=False
        )

    def test_both(self) -> None:
        """Both report readiness, state, watchdog notifications, and their end."""
        server_address = f"tls:127.0.0.1:{self.loopback.port}:{self.endpoint('host')}"
        client = self.loopback.launch_client(
            "host", "--server", server_address, enter=self.enter("client")
        )
        waiting = f"STATUS=waiting for the server at 127.0.0.1:{self.loopback.port}: "
        client.wait_until(
            lambda: any(each.startswith(waiting) for each in self.client_systemd.listen()),
            30,
            "reports that it waits",
        )
        self.assertFalse(self.client_systemd.has_received("READY=1"))
        server = self.start_server()
        server.wait_until(lambda: self.server_systemd.has_received("READY=1"), 30, "is ready")
        client.wait_until(lambda: self.client_systemd.has_received("READY=1"), 30, "is ready")
        self.assertTrue(os.path.ismount(self.loopback.mount_point("host")))
        server.wait_until(
            lambda: any("STATUS=clients: 1," in each for each in self.server_systemd.listen()),
            30,
            "reports its client",
        )
        self.assertTrue(self.client_systemd.has_received("WATCHDOG=1"))
        client.stop()
        server.stop()
        self.assertTrue(self.client_systemd.has_received("STOPPING=1"))
        self.assertTrue(self.server_systemd.has_received("STOPPING=1"))

    def serial(self) -> int:
        """Return the serial number of the server's certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_cert_chain(self.keys / "host.pem")
        context.load_verify_locations(self.keys / "ca" / "ca.pem")
        with (
            socket.create_connection(("127.0.0.1", self.loopback.port), timeout=30) as plain,
            context.wrap_socket(plain) as connection,
        ):
            shown = connection.getpeercert(True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number

    def reload(self, service: Service, line: str) -> None:
        """Send SIGHUP, and wait until this line is logged once more."""
        before = service.output.count(line)
        service.signal(signal.SIGHUP)
        service.wait_until(lambda: service.output.count(line) > before, 30, line)

    def replace(self, name: str) -> None:
        """Replace a certificate by another one of the same authority."""
        path = Path(self.keys) / f"{name}.pem"
        path.unlink()
        if name == "server":
            make_keys(self.keys, ["127.0.0.1"], [])
        else:
            make_keys(self.keys, [], [name])

    def test_certificates(self) -> None:
        """SIGHUP reloads certificates for new connections; invalid ones are not used."""
        server = self.start_server()
        server.wait_until(lambda: self.server_systemd.has_received("READY=1"), 30, "is ready")
        first = self.serial()
        self.replace("server")
        self.assertEqual(self.serial(), first)
        self.reload(server, "certificates reloaded")
        second = self.serial()
        self.assertNotEqual(second, first)
        (self.keys / "server.pem").write_text("nothing of use")
        self.reload(server, "certificates not reloaded")
        self.assertEqual(self.serial(), second)

    def test_client(self) -> None:
        """A client refused for its certificate is accepted with a new one after SIGHUP."""
        server_address = f"tls:127.0.0.1:{self.loopback.port}:{self.endpoint('host')}"
        (self.loopback.directory / "other").mkdir()
        make_keys(self.loopback.directory / "other", [], ["host"])
        good = (self.keys / "host.pem").read_bytes()
        (self.keys / "host.pem").write_bytes(
            (self.loopback.directory / "other" / "host.pem").read_bytes()
        )
        self.start_server()
        client = self.loopback.launch_client(
            "host", "--server", server_address, enter=self.enter("client")
        )
        client.wait_until(lambda: "waiting for the server" in client.output, 30, "is refused")
        (self.keys / "host.pem").write_text("nothing of use")
        self.reload(client, "certificates not reloaded")
        (self.keys / "host.pem").write_bytes(good)
        self.reload(client, "certificates reloaded")
        wait_until(lambda: self.client_systemd.has_received("READY=1"), 30, "it is mounted")
        self.reload(client, "certificates reloaded")
        self.assertTrue(os.path.ismount(self.loopback.mount_point("host")))
