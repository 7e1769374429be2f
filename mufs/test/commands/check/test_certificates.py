"""Findings about certificates."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from mufs.addresses import TLSFiles
from mufs.commands import authority, keys
from mufs.commands.check import certificates
from mufs.commands.check.finding import Finding, Level
from mufs.commands.keys import make_keys


class CertificateTests(SynchronousTestCase):
    """Certificates, and the clock that they are looked at by."""

    def setUp(self) -> None:
        self.top = Path(self.mktemp())
        make_keys(self.top, ["images.lab", "192.0.2.1"], ["host1.lab"])
        self.server = x509.load_pem_x509_certificate((self.top / "server.pem").read_bytes())
        self.given = TLSFiles(str(self.top / "host1.lab.pem"), None, str(self.top / "ca"))

    def judge(self, days: float) -> Finding:
        """The finding so many days from now."""
        now = datetime.now(UTC) + timedelta(days=days)
        return certificates.judge(certificates.SERVER, self.server, now)

    def test_time(self) -> None:
        """It is fine, about to end, past, or not valid yet, and a clock years away is called so."""
        self.assertIs(self.judge(0).level, Level.OK)
        self.assertIs(self.judge(authority.LIFETIME.days - 31).level, Level.OK)
        self.assertIs(self.judge(authority.LIFETIME.days - 29).level, Level.WARNING)
        past = self.judge(authority.LIFETIME.days + 1)
        self.assertIs(past.level, Level.PROBLEM)
        self.assertIn("expired", past.figure)
        self.assertNotIn("clock", past.remedy)
        self.assertIn("clock", self.judge(authority.LIFETIME.days + 3000).remedy)
        early = self.judge(-3)
        self.assertIs(early.level, Level.PROBLEM)
        self.assertIn("not valid yet", early.figure)
        self.assertNotIn("years", early.remedy)
        self.assertIn("slow by years", self.judge(-3000).remedy)

    def test_own(self) -> None:
        """Own certificate and authority are found; what is missing or malformed is a problem."""
        self.assertEqual([each.level for each in certificates.own(self.given)], [Level.OK] * 2)
        (self.top / "ca" / "other.pem").write_text("nothing\n")
        levels = [each.level for each in certificates.own(self.given)]
        self.assertEqual(levels, [Level.OK, Level.OK, Level.PROBLEM])
        gone = TLSFiles("missing.pem", None, str(self.top / "missing"))
        levels = [each.level for each in certificates.own(gone)]
        self.assertEqual(levels, [Level.PROBLEM] * 2)
        self.assertIs(certificates.own(TLSFiles())[0].level, Level.WARNING)

    def test_server(self) -> None:
        """Its name, its address and its signer have to be right."""
        for name in ("images.lab", "IMAGES.lab", "192.0.2.1"):
            found = certificates.of_server(self.server, name, self.given)
            self.assertEqual([each.level for each in found], [Level.OK], name)
        other = certificates.of_server(self.server, "192.0.2.2", self.given)
        self.assertEqual([each.what for each in other[1:]], ["server's name"])
        self.assertEqual(other[1].commands, ("mufs keys --server images.lab,192.0.2.1,192.0.2.2",))
        make_keys(self.top / "others", ["images.lab"], [])
        for roots in (self.top / "others" / "ca", self.top / "others" / "ca" / "ca.pem"):
            files = TLSFiles(authorities=str(roots))
            found = certificates.of_server(self.server, "images.lab", files)
            self.assertEqual([each.what for each in found[1:]], ["server's signer"])

    def test_hostile_name(self) -> None:
        """A name that anybody may have written is quoted in what is to be typed."""
        self.patch(keys, "_NAME", re.compile(".*"))
        make_keys(self.top / "evil", ["$(reboot)\x1b[2J"], [])
        pem = (self.top / "evil" / "server.pem").read_bytes()
        found = certificates.of_server(x509.load_pem_x509_certificate(pem), "a", TLSFiles())
        text = "\n".join(line for each in found for line in each.lines())
        self.assertNotIn("\x1b", text)
        self.assertIn("'$(reboot)\\x1b[2J,a'", text)
