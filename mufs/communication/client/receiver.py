"""The client's end of the multicast group: datagrams in, opened transfers out."""

from collections import OrderedDict
from collections.abc import Callable, Iterable

from attrs import frozen
from twisted.logger import Logger

from mufs.communication.client import buffers
from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.reassembly import Reassembly
from mufs.wire.packing import Encoding, MalformedPacking, unpack
from mufs.wire.sealing import Epoch, unseal
from mufs.wire.segments import (
    ANNOUNCEMENT,
    COMPLETION,
    SEGMENT,
    TAG_SIZE,
    Descriptor,
    MalformedSegment,
    Packet,
    number_count,
    parse_datagrams,
    segment_count,
)

MAX_KEYS = 4096
"""Generations of images whose keys are remembered."""

OLD_EPOCH_LIFETIME = 2.0
"""Seconds for which replaced keys still open what was sent or received under them."""

MIN_REST = 0.001
"""Seconds of the shortest rest, see L{MulticastReceiver.rest}: a reactor's timers are no finer."""

MAX_REST = 0.02
"""Seconds of the longest rest: more would delay repairs, and gain nothing."""

MAX_URGENT_SEGMENTS = 16
"""Segments of the largest transfer that is read without rest: mostly somebody waits for it."""

Deliver = Callable[[Descriptor, memoryview, int], None]


@frozen
class _Arriving:
    """The transfer whose segments are arriving: its number, how many they are, since when."""

    transfer: int
    count: int
    since: float


