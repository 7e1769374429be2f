"""Run the checks in order: this host, the route to the server, what the group delivers."""

import argparse
import os
import shlex
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from mufs.addresses import ServerAddress
from mufs.commands.check import certificates, host, multicast, network, packets
from mufs.commands.check.finding import Finding, Level, ok, problem, warning
from mufs.commands.check.session import (
    ANSWER_TIMEOUT,
    Session,
    Unreachable,
    raise_timeout,
    shown_certificate,
)
from mufs.communication.certificates import UnusableFile
from mufs.communication.client.channel import Refused
from mufs.communication.interfaces import NetworkInterface, interface_of, interfaces, route
from mufs.endpoints import ServerEndpoint, resolve
from mufs.units import shown
from mufs.wire.metadata import VERSION

LEAVE_DELAY = 1.2
"""Seconds in the test group: long enough for two membership reports (RFC 3376, 8.11)."""

QUERY_TIMEOUT = 1.0
"""Seconds to wait, after leaving, for a querier to ask for other members."""

_SERVERS_LOG = "see the server's log for the reason"
_REFUSALS = {
    "version": ("install the same version of mUFS on both hosts", "pip show mufs"),
    "nothing is shared": (
        "give this host access on the server (here to everything)",
        "mufs-server --allow 'NAME:/' ...",
    ),
    "too many connections": (
        "end clients of this host that are not needed; the server's log says which limit it is",
        "journalctl -u mufs-server",
    ),
    "unknown ca": (
        "the server does not trust the authority that signed this host's certificate: make a new "
        "certificate where the server's ca.key is",
        "mufs keys --client NAME",
    ),
    "certificate expired": ("see this host's certificate, above", "mufs keys --client NAME"),
    "certificate required": ("see this host's certificate, above",),
    "ends the connection at once": (
        "use --tls-cert and --tls-ca both here and on the server, or on neither",
        "systemctl cat mufs-server",
    ),
    "is for another name": ("see the server's certificate, below",),
    "the certificate has expired, is of": ("see the server's certificate, below",),
}  # fmt: skip
"""Remedies and commands, by words in the reason for the refusal."""

Tell = Callable[[Finding], None]


async def check(reactor: Any, given: argparse.Namespace, tell: Tell) -> None:
    """
    Run all checks.

    @param tell: called with each finding as soon as it is made.
    """
    for finding in host.findings():
        tell(finding)
    address: ServerAddress | None = given.address
    if address is None:
        if given.interface is not None:
            _look_at_interface(given.interface, tell)
        return
    if address.tls is not None:
        for finding in certificates.own(address.tls):
            tell(finding)
    try:
        endpoint = ServerEndpoint(reactor, address)
    except UnusableFile as error:
        remedy = "give --tls-cert and --tls-ca the files that `mufs keys` made"
        tell(problem("certificates", str(error), remedy))
        return
    if address.path is not None:
        # There is no route to a UNIX socket.
        if given.interface is not None:
            _look_at_interface(given.interface, tell)
    elif not await _find(reactor, address.host, interface=given.interface, tell=tell):
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


async def _find(reactor: Any, name: str, *, interface: str | None, tell: Tell) -> bool:
    """Check the route to a server, given its name or address. Return whether there is one."""
    try:
        found = await resolve(reactor, name).addTimeout(ANSWER_TIMEOUT, reactor, raise_timeout)
    except TimeoutError as error:
        found, reason = [], str(error.strerror)
    else:
        reason = "it is not known"
    if not found:
        remedy = "correct the name, /etc/hosts or DNS, or use the server's address"
        command = f"getent ahosts {shlex.quote(name)}"
        tell(problem("name", f"{shown(name)} has no address: {reason}", remedy, command))
        return False
    if found != [name]:
        tell(ok("name", f"{shown(name)} is {', '.join(found)}"))
    here, address = interface, found[0]
    if ":" not in address:
        try:
            way = route(address)
        except OSError as error:
            tell(network.no_route(address, error))
            return len(found) > 1
        here = interface or way.source
    if here is not None:
        _look_at_interface(here, tell)
    return True


