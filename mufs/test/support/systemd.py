"""
A machine that boots systemd: namespaces of all kinds, and its own root with the host's /usr, the
checkout, and what a test puts into its /etc. Nothing of it outlives `close`.

Of the system's units only those of the journal are started there: others configure the kernel,
which is the host's, or clean directories.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mufs.test.support.loopback import why_unavailable as why_not_mountable
from mufs.test.support.netns import LabError
from mufs.test.support.processes import CHECKOUT, wait_until

SYSTEMD = "/lib/systemd/systemd"
SHARED = [sys.base_prefix, sys.prefix, str(CHECKOUT)]
"""The interpreter and mUFS, which services and users need."""

UNITS = Path("/usr/lib/systemd/system")
GENERATORS = Path("/usr/lib/systemd/system-generators")
STARTED = {
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
    "systemd-fstab-generator",
}
ETC = CHECKOUT / "etc"

# $1: directory of the machine, which contains its root; $4 and on: directories to share.
# The machine's own control group becomes the root of all control groups there.
BOOT = """
mount -t cgroup2 none "$1/cgroup"
mkdir "$1/cgroup/$2"
echo $$ > "$1/cgroup/$2/cgroup.procs"
umount "$1/cgroup"
exec unshare --cgroup sh -ec "$3" sh "$@"
"""

ROOT = """
directory=$1
root=$1/root
shift 3
mount --bind "$root" "$root"
mount --make-private "$root"
cd "$root"
mkdir usr proc sys dev run tmp var old
mount --bind /usr usr
mount -o remount,bind,ro usr
for name in bin lib lib64; do ln -s "usr/$name" "$name"; done
mkdir sbin
ln -s /usr/sbin/* sbin/
ln -s /opt/mufs/bin/mount.mufs sbin/mount.mufs
ln -s /opt/mufs/bin/mount.mufs sbin/mount.fuse.mufs
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 none dev
for name in null zero full random urandom tty autofs; do
    [ -e "/dev/$name" ] || continue
    touch "dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
# Open to all users, unlike the host's on some systems.
mknod -m 666 dev/fuse c 10 229
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 none dev/pts
ln -s pts/ptmx dev/ptmx
ln -s ../run var/run
mount -t tmpfs -o mode=755 none run
mount -t tmpfs none tmp
for path; do
    mkdir -p "./$path"
    mount --bind "$path" "./$path"
    mount -o remount,bind,ro "./$path"
done
mount -t tmpfs none sys/fs/cgroup
mount -t cgroup2 none sys/fs/cgroup
ip link set lo up
pivot_root . old
umount -l /old
# systemd does this itself, except in a container: needed for the mounts of credentials.
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal
"""

FILES = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files systemd\ngroup: files systemd\nhosts: files\n",
    "hosts": "127.0.0.1 localhost images.example.org\n",
    "machine-id": "0123456789abcdef0123456789abcdef\n",
    "fstab": "",
}


def why_unavailable() -> str | None:
    """Return why such a machine cannot run here, or None if it can."""
    if not os.path.exists(SYSTEMD):
        return "needs systemd"
    if not ETC.is_dir():
        return "needs the checkout"
    names = ("unshare", "nsenter", "setpriv", "pivot_root", "journalctl", "ip", "findmnt")
    missing = [name for name in names if not shutil.which(name)]
    closed = [path for path in SHARED if not os.stat(path).st_mode & 0o001]
    if closed:
        return f"needs {closed[0]} to be accessible to all users"
    return why_not_mountable() or (f"needs {', '.join(missing)}" if missing else None)


class Unbootable(Exception):
    """systemd does not boot here; the text gives its log."""


class Machine:
    """A machine, booted by its constructor."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mufs-systemd-"))
        self.directory.chmod(0o755)
        self._group = self.directory.name
        self.root = self.directory / "root"
        self.etc = self.root / "etc"
        (self.directory / "cgroup").mkdir()
        (self.etc / "systemd" / "system").mkdir(parents=True)
        for name, text in FILES.items():
            (self.etc / name).write_text(text)
        self._mask(self.etc / "systemd" / "system", UNITS.glob("*.wants/*"))
        self._mask(self.etc / "systemd" / "system-generators", GENERATORS.iterdir())
        for name in ("ld.so.cache", "ld.so.conf"):
            shutil.copy(f"/etc/{name}", self.etc)
        (self.root / "opt").mkdir()
        (self.root / "opt" / "mufs").symlink_to(sys.prefix)
        arguments = [str(self.directory), self._group, ROOT, *SHARED]
        command = [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc",
            "sh", "-ec", BOOT, "sh", *arguments,
        ]  # fmt: skip
        with open(self.directory / "log", "w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        atexit.register(self.close)
        try:
            wait_until(lambda: self._process.poll() is not None or self._booted(), 30, "boot")
            if self._process.poll() is not None:
                raise LabError(f"ended with {self._process.returncode}")
        except LabError as error:
            said = (self.directory / "log").read_text()
            self.close()
            raise Unbootable(f"systemd does not start here: {error} {said}") from None

    def run(
        self, *command: str, check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine; its stderr is merged into stdout."""
        done = subprocess.run(
            ["nsenter", "--all", f"--target={self._init()}", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise LabError(f"{' '.join(command)}: status {done.returncode}: {done.stdout}")
        return done

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).stdout.strip()

    def wait_for(self, unit: str, name: str, value: str, timeout: float = 30) -> None:
        """Wait until a property of a unit has a value."""
        try:
            wait_until(lambda: self.show(unit, name) == value, timeout, f"{name} is {value}")
        except LabError as late:
            status = self.run("systemctl", "--full", "status", unit, check=False).stdout
            raise LabError(f"{unit}: {late}\n{status}") from None

    def close(self) -> None:
        """Kill its processes, and remove all that was made."""
        atexit.unregister(self.close)
        with suppress(OSError, IndexError):
            os.kill(self._init(), signal.SIGKILL)
            # unshare ends when the last process of the machine has ended.
            self._process.wait(20)
        self._process.kill()
        self._process.wait(20)
        # The empty control groups remain.
        inside = 'mount -t cgroup2 none "$1"; find "$1/$2" -depth -type d -exec rmdir {} +'
        subprocess.run(
            ["unshare", "--mount", "sh", "-ec", inside, "sh",
             str(self.directory / "cgroup"), self._group],
            check=False, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        shutil.rmtree(self.directory, ignore_errors=True)

    def _mask(self, directory: Path, names: Iterable[Path]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name in {path.name for path in names if path.suffix != ".target"} - STARTED:
            (directory / name).symlink_to("/dev/null")

    def _init(self) -> int:
        found = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return int(found.split()[0])

    def _booted(self) -> bool:
        try:
            state = self.run("systemctl", "is-active", "multi-user.target", check=False)
        except (OSError, IndexError, subprocess.TimeoutExpired):
            return False
        return state.stdout.strip() == "active"
