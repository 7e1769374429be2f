"""The values of the server's figures (docs/operations/monitoring.md)."""

from itertools import islice

from mufs.communication.server.access_statistics import ImageAccess
from mufs.communication.server.channel import ServerChannel
from mufs.server_core import ServerCore
from mufs.units import shown
from mufs.wire.metadata import Report

MAX_OPEN_IMAGES = 20
"""Images that are named of those that a client has open."""


def server_figures(
    core: ServerCore, *, tls: bool, interface: str | None, certificate_days: float | None = None
) -> dict[str, object]:
    """
    All figures of /status.json.

    @param tls: whether the request channel is one of TLS.
    @param interface: address of the interface that multicast goes out on.
    @param certificate_days: days until the server's certificate expires, if it has one.
    """
    return {
        **server_totals(core, tls=tls),
        "certificate_days": certificate_days,
        "interface": interface,
        "clients": [_client(each) for each in core.factory.channels if each.name],
        "images": [_image(image, rate) for image, rate in core.factory.access_statistics],
    }


def server_totals(core: ServerCore, *, tls: bool) -> dict[str, object]:
    """The figures of the server as a whole, without its clients and images."""
    controller, packer = core.controller, core.packer
    return {
        "image_reads": core.reads.image_reads,
        "image_read_bytes": core.reads.image_read_bytes,
        "requests": core.queue.requests,
        "requests_merged": core.queue.merged,
        "queue": len(core.queue),
        "transfers": controller.transfers,
        "segments_sent": controller.segments_sent,
        "segments_repaired": controller.segments_repaired,
        "segments_awaited": core.pace.segments_awaited,
        "segments_lost": core.pace.segments_lost,
        "parity_sent": controller.parity_sent,
        "image_bytes_multicast": packer.bytes_taken,
        "bytes_zero": packer.bytes_zero,
        "bytes_compressed": packer.bytes_compressed,
        "bytes_compressed_to": packer.bytes_of_frames,
        "compression_seconds": packer.seconds,
        "bytes_multicast": controller.bytes_multicast,
        "bytes_over_tcp": core.factory.bytes_over_tcp,
        "bytes_delivered": core.factory.bytes_delivered,
        "rate": round(core.pace.rate),
        "key_epoch": core.keys.epoch.number,
        "connections": core.limits.connections,
        "refused": core.limits.refused,
        "cut_off": core.limits.cut_off,
        "tls": tls,
    }


def server_state(core: ServerCore) -> str:
    """The state of the server in one line."""
    clients = [channel for channel in core.factory.channels if channel.name]
    over_tcp = sum(map(_reads_over_tcp, clients))
    return (
        f"clients: {len(clients)}, of these over TCP: {over_tcp}; queue: {len(core.queue)}; "
        f"rate: at most {core.pace.rate / 1e6:.0f} Mbit/s"
    )


def _client(channel: ServerChannel) -> dict[str, object]:
    """The row of a client; before its first report as if it had read nothing."""
    report = channel.report or Report(0, 0, 0, 0, True, "")
    last = channel.handles.last_access
    return {
        "name": channel.name,
        "address": channel.address,
        "connections": 1,
        "requests": channel.requests,
        "repairs": channel.repairs,
        "bytes_over_tcp": channel.bytes_over_tcp,
        "bytes_delivered": channel.bytes_delivered,
        "over_tcp": _reads_over_tcp(channel),
        "waiting": channel.share.waiting,
        "held_back": channel.host.held_back,
        "image": None if last is None else shown(last.path),
        "images": len(channel.handles),
        "open_images": [shown(path) for path in islice(channel.handles.paths(), MAX_OPEN_IMAGES)],
        "connected": channel.log.connected_for,
        "reads": report.reads,
        "hits": report.hits,
        "lag": report.lag / 1000,
        "multicast": report.multicast,
    }


def _reads_over_tcp(channel: ServerChannel) -> bool:
    return channel.over_tcp or not (channel.report is None or channel.report.works)


def _image(image: ImageAccess, rate: float) -> dict[str, object]:
    """The row of an image; C{rate} is in bytes per second."""
    return {
        "name": shown(image.path),
        "size": image.size,
        "opens": image.opens,
        "requests": image.requests,
        "bytes_requested": image.bytes_requested,
        "demand": round(rate),
    }