def _look_at_interface(address: str, tell: Tell) -> None:
    tell(network.usable(address))
    found = interface_of(address)
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
    """Report why there is no connection, or why the server refused this host."""
    if session.connect_time is not None:
        tell(_connection(session))
    reason, server = str(error), given.address
    if session.connect_time is None:
        port = server.port
        remedy = (
            "on the server, check that it runs, listens on this port, and lets this host through "
        )
        tell(
            problem(
                "connection",
                reason,
                remedy + "its firewall",
                "systemctl status mufs-server",
                f"ss -ltn sport = :{port}",
                f"nft insert rule inet filter input tcp dport {port} accept",
            )
        )
        return
    remedies = [_REFUSALS[words] for words in _REFUSALS if words in reason]
    tell(problem("server", reason, *(remedies or [(_SERVERS_LOG, "journalctl -u mufs-server")])[0]))
    if server.tls is not None:
        certificate = await shown_certificate(reactor, server.host, server.port)
        if certificate is not None:
            for finding in certificates.of_server(certificate, server.host, server.tls):
                tell(finding)


def _connection(session: Session) -> Finding:
    return ok("connection", f"made in {(session.connect_time or 0) * 1000:.1f} ms")


async def _connected(
    reactor: Any, given: argparse.Namespace, *, session: Session, tell: Tell
) -> None:
    """Check what the server announces, then read from it."""
    welcome = session.welcome
    tell(_connection(session))
    tell(ok("version", f"protocol version {VERSION} on both sides"))
    certificate, server = session.certificate(), given.address
    if certificate is not None and server.tls is not None:
        for finding in certificates.of_server(certificate, server.host, server.tls):
            tell(finding)
    source, _ = welcome.source
    if not welcome.group:
        tell(
            problem(
                "multicast",
                "the server sends no multicast to this host",
                "see the server's log: its interface may be away, or this host is the first client "
                "and connects by IPv6 or a UNIX socket; then set the server's --interface",
                "journalctl -u mufs-server",
            )
        )
        return
    try:
        IPv4Address(source), IPv4Address(welcome.group)
    except ValueError as error:
        tell(
            problem(
                "server", f"sent an invalid address: {error}", "check that it is an mUFS server"
            )
        )
        return
    handle = session.socket()
    here = session.interface or given.interface
    if here is None and handle.family == socket.AF_INET:
        here = handle.getsockname()[0]
    interface = None if here is None else interface_of(here)
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
    interface: NetworkInterface,
    tell: Tell,
) -> None:
    """Read an image for some seconds while watching what arrives at the interface."""
    paths = [os.fsencode(given.image.strip("/"))] if given.image is not None else []
    try:
        if not paths:
            paths = [path for size, path in await session.images() if size]
            if not paths:
                remedy = "export one that this host may read (--allow), so that multicast can be "
                tell(warning("image", "there is none that is not empty", f"{remedy}checked"))
                return
        path, handle = await session.open_first(paths)
    except OSError as error:
        figure = f"{shown(paths[0]) if paths else 'the list'} cannot be read: {error.strerror}"
        remedy = (
            "make it readable for all users on the server, or name another one; root is treated "
        )
        remedy += "as nobody there unless the server has --no-root-squash"
        tell(problem("image", figure, remedy, "mufs check --image PATH ..."))
        return
    size = session.remote.opened(handle).size
    tell(ok("image", f"reading {shown(path)} ({size / 1e6:.1f} MB) for {given.seconds:g} s"))
    welcome, source = session.welcome, session.welcome.source[0]
    is_here = any(each.address == source for each in interfaces())
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
        tell(warning("querier", "not checked: this needs root", multicast.AS_ROOT))
    # Datagrams that this host sends never arrive at its interface; no network can drop them.
    seen = True if is_here else None if counter is None else packets.count(counter) > 0
    tell(multicast.judge(reading, welcome, seen=seen, asked=asked))
    tell(multicast.others(reading))
    over_tcp = multicast.over_tcp(reading)
    if over_tcp is not None:
        tell(over_tcp)


async def _join_and_leave(reactor: Any, interface: str) -> None:
    """Join and leave the test group, which makes a querier ask for other members at once."""
    member = socket.inet_aton(packets.TEST_GROUP) + socket.inet_aton(interface)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member_socket:
        member_socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        await deferLater(reactor, LEAVE_DELAY)
    await deferLater(reactor, QUERY_TIMEOUT)
