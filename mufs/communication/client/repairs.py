"""Asks for the segments that did not come (docs/protocol.md section 4)."""

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from itertools import count

from mufs.communication.client.multicast_health import MulticastHealth
from mufs.communication.client.receiver import MulticastReceiver
from mufs.wire.channel import Occasion, Repair, Sent
from mufs.wire.segments import Descriptor, segment_count

LATE_SEGMENT_DELAY = 0.01
"""Seconds that segments may arrive later than the SENT over TCP that tells of them."""

MAX_BACKLOG_DELAYS = 20
"""Such delays at most while datagrams wait in the receive buffer of a busy host."""

MAX_QUEUE_DELAYS = 8
"""Such delays at most while segments may still wait in a queue that SENT overtook."""

MAX_LOST_TRANSFERS = 1024
"""Transfers lost as a whole that are remembered until they are repaired; some never are."""

OVERHEARD_REPAIR_DELAY = 0.05
"""Seconds until an overheard transfer is repaired: a repair for others may complete it before."""


class Repairs:
    """
    Lost segments are requested again by multicast, then over TCP, and at last the whole range is
    read over TCP. Each step waits for the server's SENT of the previous one, so none needs a timer
    of its own.

    What is looked at again later is done by L{check}; all times are seconds of one clock.

    A SENT is judged here, once its segments are due: what of it is lost, and what to do about it.
    Whether multicast may be used for that is L{MulticastHealth}'s decision.

    @ivar segments_lost: segments that had not come when they were due.
    @ivar repairs_sent: requests for missing segments, without those for whole transfers that this
        host had not waited for.
    """

    def __init__(
        self,
        receiver: MulticastReceiver,
        multicast_health: MulticastHealth,
        *,
        send: Callable[[bytes], None],
        is_wanted: Callable[[Sent], bool],
        read_again: Callable[[int], None],
        read_over_tcp: Callable[[int], None],
    ) -> None:
        """
        @param send: writes a packet to the request channel.
        @param is_wanted: whether bytes that a transfer carried are still waited for.
        @param read_again: asks again for what the request of that tag still lacks;
            C{read_over_tcp} asks for it over TCP.
        """
        self._receiver = receiver
        self._multicast_health = multicast_health
        self._send = send
        self._is_wanted = is_wanted
        self._read_again = read_again
        self._read_over_tcp = read_over_tcp
        self._checks: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._overheard: set[int] = set()
        self._lost_transfers: set[int] = set()
        self.segments_lost = 0
        self.repairs_sent = 0

    @property
    def due(self) -> float | None:
        """When L{check} is to be called, C{None} if there is nothing to look at."""
        return self._checks[0][0] if self._checks else None

    def check(self, now: float) -> None:
        """Look at what was left for later."""
        while self._checks and self._checks[0][0] <= now:
            heappop(self._checks)[2](now)

    def sent(self, sent: Sent, now: float) -> None:
        """The server has sent what this host asked for. See L{IChannelUser.sent}."""
        self._receiver.read_now()
        reassembly = self._receiver.reassembly
        if sent.occasion is Occasion.TCP:
            if self._is_wanted(sent):
                self._read_over_tcp(sent.tag)
        elif reassembly.is_complete(sent.transfer) or (
            reassembly.has_passed(sent.first + self._count(sent) - 1)
            and (
                sent.occasion is Occasion.NOW
                or (sent.occasion is Occasion.BEFORE and not reassembly.is_partial(sent.transfer))
            )
        ):
            self._check(sent, MAX_BACKLOG_DELAYS, now)
        else:
            self._check_later(sent, MAX_BACKLOG_DELAYS, now)

    def on_incomplete(self, descriptor: Descriptor, now: float) -> None:
        """A transfer was completed, and lacks segments here."""
        may_repair = self._multicast_health.may_repair(for_others=True)
        if may_repair and descriptor.transfer not in self._overheard:
            self._overheard.add(descriptor.transfer)
            self._later(now + OVERHEARD_REPAIR_DELAY, partial(self._check_overheard, descriptor))

    def _later(self, due: float, function: Callable[[float], None]) -> None:
        heappush(self._checks, (due, next(self._order), function))

    def _check_later(self, sent: Sent, delays_left: int, now: float) -> None:
        self._later(now + LATE_SEGMENT_DELAY, partial(self._check, sent, delays_left))

    def _check(self, sent: Sent, delays_left: int, now: float) -> None:
        """Find what of a transfer is lost, and ask for it."""
        more_waits = self._receiver.read_now()
        reassembly = self._receiver.reassembly
        if not self._is_wanted(sent):
            self._lost_transfers.discard(sent.transfer)
            if sent.occasion is Occasion.NOW and reassembly.is_complete(sent.transfer):
                self._multicast_health.result(self._count(sent), 0)
            return
        # It came in full, but before the key of its image, or the cache dropped it: not a loss.
        is_complete = reassembly.is_complete(sent.transfer)
        if is_complete and sent.occasion is Occasion.NOW:
            self._multicast_health.result(self._count(sent), 0)
            self._read_again(sent.tag)
            return
        queued = delays_left > MAX_BACKLOG_DELAYS - MAX_QUEUE_DELAYS and self._is_under_way(sent)
        if not is_complete and (queued or (delays_left and more_waits)):
            self._check_later(sent, delays_left - 1, now)
            return
        missing = reassembly.missing(sent.transfer, sent.first, sent.total)
        lost = missing.bit_count()
        if sent.occasion is Occasion.NOW:
            self.segments_lost += lost
        if sent.occasion is Occasion.NOW or (
            sent.occasion is Occasion.REPAIR and lost == self._count(sent)
        ):
            self._multicast_health.result(self._count(sent), lost)
        for_others = sent.occasion is Occasion.BEFORE
        if not self._multicast_health.may_repair(for_others=for_others):
            self._read_over_tcp(sent.tag)
            return
        if not reassembly.is_partial(sent.transfer):
            reassembly.forget(sent.transfer)
        # A transfer that was repeated as a whole loses some segments, like any first sending.
        is_first, all_lost = sent.occasion is not Occasion.REPAIR, lost == self._count(sent)
        repeated = sent.transfer in self._lost_transfers and not all_lost
        attempt = 1 if is_first or repeated else 2
        self._lost_transfers.discard(sent.transfer)
        if is_first and all_lost:
            if len(self._lost_transfers) >= MAX_LOST_TRANSFERS:
                self._lost_transfers.clear()
            self._lost_transfers.add(sent.transfer)
        reassembly.expect(sent.transfer)
        repair = Repair(sent.tag, sent.transfer, attempt, missing)
        self._repair(repair, is_loss=not (for_others and all_lost))

    def _is_under_way(self, sent: Sent) -> bool:
        """Whether datagrams are arriving, but none yet that was sent after that transfer."""
        if not self._multicast_health.is_receiving:
            return False
        reassembly = self._receiver.reassembly
        if sent.occasion is Occasion.REPAIR:
            return reassembly.is_expected(sent.transfer)
        return not reassembly.has_passed(sent.first + self._count(sent) - 1)

    def _check_overheard(self, descriptor: Descriptor, now: float) -> None:
        self._overheard.discard(descriptor.transfer)
        self._receiver.read_now()
        missing = self._receiver.reassembly.claim_missing(descriptor.transfer)
        if missing and self._multicast_health.may_repair(for_others=False):
            self.segments_lost += missing.bit_count()
            self._repair(Repair(0, descriptor.transfer, 1, missing))

    def _repair(self, repair: Repair, *, is_loss: bool = True) -> None:
        self.repairs_sent += is_loss
        self._send(repair.encode())

    def _count(self, sent: Sent) -> int:
        return segment_count(sent.total, self._receiver.segment)
