"""The mount helper: its options, and mount(8) with the helper installed in /sbin."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mufs.commands.keys import make_keys
from mufs.test.support import loopback
from mufs.test.support.loopback import make_loopback
from mufs.test.support.processes import wait_until

HELPER = os.path.join(os.path.dirname(sys.executable), "mount.mufs")

PREPARE = f"""
trap '' CHLD
mkdir "$0.sbin"
mount --bind /sbin "$0.sbin"
mount -t tmpfs none /sbin
ln -s "$0".sbin/* /sbin
ln -s {HELPER} /sbin/mount.mufs
ln -s {HELPER} /sbin/mount.fuse.mufs
touch "$0"
exec sleep 600
"""
"""The first process of the namespace, which reaps orphaned processes."""


def why_unavailable() -> str | None:
    """Return why mount(8) cannot be tested on this machine, or None if it can."""
    if not os.path.exists(HELPER):
        return "needs mount.mufs beside the interpreter"
    missing = [name for name in ("unshare", "nsenter", "findmnt") if not shutil.which(name)]
    return loopback.why_unavailable() or (f"needs {', '.join(missing)}" if missing else None)


class MountTests(SynchronousTestCase):
    """The helper with mount(8), umount(8) and fstab."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Start a server, and make a mount namespace with the helper in /sbin."""
        self.loopback = make_loopback(self)
        self.content = os.urandom(1 << 20)
        (self.loopback.images / "disk.img").write_bytes(self.content)
        self.point = self.loopback.mount_point("mnt")
        ready = self.loopback.directory / "ready"
        holder = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
             "sh", "-ec", PREPARE, str(ready)],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.addCleanup(holder.wait, 10)
        self.addCleanup(holder.kill)
        wait_until(ready.exists, 10, "the namespace is made")
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text()
        self.init = children.split()[0]
        self.source, self.options = "127.0.0.1:/", f"port={self.loopback.port},timeout=20"

    def run_inside(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace."""
        enter = ["nsenter", "--mount", "--pid", f"--target={self.init}"]
        return subprocess.run(
            [*enter, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def mount(
        self, *options: str, type: str = "mufs", status: int = 0, arguments: tuple[str, ...] = ()
    ) -> str:
        """Run mount(8), check its exit status, and return its output."""
        given = ",".join([self.options, *options])
        point = str(self.point)
        done = self.run_inside("mount", *arguments, "-t", type, "-o", given, self.source, point)
        self.assertEqual(done.returncode, status, done.stdout)
        return done.stdout

    def shown(self) -> str:
        """Return the output of findmnt for the mount point."""
        fields = "SOURCE,FSTYPE,VFS-OPTIONS"
        return self.run_inside("findmnt", "-no", fields, str(self.point)).stdout

    def clients(self) -> int:
        """Return the number of clients in the namespace."""
        done = self.run_inside("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
        return done.stdout.split("\n").count("mufs-client")

    def assert_mounted(self) -> None:
        """Assert that the source is mounted read-only, and can be read."""
        source, kind, *options = self.shown().split()
        self.assertEqual((source, kind), (self.source, "fuse.mufs"))
        self.assertLessEqual({"ro", "nosuid", "nodev"}, set(options[0].split(",")))
        same = ["cmp", f"{self.point}/disk.img", f"{self.loopback.images}/disk.img"]
        self.assertEqual(self.run_inside(*same).returncode, 0)

    def unmount(self) -> None:
        """Unmount by umount(8), and assert that the client ends."""
        self.assertEqual(self.run_inside("umount", str(self.point)).returncode, 0)
        wait_until(lambda: self.clients() == 0, 20, "the client ends")

    def test_types(self) -> None:
        """mount -t mufs and -t fuse.mufs are the same, and umount ends the client."""
        self.loopback.start_server()
        for kind in ("mufs", "fuse.mufs"):
            output = self.mount(type=kind)
            self.assertEqual(output, "")
            self.assert_mounted()
            self.assertEqual(self.clients(), 1)
            self.unmount()
        self.assertEqual(self.shown(), "")

    def test_noexec(self) -> None:
        """The option noexec has its effect."""
        self.loopback.start_server()
        self.mount("noexec")
        self.assertIn("noexec", self.shown())

    def test_fstab(self) -> None:
        """A line of fstab is mounted once by mount -a, and unmounted by umount -a."""
        self.loopback.start_server()
        table = self.loopback.directory / "fstab"
        options = f"defaults,_netdev,nofail,x-systemd.automount,{self.options}"
        for kind in ("fuse.mufs", "mufs"):
            table.write_text(f"{self.source} {self.point} {kind} {options} 0 0\n")
            for _ in range(2):
                done = self.run_inside("mount", "-T", str(table), "-a")
                self.assertEqual((done.returncode, done.stdout), (0, ""))
                self.assert_mounted()
                self.assertEqual(self.clients(), 1)
            self.run_inside("umount", "-a", "-t", "fuse.mufs")
            self.assertEqual(self.shown(), "")
            wait_until(lambda: self.clients() == 0, 20, "the client ends")

    def test_server_away(self) -> None:
        """Without a server, mounting fails with the reason, and leaves nothing behind."""
        self.options = f"port={self.loopback.port},timeout=4"
        output = self.mount(status=32)
        self.assertRegex(output, r"^mount.mufs: 127.0.0.1:/: not within 4 s: waiting .* refused")
        self.assertEqual((self.shown(), self.clients()), ("", 0))

    def test_background(self) -> None:
        """With bg, the mount appears when the server starts."""
        self.mount("bg")
        self.assertEqual(self.shown(), "")
        self.loopback.start_server()
        wait_until(self.shown, 30, "it is mounted")
        self.assert_mounted()

    def test_wrong(self) -> None:
        """Errors are one line, with the exit status that mount(8) defines for them."""
        self.assertEqual(
            self.mount("sise=1", status=1),
            "mount.mufs: option sise=1: is unknown, or cannot be had of a mount of mUFS, "
            "such as -o cache_size=4G\n",
        )
        self.assertRegex(self.mount("cache_size=1K", status=32), "^mount.mufs: .* too small.*\n$")
        (self.point / "file").touch()
        self.assertEqual(
            self.mount(status=32),
            f"mount.mufs: 127.0.0.1:/: --mount {self.point}: is not empty: "
            "give an empty directory, such as --mount /mnt/images\n",
        )

    def test_again(self) -> None:
        """A second mount or a remount does not affect the first one."""
        self.loopback.start_server()
        self.mount()
        self.assertIn("mounted there already", self.mount(status=32))
        self.assertIn("cannot remount", self.mount("remount", status=32))
        self.assert_mounted()

    def test_fake(self) -> None:
        """mount -f mounts nothing."""
        self.mount(arguments=("-f",))
        self.assertEqual((self.shown(), self.clients()), ("", 0))

    def test_tls(self) -> None:
        """With a certificate, the mount uses TLS."""
        keys = self.loopback.directory / "keys"
        make_keys(keys, ["127.0.0.1"], ["host"])
        listen = f"tls:{self.loopback.port}:interface=127.0.0.1:certificate={keys}/server.pem"
        self.loopback.start_server(options=("--listen", f"{listen}:trustRoots={keys}/ca"))
        self.mount(f"tls_cert={keys}/host.pem,tls_ca={keys}/ca")
        self.assert_mounted()

    def test_log(self) -> None:
        """The client logs to the journal, without errors about the helper that waited."""
        journal = self.loopback.directory / "log"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.bind(str(journal))
            log.settimeout(30)
            there = "/run/systemd/journal"
            inside = f"mount -t tmpfs none /run; mkdir -p {there}; ln -s {journal} {there}/socket"
            self.run_inside("sh", "-ec", inside)
            self.loopback.start_server()
            self.mount()
            while b"mounted at" not in log.recv(65536):
                pass
            self.unmount()
            while b"unmounted: ending" not in (line := log.recv(65536)):
                self.assertNotIn(b"cannot tell", line)
