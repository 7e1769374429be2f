"""Options and endpoints of the command lines of server and client."""

import re
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ClassVar

from cryptography.x509 import load_pem_x509_certificate
from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, clientFromString, serverFromString
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.python import usage
from zope.interface import implementer

from mufs.communication.tls import ServerTLS

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([KMG]?)(?:i?B|bit/s)?", re.IGNORECASE)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3}


def parse_size(text: str) -> int:
    """Bytes: C{256M} is 256 * 1024**2. Raises C{ValueError}."""
    return _number(text, 1024)


def parse_rate(text: str) -> int:
    """Bits per second: C{100M} is 100 * 1000**2. Raises C{ValueError}."""
    return _number(text, 1000)


def _number(text: str, unit: int) -> int:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError("is not a number, optionally followed by K, M or G")
    number = float(match[1]) * unit ** _POWER[match[2].upper()]
    if number >= 1 << 63:
        raise ValueError("is too large")
    return int(number)


def parse_address(text: str) -> str:
    """An IPv4 address. Raises C{ValueError}."""
    return str(IPv4Address(text))


def parse_seconds(text: str) -> float:
    """A number of seconds, 0 or more. Raises C{ValueError}."""
    seconds = float(text)
    if not 0 <= seconds < 1e9:
        raise ValueError("is not a number of seconds")
    return seconds


