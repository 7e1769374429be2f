"""
C{mufs keys}: make a private authority, and certificates for a server and its clients; list, renew
and revoke them.

The files it makes, laid out for C{--tls-cert} and C{--tls-ca}::

    ca.key       the authority's private key: it stays here
    ca/ca.pem    its certificate, for all hosts: C{--tls-ca ca}
    ca/ca.crl    the certificates that are revoked, for servers
    server.pem   certificate and private key of the server: C{--tls-cert server.pem}
    NAME.pem     the same for the client of that name
    issued/      copies of all certificates, without keys
"""

import argparse
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from mufs.commands.authority import (
    UnusableKeys,
    issue,
    issued,
    make_authority,
    open_authority,
    record,
    revocation_list,
    revoke,
    revoked,
)
from mufs.options import typed

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
"""A host's name, used as a file name as well; at most 64 characters in X.509."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add C{keys} to the subcommands of C{mufs}."""
    keys = commands.add_parser(
        "keys",
        help="make, list, renew and revoke keys and certificates for TLS",
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
    more = keys.add_subparsers(metavar="COMMAND")
    for name, run, text in (
        ("ls", _ls, "list the certificates, and how long they are valid"),
        ("renew", _renew, "make a new key and certificate for the server or a client"),
        ("revoke", _revoke, "put the certificates of a client on the list of revoked ones"),
    ):
        example = f"mufs keys {name}" if run is _ls else f"mufs keys {name} host1"
        description = f"{text[0].upper()}{text[1:]}."
        each = more.add_parser(name, help=text, description=description, example=example)
        if run is not _ls:
            each.add_argument("name", metavar="NAME", help="of a client, or 'server'")
        each.add_argument("--dir", type=Path, default=argparse.SUPPRESS, help="see mufs keys")
        each.set_defaults(run=run)


def _keys(given: argparse.Namespace) -> None:
    servers = [name for name in given.server.split(",") if name]
    if not servers and not given.client:
        raise UnusableKeys(
            "nothing to make: give --server, --client or both, such as `mufs keys --client host1`"
        )
    print("\n".join(make_keys(given.dir, servers, given.client)))


def _ls(given: argparse.Namespace) -> None:
    print("\n".join(list_keys(given.dir)))


def _renew(given: argparse.Namespace) -> None:
    print("\n".join(renew_key(given.dir, given.name)))


def _revoke(given: argparse.Namespace) -> None:
    print("\n".join(revoke_key(given.dir, given.name)))


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
    authority = make_authority(directory, made)
    if servers:
        use = ExtendedKeyUsageOID.SERVER_AUTH
        made.append(issue(authority, directory / "server.pem", names=names, use=use))
    for name in clients:
        use = ExtendedKeyUsageOID.CLIENT_AUTH
        file = directory / f"{name}.pem"
        made.append(issue(authority, file, names=[x509.DNSName(name)], use=use))
    return made


def list_keys(directory: Path) -> Iterator[str]:
    """
    A line for each certificate, the authority's first: name, last day, days left, state.

    @raise UnusableKeys: when there is no authority.
    """
    authority = open_authority(directory).certificate
    listed = revoked(directory)
    row = "{:24} {:10} {:>10}  {}".format
    yield row("name", "until", "days left", "").rstrip()
    yield row("(the authority)", *_validity(authority), "").rstrip()
    for each in issued(directory):
        state = "" if each.file else "replaced, but still accepted"
        if listed is not None and _is_listed(listed, each.certificate):
            state = "revoked"
        elif each.certificate.not_valid_after_utc <= datetime.now(UTC):
            state = "expired"
        yield row(each.name, *_validity(each.certificate), state).rstrip()


def renew_key(directory: Path, name: str) -> Iterator[str]:
    """
    Make a new key and certificate for the same names, in the place of the old ones.

    @return: lines about what was made.
    @raise UnusableKeys: when there is no such certificate.
    """
    authority = open_authority(directory)
    old = next((each.certificate for each in issued(directory) if each.name == name), None)
    if old is None:
        raise _unknown(directory, name)
    names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (use,) = old.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    file = directory / f"{name}.pem"
    record(file, old)
    yield issue(authority, file, names=list(names), use=use, replace=True)
    listed = revoked(directory)
    if listed is None or not _is_listed(listed, old):
        yield f"the old one is accepted until {old.not_valid_after_utc:%Y-%m-%d}"


def revoke_key(directory: Path, name: str) -> Iterator[str]:
    """
    Put all certificates of a client that are still valid on the list of revoked ones.

    @return: lines about what was done, and what is to be done.
    @raise UnusableKeys: when there is no such certificate.
    """
    if name == "server":
        raise UnusableKeys("clients read no such list: make a new authority with --dir")
    listed = revoked(directory)
    mine = [each.certificate for each in issued(directory) if each.name == name]
    if not mine:
        raise _unknown(directory, name)
    new = [each for each in mine if listed is None or not _is_listed(listed, each)]
    if not new:
        raise UnusableKeys(f"{typed(name)} is revoked already")
    revoke(directory, new)
    file = revocation_list(directory)
    yield f"{file}: {len(new)} certificate{'s' if len(new) > 1 else ''} of {name} revoked"
    yield "copy it into the directory of --tls-ca of each server, and reload the server"


def _unknown(directory: Path, name: str) -> UnusableKeys:
    there = sorted({each.name for each in issued(directory)})
    known = f"such as {typed(there[0])}" if there else "for there is none"
    wrong = f"{directory}: no certificate of {typed(name)}"
    return UnusableKeys(f"{wrong}: `mufs keys ls` lists them, {known}")


def _is_listed(listed: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
    return listed.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


def _validity(certificate: x509.Certificate) -> tuple[str, int]:
    until = certificate.not_valid_after_utc
    return f"{until:%Y-%m-%d}", (until - datetime.now(UTC)).days


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
