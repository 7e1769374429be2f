"""What one run of the experiment came to, whoever read: replayed traces or virtual machines."""

from __future__ import annotations

import attrs


@attrs.frozen
class Host:
    """A host's line of Table IV."""

    name: str
    seconds: float
    """From the moment at which all were told to begin (Ts) until this host was done (Ti)."""
    reads: int
    """That reached the client's mount; `hits` + `joined` + `misses`, where the client tells."""
    hits: int = 0
    """Answered from the client's memory."""
    joined: int = 0
    """Waited for bytes that were on their way already."""
    misses: int = 0
    """Had to ask the server."""

    @property
    def hit_rate(self) -> float:
        """Part of the reads, 0 to 1, that the client's memory answered."""
        return self.hits / self.reads if self.reads else 0.0


@attrs.frozen
class Sample:
    """One second at the server."""

    second: int
    """Since Ts: 0 is the first one."""
    bytes_sent: int
    """By its interface within this second, headers included."""
    cpu: float
    """Seconds of processor time that its programs used within this second."""


@attrs.frozen
class Outcome:
    """One system, one run."""

    system: str
    """"nfs" or "mufs"."""
    hosts: list[Host]
    started: float
    """Ts on the monotonic clock."""
    server_reads: int
    """System calls by which the server read the image file."""
    server_read_bytes: int
    """That they returned."""
    server_requests: int
    """READs that came over the network: packets of mUFS, operations of NFS."""
    server_bytes_sent: int
    """By the server's interface, headers included."""
    unique_bytes: int
    """Of the image that one boot reads, each counted once, in whole pages of 4 KiB."""
    samples: list[Sample]
    right: bool
    """Whether all that was read was checked, and was what the server's file has."""

    @property
    def seconds(self) -> float:
        """T = max(Ti) - Ts, of the slowest host."""
        return max(host.seconds for host in self.hosts)
