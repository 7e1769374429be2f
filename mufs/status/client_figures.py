"""The values of the client's figures (docs/operations/monitoring.md)."""

from collections.abc import Iterator
from functools import partial

from mufs.cache.client.blocks import BlockCache
from mufs.filesystem.client.reading.deliveries import BOUNDS, Histogram
from mufs.filesystem.client.remote import RemoteFileSystem
from mufs.status.client_page import HeldImage


def client_figures(
    remote: RemoteFileSystem,
    cache: BlockCache,
    *,
    cache_size: int,
    tls: bool,
    server: str,
    mount: str,
    why_absent: str,
    certificate_days: float | None = None,
) -> dict[str, object]:
    """
    All figures of /status.json.

    @param cache_size: bytes.
    @param tls: whether the request channel is one of TLS.
    @param server: its address.
    @param mount: the mount point.
    @param why_absent: why there is no connection, if that is known.
    @param certificate_days: days until this host's certificate expires, if it has one.
    """
    return {
        **client_measurements(remote, cache, cache_size=cache_size),
        "why_disconnected": "" if remote.is_connected else why_absent,
        "tls": tls,
        "certificate_days": certificate_days,
        "server": server,
        "mount": mount,
    }


def client_measurements(
    remote: RemoteFileSystem, cache: BlockCache, *, cache_size: int
) -> dict[str, object]:
    """The figures that a client has also without a mount."""
    core, receiver, repairs = remote.reads, remote.receiver, remote.repairs
    deliveries = core.deliveries
    reads, hits = deliveries.reads_and_hits
    return {
        "reads": reads,
        "hits": hits,
        "joined": deliveries.joined.total,
        "misses": deliveries.misses.total,
        "hit_rate": hits / reads if reads else 0.0,
        "lag": remote.lag,
        "bytes_delivered": deliveries.bytes_delivered,
        "bytes_zero": cache.zero_bytes_read,
        "read_seconds": {
            "hit": _histogram(deliveries.hits),
            "joined": _histogram(deliveries.joined),
            "miss": _histogram(deliveries.misses),
        },
        "bytes_requested": core.requests.bytes_requested,
        "bytes_overheard": core.bytes_overheard,
        "bytes_multicast": receiver.bytes_received,
        "image_bytes_multicast": receiver.bytes_unpacked,
        "bytes_over_tcp": core.bytes_over_tcp,
        "cache_bytes": cache.held,
        "cache_size": cache_size,
        "evictions": cache.evictions,
        "evictions_for_space": cache.given_up,
        "blocks_damaged": cache.damaged,
        "segments_received": receiver.segments_received,
        "segments_lost": repairs.segments_lost,
        "repairs_sent": repairs.repairs_sent,
        "transfers_rejected": receiver.transfers_rejected,
        "datagrams_dropped": receiver.datagrams_dropped,
        "multicast": remote.multicast_health.state,
        "multicast_works": remote.multicast_health.works,
        "connected": remote.is_connected,
    }


def _histogram(waits: Histogram) -> dict[str, object]:
    """Reads by their upper bound in seconds, without those of lower bounds."""
    bounds = [*map(str, BOUNDS), "+Inf"]
    return {"seconds": waits.seconds, "reads": dict(zip(bounds, waits.counts, strict=True))}


def client_state(
    remote: RemoteFileSystem,
    cache: BlockCache,
    *,
    cache_size: int,
    mount: str | None,
    server: str,
    why_absent: str,
) -> str:
    """
    The state of the client in one line.

    @param mount: the mount point; C{None} before it is mounted.
    @param why_absent: why there is no connection, if that is known.
    """
    if remote.is_connected:
        connection = f"connected to {server}"
    else:
        connection = f"waiting for the server at {server}"
        connection += f": {why_absent}" if why_absent else ""
    if mount is None:
        return connection
    reads, hits = remote.reads.deliveries.reads_and_hits
    return (
        f"mounted at {mount}; {connection}; multicast: {remote.multicast_health.state}; "
        f"hit rate: {hits / reads if reads else 0.0:.0%}; "
        f"cache: {cache.held >> 20} of {cache_size >> 20} MiB"
    )


def held_images(remote: RemoteFileSystem, cache: BlockCache) -> Iterator[HeldImage]:
    """The images opened last, the latest first."""
    open_images = remote.open_images()
    for image in reversed(remote.images.values()):
        missing = partial(cache.missing, image.key)
        yield HeldImage(image.path, image.size, image.key in open_images, missing)
