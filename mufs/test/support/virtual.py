"""Clock, links and connections in virtual time, used by L{mufs.test.support.simulation}."""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

from attrs import define, field
from twisted.internet.base import DelayedCall
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mufs.wire.segments import HEADER, SEGMENT

STRIDE = HEADER.size + SEGMENT
FRAME = 42
"""Bytes of Ethernet, IP and UDP headers of each datagram on a link."""

WINDOW = 64 * 1024
"""Bytes of a connection that may be in flight."""

TCP_BUFFER = 64 * 1024
"""Bytes that a connection buffers before it pauses its producer."""


class VirtualTime(Clock):
    """A clock that jumps from call to call, fast even with thousands of pending calls."""

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[float, int, DelayedCall]] = []
        self._order = count()

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> DelayedCall:
        """See L{IReactorTime.callLater}."""
        at = self.rightNow + delay
        call = DelayedCall(at, callable, args, kw, lambda _: None, self._moved, self.seconds)
        heappush(self._heap, (at, next(self._order), call))
        return call

    def getDelayedCalls(self) -> list[DelayedCall]:
        """See L{IReactorTime.getDelayedCalls}."""
        return [call for _, _, call in self._heap if call.active()]

    def advance(self, amount: float) -> None:
        """Advance by C{amount} seconds, making each call at its own time."""
        self.run_until(lambda: False, self.rightNow + amount)

    def run_until(self, done: Callable[[], bool], at_last: float) -> None:
        """Make calls until C{done} returns true, or until the time C{at_last}."""
        while not done():
            if not self._heap or self._heap[0][0] > at_last:
                self.rightNow = max(self.rightNow, at_last)
                return
            at, _, call = heappop(self._heap)
            if not call.active():
                continue
            if call.getTime() > at:
                # A reset to a later time does not tell the clock.
                call.activate_delay()
                self._moved(call)
            else:
                self.rightNow = max(self.rightNow, at)
                call.called = 1
                call.func(*call.args, **call.kw)

    def _moved(self, call: DelayedCall) -> None:
        heappush(self._heap, (call.getTime(), next(self._order), call))


@define(eq=False)
class Link:
    """A link that carries packets one after the other, at C{rate} bits a second."""

    rate: float | None
    free_at: float = 0.0

    def through(self, now: float, size: int) -> float:
        """Return when C{size} bytes sent at C{now} arrive."""
        self.free_at = max(now, self.free_at) + (size * 8 / self.rate if self.rate else 0.0)
        return self.free_at

    def overtaking(self, now: float, size: int) -> float:
        """Return when C{size} bytes arrive that overtake the queue, as in a fair queue."""
        self.free_at = max(now, self.free_at) + (size * 8 / self.rate if self.rate else 0.0)
        return now + (size * 8 / self.rate if self.rate else 0.0)

    def waiting(self, now: float) -> float:
        """Return the bytes in its queue."""
        return max(0.0, self.free_at - now) * (self.rate or 0) / 8


