"""The client's end of the multicast group: datagrams in, opened transfers out."""

import socket
from collections import OrderedDict
from collections.abc import Callable
from select import select
from typing import cast

from attrs import frozen
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.reassembly import Reassembly
from mufs.communication.multicast import UDP_GRO, MulticastProtocol, grow_receive_buffer
from mufs.wire.pages import BLOCK, EXTENT
from mufs.wire.sealing import Epoch, unseal
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    HEADER,
    SEGMENT,
    TRANSMISSION,
    Descriptor,
    MalformedSegment,
    number_count,
    parse,
    segment_count,
)

RECEIVE_BUFFER = 16 * 1024 * 1024
"""Bytes asked for the socket's receive buffer, where datagrams wait while this process is busy."""

SEGMENT_COST = 2304
"""Bytes of a receive buffer that a whole segment takes, including what the kernel adds."""

MAX_KEYS = 4096
"""Generations of images whose keys are remembered."""

OLD_EPOCH_LIFETIME = 2.0
"""Seconds for which replaced keys still open what was sent or received under them."""

MAX_BATCH_SEGMENTS = 128
"""Segments that wait for one another at most, to be processed together."""

MIN_GATHER_DELAY = 0.001
"""
Seconds for which segments that arrive in single datagrams gather in the receive buffer, if that
is large: waking up for each costs more than reading ten. The delay is longer where they arrive
slowly.
"""

MAX_GATHER_DELAY = 0.02
"""Seconds: more would delay repairs, and gain nothing."""

MAX_UNGATHERED_SEGMENTS = 16
"""Segments of the largest transfer that is read at once: mostly somebody waits for it."""

Deliver = Callable[[Descriptor, bytes], None]


