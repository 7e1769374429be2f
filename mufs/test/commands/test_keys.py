"""C{mufs keys}: what it makes, and what it leaves alone."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import mufs
from mufs.commands.keys import UnusableKeys, make_keys
from mufs.sockets import VARIABLE
from mufs.test.support import loopback
from mufs.test.support.processes import TWISTD

BIN = os.path.dirname(TWISTD)
MUFS = os.path.join(BIN, "mufs")


class KeysTestCase(SynchronousTestCase):
    """Has a directory for keys, which is not there yet."""

    def setUp(self) -> None:
        """Choose it."""
        self.keys = Path(self.mktemp()).absolute() / "keys"

    def certificate(self, name: str) -> x509.Certificate:
        """The certificate in a file."""
        return x509.load_pem_x509_certificate((self.keys / name).read_bytes())

    def contents(self) -> dict[Path, bytes]:
        """All files, and what they hold."""
        return {file: file.read_bytes() for file in self.keys.rglob("*") if file.is_file()}


class MakeTests(KeysTestCase):
    """The files."""

    def test_modes(self) -> None:
        """Private keys can be read by nobody else, whatever the umask."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        make_keys(self.keys, ["images.lab"], ["host1"])
        modes = {
            str(path.relative_to(self.keys)): stat.S_IMODE(path.stat().st_mode)
            for path in self.keys.rglob("*")
        }
        self.assertEqual(
            modes,
            {"ca.key": 0o600, "ca": 0o755, "ca/ca.pem": 0o644, "server.pem": 0o600,
             "host1.pem": 0o600},
        )  # fmt: skip
        self.assertEqual(stat.S_IMODE(self.keys.stat().st_mode), 0o700)

    def test_names(self) -> None:
        """Names and addresses of a server are alternative names each of its kind."""
        make_keys(self.keys, ["images.lab", "192.0.2.1", "2001:db8::1"], ["host1.lab"])
        server = self.certificate("server.pem")
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["images.lab"])
        self.assertEqual(
            [str(each) for each in names.get_values_for_type(x509.IPAddress)],
            ["192.0.2.1", "2001:db8::1"],
        )
        client = self.certificate("host1.lab.pem")
        names = client.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["host1.lab"])

    def test_uses(self) -> None:
        """A certificate is for one end of a connection, and signed by the authority alone."""
        make_keys(self.keys, ["images.lab"], ["host1"])
        for name, use in (
            ("server.pem", ExtendedKeyUsageOID.SERVER_AUTH),
            ("host1.pem", ExtendedKeyUsageOID.CLIENT_AUTH),
        ):
            found = self.certificate(name)
            uses = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            self.assertEqual(list(uses), [use])
            basic = found.extensions.get_extension_for_class(x509.BasicConstraints)
            self.assertEqual((basic.value.ca, basic.critical), (False, True))
            found.verify_directly_issued_by(self.certificate("ca/ca.pem"))
            key = load_pem_private_key((self.keys / name).read_bytes(), None)
            self.assertEqual(key.public_key(), found.public_key())

    def test_validity(self) -> None:
        """Certificates are good for some years, and already for clocks that are behind."""
        make_keys(self.keys, ["images.lab"], [])
        now = datetime.now(UTC)
        for name, years in (("server.pem", 2), ("ca/ca.pem", 10)):
            found = self.certificate(name)
            self.assertLess(found.not_valid_before_utc, now - timedelta(hours=23))
            left = found.not_valid_after_utc - now
            self.assertTrue(timedelta(days=365 * years - 1) < left < timedelta(days=366 * years))

    def test_later(self) -> None:
        """A client that is added later is of the same authority, and nothing else changes."""
        make_keys(self.keys, ["images.lab"], ["host1"])
        before = self.contents()
        (line,) = make_keys(self.keys, [], ["host2"])
        self.assertIn("host2.pem: host2; until ", line)
        self.certificate("host2.pem").verify_directly_issued_by(self.certificate("ca/ca.pem"))
        after = self.contents()
        del after[self.keys / "host2.pem"]
        self.assertEqual(after, before)

    def assert_refused(self, servers: list[str], clients: list[str], telling: str) -> None:
        """It is not done, for that reason, and nothing is made or changed."""
        before = self.contents()
        error = self.assertRaises(UnusableKeys, make_keys, self.keys, servers, clients)
        self.assertIn(telling, str(error))
        self.assertEqual(self.contents(), before)

    def test_nothing_overwritten(self) -> None:
        """A file that exists is left as it is, and so is all else then."""
        make_keys(self.keys, ["images.lab"], ["host1"])
        self.assert_refused(["images.lab"], ["host2"], "server.pem exists")
        self.assert_refused([], ["host2", "host1"], "host1.pem exists")
        self.assert_refused([], ["host2", "host2"], "host2.pem exists")

    def test_bad_names(self) -> None:
        """A name that leads elsewhere, or cannot be a host's, is refused."""
        for name in (
            "",
            "../host",
            "a/b",
            "/etc/x",
            "-host",
            ".",
            "host:1",
            "a b",
            "x" * 65,
            "server",
            "h\n",
            "192.0.2.7",
        ):
            self.assert_refused([], [name], repr(name))
        for name in ("a/b", "*.lab", "192.0.2.256/24", "x" * 65, "höst"):
            self.assert_refused([name], [], "neither")

    def test_broken_authority(self) -> None:
        """An authority of which a part is lacking, or that is none, signs nothing."""
        make_keys(self.keys, [], ["host1"])
        key = (self.keys / "ca.key").read_bytes()
        for content, telling in (
            (None, "not all of"),
            (b"nonsense", "not an authority"),
            ((self.keys / "host1.pem").read_bytes(), "is not the key of"),
        ):
            (self.keys / "ca.key").unlink()
            if content is not None:
                (self.keys / "ca.key").write_bytes(content)
            self.assert_refused([], ["host2"], telling)
            (self.keys / "ca.key").write_bytes(key)


class CommandTests(KeysTestCase):
    """The command C{mufs}."""

    def run_mufs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it where nothing is yet."""
        if not os.path.exists(MUFS):
            raise SkipTest("needs mufs to be installed")
        directory = self.keys.parent
        directory.mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            [MUFS, *arguments], cwd=directory, capture_output=True, text=True, timeout=60
        )

    def test_help(self) -> None:
        """The help fits a screen, that of each subcommand too."""
        for arguments in (("--help",), ("keys", "--help")):
            done = self.run_mufs(*arguments)
            self.assertEqual(done.returncode, 0)
            self.assertLess(done.stdout.count("\n"), 24)
            self.assertIn("keys", done.stdout)

    def test_made(self) -> None:
        """It says what it made, and in one line what it cannot."""
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
    """README.md."""

    skip = loopback.missing() or (None if shutil.which("unshare") else "needs unshare")

    def test_three_commands(self) -> None:
        """The three commands in it make a mount over TLS, as they stand there."""
        readme = Path(mufs.__file__).parent.parent / "README.md"
        if not readme.exists() or not os.path.exists(MUFS):
            raise SkipTest("needs the checkout, and mufs to be installed")
        text = readme.read_text(encoding="utf-8")
        commands = re.findall(r"^    ((?:mufs keys|twistd.*tls:).*)\n", text, re.MULTILINE)
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
