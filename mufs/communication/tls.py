"""
TLS on the request channel: the server's side of the handshake, and its faults in words.

Each side shows a certificate, and checks the other's against the operator's authorities. The name
of a certificate is the first DNS name among its alternative names (RFC 5280, 4.2.1.6), or else its
common name.
"""

from collections.abc import Set
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from service_identity import VerificationError
from service_identity.pyopenssl import extract_patterns
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import Certificate, CertificateOptions, trustRootFromCertificates
from twisted.python.failure import Failure
from zope.interface import implementer

from mufs.communication.certificates import UnusableAuthority, authorities, own_certificate

TLS_RECORD = b"\x16\x03"
"""How TLS begins (RFC 8446, 5.1), and no HELLO does."""

# Error codes of X509_verify_cert(3).
_FAULTS = {
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed",
    19: "is of an authority that is not trusted here",
    20: "is of an authority that is not trusted here",
    26: "is not for clients",
}


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """
    Accepts clients with a client certificate of one of the operator's authorities that is on no
    list of revoked ones.

    @ivar expires: when the server's own certificate expires.
    """

    def __init__(self, certificate: str, private_key: str | None, trust_roots: str) -> None:
        """
        @param certificate: PEM file; it holds the key, too, unless C{private_key} names another.
        @param trust_roots: the authorities: a PEM file, or a directory whose files C{*.pem} are
            their certificates, and C{*.crl} their lists of revoked ones; beside a file C{ca.pem},
            C{ca.crl} is such a list.
        @raise UnusableFile: see L{renew}.
        """
        self._files = certificate, private_key, trust_roots
        self.renew()

    def renew(self) -> None:
        """
        Read the files, for connections from now on.

        @raise UnusableFile: when one cannot be used. What was read before stays in use then.
        """
        certificate, private_key, trust_roots = self._files
        own = own_certificate(certificate, private_key)
        roots = authorities(trust_roots)
        options = CertificateOptions(
            own.privateKey.original, own.original, trustRoot=trustRootFromCertificates(roots)
        )
        context: SSL.Context = options.getContext()
        revoked = _revoked(trust_roots, roots)
        verified = partial(_verified, revoked)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verified)
        self._context = context
        self._revoked = revoked
        self.expires: datetime = own.original.to_cryptography().not_valid_after_utc

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """See C{IOpenSSLServerConnectionCreator}."""
        return SSL.Connection(self._context, None)

    def has_revoked(self, transport: Any) -> bool:
        """Whether the certificate of the client at a connection is revoked now."""
        shown = transport.getPeerCertificate()
        return shown is not None and _identity(shown.to_cryptography()) in self._revoked


Revoked = Set[tuple[bytes, int]]
"""Issuers and serial numbers."""


def _identity(certificate: x509.Certificate) -> tuple[bytes, int]:
    return certificate.issuer.public_bytes(), certificate.serial_number


def _revoked(path: str, roots: list[Certificate]) -> Revoked:
    """
    What the lists of revoked certificates of authorities name. A list holds until it is replaced,
    whatever date it gives for the next one.

    @param path: of the authorities, a directory or a file.
    @raise UnusableAuthority: when one is none, or is not signed by one of these authorities.
    """
    known = [root.original.to_cryptography() for root in roots]
    place = Path(path)
    lists = place.glob("*.crl") if place.is_dir() else [place.with_suffix(".crl")]
    found = set()
    for file in sorted(lists):
        try:
            listed = x509.load_pem_x509_crl(file.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            wrong = f"{file} is no list of revoked certificates in PEM"
            raise UnusableAuthority(wrong) from None
        if not any(_signed(listed, authority) for authority in known):
            raise UnusableAuthority(f"{file} is not signed by an authority in {path}")
        issuer = listed.issuer.public_bytes()
        found |= {(issuer, each.serial_number) for each in listed}
    return found


def _signed(listed: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key: Any = authority.public_key()
    return listed.issuer == authority.subject and listed.is_signature_valid(key)


def _verified(
    revoked: Revoked, connection: object, certificate: Any, fault: int, depth: int, ok: int
) -> bool:
    what = ""
    if not ok:
        # OpenSSL's own error tells only that verification failed.
        what = _FAULTS.get(fault, f"is not accepted (X509_verify_cert(3), {fault})")
    elif revoked and _identity(certificate.to_cryptography()) in revoked:
        what = "is revoked"
    if what:
        # The name is the peer's choice: escape it, since this is logged.
        raise SSL.Error([("", "", f"the certificate of {_name_of(certificate)[:64]!a} {what}")])
    return True


def _name_of(shown: Any) -> str:
    """The name of a certificate, in lower case; empty if it has none, or is malformed."""
    try:
        certificate: x509.Certificate = shown.to_cryptography()
        extensions = certificate.extensions
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        found = [str(each.value) for each in common]
    except Exception:  # the parser does not say what malformed ones raise
        return ""
    with suppress(x509.ExtensionNotFound):
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = names.get_values_for_type(x509.DNSName) or found
    return found[0].lower() if found else ""


def is_tls(transport: object) -> bool:
    """Whether a connection uses TLS."""
    return hasattr(transport, "getPeerCertificate")


def peer_name(transport: Any) -> str | None:
    """
    The name of the other side's certificate, which was verified; C{None} without TLS.

    @return: empty if the certificate has no name, or TLS did not ask for one.
    """
    if not is_tls(transport):
        return None
    certificate = transport.getPeerCertificate()
    return "" if certificate is None else _name_of(certificate)


def check_names(transport: Any) -> None:
    """
    Check that the names in a server's certificate are well-formed.

    Twisted's endpoint compares them with the server's name; when it cannot parse them, it only logs
    that, and accepts the certificate.

    @raise ValueError: when they are malformed.
    """
    if is_tls(transport):
        try:
            extract_patterns(transport.getPeerCertificate())
        except Exception as error:  # as broad as what Twisted ignores
            raise ValueError(f"the server's certificate: {error}") from None


def handshake_fault(reason: Failure) -> str | None:
    """Why the handshake failed; C{None} if the connection was lost for another reason."""
    error = reason.value
    if isinstance(error, VerificationError):
        return "the certificate is for another name"
    if not isinstance(error, SSL.Error):
        return None
    texts = [entry[2] for entry in (error.args[0] if error.args else ()) if entry[2]]
    text = ", ".join(texts) or "the handshake was cut off"
    if any(word in text for word in ("wrong version", "packet length", "http request")):
        return f"what comes is not TLS ({text})"
    if "access denied" in text:
        return "the other side has too many connections, of this host or of all hosts"
    if "alert" in text:
        return f"the other side refuses ({text})"
    if text == "certificate verify failed":
        return "the certificate has expired, is of another authority, or not one for servers"
    return text


def why_lost(reason: Failure) -> str:
    """Why the server closed the connection before it said anything, for the client's user."""
    fault = handshake_fault(reason)
    if fault is not None:
        return f"TLS: {fault}"
    if reason.check(ConnectionDone, ConnectionLost):
        return "it ends the connection at once: it may want TLS, or none, or another certificate"
    return reason.getErrorMessage()
