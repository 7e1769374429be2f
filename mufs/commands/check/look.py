"""What is looked at, in which order: this host, the way to the server, what the group brings."""

import argparse
import os
import shlex
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python import usage

from mufs.commands.check import certificates, host, multicast, network, packets
from mufs.commands.check.finding import Finding, Level, ok, problem, warning
from mufs.commands.check.session import (
    ANSWER_TIMEOUT,
    Session,
    Unreachable,
    raise_timeout,
    shown_certificate,
)
from mufs.communication.client.channel import Refused
from mufs.options import channel_client_endpoint, endpoint_parts, is_tls
from mufs.status.markup import shown
from mufs.wire.metadata import VERSION

LEAVE_DELAY = 1.2
"""Seconds in the test group: by then the join was reported twice (RFC 3376, 8.11)."""

QUERY_TIMEOUT = 1.0
"""Seconds after leaving within which a querier asks for other members."""

_SERVERS_LOG = "see the log of the server, which says what it does not accept"
_REFUSALS = {
    "version": ("install the same version at both ends", "pip show mufs"),
    "nothing is shared": (
        "let the server show it something (here all)",
        "twistd mufs-server --allow 'NAME:/' ...",
    ),
    "unknown ca": (
        "the server does not trust the authority of this host's certificate: make one of its own, "
        "where its ca.key is",
        "mufs keys --client NAME",
    ),
    "certificate expired": ("see this host's certificate, above", "mufs keys --client NAME"),
    "certificate required": ("see this host's certificate, above",),
    "ends the connection at once": (
        "compare --server here with --listen there: both tls: or both tcp:",
        "systemctl cat mufs-server",
    ),
    "is for another name": ("see the server's certificate, below",),
    "the certificate has expired, is of": ("see the server's certificate, below",),
}  # fmt: skip
"""What to do where the reason has these words."""

Tell = Callable[[Finding], None]


async def check(reactor: Any, given: argparse.Namespace, tell: Tell) -> None:
    """
    Make all findings.

    @param tell: gets each one when it is made.
    """
    for finding in host.findings():
        tell(finding)
    if given.server is None:
        if given.interface is not None:
            _look_at_interface(given.interface, tell)
        return
    if is_tls(given.server):
        for finding in certificates.own(_named(given)):
            tell(finding)
    try:
        endpoint = channel_client_endpoint(reactor, "server", given.server)
    except usage.UsageError as error:
        figure = str(error).removeprefix("--server: ")
        forms = "tcp:HOST:7040 or tls:HOST:7040:certificate=FILE:trustRoots=DIR"
        tell(problem("--server", figure, f"give it as the client has it, {forms}"))
        return
    server = _server(given.server)
    if server is None or ":" in server[0]:
        # By IPv6 or without a network: there is no way to a group of IPv4 to be looked at.
        if given.interface is not None:
            _look_at_interface(given.interface, tell)
    elif not await _find(reactor, server[0], interface=given.interface, tell=tell):
        return
    session = Session(reactor, given.interface, socket.gethostname())
    try:
        await session.connect(endpoint)
    except (Unreachable, Refused) as error:
        await _not_connected(reactor, given, session=session, error=error, tell=tell)
    else:
        await _connected(reactor, given, session=session, tell=tell)
    finally:
        await session.stop()


def _server(text: str) -> tuple[str, int] | None:
    """Host and port of an endpoint string of TCP or TLS."""
    words = endpoint_parts(text)[0]
    if text.startswith(("tcp:", "tls:")) and len(words) == 2 and words[1].isdecimal():
        return words[0], int(words[1])
    return None


async def _find(reactor: Any, name: str, *, interface: str | None, tell: Tell) -> bool:
    """Look at the way to a server, that is called by a name or an IPv4 address, if there is one."""
    looking: Deferred[str] = reactor.resolve(name, timeout=(int(ANSWER_TIMEOUT),))
    try:
        address = await looking.addTimeout(ANSWER_TIMEOUT, reactor, raise_timeout)
    except Exception as error:  # what a resolver raises is up to it
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        figure = f"{shown(name)} is not found as one of IPv4: {reason}"
        remedy = "correct the name, /etc/hosts or DNS, or give the server's address"
        tell(problem("name", figure, remedy, f"getent ahostsv4 {shlex.quote(name)}"))
        return False
    if address != name:
        tell(ok("name", f"{shown(name)} is {address}"))
    try:
        way = network.route(address)
    except OSError as error:
        tell(network.no_route(address, error))
        return False
    here = interface or way.source
    if here is not None:
        _look_at_interface(here, tell)
    return True


def _look_at_interface(address: str, tell: Tell) -> None:
    tell(network.usable(address))
    found = network.interface_of(address)
    if found is not None:
        tell(network.igmp_version(found.name))


