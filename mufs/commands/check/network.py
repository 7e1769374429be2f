"""Check the interface and the route to the server, as the kernel reports them."""

from pathlib import Path

from mufs.commands.check.finding import Finding, ok, problem, warning
from mufs.commands.check.host import number
from mufs.communication.interfaces import NetworkInterface, interface_of, interfaces, route
from mufs.wire.segments import HEADER

HEADERS = 20 + 8 + HEADER.size
"""Bytes of the IPv4, UDP and mUFS headers of a multicast datagram."""

TCP_HEADERS = 20 + 20 + 12
"""Bytes of the IPv4 and TCP headers, with timestamps, which the MSS does not include."""


def no_route(address: str, error: OSError) -> Finding:
    """The finding that there is no route to the server."""
    down = sorted({each.name for each in interfaces() if not each.is_up})
    return problem(
        "interface",
        f"no route to {address}: {error.strerror}" + (f"; down: {', '.join(down)}" if down else ""),
        "bring the interface up, or add a route",
        *(f"ip link set dev {name} up" for name in down),
        f"ip route get {address}",
    )


def usable(address: str) -> Finding:
    """Whether multicast can be received on the interface that has this address."""
    found = interface_of(address)
    if found is None:
        own = ", ".join(
            f"{each.address} ({each.name})" for each in interfaces() if not each.is_loopback
        )
        return problem(
            "interface",
            f"there is no interface {address} with an IPv4 address",
            f"set --interface to an address of this host: {own or 'it has none'}",
        )
    figure = f"{found.name} ({found.address}), MTU {found.mtu}"
    if not found.is_up:
        command = f"ip link set dev {found.name} up"
        return problem("interface", f"{figure}, is down", "bring the interface up", command)
    if not found.has_carrier:
        return problem(
            "interface", f"{figure}, has no carrier", "check the cable and the switch port"
        )
    if not found.has_multicast and not found.is_loopback:
        return problem(
            "interface",
            f"{figure}, has multicast switched off",
            "switch it on; over a tunnel or VPN without multicast, this host reads over TCP",
            f"ip link set dev {found.name} multicast on",
        )
    if found.is_wireless:
        return warning(
            "interface",
            f"{figure}, is Wi-Fi, which sends multicast at its lowest rates",
            "use a wired network; over Wi-Fi, hosts mostly read over TCP",
        )
    return ok("interface", figure)


def same_network(source: str) -> Finding:
    """Whether there is a router in between, which multicast does not pass."""
    try:
        way = route(source)
    except OSError as error:
        return problem(
            "route",
            f"no route to {source}, the source of multicast: {error.strerror}",
            "set the server's --interface to its address in this network",
        )
    if any(each.address == source for each in interfaces()):
        return ok("route", f"this host ({source}) is the source of multicast")
    if way.gateway is None:
        return ok("route", f"{source} is in the same network as {way.interface}")
    return problem(
        "route",
        f"the source of multicast, {source}, is behind the router {way.gateway}, which does "
        "not forward it (time to live 1)",
        "put server and client into one network, or set the server's --interface to its address "
        "in this one; otherwise this host reads over TCP",
    )


def reverse_path(name: str, source: str) -> Finding:
    """Whether reverse path filtering drops the group's datagrams."""
    values = (number(f"/proc/sys/net/ipv4/conf/{each}/rp_filter") for each in ("all", name))
    strictness = max(each or 0 for each in values)
    try:
        way = route(source).interface
    except OSError:
        way = "no interface"
    figure = f"{strictness}, {source} is reached through {way}"
    drops = way == "no interface" if strictness == 2 else strictness == 1 and way != name
    if not drops or any(each.address == source for each in interfaces()):
        return ok("rp_filter", figure)
    return problem(
        "rp_filter",
        f"{figure}: the kernel drops its datagrams on {name}",
        f"set --interface to the address of {way}, or relax the filter",
        f"sysctl -w net.ipv4.conf.{name}.rp_filter={2 if strictness == 1 else 0}",
        *(["sysctl -w net.ipv4.conf.all.rp_filter=0"] if strictness == 2 else []),
    )


def packet_size(found: NetworkInterface, segment: int, largest: int | None) -> Finding:
    """
    Whether the group's datagrams fit the MTU.

    @param segment: data bytes in a datagram.
    @param largest: MSS of the TCP connection in bytes, which reveals the server's MTU.
    """
    need = segment + HEADERS
    if found.mtu < need:
        return warning(
            "packet size",
            f"the server's datagrams have {need} bytes, but the MTU of {found.name} is "
            f"{found.mtu}: they arrive in fragments, or not at all",
            "raise the MTU; where that is impossible, as in a VPN, fragments cost processor time, "
            "and the loss of one is that of the whole datagram",
            f"ip link set dev {found.name} mtu 1500",
        )
    if largest is not None and largest + TCP_HEADERS < need:
        return warning(
            "packet size",
            f"the server's datagrams have {need} bytes, but its TCP packets at most "
            f"{largest + TCP_HEADERS}: datagrams arrive in fragments, or not at all",
            "raise the MTU of the server's interface (here eth0)",
            "ip link set dev eth0 mtu 1500",
        )
    return ok("packet size", f"the server's datagrams have {need} bytes")


def igmp_version(name: str) -> Finding:
    """Which version of IGMP this host uses for its membership reports."""
    forced = [
        each
        for each in ("all", name)
        if number(f"/proc/sys/net/ipv4/conf/{each}/force_igmp_version")
    ]
    try:
        lines = Path("/proc/net/igmp").read_text().splitlines()
    except OSError as error:
        return warning("IGMP", f"/proc/net/igmp: {error.strerror}", "use a kernel with multicast")
    fields = [line.split() for line in lines if line[:1].isdigit()]
    version = next((each[-1] for each in fields if each[1] == name), "V3")
    if version != "V1":
        figure = f"version {version[1:]}{', set by force_igmp_version' if forced else ''}"
        return ok("IGMP", figure)
    return warning(
        "IGMP",
        "version 1, which cannot leave a group: a host that is too slow still gets its traffic",
        "let the kernel choose the version"
        if forced
        else "set this network's querier to version 3",
        *(f"sysctl -w net.ipv4.conf.{each}.force_igmp_version=0" for each in forced),
    )
