"""Wheel and source distribution, and what an installation of the wheel can do."""

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
    """Say what is not there to build from, or None."""
    if not (CHECKOUT / "setup.cfg").exists():
        return "needs the checkout"
    done = subprocess.run([sys.executable, "-c", "import build, setuptools"], capture_output=True)
    return None if done.returncode == 0 else "needs build and setuptools"


def run(*command: object, cwd: Path) -> str:
    """Run a command, where and with what it cannot see the checkout, and return what it said."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**os.environ, "PYTHONPATH": ""}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"{command}: status {done.returncode}\n{done.stdout}")
    return done.stdout


@cache
def directory() -> Path:
    """Where all is built and installed; it goes away at the end of the process."""
    path = Path(tempfile.mkdtemp(prefix="mufs-dist-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def built() -> Path:
    """The directory with wheel and source distribution: the former is made from the latter."""
    dist = directory() / "dist"
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, CHECKOUT]
    run(*build, cwd=directory())
    return dist


@cache
def installed() -> Path:
    """
    A virtual environment with the wheel in it, its scripts' directory. What mUFS depends on is
    found where it is installed already, so that no index is asked.
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
    """What the files of a release hold."""

    skip = why_unavailable()

    def test_source(self) -> None:
        """The source distribution has each file of the repository, so that its Makefile works."""
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
        """The wheel brings all modules, the page's files and the plugin, hiding none of Twisted."""
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
    """What is installed, outside of the checkout."""

    skip = why_unavailable()

    def setUp(self) -> None:
        """Have a directory that is no checkout."""
        self.bin = installed()
        self.directory = Path(tempfile.mkdtemp(prefix="mufs-dist-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def run_installed(self, *command: str) -> str:
        """What one of its commands says."""
        return run(self.bin / command[0], *command[1:], cwd=self.directory)

    def test_installed_is_used(self) -> None:
        """These tests are of what is installed, not of the checkout."""
        found = self.run_installed("python", "-c", "import mufs; print(mufs.__file__)")
        self.assertTrue(found.startswith(str(self.bin.parent)), found)

    def test_commands(self) -> None:
        """All commands are there, and say what their options are."""
        offered = self.run_installed("twistd", "--help")
        for command in ("mufs-server", "mufs-client"):
            self.assertRegex(offered, rf"(?m)^ +{command} +\w")
            self.assertIn("--status=", self.run_installed("twistd", command, "--help"))
            self.assertIn("--status=", self.run_installed(command, "--help"))
        self.assertIn("keys", self.run_installed("mufs", "--help"))

    def test_plugins_remembered(self) -> None:
        """When twistd has run once, its cache of plugins knows mUFS."""
        self.run_installed("twistd", "--help")
        (cache,) = self.bin.parent.glob("lib/python*/site-packages/twisted/plugins/dropin.cache")
        self.assertIn(b"mufs_plugins", cache.read_bytes())

    def test_mount(self) -> None:
        """Server and client serve, mount and read."""
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
            "mufs-server", "--images", images, "--listen", f"tcp:{tcp}:interface=127.0.0.1",
            "--port", udp,
        )  # fmt: skip
        server.wait_until(lambda: "listening for clients" in server.output, 20, "listens")
        self.addCleanup(loopback.unmount, mount)
        client = self.start("mufs-client", "--server", f"tcp:127.0.0.1:{tcp}", "--mount", mount)
        client.wait_until(lambda: "mounted at" in client.output, 20, "mounts")
        self.assertEqual((mount / "disk.img").read_bytes(), content)
        client.stop()
        self.assertFalse(mounted(mount))

    def start(self, command: str, *options: object) -> Program:
        """Start a service of what is installed."""
        line = [str(self.bin / command), *map(str, options)]
        program = Program(command, line, self.directory, {"PYTHONPATH": ""})
        self.addCleanup(program.kill)
        return program
