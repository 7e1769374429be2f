"""The certificates and keys of TLS, from files; and what is wrong with a file, in words."""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from OpenSSL.crypto import FILETYPE_PEM
from twisted.internet.ssl import Certificate, KeyPair, PrivateCertificate

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN (?:\w+ )?PRIVATE KEY-----")
_ENCRYPTED = re.compile(
    rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED", re.MULTILINE
)

T = TypeVar("T")


class UnusableFile(ValueError):
    """A certificate or key cannot be used; the text names the file, and says why."""


class UnusableAuthority(UnusableFile):
    """The certificates of authorities cannot be used; likewise."""


def own_certificate(certificate: str, private_key: str | None) -> PrivateCertificate:
    """
    The certificate of this host with its private key.

    @param certificate: PEM file; it holds the key, too, unless C{private_key} names another.
    @raise UnusableFile: when one cannot be used, or they do not belong together.
    """
    found = _certificates(certificate)[0]
    key_file = private_key or certificate
    pem = _content(key_file)
    if _ENCRYPTED.search(pem):
        raise UnusableFile(f"the private key in {key_file} is encrypted with a passphrase")
    if not _KEY.search(pem):
        raise UnusableFile(f"{key_file} holds no private key in PEM")
    key = _loaded(key_file, "private key", lambda: KeyPair.load(pem, FILETYPE_PEM))
    public = key.original.to_cryptography_key().public_key()
    if public != found.original.to_cryptography().public_key():
        whose = f"in {key_file}" if private_key is None else f"{key_file}"
        raise UnusableFile(f"the private key {whose} is not that of the certificate {certificate}")
    own: PrivateCertificate = PrivateCertificate.fromCertificateAndKeyPair(found, key)
    return own


def authorities(path: str) -> list[Certificate]:
    """
    The certificates of authorities in a PEM file, or in the files C{*.pem} of a directory.

    @raise UnusableAuthority: when there is none, or one cannot be used.
    """
    try:
        if not os.path.isdir(path):
            return _certificates(path)
        names = sorted(name for name in os.listdir(path) if name.endswith(".pem"))
        if not names:
            raise UnusableAuthority(f"there is no *.pem in {path}")
        return [each for name in names for each in _certificates(os.path.join(path, name))]
    except OSError as error:
        raise UnusableAuthority(f"{path}: {error.strerror}") from None
    except UnusableFile as error:
        raise UnusableAuthority(str(error)) from None


def _certificates(path: str) -> list[Certificate]:
    blocks = _CERTIFICATE.findall(_content(path))
    if not blocks:
        raise UnusableFile(f"{path} holds no certificate in PEM")
    return [_loaded(path, "certificate", partial(Certificate.loadPEM, block)) for block in blocks]


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnusableFile(f"{path}: {error.strerror}") from None


def _loaded(path: str, what: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except Exception:  # OpenSSL and its bindings raise errors of many classes
        raise UnusableFile(f"the {what} in {path} is damaged") from None
