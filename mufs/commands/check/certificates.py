"""Check the certificates of both hosts: their names, their signers and their validity."""

import shlex
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from mufs.addresses import TLSFiles
from mufs.commands.check.finding import Finding, ok, problem, warning
from mufs.units import shown

MIN_REMAINING_LIFETIME = timedelta(days=30)
"""A certificate that expires sooner gets a warning."""

CLOCK_ERROR = timedelta(days=365)
"""If the clock is off a certificate's validity by more, the clock is probably wrong."""

OWN, AUTHORITY, SERVER = "own certificate", "authority", "server's cert"
"""Names of the findings."""


def own(files: TLSFiles) -> list[Finding]:
    """Check the certificates of this host and of its authorities."""
    if files.certificate is not None:
        found = [_of_file(OWN, Path(files.certificate))]
    else:
        found = [
            warning(OWN, "none given, but an mUFS server requires one", "give --tls-cert host1.pem")
        ]
    if files.authorities is not None:
        names = _authorities(files)
        found += [_of_file(AUTHORITY, file) for file in names]
        if not names:
            figure = f"no *.pem in {files.authorities}"
            found.append(problem(AUTHORITY, figure, "copy the server's ca/ca.pem there"))
    return found


def _authorities(files: TLSFiles) -> list[Path]:
    if files.authorities is None:
        return []
    path = Path(files.authorities)
    return [path] if path.is_file() else sorted(path.glob("*.pem"))


def _of_file(what: str, file: Path) -> Finding:
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "contains no PEM certificate"
        return problem(what, f"{file}: {reason}", "use the file that `mufs keys` made")
    return judge(what, certificate, datetime.now(UTC))


def judge(what: str, certificate: x509.Certificate, now: datetime) -> Finding:
    """Whether a certificate is valid, by the clock of this host."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    known = names(certificate)
    figure = f"{', '.join(known) or 'no name'}; {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
    clock = f"this host's clock says {now:%Y-%m-%d %H:%M} UTC"
    renew = "move the old one away, and make a new one where ca.key is"
    make = f"mufs keys --client {shlex.quote(known[0] if known else 'NAME')}"
    if what == SERVER:
        make = f"mufs keys --server {shlex.quote(','.join(known) or 'NAME')}"
    elif what == AUTHORITY:
        renew = "make a new authority, and new certificates for all hosts"
        make = "mufs keys --dir new-keys --server NAME --client NAME"
    if now < begin:
        slow = "slow by years" if begin - now > CLOCK_ERROR else "slow"
        return problem(
            what,
            f"{figure}: not valid yet, {clock}",
            f"this host's clock is {slow}, or the clock of the host that made the certificate was "
            "fast: set the clock",
            "timedatectl set-ntp true",
        )
    if now > end:
        if now - end > CLOCK_ERROR:
            renew += f"; but first check the clock: {clock}"
        return problem(what, f"{figure}: expired", renew, make)
    days = (end - now).days
    if end - now < MIN_REMAINING_LIFETIME:
        return warning(what, f"{figure}: {days} days left", renew, make)
    return ok(what, f"{figure}, {days} days left")


def of_server(certificate: x509.Certificate, host: str, files: TLSFiles) -> list[Finding]:
    """
    Check the server's certificate: its validity, its signer, and whether it is for this host name
    or address.
    """
    found = [judge(SERVER, certificate, datetime.now(UTC))]
    trusted = files.authorities
    if trusted is not None and not _is_signed(certificate, _authorities(files)):
        signer = shown(certificate.issuer.rfc4514_string())[:64]
        to = trusted if Path(trusted).is_file() else f"{trusted}/{host}.pem"
        found.append(
            problem(
                "server's signer",
                f"{signer} is not among the authorities in {trusted}",
                "if this is your server, copy its authority's certificate there (here from its "
                "directory keys)",
                shlex.join(["scp", f"{host}:keys/ca/ca.pem", to]),
            )
        )
    known = names(certificate)
    if not any(_matches(name, host) for name in known):
        found.append(
            problem(
                "server's name",
                f"the certificate is for {', '.join(known) or 'no name'}, not for {host}",
                "use one of these names, or make the server a certificate that includes this one",
                f"mufs keys --server {shlex.quote(','.join([*known, host]))}",
            )
        )
    return found


def _is_signed(certificate: x509.Certificate, authorities: list[Path]) -> bool:
    for file in authorities:
        # The library may raise anything for a bad file or signature.
        with suppress(Exception):
            signer = x509.load_pem_x509_certificate(file.read_bytes())
            certificate.verify_directly_issued_by(signer)
            return True
    return False


def names(certificate: x509.Certificate) -> list[str]:
    """The names and addresses that a certificate is for, in printable form."""
    found: Iterable[object] = ()
    # A malformed certificate counts as one without names.
    with suppress(x509.ExtensionNotFound, ValueError):
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        found = [
            *extension.value.get_values_for_type(x509.DNSName),
            *extension.value.get_values_for_type(x509.IPAddress),
        ]
    if not found:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        found = [each.value for each in common]
    return [shown(str(name))[:64] for name in found]


def _matches(name: str, host: str) -> bool:
    name, host = name.lower(), host.lower().rstrip(".")
    return name == host or (name.startswith("*.") and name[2:] == host.partition(".")[2])
