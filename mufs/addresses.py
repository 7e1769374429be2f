"""
Where a server is reached, and where it listens, as users type it: C{HOST}, C{HOST:PORT},
C{[IPV6]:PORT}, or an endpoint string in the manner of Twisted, such as C{tcp:HOST:PORT}.
"""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

from attrs import frozen

DEFAULT_PORT = 7040
"""TCP port that a server listens on."""

_LABEL = re.compile(r"[^\W_]([\w-]{0,61}[^\W_])?|_[\w-]{0,62}")
_BRACKETS = re.compile(r"\[([^\]]*)\](?:(:)(.*))?", re.DOTALL)
_KIND = re.compile(r"(?:tcp|tcp6|tls|ssl|unix|systemd|fd)(?=:|$)")
_FORMS = "HOST, HOST:PORT or [IPV6]:PORT"


class WrongValue(ValueError):
    """A value is not what it should be; the text says what is wrong with it."""

    def __init__(self, text: str, example: str | None = None) -> None:
        """@param example: a right value; C{None} where the usual example of the option is good."""
        super().__init__(text)
        self.example = example


@frozen
class TLSFiles:
    """
    The files that TLS needs.

    @ivar certificate: PEM file with the own certificate; C{None} for none.
    @ivar private_key: PEM file with its key; C{None} if it is in C{certificate}.
    @ivar authorities: PEM file, or directory of such, with the authorities that may sign the other
        side's certificate; C{None} for those of the system.
    """

    certificate: str | None = None
    private_key: str | None = None
    authorities: str | None = None


@frozen
class ServerAddress:
    """
    Where a client reaches its server.

    @ivar host: name or address; empty for a UNIX socket.
    @ivar tls: C{None} if TLS is not used.
    @ivar bind: address of this host to connect from; C{None} for any.
    @ivar timeout: seconds to wait for a connection to each address.
    @ivar path: of the UNIX socket; C{None} with TCP.
    """

    host: str
    port: int = DEFAULT_PORT
    tls: TLSFiles | None = None
    bind: str | None = None
    timeout: int = 30
    path: str | None = None

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path is not None else join(self.host, self.port)

    @property
    def identity(self) -> str:
        """What a cache directory is bound to: with and without TLS, these are two servers."""
        return str(self) if self.path is not None else f"{'tls' if self.tls else 'tcp'}:{self}"


@frozen
class ListenAddress:
    """
    Where a service listens.

    @ivar interface: an address of this host, or C{None} for the default.
    @ivar tls: C{None} if TLS is not used.
    @ivar endpoint: an endpoint string of another kind, used in place of the other attributes.
    """

    port: int
    interface: str | None = None
    tls: TLSFiles | None = None
    backlog: int = 50
    endpoint: str | None = None


