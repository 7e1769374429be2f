"""The command C{mufs check} in networks with faults.

The commands that a finding recommends are run on the host, and must remove the fault.
"""

from __future__ import annotations

import json
import signal
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from mufs.commands import authority
from mufs.commands.check.finding import WIDTH
from mufs.commands.check.session import MAX_RATE
from mufs.commands.keys import make_keys
from mufs.test.support.lab import SERVER, SERVER_ADDRESS, Lab, why_unavailable, write_image
from mufs.test.support.netns import run
from mufs.test.support.processes import MUFS, SERVER_PORT

COMMAND = [*MUFS, "check"]
ENDPOINT = f"tcp:{SERVER_ADDRESS}:{SERVER_PORT}"
READ_SECONDS = 2
"""Seconds for which C{mufs check} reads images."""

MIB = 1 << 20
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-net_raw,-net_admin", "--inh-caps=-net_raw,-net_admin"]


@frozen
class Report:
    """The result of a run: the findings by subject, and the exit status."""

    findings: dict[str, dict[str, Any]]
    status: int

    @property
    def problems(self) -> list[str]:
        return [what for what, each in self.findings.items() if each["level"] == "problem"]

    @property
    def warnings(self) -> list[str]:
        return [what for what, each in self.findings.items() if each["level"] == "warning"]

    def figure(self, what: str) -> str:
        figure: str = self.findings[what]["figure"]
        return figure


class CheckTestCase(SynchronousTestCase):
    """Has a lab with one image and a host."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Make the network."""
        self.lab = Lab(1, 100, Path(self.mktemp()))
        self.addCleanup(self.lab.close)
        self.network = self.lab.network
        write_image(self.lab.images / "disk.img", 8 * MIB + 77)

    def start_server(self, *options: str) -> Any:
        return self.lab.start_server("--interface", SERVER_ADDRESS, *options)

    def set_switch(self, snooping: bool, querier: bool) -> None:
        bridge = ["type", "bridge", "mcast_snooping", str(int(snooping))]
        bridge += ["mcast_querier", str(int(querier))]
        run("ip", "-n", self.network.namespace("switch"), "link", "set", "bridge", *bridge)

    def on_host(self, *command: str, host: str = "host1") -> str:
        return run(*self.network.enter(host), *command)

    def run_check(self, *options: str, before: list[str] | None = None) -> Any:
        """Run C{mufs check} on the host, after the words C{before}."""
        return subprocess.run(
            [*self.network.enter("host1"), *(before or []), *COMMAND, *options],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.lab.directory,
        )

    def check(
        self, *options: str, server: str = ENDPOINT, before: list[str] | None = None
    ) -> Report:
        """Run C{mufs check} against the server, and return its findings."""
        given = ["--server", server, "--seconds", str(READ_SECONDS), "--json", *options]
        done = self.run_check(*given, before=before)
        self.assertEqual(done.stderr, "")
        findings = json.loads(done.stdout)["findings"]
        report = Report({each["what"]: each for each in findings}, done.returncode)
        self.assertEqual(report.status, 1 if report.problems else 0)
        for what in report.problems + report.warnings:
            self.assertTrue(report.findings[what]["remedy"], what)
        return report

    def run_remedy(self, report: Report, what: str, commands: slice = slice(1)) -> None:
        """Run the commands that a finding recommends on the host."""
        for command in report.findings[what]["commands"][commands]:
            self.on_host(*command.split())


