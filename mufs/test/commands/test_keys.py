"""C{mufs keys}: what it makes, and what it leaves alone."""

from __future__ import annotations

import io
import os
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.trial.unittest import SynchronousTestCase

from mufs.commands.authority import UnusableKeys
from mufs.commands.keys import list_keys, make_keys, renew_key, revoke_key
from mufs.commands.main import _parser
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
             "host1.pem": 0o600, "issued": 0o755,
             **{f"issued/{name}-{self.certificate(f'{name}.pem').serial_number:x}.pem": 0o644
                for name in ("server", "host1")}},
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
        new = {path for path in after if path.name.startswith("host2")}
        self.assertEqual(len(new), 2)
        self.assertEqual({path: after[path] for path in after.keys() - new}, before)

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


class UpkeepTests(KeysTestCase):
    """Certificates that are listed, renewed and revoked."""

    def setUp(self) -> None:
        """Make some."""
        super().setUp()
        make_keys(self.keys, ["images.lab", "192.0.2.1"], ["host1", "host2"])

    def rows(self) -> list[list[str]]:
        """The lines of the list, without the first two, word by word."""
        return [line.split(maxsplit=3) for line in list_keys(self.keys)][2:]

    def revoked(self) -> set[int]:
        """The serial numbers on the list of revoked certificates, which the authority signed."""
        listed = x509.load_pem_x509_crl((self.keys / "ca" / "ca.crl").read_bytes())
        key: Any = self.certificate("ca/ca.pem").public_key()
        self.assertTrue(listed.is_signature_valid(key))
        return {each.serial_number for each in listed}

    def test_ls(self) -> None:
        """Each certificate is listed with its last day, the authority's first."""
        lines = list(list_keys(self.keys))
        self.assertEqual(lines[0].split(), ["name", "until", "days", "left"])
        self.assertTrue(lines[1].startswith("(the authority) "))
        until = f"{self.certificate('host1.pem').not_valid_after_utc:%Y-%m-%d}"
        self.assertEqual([row[0] for row in self.rows()], ["host1", "host2", "server"])
        self.assertEqual(self.rows()[0][1:], [until, "729"])

    def test_renew(self) -> None:
        """A renewed certificate has another key, and the same names; the old one is remembered."""
        old = self.certificate("server.pem")
        made, until = renew_key(self.keys, "server")
        self.assertIn("server.pem: images.lab, 192.0.2.1; until ", made)
        self.assertIn(f"{old.not_valid_after_utc:%Y-%m-%d}", until)
        new = self.certificate("server.pem")
        self.assertNotEqual(new.public_key(), old.public_key())
        for kind in (x509.SubjectAlternativeName, x509.ExtendedKeyUsage):
            both = [each.extensions.get_extension_for_class(kind).value for each in (old, new)]
            self.assertEqual(both[0], both[1])
        new.verify_directly_issued_by(self.certificate("ca/ca.pem"))
        self.assertEqual(stat.S_IMODE((self.keys / "server.pem").stat().st_mode), 0o600)
        self.assertEqual(self.rows()[-1][3], "replaced, but still accepted")

    def test_revoke(self) -> None:
        """All certificates of a client are revoked, and none of others; later ones are valid."""
        certificates = [self.certificate("host1.pem")]
        list(renew_key(self.keys, "host1"))
        certificates.append(self.certificate("host1.pem"))
        (self.keys / "host1.pem").unlink()
        line, todo = revoke_key(self.keys, "host1")
        self.assertIn("ca.crl: 2 certificates of host1 revoked", line)
        self.assertIn("reload", todo)
        self.assertEqual(self.revoked(), {each.serial_number for each in certificates})
        self.assertEqual([row[3:] for row in self.rows()], [["revoked"], ["revoked"], [], []])
        self.assertEqual(len(list(renew_key(self.keys, "host1"))), 1)
        self.assertNotIn(self.certificate("host1.pem").serial_number, self.revoked())
        list(revoke_key(self.keys, "host2"))
        self.assertEqual(len(self.revoked()), 3)

    def test_made_before(self) -> None:
        """What was made before copies were kept is renewed and revoked, too."""
        for file in (self.keys / "issued").iterdir():
            file.unlink()
        (self.keys / "issued").rmdir()
        old = self.certificate("host1.pem").serial_number
        list(renew_key(self.keys, "host1"))
        list(revoke_key(self.keys, "host1"))
        expected = {old, self.certificate("host1.pem").serial_number}
        self.assertEqual(self.revoked(), expected)

    def test_refused(self) -> None:
        """What cannot be renewed or revoked is refused, and nothing changes."""
        list(revoke_key(self.keys, "host1"))
        before = self.contents()
        for function, name, telling in (
            (renew_key, "none", "no certificate of none"),
            (renew_key, "../server", "no certificate of ../server"),
            (revoke_key, "none", "no certificate of none"),
            (revoke_key, "host1", "revoked already"),
            (revoke_key, "server", "new authority"),
        ):
            error = self.assertRaises(UnusableKeys, list, function(self.keys, name))
            self.assertIn(telling, str(error))
        nowhere = list_keys(self.keys / "none")
        self.assertIn("no authority", str(self.assertRaises(UnusableKeys, list, nowhere)))
        (self.keys / "ca" / "ca.crl").write_text("nonsense")
        damaged = list_keys(self.keys)
        self.assertIn("not a list", str(self.assertRaises(UnusableKeys, list, damaged)))
        (self.keys / "ca" / "ca.crl").write_bytes(before[self.keys / "ca" / "ca.crl"])
        self.assertEqual(self.contents(), before)

    def test_command_line(self) -> None:
        """The directory may be named before or after the subcommand."""
        where, shown = str(self.keys), io.StringIO()
        self.patch(sys, "stdout", shown)
        for words in (
            ["--dir", where, "ls"], ["ls", "--dir", where],
            ["renew", "--dir", where, "host1"], ["--dir", where, "revoke", "host1"],
        ):  # fmt: skip
            given = _parser().parse_args(["keys", *words])
            given.run(given)
        lines = shown.getvalue().splitlines()
        self.assertEqual(lines.count("name                     until       days left"), 2)
        self.assertIn("2 certificates of host1 revoked", lines[-2])
