"""Wheel, source distribution, and an installation of the wheel."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import mufs
from mufs.test.support import loopback
from mufs.test.support.processes import CHECKOUT, Program, mounted

RELEASE = f"mufs-{mufs.__version__}"


def why_unavailable() -> str | None:
    """Return why no release can be built here, or None if it can."""
    if not (CHECKOUT / "setup.cfg").exists():
        return "needs the checkout"
    done = subprocess.run([sys.executable, "-c", "import build, setuptools"], capture_output=True)
    return None if done.returncode == 0 else "needs build and setuptools"


def run(*command: object, cwd: Path) -> str:
    """Run a command that cannot see the checkout, and return its output."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": ""},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    if done.returncode != 0:
        raise AssertionError(f"{command}: status {done.returncode}\n{done.stdout}")
    return done.stdout


@cache
def directory() -> Path:
    """Make the directory for builds, which is removed at the end of the process."""
    path = Path(tempfile.mkdtemp(prefix="mufs-dist-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def built() -> Path:
    """Build the source distribution, and the wheel from it; return their directory."""
    dist = directory() / "dist"
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, CHECKOUT]
    run(*build, cwd=directory())
    return dist


@cache
def installed() -> Path:
    """
    Install the wheel in a virtual environment, and return the directory of its scripts. The
    dependencies are taken from this environment, so that no package index is needed.
    """
    home = directory() / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=directory())
    pip = [sys.executable, "-m", "pip", "--python", home / "bin/python"]
    wheel = built() / f"{RELEASE}-py3-none-any.whl"
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=directory())
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # Twisted's own script belongs to Twisted, which is not installed here.
    start = "from twisted.scripts.twistd import run\nrun()\n"
    twistd = home / "bin/twistd"
    twistd.write_text(f"#!{home}/bin/python\n{start}")
    twistd.chmod(0o755)
    return home / "bin"


class DistributionTests(SynchronousTestCase):
    """The contents of a release."""

    skip = why_unavailable()

    def test_source(self) -> None:
        """The source distribution has all files of the repository."""
        if shutil.which("git") is None:
            raise SkipTest("needs git")
        done = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True)
        if done.returncode != 0:
            raise SkipTest("needs a git checkout")
        with tarfile.open(built() / f"{RELEASE}.tar.gz") as archive:
            packed = {name.partition("/")[2] for name in archive.getnames()}
        tracked = {name for name in done.stdout.splitlines() if (CHECKOUT / name).exists()}
        self.assertEqual(tracked - packed, set())

    def test_wheel(self) -> None:
        """The wheel has all modules, the page's files and the plugin, but no modules of Twisted."""
        site = installed().parent.glob("lib/python*/site-packages")
        (files,) = ({str(path.relative_to(top)) for path in top.rglob("*")} for top in site)
        modules = {
            str(path.relative_to(CHECKOUT))
            for path in (CHECKOUT / "mufs").rglob("*")
            if path.suffix in (".py", ".css", ".js") or path.name == "py.typed"
        }
        self.assertEqual(modules - files, set())
        self.assertIn("twisted/plugins/mufs_plugins.py", files)
        self.assertNotIn("twisted/__init__.py", files)
        self.assertNotIn("twisted/plugins/__init__.py", files)


class InstallationTests(SynchronousTestCase):
    """The installed wheel, used outside of the checkout."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Make a directory outside of the checkout."""
        self.bin = installed()
        self.directory = Path(tempfile.mkdtemp(prefix="mufs-dist-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def run_installed(self, *command: str) -> str:
        """Run one of the installed commands, and return its output."""
        return run(self.bin / command[0], *command[1:], cwd=self.directory)

    def test_installed_is_used(self) -> None:
        """The tests import the installed package, not the checkout."""
        found = self.run_installed("python", "-c", "import mufs; print(mufs.__file__)")
        self.assertTrue(found.startswith(str(self.bin.parent)), found)

    def test_commands(self) -> None:
        """All commands are installed, and show their help."""
        offered = self.run_installed("twistd", "--help")
        for command in ("mufs-server", "mufs-client"):
            self.assertRegex(offered, rf"(?m)^ +{command} +\w")
            self.assertIn("--status ", self.run_installed("twistd", command, "--help"))
            self.assertIn("--status ", self.run_installed(command, "--help"))
        self.assertIn("keys", self.run_installed("mufs", "--help"))

    def test_plugins_remembered(self) -> None:
        """After the first run of twistd, its plugin cache contains mUFS."""
        self.run_installed("twistd", "--help")
        (cache,) = self.bin.parent.glob("lib/python*/site-packages/twisted/plugins/dropin.cache")
        self.assertIn(b"mufs_plugins", cache.read_bytes())

    def test_mount(self) -> None:
        """Installed server and client serve, mount and read."""
        if reason := loopback.why_unavailable():
            raise SkipTest(reason)
        content = os.urandom(3 << 20)
        images, mount = self.directory / "images", self.directory / "mount"
        images.mkdir(mode=0o755)
        mount.mkdir()
        (images / "disk.img").write_bytes(content)
        tcp = loopback.free_port(socket.SOCK_STREAM)
        udp = loopback.free_port(socket.SOCK_DGRAM)
        server = self.start(
            "mufs-server",
            "--images",
            images,
            "--listen",
            f"tcp:{tcp}:interface=127.0.0.1",
            "--port",
            udp,
        )
        server.wait_until(lambda: "listening for clients" in server.output, 20, "listens")
        self.addCleanup(loopback.unmount, mount)
        client = self.start("mufs-client", "--server", f"tcp:127.0.0.1:{tcp}", "--mount", mount)
        client.wait_until(lambda: "mounted at" in client.output, 20, "mounts")
        self.assertEqual((mount / "disk.img").read_bytes(), content)
        client.stop()
        self.assertFalse(mounted(mount))

    def start(self, command: str, *options: object) -> Program:
        """Start an installed service."""
        line = [str(self.bin / command), *map(str, options)]
        program = Program(command, line, self.directory, {"PYTHONPATH": ""})
        self.addCleanup(program.kill)
        return program