class HealthyTests(CheckTestCase):
    """Networks without faults."""

    def test_healthy(self) -> None:
        """
        Without faults there are no problems or warnings, the output fits the screen, the traffic
        is bounded, and a second run finds the same.
        """
        self.set_switch(snooping=True, querier=True)
        self.start_server()
        before = self.network.bytes_sent(SERVER)
        report = self.check()
        sent = self.network.bytes_sent(SERVER) - before
        self.assertEqual(report.problems + report.warnings, [])
        self.assertIn("sends queries, IGMP version 3", report.figure("querier"))
        self.assertIn(" 0.0% lost", report.figure("multicast"))
        self.assertLess(sent, 1.15 * READ_SECONDS * MAX_RATE / 8 + 200_000)
        self.assertGreater(sent, 200_000)
        done = self.run_check("--server", ENDPOINT, "--seconds", "1")
        self.assertEqual(done.returncode, 0)
        lines = done.stdout.splitlines()
        self.assertEqual(lines[-1], "problems: 0, warnings: 0", done.stdout)
        self.assertLessEqual(max(map(len, lines)), WIDTH)
        self.assertIn(" 0.0% lost", done.stdout)

    def test_this_host_alone(self) -> None:
        """Without a server, only this host is checked, and the output mentions --server."""
        done = self.run_check()
        self.assertEqual(done.returncode, 0)
        self.assertIn("/dev/fuse can be opened", done.stdout)
        self.assertIn("--server", done.stdout.splitlines()[-1])
        self.assertNotIn("multicast ", done.stdout)

    def test_without_rights(self) -> None:
        """Without root's rights, it names the checks that need them, and makes the others."""
        limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
        self.start_server()
        report = self.check(before=WITHOUT_RIGHTS)
        self.assertEqual(report.problems, [])
        self.assertIn("needs root", report.figure("querier"))
        small = limit < 16 * MIB
        self.assertEqual("receive buffer" in report.warnings, small)
        if small:
            self.assertIn(f"{limit // 1024} KiB of", report.figure("receive buffer"))

    def test_image(self) -> None:
        """The image named is read; it is a problem if it is missing, a warning if there is none."""
        (self.lab.images / "sub").mkdir()
        write_image(self.lab.images / "sub" / "small.img", MIB)
        self.start_server()
        report = self.check("--image", "/sub/small.img")
        self.assertIn("sub/small.img (1.0 MB)", report.figure("image"))
        self.assertIn("multicast", report.findings)
        self.assertEqual(self.check("--image", "missing").problems, ["image"])
        (self.lab.images / "disk.img").unlink()
        self.assertIn("sub/small.img", self.check().figure("image"))
        (self.lab.images / "sub" / "small.img").unlink()
        report = self.check()
        self.assertIn("image", report.warnings)
        self.assertEqual(report.status, 0)