@define(eq=False)
class Path:
    """
    The path from the server's link to one client.

    @ivar latency: delay in seconds.
    @ivar jitter: maximum additional delay of a datagram in seconds; it causes reordering.
    @ivar loss: the fraction of datagrams that is lost.
    @ivar duplicates: the fraction of datagrams that arrives twice.
    @ivar rate: the rate of a link on the path in bits a second, whose queue holds C{queue} bytes.
    @ivar joined: whether consecutive datagrams are delivered together.
    """

    latency: float = 0.0001
    jitter: float = 0.0
    loss: float = 0.0
    duplicates: float = 0.0
    rate: float | None = None
    queue: int = 128 * 1024
    joined: bool = True
    random: random.Random = field(factory=random.Random)
    link: Link = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.link = Link(self.rate)

    def tcp(self, start: float, size: int) -> float:
        """Return when bytes of a connection arrive that leave the server at C{start}."""
        return self.link.through(start + self.latency, size)

    def datagrams(self, start: float, end: float, packets: bytes) -> list[tuple[float, bytes]]:
        """Return arrivals, time and bytes, of datagrams sent from C{start} to C{end}."""
        total = -(-len(packets) // STRIDE)
        arrivals: list[list[Any]] = []
        for i in range(total):
            if self.loss and self.random.random() < self.loss:
                continue
            at = start + (end - start) * (i + 1) / total + self.latency
            size = min(STRIDE, len(packets) - i * STRIDE) + FRAME
            if self.rate:
                if self.link.waiting(at) + size > self.queue:
                    continue
                at = self.link.through(at, size)
            at += self.random.random() * self.jitter
            if self.joined and not self.jitter and arrivals and arrivals[-1][2] == i:
                arrivals[-1][0], arrivals[-1][2] = at, i + 1
            else:
                arrivals.append([at, i, i + 1])
            if self.duplicates and self.random.random() < self.duplicates:
                arrivals.append([at + self.random.random() * 0.01, i, i + 1])
        return [(at, packets[first * STRIDE : last * STRIDE]) for at, first, last in arrivals]


class Stream:
    """
    One end of a reliable connection, as its protocol sees it.

    @ivar bytes_sent: the number of bytes that its protocol has written.
    """

    peer: Stream

    def __init__(self, clock: VirtualTime, host: str, arrival: Callable[[int], float]) -> None:
        """@param arrival: returns when bytes written now arrive at the other end."""
        self._clock = clock
        self._host = host
        self._arrival = arrival
        self._unsent = bytearray()
        self._arrived = bytearray()
        self._reading = True
        self._under_way = 0
        self._producer: Any = None
        self._paused = self._closing = False
        self.bytes_sent = 0
        self.protocol: Protocol | None = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        """See L{ITCPTransport}."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """See L{ITCPTransport}."""

    def getPeer(self) -> str:
        """See L{ITransport}."""
        return self.peer._host

    def getHost(self) -> str:
        """See L{ITransport}."""
        return self._host

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See L{IConsumer}; only push producers are supported."""
        assert streaming
        self._producer = producer

    def unregisterProducer(self) -> None:
        """See L{IConsumer}."""
        self._producer = None

    def pauseProducing(self) -> None:
        """See C{IPushProducer}: stop delivering data to the protocol."""
        self._reading = False

    def resumeProducing(self) -> None:
        """See C{IPushProducer}."""
        self._reading = True
        self._clock.callLater(0, self._hand_over)

    def write(self, data: bytes) -> None:
        """See L{ITransport}."""
        if not self._unsent:
            self._clock.callLater(0, self._send)
        self._unsent += data
        self.bytes_sent += len(data)

    def loseConnection(self) -> None:
        """See L{ITransport}: send what was written, but deliver nothing more."""
        self._closing = True
        self._clock.callLater(0, self._send)

    def abortConnection(self) -> None:
        """See L{ITCPTransport}."""
        self.end(ConnectionLost())

    def end(self, reason: Exception) -> None:
        """End the connection for both ends."""
        for stream in (self, self.peer):
            protocol, stream.protocol = stream.protocol, None
            if protocol is not None:
                protocol.connected = 0
                self._clock.callLater(0, protocol.connectionLost, Failure(reason))

    def _send(self) -> None:
        """Send as much as the window has room for."""
        data = bytes(self._unsent[: WINDOW - self._under_way])
        del self._unsent[: len(data)]
        if data:
            self._under_way += len(data)
            delay = self._arrival(len(data)) - self._clock.seconds()
            self._clock.callLater(delay, self._arrive, data)
        elif self._closing and not self._under_way:
            self.end(ConnectionDone())
        if self._producer is not None and self._paused != (len(self._unsent) > TCP_BUFFER):
            self._paused = not self._paused
            if self._paused:
                self._producer.pauseProducing()
            else:
                self._producer.resumeProducing()

    def _arrive(self, data: bytes) -> None:
        self._under_way -= len(data)
        self.peer._arrived += data
        self.peer._hand_over()
        if self.protocol is not None and (self._unsent or self._paused or self._closing):
            self._send()

    def _hand_over(self) -> None:
        if self.protocol is not None and self._reading and not self._closing and self._arrived:
            data, self._arrived = bytes(self._arrived), bytearray()
            self.protocol.dataReceived(data)
