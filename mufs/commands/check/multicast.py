"""What was received from the group, and causes of loss."""

from mufs.commands.check.finding import Finding, ok, problem, warning
from mufs.commands.check.network import HEADERS
from mufs.commands.check.packets import Query
from mufs.commands.check.session import Reading
from mufs.communication.client.multicast_health import MAX_LOSS
from mufs.wire.metadata import Welcome

NOTABLE_LOSS = 0.01
"""Fraction of segments lost from which on there is a warning."""

NEARLY_TOTAL_LOSS = 0.9
"""Fraction lost when only the last segments of transfers arrive, which are shorter."""

_LOSES = (
    "see cables, the speed of the link (here eth0), and the receive buffer; where a switch drops "
    "what comes too fast, lower the rate of the server (here to 100 Mbit/s)"
)
_RATE = "ethtool eth0", "twistd mufs-server --rate-max 100M ..."

AS_ROOT = "run this as root to see it"


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
            "see the log of the server, and whether it still runs",
            "journalctl -u mufs-server",
        )
    if not reading.segments and reading.works:
        return warning(
            "multicast",
            f"the server sent nothing in {reading.seconds:.1f} s: it is busy with what others "
            "wait for, or its disk does not answer",
            "see its status page, and try again, for longer",
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
            f"{figure}: short datagrams come, and those of {size} bytes are dropped on the way",
            "raise the MTU of what is in between, and of both ends (here eth0)",
            "ip link set dev eth0 mtu 1500",
        )
    if loss > MAX_LOSS or not reading.works:
        return problem("multicast", figure, f"this host reads over TCP: {_LOSES}", *_RATE)
    if loss >= NOTABLE_LOSS:
        return warning("multicast", figure, f"it is mended, but costs time: {_LOSES}", *_RATE)
    return ok("multicast", figure)


def _silent(
    reading: Reading, welcome: Welcome, *, seen: bool | None, asked: bool | None
) -> Finding:
    """Nothing arrives, though the server says that it was sent."""
    where = f"{welcome.group}:{welcome.port} from {welcome.source[0]}"
    figure = f"nothing arrives of {where}"
    admit = (
        f"nft insert rule inet filter input ip saddr {welcome.source[0]} ip daddr {welcome.group} "
        f"udp dport {welcome.port} accept",
        "nft insert rule inet filter input ip protocol igmp accept",
    )
    if seen:
        return problem(
            "multicast",
            f"{figure} in the program, though it comes as far as this host's interface",
            "a firewall of this host drops them (or rp_filter, see above): let them in",
            *admit,
        )
    steps = [
        f"the server's log says `multicast to ... on interface {welcome.source[0]}`: it has to be "
        "the network of this host, else set its --interface",
        "the server's firewall has to let out UDP",
        "switches: snooping needs a querier"
        + (" (there is none, see above)" if asked is False else "")
        + ", and has to list the port of this host",
        "Wi-Fi, VPNs and most clouds carry no multicast; mUFS works there, over TCP",
    ]
    if seen is None:
        steps.insert(0, f"a firewall of this host ({AS_ROOT}): let in what is below")
    else:
        figure += ", not even at the interface"
    remedy = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
    return problem("multicast", figure, remedy, *(admit if seen is None else ()))


def others(reading: Reading) -> Finding:
    """Whether somebody else sends to the group."""
    if not reading.dropped:
        return ok("other senders", "none heard in the group")
    return warning(
        "other senders",
        f"{reading.dropped} datagrams in the group were not the server's, and were dropped",
        "give each server of this network a group of its own, and see who sends",
        "twistd mufs-server --group 239.5.5.1 ...",
    )


def over_tcp(reading: Reading) -> Finding | None:
    """Whether TCP brings what multicast does not; nothing where it is not needed."""
    if reading.works:
        return None
    if reading.bytes_over_tcp:
        return ok("over TCP", f"{reading.bytes_over_tcp / 1e6:.1f} MB came")
    return problem(
        "over TCP",
        f"nothing came either, of {reading.bytes_asked / 1e6:.1f} MB",
        "large packets are dropped on the way: give both ends the smallest MTU of it (here eth0)",
        "ip link set dev eth0 mtu 1400",
    )


def querier(queries: list[Query], seconds: float) -> Finding:
    """
    Whether somebody asks who is in which group, as switches with snooping need it.

    @param queries: those that were heard; C{seconds} for how long.
    """
    if queries:
        who, version = queries[0].sender, queries[0].version
        who = "a switch without an address" if who == "0.0.0.0" else who
        return ok("querier", f"{who} asks, by IGMP version {version}")
    return warning(
        "querier",
        f"none: nobody asked about groups in {seconds:.1f} s, nor about one that this host left",
        "if a switch here does IGMP snooping, multicast ends some minutes after it began: have "
        "the switch or a router be querier, or snooping off; on a Linux bridge (here br0)",
        "ip link set dev br0 type bridge mcast_querier 1",
    )