class LossTests(CheckTestCase):
    """Networks and hosts that lose multicast packets."""

    def test_no_querier(self) -> None:
        """Snooping without a querier, which works for a while, is a warning."""
        self.set_switch(snooping=True, querier=False)
        self.start_server()
        report = self.check()
        self.assertEqual((report.problems, report.warnings), ([], ["querier"]))

    def test_loss(self) -> None:
        """The loss of 5 % is measured, even if the server sent the same data a moment ago."""
        self.start_server()
        self.network.set_loss("host1", 50)
        for _ in range(2):
            report = self.check()
            self.assertIn("multicast", report.warnings)
            loss = float(report.figure("multicast").rpartition(",")[2].split("%")[0])
            # The standard deviation of the loss of about 3,500 segments is 0.37 %.
            self.assertGreater(loss, 2.5)
            self.assertLess(loss, 8.5)

    def test_firewall_of_this_host(self) -> None:
        """A firewall on this host that drops multicast is identified, and the remedy helps."""
        self.start_server()
        rules = """table inet filter {
            chain input {
                type filter hook input priority 0; policy accept;
                ip daddr 239.5.5.0 drop
            }
        }
        """
        run(*self.network.enter("host1"), "nft", "-f", "-", given=rules)
        report = self.check()
        self.assertEqual(report.problems, ["multicast"])
        self.assertIn("firewall of this host", report.findings["multicast"]["remedy"])
        self.assertIn("MB came", report.figure("over TCP"))
        self.run_remedy(report, "multicast", slice(None))
        self.assertEqual(self.check().problems, [])

    def test_dropped_in_the_network(self) -> None:
        """Multicast lost in the network is not blamed on this host's firewall."""
        self.start_server()
        rules = """table inet filter {
            chain output {
                type filter hook output priority 0; policy accept;
                ip daddr 239.5.5.0 drop
            }
        }
        """
        run(*self.network.enter(SERVER), "nft", "-f", "-", given=rules)
        report = self.check()
        self.assertEqual(report.problems, ["multicast"])
        remedy = report.findings["multicast"]["remedy"]
        self.assertNotIn("firewall of this host", remedy)
        self.assertIn("--interface", remedy)
        self.assertIn("MB came", report.figure("over TCP"))

    def test_long_packets(self) -> None:
        """A network that drops only long packets is identified."""
        self.start_server()
        self.network.set_loss("host1", 1000, "ip protocol udp meta length > 1294")
        report = self.check()
        self.assertEqual(report.problems, ["multicast"])
        self.assertIn("1440 bytes are dropped", report.figure("multicast"))

    def test_small_mtu(self) -> None:
        """An MTU smaller than the server's packets is found, and the remedy helps."""
        self.start_server()
        self.on_host("ip", "link", "set", "eth0", "mtu", "1280")
        report = self.check()
        self.assertEqual(report.problems, ["multicast"])
        self.assertIn("packet size", report.warnings)
        self.run_remedy(report, "packet size")
        self.assertEqual(self.check().problems, [])

    def test_small_mtu_of_the_server(self) -> None:
        """A small MTU of the server is found by its TCP segments."""
        self.on_host("ip", "link", "set", "eth0", "mtu", "1280", host=SERVER)
        self.start_server()
        self.assertIn("packet size", self.check().warnings)

    def test_fragments(self) -> None:
        """With an MTU of 1400 everywhere, multicast works in fragments: a warning."""
        for host in ("host1", SERVER):
            self.on_host("ip", "link", "set", "eth0", "mtu", "1400", host=host)
        self.start_server()
        report = self.check()
        self.assertEqual((report.problems, report.warnings[:1]), ([], ["packet size"]))
        self.assertIn("0.0% lost", report.figure("multicast"))

    def test_server_without_interface(self) -> None:
        """A server whose interface for multicast is away is named, and no firewall or switch."""
        self.on_host("ip", "address", "add", "10.77.0.2/25", "dev", "eth0", host=SERVER)
        self.start_server("--interface", "10.77.0.2")
        self.on_host("ip", "address", "delete", "10.77.0.2/25", "dev", "eth0", host=SERVER)
        report = self.check()
        self.assertEqual(report.problems, ["multicast"])
        self.assertIn("sends no multicast to this host", report.figure("multicast"))
        remedy = report.findings["multicast"]["remedy"]
        self.assertIn("its interface may be away", remedy)
        self.assertNotIn("firewall", remedy)

    def test_ipv6(self) -> None:
        """Over IPv6 a server without an interface is said to send none; with one, all is well."""
        self.on_host("ip", "address", "add", "fd77::1/64", "dev", "eth0", "nodad", host=SERVER)
        self.on_host("ip", "address", "add", "fd77::11/64", "dev", "eth0", "nodad")
        endpoint = "tcp6:7040:interface=fd77\\:\\:1"
        server = self.lab.start_server("--listen", endpoint)
        to = "tcp:fd77\\:\\:1:7040"
        report = self.check(server=to)
        self.assertEqual(report.problems, ["multicast"])
        self.assertIn("sends no multicast to this host", report.figure("multicast"))
        self.assertIn("connected by IPv6", server.output)
        self.assertNotIn("IPv6Address", server.output)
        server.stop()
        self.lab.start_server("--listen", endpoint, "--interface", SERVER_ADDRESS, name="other")
        report = self.check(server=to)
        self.assertEqual(report.problems, [])
        self.assertIn("0.0% lost", report.figure("multicast"))

    def test_reverse_path(self) -> None:
        """An rp_filter that drops multicast is found, and the remedy helps."""
        self.on_host("ip", "address", "add", "10.78.0.1/24", "dev", "eth0", host=SERVER)
        self.on_host("ip", "link", "add", "other", "type", "bridge")
        self.on_host("ip", "link", "set", "other", "up")
        self.on_host("ip", "route", "add", "10.78.0.0/24", "dev", "other")
        self.on_host("sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=1")
        self.lab.start_server("--interface", "10.78.0.1")
        given = "--interface", "10.77.0.11"
        report = self.check(*given)
        self.assertEqual(report.problems, ["rp_filter", "multicast"])
        self.run_remedy(report, "rp_filter")
        self.assertEqual(self.check(*given).problems, [])

    def test_router(self) -> None:
        """A router between server and host, which multicast does not pass, is a problem."""
        self.on_host("ip", "address", "add", "10.78.0.1/24", "dev", "eth0", host=SERVER)
        self.on_host("ip", "route", "add", "10.78.0.0/24", "via", "10.77.0.99")
        self.lab.start_server("--interface", "10.78.0.1")
        report = self.check()
        self.assertIn("route", report.problems)
        self.assertIn("10.77.0.99", report.figure("route"))

    def test_old_igmp(self) -> None:
        """A forced IGMP version 1 is a warning, and the remedy helps."""
        self.on_host("sysctl", "-qw", "net.ipv4.conf.eth0.force_igmp_version=1")
        self.start_server()
        report = self.check()
        self.assertIn("IGMP", report.warnings)
        self.run_remedy(report, "IGMP")
        self.assertNotIn("IGMP", self.check().warnings)


