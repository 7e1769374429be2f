"""What is said of TLS when it fails."""

from __future__ import annotations

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.error import ConnectionDone, ConnectionLost, TimeoutError
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.tls import check_names, handshake_fault, is_tls, peer_name, why_lost
from mufs.test.support.doubles import FakeTransport


class UncertifiedTransport(FakeTransport):
    """A connection over TLS whose other side has shown no certificate."""

    def getPeerCertificate(self) -> None:
        """See L{ISSLTransport.getPeerCertificate}."""


def ssl_error(*texts: str) -> SSL.Error:
    """An error as OpenSSL raises it."""
    return SSL.Error([("SSL routines", "", text) for text in texts])


class FaultTests(SynchronousTestCase):
    """Why a handshake failed."""

    def fault(self, error: Exception) -> str | None:
        """What is said of an error."""
        return handshake_fault(Failure(error))

    def test_other_errors(self) -> None:
        """A connection that is lost otherwise has no fault of TLS."""
        for error in (ConnectionLost(), ConnectionDone(), OSError(5, "no")):
            self.assertIs(self.fault(error), None)

    def test_faults(self) -> None:
        """Each fault is said in words."""
        for texts, expected in (
            (["wrong version number"], "what comes is not TLS (wrong version number)"),
            (["http request"], "what comes is not TLS (http request)"),
            (["tlsv1 alert unknown ca"], "the other side refuses (tlsv1 alert unknown ca)"),
            (["the certificate of 'a' has expired"], "the certificate of 'a' has expired"),
            (["one", "", "two"], "one, two"),
            ([], "the handshake was cut off"),
        ):
            self.assertEqual(self.fault(ssl_error(*texts)), expected)
        self.assertIn(
            "of another authority", self.fault(ssl_error("certificate verify failed")) or ""
        )
        self.assertEqual(self.fault(SSL.Error()), "the handshake was cut off")
        self.assertEqual(
            self.fault(VerificationError(errors=[])), "the certificate is for another name"
        )

    def test_why_lost(self) -> None:
        """A client's user is told of the fault, or what a connection that just ends may mean."""
        self.assertEqual(why_lost(Failure(ssl_error("http request")))[:4], "TLS:")
        for error in (ConnectionLost(), ConnectionDone()):
            self.assertIn("it may want TLS", why_lost(Failure(error)))
        self.assertIn("timeout", why_lost(Failure(TimeoutError("timeout"))))


class PeerTests(SynchronousTestCase):
    """What is known of the other side."""

    def test_plain(self) -> None:
        """Without TLS it has no name, and its names need not be checked."""
        transport = FakeTransport()
        self.assertFalse(is_tls(transport))
        self.assertIs(peer_name(transport), None)
        check_names(transport)

    def test_uncertified(self) -> None:
        """With TLS, but without a certificate, its name is empty, and as a server it is refused."""
        transport = UncertifiedTransport()
        self.assertTrue(is_tls(transport))
        self.assertEqual(peer_name(transport), "")
        self.assertRaises(ValueError, check_names, transport)
