"""
C{mufs keys}: make a private authority, and certificates for a server and its clients.

The files it makes, laid out for the endpoint strings of C{--listen} and C{--server}::

    ca.key       the authority's private key: it stays here
    ca/ca.pem    its certificate, for all hosts: C{trustRoots=ca}
    server.pem   certificate and private key of the server: C{certificate=server.pem}
    NAME.pem     the same for the client of that name
"""

import argparse
import os
import re
import secrets
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
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
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mufs.options import typed

CA_LIFETIME = timedelta(days=3650)
LIFETIME = timedelta(days=730)
CLOCK_SKEW = timedelta(days=1)
"""Certificates are valid from this long before they are made, as clocks differ."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
"""A host's name, used as a file name as well; at most 64 characters in X.509."""


class UnusableKeys(Exception):
    """The keys cannot be made as requested; the text says why."""


@frozen
class Authority:
    """The authority that signs the certificates."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add C{keys} to the subcommands of C{mufs}."""
    keys = commands.add_parser(
        "keys",
        help="make keys and certificates for TLS",
        description="Make keys and certificates for TLS: an authority, unless DIR has one, and "
        "what is signed by it. Nothing is overwritten.",
        example="mufs keys --server images.example.org --client host1",
    )
    keys.add_argument("--dir", type=Path, default=Path("keys"), help="where (default: keys)")
    keys.add_argument(
        "--server", metavar="NAMES", default="",
        help="names and addresses by which clients reach the server, joined by commas",
    )  # fmt: skip
    keys.add_argument(
        "--client", metavar="NAME", action="append", default=[],
        help="name of a client; may be given several times, and later for further ones",
    )  # fmt: skip
    keys.set_defaults(run=_keys)


def _keys(given: argparse.Namespace) -> None:
    servers = [name for name in given.server.split(",") if name]
    if not servers and not given.client:
        raise UnusableKeys(
            "nothing to make: give --server, --client or both, such as `mufs keys --client host1`"
        )
    print("\n".join(make_keys(given.dir, servers, given.client)))


def make_keys(directory: Path, servers: list[str], clients: list[str]) -> list[str]:
    """
    Make an authority, unless there is one, and certificates signed by it. Nothing is overwritten.

    @param servers: names and addresses of the server, for one certificate; or none.
    @param clients: a name for each certificate of a client.
    @return: a line for each file that was made.
    @raise UnusableKeys: if a name is invalid, or a file exists; then nothing was made.
    @raise OSError: when a file cannot be written.
    """
    for name in clients:
        if name == "server" or not isinstance(_alternative(name), x509.DNSName):
            raise UnusableKeys(f"{typed(name)} is no name for a client, such as host1")
    names = [_alternative(name) for name in servers]
    wanted = [*(["server"] if servers else []), *clients]
    for number, name in enumerate(wanted):
        if (directory / f"{name}.pem").exists() or name in wanted[:number]:
            raise UnusableKeys(f"{directory / name}.pem exists already: it is not overwritten")
    made: list[str] = []
    authority = _authority(directory, made)
    if servers:
        use = ExtendedKeyUsageOID.SERVER_AUTH
        made.append(_issue(authority, directory / "server.pem", names=names, use=use))
    for name in clients:
        use = ExtendedKeyUsageOID.CLIENT_AUTH
        file = directory / f"{name}.pem"
        made.append(_issue(authority, file, names=[x509.DNSName(name)], use=use))
    return made


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        if not _NAME.fullmatch(name):
            raise UnusableKeys(
                f"{typed(name)} is neither a host's name nor an address, such as "
                "images.example.org or 192.0.2.1"
            ) from None
        return x509.DNSName(name)


def _authority(directory: Path, made: list[str]) -> Authority:
    key_file, file = directory / "ca.key", directory / "ca" / "ca.pem"
    if key_file.exists() and file.exists():
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
    for each in (key_file, file):
        if each.exists():
            raise UnusableKeys(f"{each} exists, but not all of the authority")
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


def _issue(
    authority: Authority,
    file: Path,
    *,
    names: list[x509.GeneralName],
    use: x509.ObjectIdentifier,
) -> str:
    """Make a key and its certificate, and return a line about the file."""
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
    _write(file, 0o600, _private(key) + certificate.public_bytes(Encoding.PEM))
    return _told(file, certificate, *(str(name.value) for name in names))


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


def _told(file: Path, certificate: x509.Certificate, *names: str) -> str:
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    return f"{file}: {', '.join(names) or 'certificate of the authority'}; until {until}"