class NoServerTests(CheckTestCase):
    """Servers that are absent or do not respond."""

    def test_absent(self) -> None:
        """A closed port, an unreachable host, and an invalid name or endpoint are problems."""
        self.assertEqual(self.check().problems, ["connection"])
        self.assertIn("refused", self.check().figure("connection"))
        self.assertEqual(self.check(server="tcp:10.77.0.99:7040").problems, ["connection"])
        self.assertEqual(self.check(server="tcp:no.such.invalid:7040").problems, ["name"])
        done = self.run_check("--server", "tcp:10.77.0.1")
        self.assertEqual(done.returncode, 2)
        self.assertIn("the port is missing, such as", done.stderr)

    def test_silent(self) -> None:
        """A server that hangs is found after a timeout."""
        server = self.start_server()
        server.signal(signal.SIGSTOP)
        self.assertIn("no WELCOME", self.check().figure("server"))

    def test_silent_names(self) -> None:
        """Name servers that do not answer cause a timeout, and Ctrl-C ends the wait."""
        config = self.lab.directory / "resolv.conf"
        config.write_text(f"nameserver {SERVER_ADDRESS}\noptions timeout:30\n")
        rules = """table inet filter {
            chain input {
                type filter hook input priority 0; policy accept;
                udp dport 53 drop
            }
        }
        """
        run(*self.network.enter(SERVER), "nft", "-f", "-", given=rules)
        names = f'mount --bind {config} /etc/resolv.conf; exec "$0" "$@"'
        before = ["unshare", "--mount", "sh", "-c", names]
        server = "tcp:images.example.org:7040"
        report = self.check(server=server, before=before)
        self.assertEqual(report.problems, ["name"])
        self.assertIn("no answer within 5 s", report.figure("name"))
        command = [*before, *COMMAND, "--server", server]
        running = self.lab.start_program("check", "host1", command)
        running.wait_until(lambda: "UDP GRO" in running.output, 20, "looks up the name")
        running.signal(signal.SIGINT)
        self.assertEqual(running.wait(20), 130)

    def test_interface_down(self) -> None:
        """An interface that is down is found, and the remedy helps."""
        self.start_server()
        self.on_host("ip", "link", "set", "eth0", "down")
        report = self.check()
        self.assertEqual(report.problems, ["interface"])
        self.run_remedy(report, "interface")
        self.assertEqual(self.check().problems, [])

    def test_interface_of_nobody(self) -> None:
        """An --interface that does not exist is found, and the existing ones are listed."""
        self.start_server()
        for interface in ("10.77.0.12", "eth1"):
            done = self.run_check("--server", ENDPOINT, "--interface", interface)
            self.assertEqual(done.returncode, 2)
            self.assertIn(f"--interface {interface}: there is none", done.stderr)
            self.assertIn("but eth0, lo", done.stderr)

    def test_lost(self) -> None:
        """A server that ends meanwhile is reported as a lost connection."""
        server = self.start_server()
        options = ["--server", ENDPOINT, "--seconds", "30", "--image", "disk.img"]
        write_image(self.lab.images / "disk.img", 128 * MIB)
        running = self.lab.start_program("check", "host1", [*COMMAND, *options])
        running.wait_until(lambda: "reading disk.img" in running.output, 20, "reads")
        server.kill()
        self.assertEqual(running.wait(20), 1)
        self.assertIn("connection was lost", running.output)

    def test_interrupted(self) -> None:
        """Ctrl-C ends it immediately, with the status of the signal."""
        write_image(self.lab.images / "disk.img", 128 * MIB)
        self.start_server()
        options = ["--server", ENDPOINT, "--seconds", "600"]
        running = self.lab.start_program("check", "host1", [*COMMAND, *options])
        running.wait_until(lambda: "reading disk.img" in running.output, 20, "reads")
        running.signal(signal.SIGINT)
        self.assertEqual(running.wait(20), 130)
        self.assertIn("interrupted", running.output)
        self.assertNotIn("Traceback", running.output)