def max_transfer() -> int:
    """
    Bytes of the largest transfer that this host can take: two of them fit into its receive buffer,
    since the next one comes while one is taken out.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # The kernel counts up to twice what it says that it granted.
        granted = 2 * grow_receive_buffer(probe, RECEIVE_BUFFER)
    return max(BLOCK, min(EXTENT, granted // SEGMENT_COST * SEGMENT // 2))


@frozen
class _Arriving:
    """The transfer whose segments are arriving: its number, how many they are, since when."""

    transfer: int
    count: int
    since: float


class MulticastReceiver(MulticastProtocol):
    """
    Takes what comes from the server's address, reassembles transfers and opens them.

    Anybody on the network can forge that address. So an announcement or completion counts only
    if it was made with the server's keys (docs/protocol.md section 5).

    A transfer's losses are counted here when the group completes it in order; L{Repairs} counts
    those of what the server says it sent for this host.

    It has many attributes: seven are figures for the status, and it is the hot path of every
    datagram, which layers would slow down.

    @ivar segment: data bytes in one segment of the server.
    @ivar buffer: bytes of the receive buffer that the system granted.
    @ivar segments_received: segments that came from the group, needed here or not.
    @ivar segments_due: segments of all transfers that were completed.
    @ivar segments_late: those of them that had not come by then: late / due is the loss.
    @ivar datagrams_dropped: from elsewhere, malformed, or forged.
    @ivar transfers_rejected: transfers that were complete, but not what the server sealed.
    @ivar on_incomplete: called with each transfer that was completed but lacks segments here.
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, multicast_health: MulticastHealth, deliver: Deliver
    ) -> None:
        """@param deliver: called with the descriptor and the file bytes of each opened transfer."""
        self._clock = clock
        self._multicast_health = multicast_health
        self._deliver = deliver
        self._source: tuple[str, int] | None = None
        self._keys: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._epoch: Epoch | None = None
        self._last_epoch: Epoch | None = None
        self._last_ends = 0.0
        self._batch: list[bytes] = []
        self._head = b""
        self._gathering: IDelayedCall | None = None
        self._arriving: _Arriving | None = None
        self._segment_seconds = 0.0
        self.segment = SEGMENT
        self.reassembly = Reassembly(SEGMENT)
        self.on_incomplete: Callable[[Descriptor], None] = lambda descriptor: None
        self.buffer = 0
        self.segments_received = 0
        self.segments_due = self.segments_late = 0
        self.datagrams_dropped = 0
        self.transfers_rejected = 0

    def startProtocol(self) -> None:
        """Set up the socket."""
        self.buffer = self.grow_receive_buffer(RECEIVE_BUFFER)
        offload = self._set(socket.SOL_UDP, UDP_GRO, 1)
        self._log.info(
            "receive buffer of {buffer} KiB, datagrams received together: {offload}",
            buffer=self.buffer // 1024,
            offload="yes" if offload else "no",
        )

    def stopProtocol(self) -> None:
        """Stop gathering."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None

    def flush_batch(self) -> None:
        """Process the batched segments."""
        batch, self._batch = self._batch, []
        if batch:
            self.segments_received += self.take(b"".join(batch), from_group=True)

    def has_backlog(self) -> bool:
        """Whether unread datagrams wait in the receive buffer."""
        return self.transport is not None and bool(select([self._socket()], [], [], 0)[0])

    def listen_to(self, source: tuple[str, int] | None, segment: int) -> None:
        """
        Start to receive from a server, and forget everything received before.

        @param source: address and port that it sends from; datagrams from elsewhere are dropped.
        @param segment: data bytes in one of its segments.
        """
        self._source = source
        self.segment = segment
        self._head = HEADER.pack(TRANSMISSION, segment, 0)[:-4]
        self._batch.clear()
        self._arriving = None
        self.reassembly = Reassembly(segment)
        self._keys.clear()
        self._epoch = self._last_epoch = None

    def follow(self, source: tuple[str, int] | None) -> None:
        """The server goes on from another address and port; C{None} if it sends no more."""
        self._source = source

    def add_key(self, image: int, generation: int, key: bytes) -> None:
        """From now on receive transfers of a generation of an image."""
        self._keys[image, generation] = key
        self._keys.move_to_end((image, generation))
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)

    def begin_epoch(self, number: int, secret: bytes) -> None:
        """The server uses new keys from now on."""
        self._last_epoch, self._epoch = self._epoch, Epoch(number, secret)
        self._last_ends = self._clock.seconds() + OLD_EPOCH_LIFETIME

    def _epoch_of(self, descriptor: Descriptor) -> Epoch | None:
        """The keys of a transfer if they are in use, or were until recently."""
        epoch, last = self._epoch, self._last_epoch
        if epoch is not None and epoch.number == descriptor.epoch:
            return epoch
        recent = self._clock.seconds() < self._last_ends
        return last if last is not None and recent and last.number == descriptor.epoch else None

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Process a datagram, or several that the kernel merged."""
        if addr != self._source:
            self.datagrams_dropped += 1
            return
        self._multicast_health.on_datagram()
        # One by one, segments cost many times what they do in a batch, and none is of use before
        # the last of its transfer.
        whole = len(datagram) == HEADER.size + self.segment and datagram.startswith(self._head)
        if whole:
            self._batch.append(datagram)
            if self._arriving is not None and self.buffer >= RECEIVE_BUFFER // 4:
                self._gather(self._arriving)
            if len(self._batch) >= MAX_BATCH_SEGMENTS:
                self.flush_batch()
        else:
            self.flush_batch()
            self.segments_received += self.take(datagram, from_group=True)

    def _gather(self, arriving: _Arriving) -> None:
        """Stop reading for half the time that the transfer still takes, judged by the last one."""
        if self._gathering is None:
            left = arriving.since + arriving.count * self._segment_seconds - self._clock.seconds()
            self._port().stopReading()
            delay = min(max(MIN_GATHER_DELAY, left / 2), MAX_GATHER_DELAY)
            self._gathering = self._clock.callLater(delay, self._read_on)

    def _announced(self, descriptor: Descriptor) -> None:
        """The segments of a transfer follow: all of them, or a few in a repair."""
        count = segment_count(descriptor.total, self.segment)
        is_short = count <= MAX_UNGATHERED_SEGMENTS or self.reassembly.is_known(descriptor.transfer)
        now = self._clock.seconds()
        self._arriving = None if is_short else _Arriving(descriptor.transfer, count, now)

    def _ended(self, descriptor: Descriptor, phase: int) -> None:
        """The segments of a transfer have been sent."""
        arriving, self._arriving = self._arriving, None
        if phase == COMPLETION and arriving and arriving.transfer == descriptor.transfer:
            self._segment_seconds = (self._clock.seconds() - arriving.since) / arriving.count

    def _port(self) -> FileDescriptor:
        return cast(FileDescriptor, self.transport)

    def _read_on(self) -> None:
        self._gathering = None
        self._port().startReading()

    def take(self, packets: bytes, from_group: bool = False) -> int:
        """
        Process packets of the group.

        @param from_group: whether they came from the group itself rather than over TCP.
        @return: how many segments were among them.
        """
        segments = 0
        try:
            for packet in parse(packets, self.segment):
                if len(packet) == 3:
                    segments += len(packet[2])
                    done = self.reassembly.segments(packet)
                else:
                    phase, descriptor = packet
                    epoch = self._epoch_of(descriptor)
                    if epoch is None or not descriptor.is_authentic(
                        phase, self.segment, epoch.control
                    ):
                        self.datagrams_dropped += 1
                        continue
                    if from_group:
                        self._multicast_health.on_authentic_packet()
                        if phase == ANNOUNCEMENT:
                            self._announced(descriptor)
                        else:
                            self._ended(descriptor, phase)
                    wanted = (descriptor.image, descriptor.generation) in self._keys
                    # If the key came only now, its segments were ignored: they are not lost.
                    if phase != ANNOUNCEMENT and self.reassembly.is_known(descriptor.transfer):
                        wanted = False
                    done = self.reassembly.describe(descriptor, wanted)
                    if phase != ANNOUNCEMENT:
                        first = self.reassembly.completed(descriptor.transfer)
                        if first and from_group and phase == COMPLETION:
                            self._count(descriptor)
                        if self.reassembly.is_partial(descriptor.transfer):
                            self.on_incomplete(descriptor)
                for descriptor, sealed in done:
                    self._open(descriptor, sealed)
        except MalformedSegment as error:
            self.datagrams_dropped += 1
            self._log.debug("malformed datagram: {error}", error=error)
        return segments

    def _count(self, descriptor: Descriptor) -> None:
        """Count the losses of a transfer that was completed."""
        count = segment_count(descriptor.total, self.segment)
        lost = self.reassembly.lost(descriptor.transfer)
        self.segments_due += count
        self.segments_late += lost
        if not self.reassembly.has_passed(descriptor.first + number_count(count) - 1):
            self._multicast_health.result(count, lost)

    def _open(self, descriptor: Descriptor, sealed: bytearray) -> None:
        epoch = self._epoch_of(descriptor)
        key = self._keys.get((descriptor.image, descriptor.generation))
        if epoch is None or key is None:
            return
        data = unseal(epoch.cipher(key), descriptor, sealed)
        if data is None:
            self.transfers_rejected += 1
            self.reassembly.restart(descriptor)
        else:
            self._deliver(descriptor, data)