class MulticastReceiver:
    """
    Takes what comes from the server's address, reassembles transfers and opens them.

    Anybody on the network can forge that address. So an announcement or completion counts only
    if it was made with the server's keys (docs/protocol.md section 5).

    A transfer's losses are counted here when the group completes it in order; L{Repairs} counts
    those of what the server says it sent for this host.

    It has no socket, and no clock: L{GroupSocket} calls it with the time, in seconds. It has many
    attributes: nine are figures for the status, and it is the hot path of every datagram, which
    layers would slow down.

    @ivar source: address and port that the server sends from, C{None} if it sends nothing.
    @ivar segment: data bytes in one segment of the server.
    @ivar segments_received: segments that came from the group, needed here or not.
    @ivar segments_due: segments of all transfers that were completed.
    @ivar segments_late: those of them that had not come by then: late / due is the loss.
    @ivar bytes_received: bytes that the transfers carried that were opened, as they came.
    @ivar bytes_unpacked: bytes of images that these were.
    @ivar datagrams_dropped: from elsewhere, malformed, or forged.
    @ivar transfers_rejected: transfers that were complete, but not what the server sealed.
    @ivar on_incomplete: called with each transfer that was completed but lacks segments here,
        and with the time.
    @ivar read_now: has what waits in the receive buffer processed; returns whether more waits.
    @ivar buffer: bytes of the receive buffer that the system granted.
    """

    _log = Logger()

    def __init__(self, multicast_health: MulticastHealth, deliver: Deliver) -> None:
        """
        @param deliver: called with the descriptor and the file bytes of each opened transfer, which
            are valid until it returns, and which of their pages are zero.
        """
        self._now = 0.0
        self._multicast_health = multicast_health
        self._deliver = deliver
        self.source: tuple[str, int] | None = None
        self._keys: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._epoch: Epoch | None = None
        self._last_epoch: Epoch | None = None
        self._last_ends = 0.0
        self._arriving: _Arriving | None = None
        self._segment_seconds = 0.0
        self.segment = SEGMENT
        self.reassembly = Reassembly(SEGMENT)
        self.on_incomplete: Callable[[Descriptor, float], None] = lambda descriptor, now: None
        self.read_now: Callable[[], bool] = lambda: False
        self.buffer = 0
        self.segments_received = 0
        self.segments_due = self.segments_late = 0
        self.bytes_received = self.bytes_unpacked = 0
        self.datagrams_dropped = 0
        self.transfers_rejected = 0

    def listen_to(self, source: tuple[str, int] | None, segment: int) -> None:
        """
        Start to receive from a server, and forget everything received before.

        @param source: address and port that it sends from; datagrams from elsewhere are dropped.
        @param segment: data bytes in one of its segments.
        """
        self.source = source
        self.segment = segment
        self._arriving = None
        self.reassembly = Reassembly(segment)
        self._keys.clear()
        self._epoch = self._last_epoch = None

    def follow(self, source: tuple[str, int] | None) -> None:
        """The server goes on from another address and port; C{None} if it sends no more."""
        self.source = source

    def add_key(self, image: int, generation: int, key: bytes) -> None:
        """From now on receive transfers of a generation of an image."""
        self._keys[image, generation] = key
        self._keys.move_to_end((image, generation))
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)

    def begin_epoch(self, number: int, secret: bytes, now: float) -> None:
        """The server uses new keys from now on."""
        self._last_epoch, self._epoch = self._epoch, Epoch(number, secret)
        self._last_ends = now + OLD_EPOCH_LIFETIME

    def received(self, datagrams: memoryview, ends: list[int], now: float) -> None:
        """
        Process datagrams of the group that came from the server's address.

        @param datagrams: one right after the other; not kept.
        @param ends: where each of them ends.
        """
        self._now = now
        self._multicast_health.on_datagram()
        packets = parse_datagrams(datagrams, ends, self.segment)
        self.segments_received += self._take(packets, from_group=True)

    def take(self, packets: bytes, now: float) -> None:
        """Process packets of the group that came over TCP."""
        self._now = now
        self._take(parse_datagrams(memoryview(packets), [len(packets)], self.segment), False)

    def rest(self, now: float) -> float:
        """
        Seconds for which reading may rest, because waking up for a few segments costs more than
        processing hundreds, and none is of use before the last of its transfer: half the time
        that the transfer still takes, judged by the last one.
        """
        arriving = self._arriving
        if arriving is None:
            return 0.0
        left = arriving.since + arriving.count * self._segment_seconds - now
        return min(max(MIN_REST, left / 2), MAX_REST) if left >= MIN_REST else 0.0

    def _take(self, packets: Iterable[Packet | MalformedSegment], from_group: bool) -> int:
        """
        Process packets.

        @param from_group: whether they came from the group itself rather than over TCP.
        @return: how many segments were among them.
        """
        segments = 0
        for packet in packets:
            if isinstance(packet, MalformedSegment):
                self.datagrams_dropped += 1
                self._log.debug("malformed datagram: {error}", error=packet)
                continue
            if len(packet) == 3:
                segments += len(packet[2])
                done = self.reassembly.segments(packet)
            else:
                done = self._control(*packet, from_group)
            for descriptor, buffer in done:
                self._open(descriptor, buffer)
        return segments

    def _control(
        self, phase: int, descriptor: Descriptor, from_group: bool
    ) -> list[tuple[Descriptor, bytearray]]:
        """Process an announcement or completion; the transfers that it completes."""
        epoch = self._epoch_of(descriptor)
        if epoch is None or not descriptor.is_authentic(phase, self.segment, epoch.control):
            self.datagrams_dropped += 1
            return []
        if from_group:
            self._multicast_health.on_authentic_packet()
            if phase == ANNOUNCEMENT:
                self._announced(descriptor)
            else:
                self._ended(descriptor, phase)
        reassembly = self.reassembly
        wanted = (descriptor.image, descriptor.generation) in self._keys
        # If the key came only now, its segments were ignored: they are not lost.
        if phase != ANNOUNCEMENT and reassembly.is_known(descriptor.transfer):
            wanted = False
        done = reassembly.describe(descriptor, wanted)
        if phase != ANNOUNCEMENT:
            first = reassembly.completed(descriptor.transfer)
            if first and from_group and phase == COMPLETION:
                self._count(descriptor)
            if reassembly.is_partial(descriptor.transfer):
                self.on_incomplete(descriptor, self._now)
        return done

    def _epoch_of(self, descriptor: Descriptor) -> Epoch | None:
        """The keys of a transfer if they are in use, or were until recently."""
        epoch, last = self._epoch, self._last_epoch
        if epoch is not None and epoch.number == descriptor.epoch:
            return epoch
        recent = self._now < self._last_ends
        return last if last is not None and recent and last.number == descriptor.epoch else None

    def _announced(self, descriptor: Descriptor) -> None:
        """The segments of a transfer follow: all of them, or a few in a repair."""
        count = segment_count(descriptor.total, self.segment)
        is_short = count <= MAX_URGENT_SEGMENTS or self.reassembly.is_known(descriptor.transfer)
        arriving = _Arriving(descriptor.transfer, count, self._now)
        self._arriving = None if is_short else arriving

    def _ended(self, descriptor: Descriptor, phase: int) -> None:
        """The segments of a transfer have been sent."""
        arriving, self._arriving = self._arriving, None
        if phase == COMPLETION and arriving and arriving.transfer == descriptor.transfer:
            self._segment_seconds = (self._now - arriving.since) / arriving.count

    def _count(self, descriptor: Descriptor) -> None:
        """Count the losses of a transfer that was completed."""
        count = segment_count(descriptor.total, self.segment)
        lost = self.reassembly.lost(descriptor.transfer)
        self.segments_due += count
        self.segments_late += lost
        if not self.reassembly.has_passed(descriptor.first + number_count(count) - 1):
            self._multicast_health.result(count, lost)

    def _open(self, descriptor: Descriptor, buffer: bytearray) -> None:
        epoch = self._epoch_of(descriptor)
        key = self._keys.get((descriptor.image, descriptor.generation))
        if epoch is not None and key is not None:
            sealed = memoryview(buffer)[: descriptor.total + TAG_SIZE]
            # In place: what is read last is still in the processor's cache.
            data = unseal(epoch.cipher(key), descriptor, sealed, sealed)
            if data is None or not self._unpack(descriptor, data):
                self.transfers_rejected += 1
                self.reassembly.restart(descriptor)
            else:
                self.bytes_received += descriptor.total
                self.bytes_unpacked += descriptor.length
        buffers.give_back(buffer)

    def _unpack(self, descriptor: Descriptor, packed: memoryview) -> bool:
        """Deliver the file bytes of an authentic transfer; whether they are there."""
        if descriptor.encoding == Encoding.PLAIN:
            self._deliver(descriptor, packed, 0)
            return True
        unpacked = buffers.take()
        try:
            data, zeros = unpack(
                descriptor.encoding, packed, descriptor.length, memoryview(unpacked)
            )
            self._deliver(descriptor, data, zeros)
        except MalformedPacking as error:
            self._log.warn("a transfer that cannot be unpacked: {error}", error=error)
            return False
        finally:
            buffers.give_back(unpacked)
        return True
