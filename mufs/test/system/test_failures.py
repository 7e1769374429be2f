"""Servers and clients that die, are stopped, start late, or have invalid options."""

from __future__ import annotations

import signal
import time

from mufs.test.support.lab import SERVER
from mufs.test.support.netns import LabError
from mufs.test.support.processes import Reader, Service, mounted, wait_until
from mufs.test.system.test_network import MIB, LabTestCase

ENDED = (0, -signal.SIGTERM)
"""Exit statuses after SIGTERM: twistd may end by the signal that it received."""


class ServerFailureTests(LabTestCase):
    """The server dies, starts late, or cannot be reached."""

    def test_restart(self) -> None:
        """Reads interrupted by the server's death end right after its restart."""
        lab = self.make_lab(4, 24 * MIB + 2049, rate=50)
        server = lab.start_server()
        lab.start_clients()
        readers = self.start_reading(lab)
        server.kill()
        time.sleep(3)
        self.assertEqual([reader.running for reader in readers], [True] * 4)
        lab.start_server()
        self.assert_right([reader.result() for reader in readers])

    def test_not_up_yet(self) -> None:
        """A client started before its server logs that it waits, and then mounts."""
        lab = self.make_lab(1, MIB + 1)
        client = lab.start_client("host1", wait=False)
        client.wait_until(
            lambda: "waiting for the server" in client.output, 60, "logs that it waits"
        )
        self.assertFalse(client.holds_mount())
        lab.start_server()
        lab.wait_mounted(client)
        self.read_all(lab)

    def test_cable_pulled(self) -> None:
        """A host whose cable is unplugged for a while reads right, and delays no other."""
        lab = self.make_lab(2, 16 * MIB + 3, rate=50)
        lab.start_server()
        lab.start_clients()
        cut, other = self.start_reading(lab)
        lab.network.set_link("host1", False)
        self.assert_right([other.result()])
        self.assertTrue(cut.running)
        lab.network.set_link("host1", True)
        self.assert_right([cut.result()])


class ClientFailureTests(LabTestCase):
    """A client is killed."""

    def test_killed(self) -> None:
        """After a client was killed, another one mounts there, and other hosts are not affected."""
        lab = self.make_lab(2, 24 * MIB + 77, rate=50)
        lab.start_server()
        clients = lab.start_clients()
        readers = self.start_reading(lab)
        clients[0].kill()
        self.assertNotEqual(readers[0].result(10).error, "")
        lab.start_client("host1")
        self.assert_right([lab.start_reader("host1", "disk.img").result(), readers[1].result()])


class ShutdownTests(LabTestCase):
    """SIGTERM ends a service immediately, and leaves nothing behind."""

    def reading(self) -> tuple[Service, Service, Reader]:
        """Start a server, a client, and a read that has completed a third."""
        self.lab = self.make_lab(1, 24 * MIB + 5, rate=50)
        server = self.lab.start_server()
        client = self.lab.start_client("host1")
        (reader,) = self.start_reading(self.lab)
        return server, client, reader

    def assert_gone(self, client: Service) -> None:
        """Stop the client; assert that it ends, and that its mount is gone."""
        client.stop()
        self.assertFalse(mounted(self.lab.mount_point("host1")))
        wait_until(lambda: not self.lab.network.pids("host1"), 5, "no process on the host")

    def test_client(self) -> None:
        """An idle client ends without errors, and leaves no mount."""
        self.lab = self.make_lab(1, MIB + 5)
        self.lab.start_server()
        client = self.lab.start_client("host1")
        self.read_all(self.lab)
        self.assert_gone(client)
        self.assertIn(client.wait(), ENDED)
        self.assertNotIn("Traceback", client.output)

    def test_signals(self) -> None:
        """Further signals while a service ends change nothing, and leave no traceback."""
        self.lab = self.make_lab(1, 1)
        for service in (self.lab.start_server(), self.lab.start_client("host1")):
            for _ in range(3):
                service.signal(signal.SIGTERM)
                time.sleep(0.05)
            self.assertIn(service.wait(), ENDED)
            self.assertNotIn("Traceback", service.output)
            self.assertEqual(service.output.count("Received SIGTERM"), 1)

    def test_client_without_server(self) -> None:
        """A client that still waits for its server ends."""
        self.lab = self.make_lab(1, 1)
        client = self.lab.start_client("host1", wait=False)
        time.sleep(2)
        self.assert_gone(client)

    def test_client_while_reading(self) -> None:
        """A client with pending reads ends, leaves no mount, and fails the reads."""
        _, client, reader = self.reading()
        self.assert_gone(client)
        self.assertNotEqual(reader.result(10).error, "")

    def test_client_with_server_killed(self) -> None:
        """A client whose reads wait for a dead server ends, and leaves no mount."""
        server, client, reader = self.reading()
        server.kill()
        time.sleep(1)
        self.assertTrue(reader.running)
        self.assert_gone(client)
        self.assertNotEqual(reader.result(10).error, "")

    def test_client_with_server_frozen(self) -> None:
        """A client whose reads wait for a frozen server ends, and leaves no mount."""
        server, client, reader = self.reading()
        server.signal(signal.SIGSTOP)
        time.sleep(1)
        self.assertTrue(reader.running)
        self.assert_gone(client)
        self.assertNotEqual(reader.result(10).error, "")

    def test_server(self) -> None:
        """A server ends during reads, and leaves no process."""
        server, _, _ = self.reading()
        server.stop()
        self.assertIn(server.wait(), ENDED)
        self.assertEqual(self.lab.network.pids(SERVER), [])

    def test_server_with_client_frozen(self) -> None:
        """A server ends although a frozen client receives nothing."""
        server, client, _ = self.reading()
        client.signal(signal.SIGSTOP)
        time.sleep(1)
        server.stop()
        self.assertIn(server.wait(), ENDED)
        self.assertEqual(self.lab.network.pids(SERVER), [])
        self.assertNotIn("Traceback", server.output)


