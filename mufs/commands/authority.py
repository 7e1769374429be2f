"""The operator's private authority: its files, and the certificates that it signs and revokes."""

import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

CA_LIFETIME = timedelta(days=3650)
LIFETIME = timedelta(days=730)
CLOCK_SKEW = timedelta(days=1)
"""Certificates are valid from this long before they are made, as clocks differ."""


class UnusableKeys(Exception):
    """The keys cannot be made as requested; the text says why."""


@frozen
class Authority:
    """The authority that signs the certificates."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


@frozen
class Issued:
    """
    A certificate that the authority has signed.

    @ivar name: what the command calls it: C{server}, or the name of a client.
    @ivar file: that holds it with its key; C{None} if another one has replaced it there.
    """

    name: str
    certificate: x509.Certificate
    file: Path | None


def issued(directory: Path) -> list[Issued]:
    """
    The certificates of servers and clients that were made here, by name, the newest first.

    @raise OSError: when a file cannot be read.
    """
    found: dict[int, Issued] = {}
    for file in sorted(directory.glob("*.pem")):
        certificate = _certificate(file)
        if certificate is not None:
            found[certificate.serial_number] = Issued(file.stem, certificate, file)
    for file in sorted(directory.glob("issued/*.pem")):
        certificate = _certificate(file)
        if certificate is not None and certificate.serial_number not in found:
            name = file.stem.rpartition("-")[0]
            found[certificate.serial_number] = Issued(name, certificate, None)

    def order(each: Issued) -> tuple[str, bool, float]:
        return each.name, each.file is None, -each.certificate.not_valid_before_utc.timestamp()

    return sorted(found.values(), key=order)


def _certificate(file: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except ValueError:
        return None


def revoked(directory: Path) -> x509.CertificateRevocationList | None:
    """
    The list of revoked certificates; C{None} if there is none yet.

    @raise UnusableKeys: when the file is not such a list.
    """
    file = revocation_list(directory)
    if not file.exists():
        return None
    try:
        return x509.load_pem_x509_crl(file.read_bytes())
    except ValueError as error:
        raise UnusableKeys(f"{file}: not a list of revoked certificates: {error}") from None


def revocation_list(directory: Path) -> Path:
    """The file with the list of revoked certificates."""
    return directory / "ca" / "ca.crl"


def revoke(directory: Path, certificates: list[x509.Certificate]) -> None:
    """
    Add certificates to the list of revoked ones, or make it. It holds as long as the authority.

    @raise UnusableKeys: when the authority or the list cannot be used.
    @raise OSError: when a file cannot be written.
    """
    authority = open_authority(directory)
    before = revoked(directory)
    now = datetime.now(UTC)
    number = 1
    builder = x509.CertificateRevocationListBuilder()
    for each in before or ():
        builder = builder.add_revoked_certificate(each)
    if before is not None:
        number += before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    for certificate in certificates:
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(now).build())
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    made = (
        builder.issuer_name(authority.certificate.subject)
        .last_update(now - CLOCK_SKEW)
        .next_update(authority.certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(signed_by, critical=False)
        .sign(authority.key, SHA256())
    )
    _replace(revocation_list(directory), 0o644, made.public_bytes(Encoding.PEM))


def make_authority(directory: Path, made: list[str]) -> Authority:
    """
    The authority in a directory, which is made if there is none.

    @param made: gets a line for each file that was made.
    @raise UnusableKeys: when there is something else.
    """
    key_file, file = _authority_files(directory)
    if not (key_file.exists() or file.exists()):
        return _new_authority(directory, made)
    return open_authority(directory)


def open_authority(directory: Path) -> Authority:
    """
    The authority in a directory.

    @raise UnusableKeys: when there is none, or something else.
    """
    key_file, file = _authority_files(directory)
    for here, other in ((key_file, file), (file, key_file)):
        if not here.exists():
            what = "exists, but not all of the authority" if other.exists() else "no authority"
            raise UnusableKeys(f"{other if other.exists() else directory}: {what}")
    try:
        key = load_pem_private_key(key_file.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except (ValueError, TypeError) as error:
        raise UnusableKeys(f"{key_file}, {file}: not an authority: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UnusableKeys(f"{key_file}: not an authority that this command made")
    if key.public_key() != certificate.public_key():
        raise UnusableKeys(f"{key_file} is not the key of {file}")
    return Authority(key, certificate)


def _authority_files(directory: Path) -> tuple[Path, Path]:
    return directory / "ca.key", directory / "ca" / "ca.pem"


def _new_authority(directory: Path, made: list[str]) -> Authority:
    key_file, file = _authority_files(directory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / "ca").mkdir(mode=0o755, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    # Authorities with the same name could not be told apart.
    name = _name(f"mUFS authority {secrets.token_hex(4)}")
    certificate = (
        _builder(name, key, issuer=name, signer=key, lifetime=CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, SHA256())
    )
    _write(key_file, 0o600, _private(key))
    _write(file, 0o644, certificate.public_bytes(Encoding.PEM))
    made.append(f"{key_file}: private key of the authority, which stays here")
    made.append(_told(file, certificate))
    return Authority(key, certificate)


def issue(
    authority: Authority,
    file: Path,
    *,
    names: list[x509.GeneralName],
    use: x509.ObjectIdentifier,
    replace: bool = False,
) -> str:
    """
    Make a key and its certificate, and return a line about the file.

    @param replace: replace the file, which exists already.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    lifetime = min(LIFETIME, authority.certificate.not_valid_after_utc - datetime.now(UTC))
    subject = _name(str(names[0].value))
    certificate = (
        _builder(
            subject,
            key,
            issuer=authority.certificate.subject,
            signer=authority.key,
            lifetime=lifetime,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority.key, SHA256())
    )
    record(file, certificate)
    pem = certificate.public_bytes(Encoding.PEM)
    (_replace if replace else _write)(file, 0o600, _private(key) + pem)
    return _told(file, certificate, *(str(name.value) for name in names))


def record(file: Path, certificate: x509.Certificate) -> None:
    """
    Keep a copy of a certificate in C{issued}, so that it can be revoked when the file with its key
    is elsewhere or has been replaced.
    """
    copy = file.parent / "issued" / f"{file.stem}-{certificate.serial_number:x}.pem"
    copy.parent.mkdir(mode=0o755, exist_ok=True)
    _replace(copy, 0o644, certificate.public_bytes(Encoding.PEM))


def _builder(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(identifier, critical=False)
        .add_extension(signed_by, critical=False)
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs, crl_sign=signs,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(file: Path, mode: int, content: bytes) -> None:
    # O_EXCL: never overwrite a file or follow a link.
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "wb") as written:
        written.write(content)


def _replace(file: Path, mode: int, content: bytes) -> None:
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    _write(new, mode, content)
    new.replace(file)


def _told(file: Path, certificate: x509.Certificate, *names: str) -> str:
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    return f"{file}: {', '.join(names) or 'certificate of the authority'}; until {until}"