class Options(usage.Options):
    """
    Options of which a wrong one ends the command with one line and status 1.

    @cvar conversions: the function that makes the text of an option its value, by option.
    """

    name: ClassVar[str]
    conversions: ClassVar[dict[str, Any]] = {}

    def parseOptions(self, options: "list[str] | None" = None) -> None:
        """Parse the command line, or exit with a line that says what is wrong with it."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            sys.exit(f"{self.name}: {error}")

    def postOptions(self) -> None:
        """Convert the values."""
        for option, convert in self.conversions.items():
            text = self[option]
            if text is None:
                continue
            try:
                self[option] = convert(text)
            except ValueError as error:
                raise usage.UsageError(f"--{option}: {text!r}: {error}") from None

    def require(self, *options: str) -> None:
        """@raise UsageError: when one of these options is not given."""
        for option in options:
            if not self[option]:
                raise usage.UsageError(f"--{option} is required")


def endpoint_words(text: str) -> list[str]:
    """The fields of an endpoint string of Twisted, without the first, its kind."""
    return [re.sub(r"\\(.)", r"\1", word) for word in re.split(r"(?<!\\):", text)[1:]]


def endpoint_parts(text: str) -> tuple[list[str], dict[str, str]]:
    """The same fields: those without a name, and those with one."""
    words = endpoint_words(text)
    named = dict(word.partition("=")[::2] for word in words if "=" in word)
    return [word for word in words if "=" not in word], named


def server_endpoint(
    reactor: Any, option: str, text: str, *, make: Any = serverFromString
) -> IStreamServerEndpoint:
    """The endpoint to listen on for an endpoint string of Twisted."""
    endpoint: IStreamServerEndpoint = _endpoint(make, reactor, option, text)
    return endpoint


def is_tls(text: str) -> bool:
    """Whether an endpoint string is one of TLS."""
    return text.startswith("tls:")


def channel_server_endpoint(reactor: Any, option: str, text: str) -> IStreamServerEndpoint:
    """
    The endpoint to listen on for the request channel. With TLS it checks the certificates of
    clients, and can reload its own.
    """
    endpoint = server_endpoint(reactor, option, text, make=_tls_from_string)
    if isinstance(endpoint, _TLSServerEndpoint):
        tls = endpoint.tls
        endpoint.reload = partial(_endpoint, lambda *_: tls.renew(), reactor, option, text)
    return endpoint


def channel_client_endpoint(reactor: Any, option: str, text: str) -> IStreamClientEndpoint:
    """
    The endpoint to connect to for the request channel. With TLS it checks the name of the server,
    and can reload its certificates.
    """
    if text.startswith("ssl:"):
        raise usage.UsageError(
            f"--{option}: {text!r}: ssl: does not check the name of the server: use "
            "tls:HOST:PORT:certificate=FILE:trustRoots=DIR"
        )
    make = partial(client_endpoint, reactor, option, text)
    if not is_tls(text):
        return make()
    return _TLSClientEndpoint(make, endpoint_parts(text)[1].get("certificate"))


def reload_of(endpoint: object) -> Callable[[], None] | None:
    """
    The function that reloads the certificates of an endpoint of the request channel, for new
    connections; C{None} without TLS. It raises C{UsageError}, and changes nothing, if they cannot
    be used.
    """
    return getattr(endpoint, "reload", None)


def expiry_of(endpoint: object) -> datetime | None:
    """
    When the certificate that an endpoint of the request channel uses expires; C{None} if it has
    none.
    """
    return getattr(endpoint, "expires", None)


def revocation_of(endpoint: object) -> Callable[[object], bool]:
    """Tells whether an endpoint to listen on has revoked the certificate at a connection."""
    tls = getattr(endpoint, "tls", None)
    return tls.has_revoked if isinstance(tls, ServerTLS) else lambda _: False


class _TLSServerEndpoint(SSL4ServerEndpoint):
    reload: Callable[[], None]

    def __init__(
        self, reactor: Any, port: int, tls: ServerTLS, *, backlog: int, interface: str
    ) -> None:
        super().__init__(reactor, port, tls, backlog, interface)
        self.tls = tls

    @property
    def expires(self) -> datetime:
        return self.tls.expires


@implementer(IStreamClientEndpoint)
class _TLSClientEndpoint:
    def __init__(self, make: Callable[[], IStreamClientEndpoint], certificate: str | None) -> None:
        self._make = make
        self._certificate = certificate
        self.expires: datetime | None = None
        self.reload()

    def reload(self) -> None:
        self._endpoint = self._make()
        if self._certificate is not None:
            pem = Path(self._certificate).read_bytes()
            self.expires = load_pem_x509_certificate(pem).not_valid_after_utc

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return self._endpoint.connect(protocolFactory)


def _tls_from_string(reactor: Any, text: str) -> IStreamServerEndpoint:
    """As C{serverFromString}, but with TLS that asks clients for certificates."""
    if text.startswith("ssl:"):
        raise ValueError(f"ssl: does not check who connects: use {_TLS}")
    if not is_tls(text):
        plain: IStreamServerEndpoint = serverFromString(reactor, text)
        return plain
    words, given = endpoint_parts(text)
    unknown = given.keys() - {"certificate", "privateKey", "trustRoots", "interface", "backlog"}
    if unknown or len(words) != 1 or not given.keys() >= {"certificate", "trustRoots"}:
        raise ValueError(f"not of the form {_TLS}")
    context = ServerTLS(given["certificate"], given.get("privateKey"), given["trustRoots"])
    return _TLSServerEndpoint(
        reactor,
        int(words[0]),
        context,
        backlog=int(given.get("backlog", 50)),
        interface=given.get("interface", ""),
    )


_TLS = "tls:PORT:certificate=FILE:trustRoots=DIR[:privateKey=FILE][:interface=ADDRESS]"


def status_endpoint(reactor: Any, text: str) -> IStreamServerEndpoint:
    """
    The endpoint of C{--status}: only for this host, unless an interface is given.

    @param text: an endpoint string of Twisted, or just a port.
    """
    kind, *fields = (f"tcp:{text}" if text.isdecimal() else text).split(":")
    here = {"tcp": "127.0.0.1", "ssl": "127.0.0.1", "tcp6": r"\:\:1"}.get(kind)
    # The second field without a name is the interface of tcp and tcp6.
    unnamed = sum("=" not in field for field in fields)
    named = any(field.startswith("interface=") for field in fields)
    if here is not None and not named and (kind == "ssl" or unnamed < 2):
        fields.append(f"interface={here}")
    return server_endpoint(reactor, "status", ":".join([kind, *fields]))


def client_endpoint(reactor: Any, option: str, text: str) -> IStreamClientEndpoint:
    """The endpoint to connect to for an endpoint string of Twisted."""
    endpoint: IStreamClientEndpoint = _endpoint(clientFromString, reactor, option, text)
    return endpoint


def _endpoint(make: Any, reactor: Any, option: str, text: str) -> Any:
    try:
        return make(reactor, text)
    except (SSL.Error, crypto.Error) as error:
        why = ", ".join(entry[2] for entry in error.args[0])
        raise usage.UsageError(
            f"--{option}: {text!r}: certificate or key cannot be used, or do not belong together "
            f"(OpenSSL: {why})"
        ) from None
    except Exception as error:  # Twisted's parsers raise errors of any class
        raise usage.UsageError(f"--{option}: {text!r} is not an endpoint: {error}") from None