def join(host: str, port: int) -> str:
    """C{HOST:PORT}, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_port(text: str, *, least: int = 1) -> int:
    """@raise WrongValue: when it is none."""
    if not text:
        raise WrongValue("the port is missing")
    if not (text.isascii() and text.isdecimal()) or not least <= int(text[:9]) < 65536:
        raise WrongValue(f"port {text} is not a number from {least} to 65535")
    return int(text)


def split_address(text: str) -> tuple[str, str | None]:
    """
    The host, which is checked, and the text of the port, if there is one.

    @raise WrongValue: when it is not of the form C{HOST}, C{HOST:PORT} or C{[IPV6]:PORT}.
    """
    if match := _BRACKETS.fullmatch(text):
        try:
            IPv6Address(match[1])
        except ValueError:
            wrong = f"[{match[1]}] is not an IPv6 address"
            raise WrongValue(wrong, "[fd00::1]:7040") from None
        return match[1], match[3]
    if text.count(":") > 1:
        try:
            IPv6Address(text)
        except ValueError:
            raise WrongValue(f"is not an address of the form {_FORMS}") from None
        raise WrongValue("an IPv6 address needs brackets", f"[{text}]:{DEFAULT_PORT}")
    host, colon, port = text.partition(":")
    _check_host(host)
    return host, port if colon else None


def _check_host(host: str) -> None:
    if not host:
        raise WrongValue("the host is missing")
    if re.fullmatch(r"[\d.]+", host):
        try:
            IPv4Address(host)
        except ValueError:
            raise WrongValue(f"{host} is not an IPv4 address") from None
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise WrongValue(f"{host} is not the name or address of a host")


def parse_server(
    text: str, certificate: str | None = None, authorities: str | None = None
) -> ServerAddress:
    """
    Where a client reaches its server.

    @param certificate: value of C{--tls-cert}, if it is given.
    @param authorities: value of C{--tls-ca}.
    @raise WrongValue: when it is malformed, or of a kind that mUFS refuses.
    """
    if kind := _KIND.match(text):
        if certificate or authorities:
            raise WrongValue("--tls-cert and --tls-ca go with HOST:PORT, not with endpoint strings")
        return _server_of_endpoint(kind[0], text)
    host, port = split_address(text)
    tls = TLSFiles(certificate, None, authorities) if certificate or authorities else None
    return ServerAddress(host, DEFAULT_PORT if port is None else _port_of(host, port), tls)


def _port_of(host: str, port: str) -> int:
    try:
        return parse_port(port)
    except WrongValue as error:
        raise WrongValue(str(error), join(host, DEFAULT_PORT)) from None


def _server_of_endpoint(kind: str, text: str) -> ServerAddress:
    if kind == "unix":
        words, named = endpoint_parts(text, "path", "timeout")
        path = named.get("path") or "".join(words[:1])
        if not path or len(words) > 1:
            raise WrongValue("the path is missing", "unix:/run/mufs/socket")
        return ServerAddress("", path=path)
    if kind == "ssl":
        raise WrongValue(
            "ssl: does not check the name of the server", _tls_example("HOST:7040", "host1")
        )
    if kind not in ("tcp", "tls"):
        raise WrongValue(f"{kind}: is nothing to connect to")
    files = _TLS_PARTS if kind == "tls" else ()
    words, named = endpoint_parts(text, "host", "port", "timeout", "bindAddress", *files)
    host, port = [*words, "", ""][:2]
    host, port = named.get("host", host), named.get("port", port)
    if not host:
        raise WrongValue("the host is missing", f"{kind}:HOST:{DEFAULT_PORT}")
    if ":" not in host:
        _check_host(host)
    example = f"{kind}:{_escape(host)}:{DEFAULT_PORT}"
    if not port:
        raise WrongValue("the port is missing", example)
    if len(words) > 2:
        raise WrongValue(f"{words[2]} is too much", example)
    try:
        number = parse_port(port)
    except WrongValue as error:
        raise WrongValue(str(error), example) from None
    timeout = named.get("timeout", "30")
    if not timeout.isdecimal() or not 0 < int(timeout[:9]) < 10**6:
        raise WrongValue(f"timeout={timeout} is not a number of seconds", f"{example}:timeout=30")
    tls = _tls_of(named) if kind == "tls" else None
    return ServerAddress(host, number, tls, named.get("bindAddress"), int(timeout))


def parse_listen(
    text: str, certificate: str | None = None, authorities: str | None = None
) -> ListenAddress:
    """
    Where a server listens: C{PORT}, C{ADDRESS}, C{ADDRESS:PORT}, or an endpoint string.

    @param certificate: value of C{--tls-cert}, if it is given.
    @param authorities: value of C{--tls-ca}.
    @raise WrongValue: when it is malformed, or of a kind that mUFS refuses.
    """
    if kind := _KIND.match(text):
        if certificate or authorities:
            raise WrongValue(
                "--tls-cert and --tls-ca go with PORT or ADDRESS:PORT, not with endpoint strings"
            )
        if kind[0] == "ssl":
            raise WrongValue("ssl: does not check who connects", _tls_example("7040", "server"))
        return _listen_of_endpoint(kind[0], text)
    interface, port = (None, text) if text.isdecimal() else split_address(text)
    if interface is not None:
        _check_interface(interface)
    number = DEFAULT_PORT if port is None else parse_port(port, least=0)
    tls = TLSFiles(certificate, None, authorities) if certificate or authorities else None
    return ListenAddress(number, interface, tls)


def parse_status(text: str) -> ListenAddress:
    """
    Where a service shows its status: C{PORT} of this host only, C{ADDRESS:PORT}, or an endpoint
    string.

    @raise WrongValue: when it is malformed.
    """
    if kind := _KIND.match(text):
        if kind[0] == "tls":
            raise WrongValue("tls: is for clients of mUFS, not for browsers", "7080")
        if kind[0] == "ssl" and not re.search(r"(?<!\\):interface=", text):
            text += ":interface=127.0.0.1"
        return _listen_of_endpoint(kind[0], text, default="127.0.0.1", default6="::1")
    interface, port = ("127.0.0.1", text) if text.isdecimal() else split_address(text)
    _check_interface(interface)
    if port is None:
        raise WrongValue("the port is missing", join(interface, 7080))
    return ListenAddress(parse_port(port, least=0), interface)


def _check_interface(text: str) -> None:
    try:
        ip_address(text)
    except ValueError:
        raise WrongValue(f"{text} is not an address of this host") from None


def _listen_of_endpoint(
    kind: str, text: str, *, default: str | None = None, default6: str = "::"
) -> ListenAddress:
    """@param default: the interface, if none is given; C{default6} for C{tcp6}."""
    if kind not in ("tcp", "tcp6", "tls"):
        return ListenAddress(0, endpoint=text)
    files = _TLS_PARTS if kind == "tls" else ()
    words, named = endpoint_parts(text, "port", "interface", "backlog", *files)
    port, given, backlog = [*words, "", "", ""][:3]
    port = named.get("port", port)
    interface: str | None = named.get("interface", given)
    backlog = named.get("backlog", backlog or "50")
    if not port:
        raise WrongValue("the port is missing", f"{kind}:{DEFAULT_PORT}")
    if len(words) > 3 or (kind == "tls" and len(words) > 1):
        raise WrongValue(f"{words[-1]} is too much")
    number, queue = parse_port(port, least=0), parse_port(backlog)
    if interface:
        _check_interface(interface)
    if not interface and "interface" not in named:
        interface = default6 if kind == "tcp6" else default
    tls = _tls_of(named) if kind == "tls" else None
    if tls and not (tls.certificate and tls.authorities):
        missing = "trustRoots" if tls.certificate else "certificate"
        raise WrongValue(f"{missing}= is missing", _tls_example(port, "server"))
    return ListenAddress(number, interface, tls, queue)


# Endpoint strings.

_TLS_PARTS = ("certificate", "privateKey", "trustRoots")


def _tls_example(where: str, host: str) -> str:
    return f"tls:{where}:certificate=/etc/mufs/{host}.pem:trustRoots=/etc/mufs/ca"


def _tls_of(named: dict[str, str]) -> TLSFiles:
    return TLSFiles(*map(named.get, _TLS_PARTS))


def _escape(text: str) -> str:
    return re.sub(r"([:\\])", r"\\\1", text)


def endpoint_words(text: str) -> list[str]:
    """The fields of an endpoint string, without the first, its kind."""
    return [re.sub(r"\\(.)", r"\1", word) for word in re.split(r"(?<!\\):", text)[1:]]


def endpoint_parts(text: str, *known: str) -> tuple[list[str], dict[str, str]]:
    """
    The same fields: those without a name, and those with one of the names that are known.

    @raise WrongValue: when a name is not known.
    """
    words, named = [], {}
    for word in endpoint_words(text):
        name, equals, value = word.partition("=")
        if not equals:
            words.append(word)
        elif name not in known:
            raise WrongValue(f"{name}= is not known here, but {'=, '.join(known)}=")
        elif not value and name != "interface":
            raise WrongValue(f"the value of {name}= is missing")
        else:
            named[name] = value
    return words, named