async def _not_connected(
    reactor: Any,
    given: argparse.Namespace,
    *,
    session: Session,
    error: Exception,
    tell: Tell,
) -> None:
    """What is known of the way to a server that does not serve this host."""
    if session.connect_time is not None:
        tell(_connection(session))
    reason, server = str(error), _server(given.server)
    if session.connect_time is None:
        port = server[1] if server else 7040
        remedy = "on the server: see that it runs, listens there, and that its firewall lets this "
        tell(
            problem(
                "connection",
                reason,
                remedy + "host in",
                "systemctl status mufs-server",
                f"ss -ltn sport = :{port}",
                f"nft insert rule inet filter input tcp dport {port} accept",
            )
        )
        return
    remedies = [_REFUSALS[words] for words in _REFUSALS if words in reason]
    tell(problem("server", reason, *(remedies or [(_SERVERS_LOG, "journalctl -u mufs-server")])[0]))
    if is_tls(given.server) and server is not None:
        certificate = await shown_certificate(reactor, *server)
        if certificate is not None:
            for finding in certificates.of_server(certificate, server[0], _named(given)):
                tell(finding)


def _named(given: argparse.Namespace) -> dict[str, str]:
    return endpoint_parts(given.server)[1]


def _connection(session: Session) -> Finding:
    return ok("connection", f"made in {(session.connect_time or 0) * 1000:.1f} ms")


async def _connected(
    reactor: Any, given: argparse.Namespace, *, session: Session, tell: Tell
) -> None:
    """What there is to know of a server that serves this host."""
    welcome = session.welcome
    tell(_connection(session))
    tell(ok("version", f"{VERSION} of the protocol, agreed"))
    certificate, server = session.certificate(), _server(given.server)
    if certificate is not None and server is not None:
        for finding in certificates.of_server(certificate, server[0], _named(given)):
            tell(finding)
    handle = session.socket()
    here = given.interface
    if here is None and handle.family == socket.AF_INET:
        here = handle.getsockname()[0]
    interface = None if here is None else network.interface_of(here)
    source, _ = welcome.source
    try:
        IPv4Address(source), IPv4Address(welcome.group or source)
    except ValueError as error:
        tell(problem("server", f"names what is no address: {error}", "see what it is that runs"))
        return
    if not welcome.group:
        tell(
            problem(
                "multicast",
                "the server sends none to this host",
                "its log tells why; set its --interface to its address in this network",
                "journalctl -u mufs-server",
            )
        )
        return
    tell(network.same_network(source))
    if interface is not None:
        tell(network.reverse_path(interface.name, source))
        largest = None
        if handle.family in (socket.AF_INET, socket.AF_INET6):
            largest = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        tell(network.packet_size(interface, welcome.segment, largest))
    if session.interface is None or interface is None:
        state = session.remote.multicast_health.state.removeprefix("not working: ")
        tell(problem("multicast", state, "set --interface to another address of this host"))
        return
    await _read(reactor, given, session=session, interface=interface, tell=tell)


async def _read(
    reactor: Any,
    given: argparse.Namespace,
    *,
    session: Session,
    interface: network.Interface,
    tell: Tell,
) -> None:
    """Read an image for a while, and look beside it at what comes to the interface."""
    paths = [os.fsencode(given.image.strip("/"))] if given.image is not None else []
    try:
        if not paths:
            paths = [path for size, path in await session.images() if size]
            if not paths:
                remedy = "share one, and let this host see it (--allow): then multicast can be "
                tell(warning("image", "there is none with anything in it", f"{remedy}looked at"))
                return
        path, handle = await session.open_first(paths)
    except OSError as error:
        figure = f"{shown(paths[0]) if paths else 'the list'} cannot be had: {error.strerror}"
        remedy = "make it readable for everybody on the server, or name another one; root counts "
        remedy += "as nobody there, unless it has --no-root-squash"
        tell(problem("image", figure, remedy, "mufs check --image PATH ..."))
        return
    size = session.remote.opened(handle).size
    tell(ok("image", f"reading {shown(path)} ({size / 1e6:.1f} MB) for {given.seconds:g} s"))
    welcome, source = session.welcome, session.welcome.source[0]
    is_here = any(each.address == source for each in network.interfaces())
    counter = listener = None
    if not interface.is_loopback:
        try:
            counter = packets.counter(
                interface.name, group=welcome.group, port=welcome.port, source=source
            )
            listener = packets.igmp_listener(interface.name)
        except PermissionError:
            pass
    began = reactor.seconds()
    if listener is None:
        reading = await session.read(handle, given.seconds)
    else:
        leaving = Deferred.fromCoroutine(_join_and_leave(reactor, interface.address))
        reading = await session.read(handle, given.seconds)
        await leaving
    asked = None
    if listener is not None:
        finding = multicast.querier(packets.queries(listener), reactor.seconds() - began)
        asked = finding.level is Level.OK
        tell(finding)
    elif not interface.is_loopback:
        tell(warning("querier", "not looked at: that needs root", multicast.AS_ROOT))
    # What this host sends itself does not come to its interface, but no network can drop it.
    seen = True if is_here else None if counter is None else packets.count(counter) > 0
    tell(multicast.judge(reading, welcome, seen=seen, asked=asked))
    tell(multicast.others(reading))
    over_tcp = multicast.over_tcp(reading)
    if over_tcp is not None:
        tell(over_tcp)


async def _join_and_leave(reactor: Any, interface: str) -> None:
    """Join and leave the test group: a querier then asks at once for other members."""
    member = socket.inet_aton(packets.TEST_GROUP) + socket.inet_aton(interface)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member_socket:
        member_socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        await deferLater(reactor, LEAVE_DELAY)
    await deferLater(reactor, QUERY_TIMEOUT)
