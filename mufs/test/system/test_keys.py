"""The command C{mufs keys}, and the use of its keys."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import mufs
from mufs.sockets import VARIABLE
from mufs.test.commands.test_keys import KeysTestCase
from mufs.test.support import loopback
from mufs.test.support.processes import TWISTD

BIN = os.path.dirname(TWISTD)
MUFS = os.path.join(BIN, "mufs")


class CommandTests(KeysTestCase):
    """The command C{mufs keys}."""

    def run_mufs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command in an empty directory."""
        if not os.path.exists(MUFS):
            raise SkipTest("needs mufs to be installed")
        directory = self.keys.parent
        directory.mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            [MUFS, *arguments], cwd=directory, capture_output=True, text=True, timeout=60
        )

    def test_help(self) -> None:
        """The help of the command and of its subcommands fits a screen."""
        for arguments in (("--help",), ("keys", "--help")):
            done = self.run_mufs(*arguments)
            self.assertEqual(done.returncode, 0)
            self.assertLess(done.stdout.count("\n"), 24)
            self.assertIn("keys", done.stdout)

    def test_made(self) -> None:
        """The command prints what it has made, and an error of one line if it fails."""
        done = self.run_mufs("keys", "--server", "images.lab,192.0.2.1", "--client", "host1")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("keys/server.pem: images.lab, 192.0.2.1; until ", done.stdout)
        for arguments, telling in (
            (("keys",), "nothing to make"),
            (("keys", "--client", "host1"), "exists"),
            (("keys", "--dir", "/dev/null/x", "--client", "host1"), "Not a directory"),
        ):
            done = self.run_mufs(*arguments)
            self.assertEqual(done.returncode, 1)
            self.assertEqual((done.stderr.count("\n"), done.stdout), (1, ""))
            self.assertIn(telling, done.stderr)


SCRIPT = """
set -e
ip link set lo up
ip address add 192.0.2.1/32 dev lo
ip route add 224.0.0.0/4 dev lo
mount -t tmpfs none /srv
mount -t tmpfs none /mnt
mkdir /srv/images /mnt/images
head -c 3000000 /dev/urandom >/srv/images/disk.img
cd {directory}
{keys}
{server} >server.log 2>&1 &
server=$!
{client} >client.log 2>&1 &
client=$!
trap 'kill -9 $server $client; umount -l /mnt/images || true' EXIT
timeout 40 sh -c 'until findmnt /mnt/images; do sleep 0.1; done'
cmp /srv/images/disk.img /mnt/images/disk.img
"""


class ReadmeTests(SynchronousTestCase):
    """The commands in README.md."""

    skip = loopback.why_unavailable() or (None if shutil.which("unshare") else "needs unshare")

    def test_three_commands(self) -> None:
        """The three commands in README.md make a mount over TLS."""
        readme = Path(mufs.__file__).parent.parent / "README.md"
        if not readme.exists() or not os.path.exists(MUFS):
            raise SkipTest("needs the checkout, and mufs to be installed")
        text = readme.read_text(encoding="utf-8")
        commands = re.findall(r"^    (mufs keys .*|mufs-.* --tls-cert .*)\n", text, re.MULTILINE)
        self.assertEqual(len(commands), 3, commands)
        directory = Path(tempfile.mkdtemp(prefix="mufs-readme-"))
        self.addCleanup(shutil.rmtree, directory)
        script = SCRIPT.format(
            directory=directory, keys=commands[0], server=commands[1], client=commands[2]
        )
        done = subprocess.run(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh",
             "-c", script],
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}",
                 VARIABLE: str(directory / "run")},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=90,
        )  # fmt: skip
        logs = {log.name: log.read_text() for log in directory.glob("*.log")}
        self.assertEqual(done.returncode, 0, f"{done.stdout}\n{logs}")
        self.assertIn("host1 connected from", logs["server.log"])
        self.assertNotIn("no TLS", "".join(logs.values()))
