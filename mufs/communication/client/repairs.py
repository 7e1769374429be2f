"""Asks for the segments that did not come (docs/protocol.md section 4)."""

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.receiver import MulticastReceiver
from mufs.wire.channel import Occasion, Repair, Sent
from mufs.wire.segments import Descriptor, segment_count

LATE_SEGMENT_DELAY = 0.01
"""Seconds that segments may come later than the word over TCP that they were sent."""

MAX_BACKLOG_DELAYS = 20
"""How often the grace is given anew while datagrams wait to be taken in by a busy host."""

MAX_QUEUE_DELAYS = 8
"""How often it is given anew to segments that may lie in a queue that the word has overtaken."""

MAX_LOST_TRANSFERS = 1024
"""Transfers of which all was asked for that are remembered: of some no word comes any more."""

OVERHEARD_REPAIR_DELAY = 0.05
"""The same for transfers that others wait for: their repair may bring what lacks here, too."""


class Repairs:
    """
    Multicast first, then the missing segments by multicast, then those still missing over TCP,
    then the range itself over TCP: each step follows on the server's word that the one before
    was done, so that none needs a timer of its own.

    @ivar segments_lost: segments that had not come when they should have.
    @ivar repairs_sent: requests for such segments.
    """

    def __init__(
        self,
        clock: IReactorTime,
        receiver: MulticastReceiver,
        multicast_health: MulticastHealth,
        *,
        send: Callable[[bytes], None],
        is_wanted: Callable[[Sent], bool],
        read_over_tcp: Callable[[int], None],
    ) -> None:
        """
        @param send: writes a packet to the request channel.
        @param is_wanted: whether bytes that a transfer carried are still waited for.
        @param read_over_tcp: asks anew for what is left of the request of that tag.
        """
        self._clock = clock
        self._receiver = receiver
        self._multicast_health = multicast_health
        self._send = send
        self._is_wanted = is_wanted
        self._read_over_tcp = read_over_tcp
        self._overheard: set[int] = set()
        self._whole: set[int] = set()
        self.segments_lost = 0
        self.repairs_sent = 0

    def sent(self, sent: Sent) -> None:
        """The server says that it sent what this host asked for."""
        self._receiver.flush_batch()
        reassembly = self._receiver.reassembly
        if sent.occasion is Occasion.TCP:
            if self._is_wanted(sent):
                self._read_over_tcp(sent.tag)
        elif reassembly.has_passed(sent.first + self._count(sent) - 1) and (
            sent.occasion is Occasion.NOW
            or (sent.occasion is Occasion.BEFORE and not reassembly.is_partial(sent.transfer))
        ):
            self._look(sent)
        else:
            self._clock.callLater(LATE_SEGMENT_DELAY, self._look, sent)

    def on_incomplete(self, descriptor: Descriptor) -> None:
        """A transfer was completed, and lacks segments here."""
        usable = self._multicast_health.works and not self._multicast_health.is_failing
        if usable and descriptor.transfer not in self._overheard:
            self._overheard.add(descriptor.transfer)
            self._clock.callLater(OVERHEARD_REPAIR_DELAY, self._look_overheard, descriptor)

    def _look(self, sent: Sent, patience: int = MAX_BACKLOG_DELAYS) -> None:
        """See what came of a transfer, and ask for what did not."""
        self._receiver.flush_batch()
        reassembly = self._receiver.reassembly
        if not self._is_wanted(sent):
            self._whole.discard(sent.transfer)
            if sent.occasion is Occasion.NOW and reassembly.is_complete(sent.transfer):
                self._multicast_health.result(self._count(sent), 0)
            return
        late = patience > MAX_BACKLOG_DELAYS - MAX_QUEUE_DELAYS and self._is_under_way(sent)
        if late or (patience and self._receiver.has_backlog()):
            self._clock.callLater(LATE_SEGMENT_DELAY, self._look, sent, patience - 1)
            return
        missing = reassembly.missing(sent.transfer, sent.first, sent.length)
        lost = missing.bit_count()
        if sent.occasion is Occasion.NOW:
            self.segments_lost += lost
        if sent.occasion is Occasion.NOW or (
            sent.occasion is Occasion.REPAIR and lost == self._count(sent)
        ):
            self._multicast_health.result(self._count(sent), lost)
        # What others asked for, and is lost here, would be lost again: let them have the group.
        vain = sent.occasion is Occasion.BEFORE and self._multicast_health.is_failing
        if vain or not self._multicast_health.works:
            self._read_over_tcp(sent.tag)
            return
        if not reassembly.is_partial(sent.transfer):
            reassembly.forget(sent.transfer)
        # What was sent again as a whole is lost here and there, as it was the first time.
        anew, whole = sent.occasion is not Occasion.REPAIR, lost == self._count(sent)
        attempt = 1 if anew or (sent.transfer in self._whole and not whole) else 2
        self._whole.discard(sent.transfer)
        if anew and whole:
            if len(self._whole) >= MAX_LOST_TRANSFERS:
                self._whole.clear()
            self._whole.add(sent.transfer)
        reassembly.expect(sent.transfer)
        self._repair(Repair(sent.tag, sent.transfer, attempt, missing))

    def _is_under_way(self, sent: Sent) -> bool:
        """Whether datagrams come in, and none yet that were sent after that transfer."""
        if not self._multicast_health.is_receiving:
            return False
        reassembly = self._receiver.reassembly
        if sent.occasion is Occasion.REPAIR:
            return reassembly.is_expected(sent.transfer)
        return not reassembly.has_passed(sent.first + self._count(sent) - 1)

    def _look_overheard(self, descriptor: Descriptor) -> None:
        self._overheard.discard(descriptor.transfer)
        self._receiver.flush_batch()
        missing = self._receiver.reassembly.lacks(descriptor.transfer)
        if missing and self._multicast_health.works:
            self.segments_lost += missing.bit_count()
            self._repair(Repair(0, descriptor.transfer, 1, missing))

    def _repair(self, repair: Repair) -> None:
        self.repairs_sent += 1
        self._send(repair.encode())

    def _count(self, sent: Sent) -> int:
        return segment_count(sent.length, self._receiver.segment)
