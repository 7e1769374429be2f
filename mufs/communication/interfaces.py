"""The network interfaces of this host: which one multicast uses now, and when that may change."""

import errno
import fcntl
import os
import socket
import struct
from array import array
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

CHANGE_DELAY = 0.1
"""Seconds from a change until it is acted on: changes mostly come several at a time."""

_SIOCGIFCONF, _SIOCGIFFLAGS, _SIOCGIFMTU = 0x8912, 0x8913, 0x8921
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING, _IFF_MULTICAST = 0x1, 0x8, 0x40, 0x1000
_IFREQ = 40
"""Bytes of struct ifreq, netdevice(7)."""

# Of netlink(7) and rtnetlink(7).
_MESSAGE = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHi")
_ROUTE = struct.Struct("=8BI")
_ATTRIBUTE = struct.Struct("=HH")
_NLM_F_REQUEST, _NLMSG_ERROR, _RTM_DELLINK, _RTM_GETROUTE = 1, 2, 17, 26
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 1, 4, 5, 7
_GROUPS = 0x1 | 0x10 | 0x40 | 0x80
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE and RTMGRP_IPV4_RULE."""

_EVERY_INDEX = range(1 << 31)


@frozen
class Route:
    """The route to an address; C{gateway} is the first router, if there is one."""

    interface: str
    source: str | None
    gateway: str | None


@frozen
class NetworkInterface:
    """
    A network interface, by one of its IPv4 addresses.

    @ivar index: the kernel's number of it; one that is made anew gets another.
    @ivar mtu: bytes.
    """

    index: int
    name: str
    address: str
    mtu: int
    is_up: bool
    has_carrier: bool
    has_multicast: bool
    is_loopback: bool
    is_wireless: bool

    def __str__(self) -> str:
        return f"{self.address} ({self.name})"

    def is_same(self, other: "NetworkInterface") -> bool:
        """Whether it is the same interface, with the same address."""
        return (self.index, self.address) == (other.index, other.address)


def route(address: str) -> Route:
    """
    Ask the kernel for the route to an IPv4 address.

    @raise OSError: when there is none.
    """
    target = _ATTRIBUTE.pack(_ATTRIBUTE.size + 4, _RTA_DST) + socket.inet_aton(address)
    body = _ROUTE.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + target
    head = _MESSAGE.pack(_MESSAGE.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(2)
        kernel.send(head + body)
        answer = kernel.recv(65536)
    kind = _MESSAGE.unpack_from(answer)[1]
    if kind == _NLMSG_ERROR:
        fault = -struct.unpack_from("=i", answer, _MESSAGE.size)[0]
        raise OSError(fault, os.strerror(fault))
    found = dict(_attributes(answer[_MESSAGE.size + _ROUTE.size :]))
    if _RTA_OIF not in found:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
    source, gateway = (
        socket.inet_ntoa(found[each]) if len(found.get(each, b"")) == 4 else None
        for each in (_RTA_PREFSRC, _RTA_GATEWAY)
    )
    name = socket.if_indextoname(struct.unpack("=I", found[_RTA_OIF])[0])
    return Route(name, source, gateway)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[max(_ATTRIBUTE.size, length + 3 & ~3) :]


def interfaces() -> list[NetworkInterface]:
    """The interfaces that have IPv4 addresses, one item for each address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        space = array("B", bytes(_IFREQ * 1024))
        asked = struct.pack("iP", len(space), space.buffer_info()[0])
        length = struct.unpack("iP", fcntl.ioctl(any_socket, _SIOCGIFCONF, asked))[0]
        found = []
        for start in range(0, length, _IFREQ):
            entry = space[start : start + _IFREQ].tobytes()
            # An address label may be the interface's name, a colon and a suffix.
            name = entry[:16].rstrip(b"\0").partition(b":")[0]
            with suppress(OSError):  # it was removed meanwhile
                found.append(_interface(any_socket, name, socket.inet_ntoa(entry[20:24])))
        return found