class TimeoutTests(LabTestCase):
    """The server is gone for longer than the timeout of reads."""

    def test_read_fails(self) -> None:
        """A read fails with EIO after the timeout, and opening another file fails, too."""
        lab = self.make_lab(1, 24 * MIB + 9, rate=50)
        server = lab.start_server()
        lab.start_client("host1", "--timeout", "3")
        (reader,) = self.start_reading(lab)
        server.kill()
        self.assertEqual(reader.result(30).error, "EIO")
        self.assertNotEqual(lab.start_reader("host1", "other.img").result(30).error, "")


class RefusedStartTests(LabTestCase):
    """Services that cannot start end with an error that gives the reason."""

    def assert_refused(self, service: Service, expected: str) -> None:
        """Assert that it ends with a nonzero status and this error, without a traceback."""
        try:
            status = service.wait(20)
        except LabError as still:
            self.fail(f"{still}\n{service.output}")
        self.assertNotEqual(status, 0, service.output)
        self.assertNotIn("Traceback", service.output)
        self.assertIn(expected, service.output)

    def test_server_options(self) -> None:
        """A server refuses invalid options, and names them."""
        lab = self.make_lab(0, 1)
        refused = [
            ("--images", "/no/such/directory"),
            ("--rate-max", "quick"),
            ("--group", "10.1.2.3"),
            ("--port", "70001"),
            ("--listen", "pigeon:7040"),
        ]
        services = [
            lab.start_server(option, value, wait=False, name=f"server{option}")
            for option, value in refused
        ]
        for service, (_, value) in zip(services, refused, strict=True):
            self.assert_refused(service, value)

    def test_port_taken(self) -> None:
        """A server whose port is taken ends, and the server that has it continues."""
        lab = self.make_lab(0, 1)
        first = lab.start_server()
        second = lab.start_server(wait=False, name="second")
        self.assert_refused(second, "7040")
        self.assertTrue(first.running)

    def test_client_options(self) -> None:
        """A client refuses invalid options, and names them."""
        lab = self.make_lab(5, 1)
        full = lab.directory / "full"
        full.mkdir()
        (full / "file").touch()
        refused = [
            ("--mount", "/no/such/directory"),
            ("--mount", str(full)),
            ("--cache-size", "plenty"),
            ("--timeout", "soon"),
            ("--server", "pigeon:10.77.0.1"),
        ]
        lab.start_server()
        services = [
            lab.start_client(host, option, value, wait=False)
            for host, (option, value) in zip(lab.hosts, refused, strict=True)
        ]
        for service, (_, value) in zip(services, refused, strict=True):
            self.assert_refused(service, value)
