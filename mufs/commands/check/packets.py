"""Packets that arrive at an interface, before firewalls and routing; requires root."""

import ctypes
import socket
import struct

from attrs import frozen

TEST_GROUP = "239.5.5.254"
"""An unused group, joined and left to see whether a querier asks for other members."""

_ETH_P_ALL, _ETH_P_IP = 0x0003, 0x0800
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_STATISTICS = 263, 1, 6
_PACKET_MR_MULTICAST = 0
_SO_ATTACH_FILTER = 26

# Of bpf(4): a filter loads a part of the packet and compares it; offsets are those in IP.
_LD_B, _LD_H_X, _LD_W, _LDX_IHL = 0x30, 0x48, 0x20, 0xB1
_JEQ, _RET = 0x15, 0x06
_IP_PROTOCOL, _IP_SOURCE, _IP_TARGET, _UDP_TARGET = 9, 12, 16, 2
_PROTOCOL, _PACKET_TYPE = -0x1000, -0x1000 + 4
"""Not in the packet: of which kind it is, and for whom. 2 is a group."""

_QUERY = 0x11


@frozen
class Query:
    """A query of IGMP; C{group} is C{"0.0.0.0"} in a general query."""

    sender: str
    group: str
    version: int


def counter(interface: str, *, group: str, port: int, source: str) -> socket.socket:
    """
    Count the datagrams to a group without receiving them; see L{count}.

    @raise PermissionError: without CAP_NET_RAW.
    """
    addresses = (struct.unpack("!I", socket.inet_aton(each))[0] for each in (source, group))
    return _listen(
        interface,
        [(_PACKET_TYPE, 2), (_IP_PROTOCOL, socket.IPPROTO_UDP)],
        list(zip((_IP_SOURCE, _IP_TARGET), addresses, strict=True)),
        port=port,
    )


def count(counting: socket.socket) -> int:
    """Packets since the last call; some may hold several datagrams."""
    counts = counting.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
    packets: int = struct.unpack("II", counts)[0]
    return packets


def igmp_listener(interface: str) -> socket.socket:
    """
    Receive the packets of IGMP, including those for the test group.

    @raise PermissionError: without CAP_NET_RAW.
    """
    listener = _listen(interface, [(_IP_PROTOCOL, socket.IPPROTO_IGMP)], [])
    # RFC 1112, 6.4: the group's address on Ethernet, which the interface else does not listen to.
    ethernet = b"\x01\x00\x5e" + socket.inet_aton(TEST_GROUP)[1:]
    ethernet = ethernet[:3] + bytes([ethernet[3] & 0x7F]) + ethernet[4:]
    wanted = struct.pack(
        "iHH8s", socket.if_nametoindex(interface), _PACKET_MR_MULTICAST, 6, ethernet
    )
    listener.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, wanted)
    return listener


def queries(listener: socket.socket) -> list[Query]:
    """The queries among the packets received."""
    found: list[Query] = []
    while True:
        try:
            packet = listener.recv(2048)
        except BlockingIOError:
            return found
        query = parse_query(packet)
        if query is not None:
            found.append(query)


def parse_query(packet: bytes) -> Query | None:
    """A packet of IP as a query of IGMP (RFC 3376, sections 4.1 and 7.1), if it is one."""
    if len(packet) < 20:
        return None
    length, total = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
    body = packet[max(20, length) : total]
    if len(body) < 8 or body[0] != _QUERY:
        return None
    version = 3 if len(body) >= 12 else 2 if body[1] else 1
    return Query(socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(body[4:8]), version)


def _listen(
    interface: str,
    bytes_wanted: list[tuple[int, int]],
    words_wanted: list[tuple[int, int]],
    *,
    port: int | None = None,
) -> socket.socket:
    """A socket for the IP packets of an interface that have these values at these offsets."""
    steps = [(_LD_W, _PROTOCOL, _ETH_P_IP)]
    steps += [(_LD_B if at >= 0 else _LD_W, at, value) for at, value in bytes_wanted]
    steps += [(_LD_W, at, value) for at, value in words_wanted]
    program = [part for code, at, value in steps for part in ((code, at), (_JEQ, value))]
    if port is not None:
        program += [(_LDX_IHL, 0), (_LD_H_X, _UDP_TARGET), (_JEQ, port)]
    code = b""
    for number, (operation, value) in enumerate(program):
        otherwise = len(program) - number if operation == _JEQ else 0
        code += struct.pack("HBBI", operation, 0, otherwise, value & 0xFFFFFFFF)
    code += struct.pack("HBBI", _RET, 0, 0, 0xFFFF) + struct.pack("HBBI", _RET, 0, 0, 0)
    memory = ctypes.create_string_buffer(code)
    # Without a protocol nothing comes in before the filter is there.
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    try:
        listener.setblocking(False)
        attached = struct.pack("HP", len(code) // 8, ctypes.addressof(memory))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)
        # With those of IP alone, it would see them only behind the first of the firewall's hooks.
        listener.bind((interface, _ETH_P_ALL))
    except BaseException:
        listener.close()
        raise
    return listener
