"""The results of one run of the experiment, with replayed traces or with virtual machines."""

from __future__ import annotations

import attrs


@attrs.frozen
class Host:
    """A host's line of Table IV."""

    name: str
    seconds: float
    """From the moment at which all were told to begin (Ts) until this host was done (Ti)."""
    reads: int
    """Reads that reached the mount; `hits` + `joined` + `misses`, if the client has figures."""
    hits: int = 0
    """Reads answered from the cache."""
    joined: int = 0
    """Reads that waited for bytes that were already on their way."""
    misses: int = 0
    """Reads that had to ask the server."""

    @property
    def hit_rate(self) -> float:
        """The part of the reads, 0 to 1, that was answered from the cache."""
        return self.hits / self.reads if self.reads else 0.0


@attrs.frozen
class Sample:
    """One second at the server."""

    second: int
    """Since Ts: 0 is the first one."""
    bytes_sent: int
    """Bytes that its interface sent within this second, headers included."""
    cpu: float
    """Seconds of processor time that its programs used within this second."""


@attrs.frozen
class Outcome:
    """One run with one system."""

    system: str
    """"nfs" or "mufs"."""
    hosts: list[Host]
    started: float
    """Ts on the monotonic clock."""
    server_reads: int
    """System calls by which the server read the image file."""
    server_read_bytes: int
    """Bytes that these calls returned."""
    server_requests: int
    """READs over the network: packets of mUFS, operations of NFS."""
    server_bytes_sent: int
    """Bytes that the server's interface sent, headers included."""
    unique_bytes: int
    """Bytes of the image that one boot reads, each counted once, in whole pages of 4 KiB."""
    samples: list[Sample]
    right: bool
    """Whether everything that was read equals the server's file."""

    @property
    def seconds(self) -> float:
        """T = max(Ti) - Ts, of the slowest host."""
        return max(host.seconds for host in self.hosts)
