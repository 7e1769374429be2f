"""
Each figure: its name in /status.json, its metric in /metrics, its kind and its meaning.

docs/operations/monitoring.md has the same in its tables, which a test compares.
"""

from collections.abc import Mapping, Sequence
from enum import Enum

from attrs import field, frozen


class Kind(Enum):
    """Whether a figure only grows, goes up and down, or is a table of durations."""

    COUNTER = "what was counted"
    GAUGE = "what is now"
    HISTOGRAM = "how many took how long, by how they were answered"


@frozen
class Figure:
    """
    A figure that is also a metric.

    @ivar metric: its name without prefix and, for a counter, without C{_total}.
    @ivar scale: factor from the figure to the metric, which is in bytes and seconds.
    @ivar largest: the metric of several rows of one host is the largest of them, not their sum.
    """

    name: str
    metric: str
    kind: Kind
    help: str
    scale: float = field(default=1.0, kw_only=True)
    largest: bool = field(default=False, kw_only=True)


@frozen
class Table:
    """
    A figure that is a list, with a row for each client or image.

    @ivar prefix: of its metrics.
    @ivar labels: the labels of its metrics, each with the figure of the row that it shows.
    """

    name: str
    prefix: str
    labels: Mapping[str, str]
    figures: Sequence[Figure]


@frozen
class Schema:
    """All figures of a service that are also metrics."""

    prefix: str
    figures: Sequence[Figure]
    tables: Sequence[Table] = ()


COUNTER, GAUGE, HISTOGRAM = Kind

SERVER = Schema(
    "mufs_server_",
    [
        Figure("image_reads", "image_reads", COUNTER, "Reads of image files"),
        Figure("image_read_bytes", "image_read_bytes", COUNTER, "Bytes read of image files"),
        Figure("requests", "requests", COUNTER, "READs to be answered by multicast"),
        Figure(
            "requests_merged", "requests_merged", COUNTER,
            "READs that were merged into a transfer for others",
        ),
        Figure("queue", "queue_entries", GAUGE, "Ranges and repairs that wait or are being sent"),
        Figure("transfers", "transfers", COUNTER, "Transfers sent by multicast"),
        Figure("segments_sent", "segments_sent", COUNTER, "Segments of these transfers"),
        Figure(
            "segments_repaired", "segments_repaired", COUNTER,
            "Segments sent again, and parity segments in their place",
        ),
        Figure(
            "segments_awaited", "segments_awaited", COUNTER,
            "Segments sent, counted for each client that waited for them",
        ),
        Figure(
            "segments_lost", "segments_lost", COUNTER,
            "Segments reported missing by clients that waited for them",
        ),
        Figure("parity_sent", "parity_segments_sent", COUNTER, "Parity segments of transfers"),
        Figure(
            "image_bytes_multicast", "multicast_image_bytes", COUNTER,
            "Bytes of images that transfers carried, before they were packed",
        ),
        Figure(
            "bytes_zero", "multicast_zero_bytes", COUNTER,
            "Those of them that were zero, and left out",
        ),
        Figure(
            "bytes_compressed", "compression_input_bytes", COUNTER,
            "Those of them that were compressed",
        ),
        Figure(
            "bytes_compressed_to", "compression_output_bytes", COUNTER,
            "What was compressed, in compressed bytes",
        ),
        Figure(
            "compression_seconds", "compression_seconds", COUNTER,
            "Seconds of processor time that compressing took",
        ),
        Figure("bytes_multicast", "multicast_bytes", COUNTER, "Bytes of datagrams to the group"),
        Figure("bytes_over_tcp", "tcp_bytes", COUNTER, "Bytes of file data sent over TCP"),
        Figure(
            "bytes_delivered", "delivered_bytes", COUNTER,
            "Bytes that clients gave to their readers, as they report",
        ),
        Figure(
            "rate", "rate_limit_bytes_per_second", GAUGE,
            "Maximum rate of multicast at present", scale=1 / 8,
        ),
        Figure("key_epoch", "key_changes", COUNTER, "Times the multicast keys were replaced"),
        Figure("connections", "connections", GAUGE, "Connections, including those without HELLO"),
        Figure("refused", "connections_refused", COUNTER, "Connections refused as too many"),
        Figure("cut_off", "connections_cut_off", COUNTER, "Connections that the server closed"),
        Figure("tls", "tls", GAUGE, "1 if the request channel uses TLS"),
        Figure(
            "certificate_days", "certificate_left_seconds", GAUGE,
            "Seconds until the certificate of this service expires, if it has one", scale=86400,
        ),
    ],
    [
        Table(
            "clients", "client_", {"host": "name", "address": "address"},
            [
                Figure("connections", "connections", GAUGE, "Connections of the host"),
                Figure("requests", "requests", COUNTER, "Requests that the host made"),
                Figure("repairs", "repairs", COUNTER, "Requests for missing segments"),
                Figure("bytes_over_tcp", "tcp_bytes", COUNTER, "Bytes sent to the host over TCP"),
                Figure(
                    "bytes_delivered", "delivered_bytes", COUNTER,
                    "Bytes that the host gave to its readers",
                ),
                Figure(
                    "over_tcp", "over_tcp", GAUGE,
                    "Connections that read over TCP for lack of multicast",
                ),
                Figure(
                    "waiting", "waiting_bytes", GAUGE,
                    "Bytes requested by its address and not sent yet", largest=True,
                ),
                Figure(
                    "held_back", "held_back", COUNTER,
                    "Times that its address was throttled", largest=True,
                ),
                Figure(
                    "connected", "connected_seconds", GAUGE, "Since when the host is connected",
                    largest=True,
                ),
                Figure("images", "open_images", GAUGE, "Images that the host has open"),
                Figure("reads", "reads", COUNTER, "Reads that reached the client"),
                Figure("hits", "hits", COUNTER, "Reads that its cache answered"),
                Figure(
                    "lag", "lag_seconds", GAUGE, "Longest wait of a read in the last report",
                    largest=True,
                ),
            ],
        ),
        Table(
            "images", "image_", {"image": "name"},
            [
                Figure("size", "size_bytes", GAUGE, "Size of the image when it was opened last"),
                Figure("opens", "opens", GAUGE, "Open handles of clients"),
                Figure("requests", "requests", COUNTER, "READs for the image"),
                Figure("bytes_requested", "requested_bytes", COUNTER, "Bytes that they request"),
            ],
        ),
    ],
)  # fmt: skip

