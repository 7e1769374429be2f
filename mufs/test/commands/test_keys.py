"""C{mufs keys}: what it makes, and what it leaves alone."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.trial.unittest import SynchronousTestCase

from mufs.commands.keys import UnusableKeys, make_keys
from mufs.options import typed


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
            self.assert_refused([], [name], typed(name))
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