def _interface(any_socket: socket.socket, name: bytes, address: str) -> NetworkInterface:
    asked = name.ljust(_IFREQ, b"\0")
    flags = struct.unpack_from("H", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, asked), 16)[0]
    mtu = struct.unpack_from("i", fcntl.ioctl(any_socket, _SIOCGIFMTU, asked), 16)[0]
    return NetworkInterface(
        socket.if_nametoindex(os.fsdecode(name)),
        os.fsdecode(name),
        address,
        mtu,
        bool(flags & _IFF_UP),
        bool(flags & _IFF_RUNNING),
        bool(flags & _IFF_MULTICAST),
        bool(flags & _IFF_LOOPBACK),
        os.fsdecode(name) in _wireless(),
    )


def _wireless() -> list[str]:
    try:
        lines = Path("/proc/net/wireless").read_text().splitlines()[2:]
    except OSError:
        return []
    return [line.partition(":")[0].strip() for line in lines]


def interface_of(setting: str) -> NetworkInterface | None:
    """
    The interface that an C{--interface} means now; C{None} if there is none.

    @param setting: an IPv4 address, or the name of an interface, which stands for its first one.
    """
    return next((each for each in interfaces() if setting in (each.address, each.name)), None)


def interface_towards(address: str) -> NetworkInterface | None:
    """
    The interface that hosts of the same network as an IPv4 address are reached by; C{None} if it
    is behind a router, or there is no route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            way = route(address)
            if way.gateway is not None or way.source is None:
                return None
            found = _interface(any_socket, os.fsencode(way.interface), way.source)
        except (OSError, ValueError):  # no route; no address
            return None
    # The way to an own address is the loopback; other hosts reach it by its interface.
    return interface_of(way.source) if found.is_loopback else found


@implementer(IReadDescriptor)
class NetworkChanges(Service):
    """
    Tells when interfaces, IPv4 addresses or routes of this host change, as the kernel reports it
    by netlink.
    """

    _log = Logger()

    def __init__(self, reactor: Any, on_change: Callable[[Container[int]], None]) -> None:
        """
        @param reactor: reads the kernel's socket.
        @param on_change: called after each change, with the indices of the interfaces that were
            removed: one that has such an index now may be another.
        """
        self._reactor = reactor
        self._on_change = on_change
        self._socket: socket.socket | None = None
        self._removed: set[int] | range = set()
        self._telling: IDelayedCall | None = None

    def startService(self) -> None:
        """Watch; without a socket of netlink, changes go unnoticed, and the log says so."""
        super().startService()
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            self._socket.bind((0, _GROUPS))
            self._reactor.addReader(self)
        except OSError as error:
            self._log.warn(
                "changes of network interfaces go unnoticed: no netlink here: {reason}",
                reason=error.strerror,
            )

    def stopService(self) -> None:
        """Watch no more."""
        super().stopService()
        self._close()

    def _close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None

    def fileno(self) -> int:
        """See C{IFileDescriptor.fileno}."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """See C{ILoggingContext.logPrefix}."""
        return "netlink"

    def connectionLost(self, reason: object) -> None:
        """See C{IFileDescriptor.connectionLost}."""
        self._close()

    def doRead(self) -> None:
        """Take note of the changes that the kernel reports."""
        assert self._socket is not None
        try:
            while True:
                self._note(self._socket.recv(65536))
        except BlockingIOError:
            pass
        except OSError:  # ENOBUFS: there were more changes than the socket could hold
            self._removed = _EVERY_INDEX
        if self._telling is None:
            self._telling = self._reactor.callLater(CHANGE_DELAY, self._tell)

    def _note(self, messages: bytes) -> None:
        while len(messages) >= _MESSAGE.size:
            length, kind, *_ = _MESSAGE.unpack_from(messages)
            link = messages[_MESSAGE.size : _MESSAGE.size + _LINK.size]
            if kind == _RTM_DELLINK and len(link) == _LINK.size:
                family, _, index = _LINK.unpack(link)
                # A bridge reports a port that leaves it in the same way.
                if family == socket.AF_UNSPEC and isinstance(self._removed, set):
                    self._removed.add(index)
            messages = messages[max(_MESSAGE.size, length + 3 & ~3) :]

    def _tell(self) -> None:
        self._telling = None
        removed, self._removed = self._removed, set()
        self._on_change(removed)
