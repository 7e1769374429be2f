"""
The core of a server: its parts put together, without sockets, threads of its own or a reactor.

The service and the simulated server of the tests both run this.
"""

from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from mufs.cache.server.queue import MulticastQueue
from mufs.cache.server.sent import SentWindow
from mufs.communication.server.channel import ServerChannel, ServerChannelFactory
from mufs.communication.server.controller import MulticastController
from mufs.communication.server.limits import Limits
from mufs.communication.server.pacing import Pace
from mufs.communication.server.packer import Compression, Packer
from mufs.filesystem.server.reads import Reads
from mufs.interfaces import IImageLibrary
from mufs.wire.metadata import Welcome
from mufs.wire.sealing import Keys

INITIAL_RATE = 1e8
"""Bits per second to start with; the rate doubles until clients report losses."""

CallInThread = Callable[..., "Deferred[Any]"]
"""Calls a function with arguments outside the reactor's thread."""


@frozen
class ServerCore:
    """
    The parts of a server.

    @ivar window: the last transfers, as they were sent.
    @ivar factory: makes the channel of each client; knows all of them.
    """

    queue: MulticastQueue
    window: SentWindow
    keys: Keys
    pace: Pace
    controller: MulticastController
    reads: Reads
    packer: Packer
    limits: Limits
    factory: ServerChannelFactory


def make_server_core(
    clock: IReactorTime,
    *,
    rate_min: float,
    rate_max: float,
    secret: bytes,
    view: Callable[[str | None], IImageLibrary | None],
    read_in_thread: CallInThread,
    look_up_in_thread: CallInThread,
    pack_in_thread: CallInThread,
    welcome: Callable[[ServerChannel], Welcome],
    limits: Limits,
    compression: Compression | None = None,
) -> ServerCore:
    """
    Put the parts together. Nothing is multicast until C{controller.output} is set.

    @param rate_min: bits per second, as is C{rate_max}.
    @param secret: random bytes of this run, from which the keys are derived.
    @param view: what a client sees of the library, by the name in its certificate, if it has
        one; C{None} if it may see nothing.
    @param read_in_thread: for reads of images; C{look_up_in_thread} for all other calls of the
        library; C{pack_in_thread} for packing.
    @param welcome: the answer to the HELLO of a client.
    @param compression: of what is sent to the group; C{None} for none.
    """
    window = SentWindow()
    queue = MulticastQueue(window)
    reads = Reads(read_in_thread)
    keys = Keys(secret, clock.seconds)
    pace = Pace(clock, floor=rate_min, ceiling=rate_max, start=INITIAL_RATE)
    packer = Packer(pack_in_thread, compression)
    controller = MulticastController(
        queue, window, keys=keys, pace=pace, read=reads, packer=packer, clock=clock
    )
    factory = ServerChannelFactory(
        view=view,
        controller=controller,
        keys=keys,
        read=reads,
        in_thread=look_up_in_thread,
        welcome=welcome,
        clock=clock,
        limits=limits,
    )
    return ServerCore(queue, window, keys, pace, controller, reads, packer, limits, factory)
