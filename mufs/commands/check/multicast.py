"""Judge what was received from the group, and name causes of loss."""

from mufs.commands.check.finding import Finding, ok, problem, warning
from mufs.commands.check.network import HEADERS
from mufs.commands.check.packets import Query
from mufs.commands.check.session import Reading
from mufs.communication.client.multicast_health import MAX_LOSS
from mufs.wire.metadata import Welcome

NOTABLE_LOSS = 0.01
"""Fraction of segments lost from which on the finding is a warning."""

NEARLY_TOTAL_LOSS = 0.9
"""Fraction lost when only the last segments of transfers arrive, which are shorter."""

_LOSES = (
    "check the cable, the link speed (here of eth0) and the receive buffer; if a switch drops "
    "packets, lower the server's rate (here to 100 Mbit/s)"
)
_RATE = "ethtool eth0", "mufs-server --rate-max 100M ..."

AS_ROOT = "run this command as root to check"


def judge(reading: Reading, welcome: Welcome, *, seen: bool | None, asked: bool | None) -> Finding:
    """
    Whether multicast works.

    @param seen: whether datagrams reached this host, or C{None} if that is not known.
    @param asked: whether a querier was heard, or C{None} if that is not known.
    """
    brought = f"{reading.segments} segments in {reading.seconds:.1f} s"
    if reading.is_lost:
        return problem(
            "multicast",
            f"the connection was lost after {reading.seconds:.1f} s; {brought}",
            "check that the server still runs, and see its log",
            "journalctl -u mufs-server",
        )
    if not reading.segments and reading.works and reading.bytes_over_tcp:
        return problem(
            "multicast",
            f"the server answered over TCP alone for {reading.seconds:.1f} s: it has no interface "
            "to send multicast on now",
            "its log says which interface it misses; it goes on by itself once that is up",
            "journalctl -u mufs-server",
        )
    if not reading.segments and reading.works:
        return warning(
            "multicast",
            f"the server sent nothing in {reading.seconds:.1f} s: it is busy with requests of "
            "others, or its disk does not respond",
            "see the server's status page, and check again for longer",
            "mufs check --seconds 30 ...",
        )
    if not reading.segments:
        return _silent(reading, welcome, seen=seen, asked=asked)
    figure = f"{brought} ({reading.rate / 1e6:.1f} Mbit/s)"
    loss = reading.loss or 0.0
    if reading.loss is not None:
        figure += f", {loss:.1%} lost"
    if loss > NEARLY_TOTAL_LOSS:
        size = welcome.segment + HEADERS
        return problem(
            "multicast",
            f"{figure}: short datagrams arrive, but those of {size} bytes are dropped on the way",
            "raise the MTU of both hosts (here of eth0) and of all devices in between",
            "ip link set dev eth0 mtu 1500",
        )
    if loss > MAX_LOSS or not reading.works:
        return problem("multicast", figure, f"this host reads over TCP: {_LOSES}", *_RATE)
    if loss >= NOTABLE_LOSS:
        return warning(
            "multicast", figure, f"lost segments are repaired, which takes time: {_LOSES}", *_RATE
        )
    return ok("multicast", figure)


def _silent(
    reading: Reading, welcome: Welcome, *, seen: bool | None, asked: bool | None
) -> Finding:
    """The finding that nothing arrives although the server sent it."""
    where = f"{welcome.group}:{welcome.port} from {welcome.source[0]}"
    figure = f"nothing arrives on {where}"
    admit = (
        f"nft insert rule inet filter input ip saddr {welcome.source[0]} ip daddr {welcome.group} "
        f"udp dport {welcome.port} accept",
        "nft insert rule inet filter input ip protocol igmp accept",
    )
    if seen:
        return problem(
            "multicast",
            f"{figure}, although datagrams reach this host's interface",
            "a firewall of this host drops them (or rp_filter, see above): let them through",
            *admit,
        )
    steps = [
        f"the server's log says `multicast to ... on interface {welcome.source[0]}`: if this is "
        "not an address in this host's network, set the server's --interface",
        "the server's firewall must let UDP out: where it does not, the server's log says `cannot "
        "send to the group`",
        "switches with IGMP snooping need a querier"
        + (" (there is none, see above)" if asked is False else "")
        + " and must list this host's port as a member",
        "Wi-Fi, VPNs and most clouds carry no multicast; there, mUFS reads over TCP",
    ]
    if seen is None:
        steps.insert(0, f"a firewall of this host ({AS_ROOT}): add the rules below")
    else:
        figure += ", and none reaches the interface"
    remedy = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
    return problem("multicast", figure, remedy, *(admit if seen is None else ()))


def others(reading: Reading) -> Finding:
    """Whether another host sends to the group."""
    if not reading.dropped:
        return ok("other senders", "none heard in the group")
    return warning(
        "other senders",
        f"{reading.dropped} datagrams in the group were not from the server, and were dropped",
        "give each server in this network its own group, and find the other sender",
        "mufs-server --group 239.5.5.1 ...",
    )


def over_tcp(reading: Reading) -> Finding | None:
    """Whether reads work over TCP; C{None} if multicast works."""
    if reading.works:
        return None
    if reading.bytes_over_tcp:
        return ok("over TCP", f"{reading.bytes_over_tcp / 1e6:.1f} MB came over TCP")
    return problem(
        "over TCP",
        f"nothing of the {reading.bytes_asked / 1e6:.1f} MB requested came over TCP either",
        "large packets are dropped on the way: lower the MTU of both hosts (here of eth0)",
        "ip link set dev eth0 mtu 1400",
    )


def querier(queries: list[Query], seconds: float) -> Finding:
    """
    Whether there is a querier, which switches with IGMP snooping need.

    @param queries: the queries heard.
    @param seconds: how long was listened.
    """
    if queries:
        who, version = queries[0].sender, queries[0].version
        who = "a switch without an address" if who == "0.0.0.0" else who
        return ok("querier", f"{who} sends queries, IGMP version {version}")
    return warning(
        "querier",
        f"no query heard in {seconds:.1f} s, not even when this host left a group",
        "if a hardware switch here does IGMP snooping, it stops forwarding multicast after some "
        "minutes: enable a querier on it or on a router, or turn snooping off. A Linux bridge "
        "(here br0) sends multicast to all its ports instead, until it has a querier; then every "
        "host's firewall must let IGMP in",
        "ip link set dev br0 type bridge mcast_querier 1",
    )
