"""The Debian package, installed in a minimal Debian."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from zlib import crc32

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mufs.test.support import loopback
from mufs.test.support.processes import CHECKOUT
from mufs.test.system import test_distribution

BASES = CHECKOUT / "build"
"""The directory of the base system, which is made once, and not changed by tests."""

TOOLS = ("apt-get", "mmdebstrap", "dpkg-deb", "unshare", "ip")

ENTER = """
set -e
mount -t overlay -o lowerdir=$1,upperdir=$2/upper,workdir=$2/work none $2/root
mount --rbind /dev $2/root/dev
mount -t proc none $2/root/proc
ip link set lo up
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    chroot $2/root sh -ec "$3"
"""

# Starts a service as systemd does, but without its restrictions.
START = """
start() {
    unit=/lib/systemd/system/mufs-$1.service
    command=$(sed -n 's/^ExecStart=//p' $unit | sed 's,%f,/mnt/images,')
    set -a; . /etc/mufs/mufs-${1%@}.env; set +a
    path=$(sed -n 's/^Environment=PATH=//p' $unit)
    PATH=$path sh -c "exec $2 $command" >/tmp/$1.log 2>&1 &
    for second in $(seq 20); do
        sleep 1
        if grep -q "$3" /proc/net/tcp /proc/mounts; then return 0; fi
    done
    cat /tmp/$1.log
    return 1
}
"""

SERVE = """
mkdir /mnt/images
mkdir -p /srv/images
head -c 5000000 /dev/urandom >/srv/images/disk.img
sed -i s/images.example.org/127.0.0.1/ /etc/mufs/mufs-client.env
user='setpriv --reuid mufs-server --regid mufs-server --clear-groups'
start server "$user" ':1B80 ' # 7040
start client@ '' ' /mnt/images fuse.mufs '
cmp /srv/images/disk.img /mnt/images/disk.img
umount /mnt/images
mount -t mufs 127.0.0.1:/ /mnt/images
cmp /srv/images/disk.img /mnt/images/disk.img
umount /mnt/images
cat /tmp/server.log /tmp/client@.log
rm -r /tmp/*.log /srv/images /mnt/images
"""


def why_unavailable() -> str | None:
    """Return why a Debian system cannot be made here, or None if it can."""
    tools = [tool for tool in TOOLS if shutil.which(tool) is None]
    if tools:
        return f"needs {', '.join(tools)}"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "needs overlayfs"
    return loopback.why_unavailable() or test_distribution.why_unavailable()


def first_known(depends: str) -> str:
    """Return the first of a dependency's alternatives that this release of Debian has."""
    names: list[str] = re.findall(r"(?:^|\|) *([\w.-]+)", depends)
    for name in names:
        found = subprocess.check_output(["apt-cache", "pkgnames", name], text=True)
        if name in found.splitlines():
            return name
    raise SkipTest(f"needs one of {', '.join(names)}")


def make_base(depends: str) -> Path:
    """
    Make a minimal Debian of this machine's release, with the package's dependencies, and with
    another FUSE file system.
    """
    release = dict(re.findall(r'^(\w+)="?(.*?)"?$', Path("/etc/os-release").read_text(), re.M))
    if release["ID"] != "debian":
        raise SkipTest("needs Debian")
    include = ",".join([*map(first_known, depends.split(",")), "man-db", "sshfs"])
    base = BASES / f"debian-{crc32(include.encode()):08x}"
    if base.is_dir():
        return base
    made = base.with_suffix(".new")
    shutil.rmtree(made, ignore_errors=True)
    BASES.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            "mmdebstrap",
            "--variant=minbase",
            "--format=directory",
            f"--include={include}",
            release["VERSION_CODENAME"],
            str(made),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise SkipTest(f"needs packages of Debian: {done.stdout[-500:]}")
    return made.rename(base)


class DebianTests(SynchronousTestCase):
    """Installation, use and removal of the package."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Build the package, and prepare a Debian system."""
        self.directory = Path(tempfile.mkdtemp(prefix="mufs-deb-"))
        self.addCleanup(shutil.rmtree, self.directory)
        for name in ("upper", "work", "root"):
            (self.directory / name).mkdir()
        (wheel,) = test_distribution.built().glob("*.whl")
        made = subprocess.run(
            [CHECKOUT / "packaging" / "deb", wheel, self.directory],
            env={**os.environ, "PIP": str(Path(sys.executable).parent / "pip")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.assertEqual(made.returncode, 0, made.stdout)
        (self.package,) = self.directory.glob("*.deb")
        self.base = make_base(
            subprocess.check_output(["dpkg-deb", "-f", self.package, "Depends"], text=True)
        )

    def run_inside(self, script: str) -> str:
        """
        Run a shell script in the Debian system, and return its output. Only its files remain
        afterwards; processes, mounts and network do not.
        """
        own = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
        done = subprocess.run(
            [*own, "sh", "-c", ENTER, "sh", str(self.base), str(self.directory), script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def files(self) -> set[str]:
        """Return all files, except where dpkg and mount may leave something."""
        theirs = ("/var/lib/dpkg/", "/var/cache/", "/var/log/", "/run/")
        found = self.run_inside("find / -xdev").splitlines()
        return {path for path in found if not path.startswith(theirs)}

    def test_life(self) -> None:
        """
        The package installs commands, manual pages, units and a user, displaces no other package,
        starts nothing, serves, and when purged leaves nothing but the user.
        """
        before = self.files()
        shutil.copy(self.package, self.directory / "upper" / "mufs.deb")
        apt = self.run_inside("apt-get --simulate install /mufs.deb")
        self.assertIn(" 1 newly installed, 0 to remove ", apt)
        self.run_inside("dpkg -i /mufs.deb")
        # As an upgrade, with a systemd that runs but does not answer.
        self.run_inside("mkdir -p /run/systemd/system; dpkg -i /mufs.deb; rm /mufs.deb")

        self.run_inside("mufs --help; mufs-server --help; mufs-client --help")
        self.run_inside("man -w mufs mufs-server mufs-client mount.mufs")
        self.run_inside("id mufs-server")
        self.run_inside("! ls /etc/systemd/system/*.wants/mufs-*")
        self.run_inside("test -s /usr/share/doc/mufs/etc/prometheus-alerts.yml")
        self.run_inside("test -s /usr/share/doc/mufs/docs/operations/index.md")
        output = self.run_inside(START + SERVE)
        self.assertNotIn("Traceback", output)
        self.assertNotIn("plugin cache", output)

        self.run_inside("dpkg -r mufs; test ! -e /usr/lib/mufs; test -e /etc/mufs/mufs-server.env")
        self.run_inside("mkdir -p /var/cache/mufs/x; dpkg -P mufs; test ! -e /var/cache/mufs")
        self.assertEqual(self.files() - before, set())