class TLSTests(CheckTestCase):
    """Certificates that are valid, about to expire, or not accepted."""

    def setUp(self) -> None:
        """Make the keys."""
        super().setUp()
        self.own, self.other = self.lab.directory / "own", self.lab.directory / "other"
        make_keys(self.own, ["images.lab", SERVER_ADDRESS], ["host1.lab"])
        make_keys(self.other, [SERVER_ADDRESS], ["host1.lab"])

    def serve(self, of: Path | None = None, names: str | None = None, days: int = 700) -> None:
        """Start a server, with a new certificate if C{names} are given."""
        directory = of or self.own
        if names is not None:
            (directory / "server.pem").unlink()
            self.patch(authority, "LIFETIME", timedelta(days=days))
            make_keys(directory, [names], [])
        listen = f"tls:{SERVER_PORT}:certificate={directory}/server.pem:trustRoots={self.own}/ca"
        self.start_server("--listen", listen)

    def connect(self, name: str = "host1.lab", of: Path | None = None) -> Report:
        certificate = f"certificate={of or self.own}/{name}.pem:trustRoots={self.own}/ca"
        return self.check(server=f"tls:{SERVER_ADDRESS}:{SERVER_PORT}:{certificate}")

    def test_accepted(self) -> None:
        """Valid certificates are accepted; one that expires soon is a warning."""
        self.patch(authority, "LIFETIME", timedelta(days=12))
        make_keys(self.own, [], ["soon.lab"])
        self.serve()
        report = self.connect()
        self.assertEqual(report.problems, [])
        self.assertIn(f"images.lab, {SERVER_ADDRESS}", report.figure("server's cert"))
        report = self.connect("soon.lab")
        self.assertEqual(report.problems, [])
        self.assertIn("11 days left", report.figure("own certificate"))
        self.assertIn("own certificate", report.warnings)

    def test_own(self) -> None:
        """An expired certificate of the host, or one of another authority, is a problem."""
        self.patch(authority, "LIFETIME", timedelta(hours=-1))
        make_keys(self.own, [], ["late.lab"])
        self.serve()
        report = self.connect("late.lab")
        self.assertEqual(report.problems, ["own certificate", "server"])
        report = self.connect(of=self.other)
        self.assertEqual(report.problems, ["server"])
        self.assertIn("does not trust", report.findings["server"]["remedy"])
        report = self.check()
        self.assertEqual(report.problems, ["server"])
        self.assertIn("--tls-cert", report.findings["server"]["remedy"])

    def test_server_expired(self) -> None:
        """An expired certificate of the server is reported as such."""
        self.serve(names=SERVER_ADDRESS, days=-1)
        report = self.connect()
        self.assertEqual(report.problems, ["server", "server's cert"])
        self.assertIn("expired", report.figure("server's cert"))

    def test_server_name(self) -> None:
        """A server's certificate for another name is reported with its names."""
        self.serve(names="images.lab")
        report = self.connect()
        self.assertEqual(report.problems, ["server", "server's name"])
        self.assertIn("for images.lab, not for", report.figure("server's name"))

    def test_server_signer(self) -> None:
        """A server's certificate of another authority is reported with that authority."""
        self.serve(of=self.other)
        self.assertEqual(self.connect().problems, ["server", "server's signer"])
