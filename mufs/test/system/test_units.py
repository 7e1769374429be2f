"""The systemd units, verified by systemd-analyze, and their restrictions with real services."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mufs.test.support import loopback
from mufs.test.support.loopback import make_loopback
from mufs.test.support.processes import CHECKOUT, Service, mounted, wait_until

ETC = Path(__file__).resolve().parents[3] / "etc"
SERVER, CLIENT = "mufs-server.service", "mufs-client@.service"


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze, which does not need a running systemd."""
    if shutil.which("systemd-analyze") is None:
        raise SkipTest("needs systemd-analyze")
    if not ETC.is_dir():
        raise SkipTest("needs the checkout")
    return subprocess.run(
        ["systemd-analyze", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


def settings(unit: str) -> dict[str, list[str]]:
    """Return the settings in the section [Service] of a unit."""
    found: dict[str, list[str]] = {}
    text = (ETC / unit).read_text().partition("[Service]")[2].partition("\n[")[0]
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


class UnitTests(SynchronousTestCase):
    """The units according to systemd-analyze."""

    def verify(self, unit: str, name: str) -> None:
        """Verify a unit by systemd-analyze, under the name by which it is started."""
        if not ETC.is_dir():
            raise SkipTest("needs the checkout")
        directory = Path(self.mktemp())
        directory.mkdir()
        shutil.copy(ETC / unit, directory / name)
        done = analyze("verify", "--man=no", str(directory / name))
        # The output also has warnings about this machine's own units.
        complaints = [line for line in done.stdout.splitlines() if "mufs" in line]
        self.assertEqual(complaints, [])
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_server(self) -> None:
        """systemd finds nothing wrong with the unit of the server."""
        self.verify("mufs-server.service", "mufs-server.service")

    def test_client(self) -> None:
        """systemd finds nothing wrong with the unit of the client at /mnt/images."""
        self.verify("mufs-client@.service", "mufs-client@mnt-images.service")

    def test_client_with_escaped_path(self) -> None:
        """systemd finds nothing wrong with the unit of a client whose path needs escapes."""
        self.verify("mufs-client@.service", r"mufs-client@mnt-vm\x2dimages.service")

    def exposure(self, unit: str) -> float:
        """Return the exposure of a unit by systemd-analyze: 0 is safe, 10 unsafe."""
        copy = Path(self.mktemp())
        copy.mkdir()
        copy /= unit.replace("@", "@x")
        shutil.copy(ETC / unit, copy)
        done = analyze("security", "--offline=true", "--no-pager", str(copy))
        found = re.search(r"exposure level for .*: ([0-9.]+) ", done.stdout)
        if found is None:
            raise SkipTest("systemd-analyze knows no --offline")
        return float(found[1])

    def test_exposure(self) -> None:
        """The exposure of both is at most what docs/operations/systemd.md says."""
        self.assertLessEqual(self.exposure(SERVER), 1.8)
        self.assertLessEqual(self.exposure(CLIENT), 4.3)

    def test_start(self) -> None:
        """A start ends within minutes, none is given up for good, and images are mounted before."""
        if not ETC.is_dir():
            raise SkipTest("needs the checkout")
        for unit in (SERVER, CLIENT):
            (limit,) = settings(unit)["TimeoutStartSec"]
            self.assertLessEqual(int(limit), 120)
            self.assertIn("\nStartLimitIntervalSec=0\n", (ETC / unit).read_text())
        after = re.search("^After=(.*)$", (ETC / SERVER).read_text(), re.M)
        self.assertIn("remote-fs.target", after[1] if after else "")

    def test_mount_is_seen(self) -> None:
        """The client has no private mount namespace, which would hide its mount."""
        if not ETC.is_dir():
            raise SkipTest("needs the checkout")
        hiding = re.compile(
            "Private(Tmp|Devices|Mounts|IPC|Users)|ProtectSystem|ProtectHome|ProtectProc|ProcSubset"
            "|ProtectKernel.*|ProtectControlGroups|MountAPIVFS|Bind.*Paths|.*Paths|TemporaryFileSystem"
            "|Root(Directory|Image)|DynamicUser|LoadCredential.*"
        )
        self.assertEqual([name for name in settings(CLIENT) if hiding.fullmatch(name)], [])


def system_calls(unit: str) -> set[str]:
    """Return the system calls that a unit allows."""
    done = analyze("syscall-filter")
    sets: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("@"):
            sets[line] = members = set()
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.add(line.strip())

    def expand(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        return {each for member in sets[name] for each in expand(member)}

    allowed: set[str] = set()
    for filter in settings(unit)["SystemCallFilter"]:
        named = {each for name in filter.lstrip("~").split() for each in expand(name)}
        allowed = allowed - named if filter.startswith("~") else allowed | named
    return allowed


def why_unavailable() -> str | None:
    """Return why services cannot run as in their units here, or None if they can."""
    missing = [name for name in ("strace", "setpriv", "unshare", "mount") if not shutil.which(name)]
    return loopback.why_unavailable() or (f"needs {', '.join(missing)}" if missing else None)


class RestrictionTests(SynchronousTestCase):
    """
    The services with the restrictions of their units, applied without systemd: users, capabilities
    and read-only paths; their system calls are traced.
    """

    skip = why_unavailable()

    def setUp(self) -> None:
        """Make an image."""
        self.loopback = make_loopback(self)
        self.content = os.urandom(3 << 20)
        (self.loopback.images / "disk.img").write_bytes(self.content)
        self.trace = self.loopback.directory / "trace"
        self.trace.mkdir(mode=0o777)
        self.trace.chmod(0o777)
        self.strace = ("strace", "-f", "-qq", "-o", str(self.trace / "calls"))

    def reachable(self) -> list[str]:
        """
        Return commands for a private mount namespace, which make the interpreter and mUFS
        accessible to all users, even if they are in a home directory.
        """
        commands = []
        needed = [Path(sys.base_prefix), Path(sys.prefix), CHECKOUT]
        closed = {
            parent
            for path in needed
            for parent in list(path.parents)[::-1]
            if not parent.stat().st_mode & stat.S_IXOTH
        }
        tops = [each for each in closed if not closed & set(each.parents)]
        hidden = [path for path in needed if any(top in path.parents for top in tops)]
        for number, path in enumerate(hidden):
            stash = self.loopback.directory / f"stash{number}"
            stash.mkdir()
            commands.append(f"mount --bind {path} {stash}")
        commands += [f"mount -t tmpfs -o mode=755 none {top}" for top in tops]
        for number, path in enumerate(hidden):
            stash = self.loopback.directory / f"stash{number}"
            commands += [f"mkdir -p {path}", f"mount --move {stash} {path}"]
        return commands

    def end_traced(self, service: Service) -> None:
        """End the service run by strace, which would outlive strace."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"PPid:\t{service.pid}\n" in (process / "status").read_text():
                    os.kill(int(process.name), signal.SIGTERM)

    def assert_allowed(self, unit: str) -> None:
        """Assert that the unit allows all system calls that were made."""
        text = (self.trace / "calls").read_text(errors="replace")
        made = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)", text, re.MULTILINE))
        self.assertGreater(len(made), 30)
        self.assertEqual(made - system_calls(unit), set())
        self.assertEqual(re.findall(r"(?:clone|clone3|unshare)\(.*CLONE_NEW\w+", text), [])
        families = {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"}
        self.assertEqual(set(re.findall(r"socket\((\w+)", text)) - families, set())

    def test_server(self) -> None:
        """The server works as nobody, without capabilities, on a read-only file system."""
        system_calls(SERVER)
        here = self.loopback.directory
        self.loopback.images.chmod(0o755)
        (self.loopback.images / "disk.img").chmod(0o644)
        here.chmod(0o777)  # for the status socket, which the unit does not have
        commands = [
            *self.reachable(),
            f"mount --bind {here} {here}",
            "mount -o remount,bind,ro /",
            "mount -t proc -o subset=pid,hidepid=invisible none /proc",
            'exec "$@"',
        ]
        nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
        enter = [
            *("unshare", "--mount", "sh", "-e", "-c", "\n".join(commands), "sh"),
            *("setpriv", *nobody, "--inh-caps=-all", "--bounding-set=-all"),
        ]
        server = self.loopback.start_server(wait=False, enter=(*enter, *self.strace))
        self.addCleanup(self.end_traced, server)
        wait_until(lambda: "listening for clients" in server.output, 30, "the server listens")
        self.loopback.start_client("host")
        image = self.loopback.mount_point("host") / "disk.img"
        self.assertEqual(image.read_bytes(), self.content)
        self.assertGreater(server.status()["bytes_multicast"], 0)
        self.assertIn("\nprocess_resident_memory_bytes ", server.get("/metrics"))
        self.assertNotIn("Traceback", server.output)
        self.assert_allowed(SERVER)

    def test_client(self) -> None:
        """As root with only the capabilities of its unit, the client mounts, reads and unmounts."""
        system_calls(CLIENT)
        (rights,) = settings(CLIENT)["CapabilityBoundingSet"]
        kept = ",".join(f"+{each.removeprefix('CAP_').lower()}" for each in rights.split())
        self.loopback.start_server()
        rights = f"--bounding-set=-all,{kept}"
        enter = ("setpriv", "--no-new-privs", "--inh-caps=-all", rights, *self.strace)
        client = self.loopback.launch_client("host", enter=enter)
        self.addCleanup(self.end_traced, client)
        wait_until(lambda: "mounted at" in client.output, 30, "the client mounts")
        point = self.loopback.mount_point("host")
        self.assertEqual((point / "disk.img").read_bytes(), self.content)
        self.assertIn("receive buffer of 16384 KiB", client.output)
        self.end_traced(client)
        wait_until(lambda: not client.running, 20, "the client ends")
        self.assertFalse(mounted(point))
        self.assertNotIn("Traceback", client.output)
        self.assert_allowed(CLIENT)