CLIENT = Schema(
    "mufs_client_",
    [
        Figure("reads", "reads", COUNTER, "Reads that reached the client"),
        Figure("hits", "hits", COUNTER, "Reads that the cache answered"),
        Figure("joined", "joined", COUNTER, "Reads that waited for bytes already on their way"),
        Figure("misses", "misses", COUNTER, "Reads that had to ask the server"),
        Figure("lag", "lag_seconds", GAUGE, "Longest wait of a read in the last five seconds"),
        Figure(
            "read_seconds", "read_seconds", HISTOGRAM,
            "How long reads took in the client, by how they were answered",
        ),
        Figure("bytes_delivered", "delivered_bytes", COUNTER, "Bytes given to readers"),
        Figure(
            "bytes_zero", "delivered_zero_bytes", COUNTER,
            "Those of them that were known to be zero",
        ),
        Figure("bytes_requested", "requested_bytes", COUNTER, "Bytes requested from the server"),
        Figure("bytes_overheard", "overheard_bytes", COUNTER, "Bytes received without asking"),
        Figure(
            "bytes_multicast", "multicast_bytes", COUNTER,
            "Bytes of transfers received, as they were sent",
        ),
        Figure(
            "image_bytes_multicast", "multicast_image_bytes", COUNTER,
            "Bytes of images that these transfers carried",
        ),
        Figure("bytes_over_tcp", "tcp_bytes", COUNTER, "Bytes of file data received over TCP"),
        Figure("cache_bytes", "cache_bytes", GAUGE, "Bytes in the cache"),
        Figure("cache_size", "cache_size_bytes", GAUGE, "Bytes that the cache may hold"),
        Figure("evictions", "evictions", COUNTER, "Blocks dropped from the cache to make room"),
        Figure(
            "evictions_for_space", "evictions_for_space", COUNTER,
            "Blocks dropped because the disk of the cache was filling up",
        ),
        Figure("blocks_damaged", "blocks_damaged", COUNTER, "Blocks found damaged in the cache"),
        Figure("segments_received", "segments_received", COUNTER, "Segments received by multicast"),
        Figure("segments_lost", "segments_lost", COUNTER, "Segments that did not arrive in time"),
        Figure("repairs_sent", "repairs_sent", COUNTER, "Requests for missing segments"),
        Figure("transfers_rejected", "transfers_rejected", COUNTER, "Transfers not authentic"),
        Figure("datagrams_dropped", "datagrams_dropped", COUNTER, "Datagrams dropped as not valid"),
        Figure("multicast_works", "multicast_works", GAUGE, "0 if multicast does not work"),
        Figure("connected", "connected", GAUGE, "1 while there is a connection to the server"),
        Figure("tls", "tls", GAUGE, "1 if the request channel uses TLS"),
        Figure(
            "certificate_days", "certificate_left_seconds", GAUGE,
            "Seconds until the certificate of this service expires, if it has one", scale=86400,
        ),
    ],
)  # fmt: skip
