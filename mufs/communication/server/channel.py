"""The server's end of the request channel (docs/protocol.md section 2)."""

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure as Error
from zope.interface import implementer

from mufs.cache.server.sent import IReader, SentTransfer
from mufs.communication.server.access_statistics import AccessStatistics, ImageAccess
from mufs.communication.server.controller import MulticastController
from mufs.communication.server.disk_reads import Reading
from mufs.communication.server.limits import (
    HELLO_TIMEOUT,
    SILENCE,
    SLICE,
    STUCK,
    Host,
    Limits,
)
from mufs.communication.server.metadata_requests import Answer, MetadataRequests
from mufs.communication.server.push import IPushed, Pushes
from mufs.communication.server.sender import trains
from mufs.communication.server.unicast import UnicastReads
from mufs.communication.tls import handshake_fault, is_tls, peer_name
from mufs.interfaces import IImage, IImageLibrary
from mufs.wire.channel import (
    Framer,
    Gone,
    Key,
    Occasion,
    ProtocolError,
    Read,
    Repair,
    Sent,
    Type,
    pack,
    pack_tagged,
    parse_tagged,
)
from mufs.wire.metadata import (
    VERSION,
    At,
    Close,
    Failure,
    Hello,
    Link,
    Opened,
    Pull,
    Pulled,
    Report,
    Welcome,
    decode,
    encode,
)
from mufs.wire.pages import PAGE
from mufs.wire.sealing import Keys
from mufs.wire.segments import ANNOUNCEMENT

TOGETHER = 0.01
"""Seconds for which word of transfers is kept back, to be sent together: their bytes are there."""

TLS_RECORD = b"\x16\x03"
"""How TLS begins (RFC 8446, 5.1), and no HELLO does."""

MOST_TOLD = 1000
"""Addresses of which it is remembered why TLS with them failed last, so as not to repeat it."""


def _host(transport: Any) -> str:
    return str(getattr(transport.getPeer(), "host", "?"))


@implementer(IReader, IPushProducer, IPushed)
class ServerChannel(Protocol):
    """
    One client.

    @ivar reading: the image that it read from, or opened, last.
    @ivar report: what it told of itself last.
    @ivar library: what it sees, once it was welcomed.
    """

    _log = Logger()
    factory: "ServerChannelFactory"
    transport: ITCPTransport

    def __init__(self, factory: "ServerChannelFactory", address: object) -> None:
        """@param address: what the client counts by, see L{Limits.enter}."""
        self.factory = factory
        self.host: Host = factory.limits.enter(self, address)
        self.share = self.host.share
        self._framer = Framer()
        self._handles: dict[int, IImage] = {}
        self._keys_told: set[tuple[int, int]] = set()
        self._demands: dict[int, ImageAccess] = {}
        self.reading: ImageAccess | None = None
        self.report: Report | None = None
        self._next_handle = 1
        self.name = ""
        self.library: IImageLibrary
        self.requests = 0
        self._ending = self._full = False
        self._heard = factory.clock.seconds()
        self._stuck: IDelayedCall | None = None
        self._resting: IDelayedCall | None = None
        self._sent_now: list[bytes] = []
        self.repairs = 0
        self.over_tcp = False
        self.segment_bytes_over_tcp = 0
        self._asked: dict[int, Callable[[int, bytes], None]] = {
            Type.GETATTR: self._getattr,
            Type.READDIR: self._readdir,
            Type.READLINK: self._readlink,
            Type.OPEN: self._open,
            Type.STATFS: self._statfs,
        }
        self._told: dict[int, Callable[[int, bytes], None]] = {
            Type.READ: self._read,
            Type.REPAIR: self._repair,
            Type.CLOSE: self._close,
            Type.PING: self._ping,
            Type.PULLED: self._pulled,
        }

    def connectionMade(self) -> None:
        """Wait for the client's HELLO."""
        factory = self.factory
        factory.channels.add(self)
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self._unicast = UnicastReads(
            factory.clock,
            factory.controller.pace,
            factory.read,
            self._write,
            self.failed,
            self.share,
        )
        self._questions = MetadataRequests(
            self.host,
            partial(factory.in_thread, factory.limits.timed),
            self._reply,
            self._asked_in_vain,
            partial(self._rest, False),
            self._go_on,
        )
        self.transport.registerProducer(self, True)  # type: ignore[attr-defined]  # ITransport has it not
        self._patience = factory.clock.callLater(HELLO_TIMEOUT, self._give_up, "no HELLO came")
        eldest = factory.limits.eldest()
        if eldest is not None:
            eldest._give_up("no HELLO came, and too many others wait")

    def dataReceived(self, data: bytes) -> None:
        """Carry out each packet; end the connection at the first that is not one."""
        if self._ending:
            return
        if not self.name and data.startswith(TLS_RECORD):
            self._ending = True
            self.factory.turned_away(self.transport, "it speaks TLS, and this server does not")
            self.transport.abortConnection()
            return
        limits = self.factory.limits
        if data:
            self._heard = self.factory.clock.seconds()
        began = limits.cpu()
        more = False
        try:
            for kind, offset, body in self._framer.feed(data):
                self._packet(kind, offset, body)
                if self._ending or self._full or self._questions.behind:
                    break
                if limits.cpu() - began > SLICE or self.host.waits_for_too_much:
                    more = True
                    break
        except ProtocolError as error:
            self._give_up(str(error))
        self.host.charge(limits.cpu() - began)
        self._rest(more)

    def connectionLost(self, reason: Error = connectionDone) -> None:
        """Forget what this client asked for, and what it said last."""
        if not (self.name or self._ending) and is_tls(self.transport):
            fault = handshake_fault(reason)
            self.factory.turned_away(
                self.transport, fault or "it went, and may not accept this server's certificate"
            )
        self._ending = True
        for timer in (self._patience, self._stuck, self._resting):
            if timer is not None and timer.active():
                timer.cancel()
        self._unicast.stop()
        self._handles.clear()
        self._questions.stop()
        for handle in list(self._demands):
            self._demands.pop(handle).opens -= 1
        self._framer = Framer()
        self.factory.lost(self)

    def sent(self, tag: int, transfer: SentTransfer, occasion: Occasion) -> None:
        """See L{IReader.sent}."""
        d = transfer.descriptor
        packet = Sent(tag, d.transfer, d.first, d.offset, d.total, occasion).encode()
        if occasion is not Occasion.NOW:
            self._write(packet)
            return
        if not self._sent_now:
            self.factory.clock.callLater(TOGETHER, self._tell_sent)
        self._sent_now.append(packet)

    def _tell_sent(self) -> None:
        packets, self._sent_now = self._sent_now, []
        if not self._ending:
            self._write(b"".join(packets))

    def tell_key(self) -> None:
        """Tell a client that was welcomed which keys are in use now."""
        if self.name and not self._ending:
            epoch = self.factory.keys.epoch
            self._write(Key(epoch.number, epoch.secret).encode())

    def failed(self, tag: int, error: OSError) -> None:
        """See L{IReader.failed}."""
        self._write(pack_tagged(Type.ERROR, tag, encode(Failure.of(error))))

    def pauseProducing(self) -> None:
        """The connection's buffer is full: take no more requests until it is not."""
        self._full = True
        self.transport.pauseProducing()  # type: ignore[attr-defined]
        self._unicast.pause(True)
        self._questions.pause(True)
        if self._stuck is None:
            self._stuck = self.factory.clock.callLater(
                STUCK, self._give_up, f"it took nothing of what was sent to it for {STUCK:g} s"
            )

    def resumeProducing(self) -> None:
        """It has room again."""
        self._full = False
        if self._stuck is not None and self._stuck.active():
            self._stuck.cancel()
        self._stuck = None
        self._unicast.pause(False)
        self._questions.pause(False)
        self._go_on()

    def _go_on(self) -> None:
        """Take requests again, unless there is another reason not to."""
        if not (self._ending or self._full or self._questions.behind or self._resting is not None):
            self._heard = self.factory.clock.seconds()
            self.transport.resumeProducing()  # type: ignore[attr-defined]
            self.dataReceived(b"")

    def _rest(self, more: bool) -> None:
        """
        Take no requests for as long as the host has used up what it may have.

        @param more: there are some already: let others have their turn in any case.
        """
        rest = self.host.rest()
        if self._ending or self._resting is not None or not (more or rest):
            return
        self.host.held_back += rest > 0
        self.transport.pauseProducing()  # type: ignore[attr-defined]
        self._resting = self.factory.clock.callLater(rest, self._rested)
        self._questions.rest(True)

    def _rested(self) -> None:
        self._resting = None
        self._rest(False)
        self._questions.rest(self._resting is not None)
        self._go_on()

    def _look(self) -> None:
        """End the connection of a client from which nothing comes."""
        clock = self.factory.clock
        if self._full or self._questions.behind or self._resting is not None:
            self._heard = clock.seconds()
        left = self._heard + SILENCE - clock.seconds()
        if left > 0:
            self._patience = clock.callLater(left, self._look)
        else:
            self._give_up(f"nothing came for {SILENCE:g} s")

    def stopProducing(self) -> None:
        """The connection is ending."""
        self._unicast.stop()

    def pull(self, number: int, path: bytes) -> None:
        """See L{IPushed.pull}."""
        if not self._ending:
            self._write(pack(Type.PULL, encode(Pull(number, path))))

    @property
    def address(self) -> str:
        """See L{IPushed.address}."""
        return str(getattr(self.transport.getPeer(), "host", ""))

    @property
    def images_open(self) -> int:
        """How many handles it holds."""
        return len(self._handles)

    @property
    def bytes_over_tcp(self) -> int:
        """File bytes, and segments, that went to this client over TCP."""
        return self._unicast.bytes_sent + self.segment_bytes_over_tcp

    def _packet(self, kind: int, offset: int, body: bytes) -> None:
        if kind not in (Type.PING, Type.PULLED):
            self.factory.limits.heard(self.host)
        if not self.name:
            if kind != Type.HELLO:
                raise ProtocolError(f"packet of type {kind} before HELLO")
            self._hello(body)
        elif kind in self._asked:
            tag, rest = parse_tagged(body)
            self.requests += 1
            self._asked[kind](tag, rest)
        elif kind in self._told:
            self._told[kind](offset, body)
        else:
            raise ProtocolError(f"packet of unknown type {kind}")

    def _hello(self, body: bytes) -> None:
        tag, rest = parse_tagged(body)
        hello = decode(Hello, rest)
        self._patience.cancel()
        self.factory.limits.greeted(self)
        if hello.version != VERSION:
            text = f"this server speaks version {VERSION}, the client {hello.version}"
            self._refuse(tag, "EPROTONOSUPPORT", text)
            return
        certified = peer_name(self.transport)
        if certified == "":
            self._give_up("its certificate has no name, or TLS asked for none")
            return
        library = self.factory.view(certified)
        if library is None:
            self._refuse(tag, "EACCES", f"nothing is shared with {certified}")
            return
        self.library = library
        self.name = certified or hello.name or "?"
        self.factory.told.pop(_host(self.transport), None)
        self._patience = self.factory.clock.callLater(SILENCE, self._look)
        self._reply(self.factory.welcome(self), tag, Type.WELCOME)
        self.tell_key()
        self.factory.pushes.joined(self)

    def _refuse(self, tag: int, error: str, text: str) -> None:
        self._write(pack_tagged(Type.ERROR, tag, encode(Failure(error, text))))
        self._give_up(text)

    def _getattr(self, tag: int, body: bytes) -> None:
        at = decode(At, body)
        self._ask(tag, self._reply, self.library.getattr, at.path, at.caller)

    def _readlink(self, tag: int, body: bytes) -> None:
        at = decode(At, body)
        self._ask(tag, self._linked, self.library.readlink, at.path, at.caller)

    def _linked(self, target: bytes, tag: int) -> None:
        self._reply(Link(target), tag)

    def _statfs(self, tag: int, body: bytes) -> None:
        self._ask(tag, self._reply, self.library.statfs)

    def _readdir(self, tag: int, body: bytes) -> None:
        at = decode(At, body)
        self._ask(tag, self._questions.list, self.library.readdir, at.path, at.caller)

    def _open(self, tag: int, body: bytes) -> None:
        at = decode(At, body)
        then = partial(self._opened, at.path)
        self._ask(tag, then, self.library.open, at.path, at.caller)

    def _opened(self, path: bytes, image: IImage, tag: int) -> None:
        if self._ending:
            return
        if len(self._handles) >= self.factory.limits.handles:
            raise OSError(errno.EMFILE, "too many open images")
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = image
        self.reading = self._demands[handle] = self.factory.demand.opened(path)
        key = self.factory.keys.key(image.image, image.generation)
        self._keys_told.add((image.image, image.generation))
        self._reply(Opened(handle, image.image, image.generation, key, image.attributes), tag)

    def _close(self, offset: int, body: bytes) -> None:
        handle = decode(Close, body).handle
        if self._handles.pop(handle, None) is not None:
            self._demands.pop(handle).opens -= 1

    def _ping(self, offset: int, body: bytes) -> None:
        tag, report = parse_tagged(body)
        if report:
            self.report = decode(Report, report)
        self._write(pack_tagged(Type.PONG, tag, b""))

    def _pulled(self, offset: int, body: bytes) -> None:
        self.factory.pushes.pulled(self, decode(Pulled, body))

    def _read(self, offset: int, body: bytes) -> None:
        read = Read.parse(offset, body)
        self.requests += 1
        image = self._handles.get(read.handle)
        if image is None:
            self.failed(read.tag, OSError(errno.EBADF, "no such handle"))
            return
        end, size = read.offset + read.length, image.attributes.size
        if read.offset % PAGE or end > size or (end % PAGE and end != size):
            self.failed(read.tag, OSError(errno.EINVAL, "not pages of the image"))
            return
        self.over_tcp = read.over_tcp
        self.reading = self._demands[read.handle]
        self.factory.demand.asked(self.reading, read.length)
        if read.over_tcp or self.factory.controller.output is None:
            self._unicast.request(image, read)
        else:
            self.factory.controller.request(self, image, read)

    def _repair(self, offset: int, body: bytes) -> None:
        repair = Repair.parse(offset, body)
        self.repairs += 1
        # What is sent of images that it may not open is none of its business, sealed or not.
        transfer = self.factory.controller.repair(self, repair, self._keys_told)
        if transfer is None:
            self._write(Gone(repair.tag, repair.transfer).encode())
        elif repair.attempt == 2:
            self._tunnel(transfer, repair)

    def _tunnel(self, transfer: SentTransfer, repair: Repair) -> None:
        """Send the packets of a transfer over TCP, as they went to the group."""
        missing = repair.missing & (1 << len(transfer.rows)) - 1
        segment = self.factory.controller.segment
        # A client that does not take what it asked for may read over TCP, which waits for it.
        # Most of a transfer does not go past its share of a full link either.
        few = missing.bit_count() * 2 <= len(transfer.rows)
        room = few or self._unicast.take(missing.bit_count() * segment)
        if room and not self._full and self.share.charge_repair(transfer.bytes_in(missing)):
            packets = [transfer.control(ANNOUNCEMENT)]
            if missing:
                packets += map(bytes, trains(transfer, missing))
            packets.append(transfer.completion(missing))
            for each in packets:
                self._write(pack_tagged(Type.SEGMENTS, repair.tag, each))
                self.segment_bytes_over_tcp += len(each)
            self.factory.controller.segments_repaired += missing.bit_count()
        self.sent(repair.tag, transfer, Occasion.TCP)

    def _reply(self, value: Any, tag: int, kind: int = Type.REPLY) -> None:
        self._write(pack_tagged(kind, tag, encode(value)))

    def _write(self, packet: bytes) -> None:
        self.transport.write(packet)

    def _ask(self, tag: int, then: Answer, function: Callable[..., Any], *args: Any) -> None:
        self._questions.ask(tag, then, function, *args)
        if self._questions.behind:
            self.transport.pauseProducing()  # type: ignore[attr-defined]

    def _asked_in_vain(self, failure: Error, tag: int) -> None:
        if isinstance(failure.value, OSError):
            self.failed(tag, failure.value)
        else:
            self._log.failure("request of {client} failed", failure, client=self.name)
            self.failed(tag, OSError(errno.EIO, "the server failed"))

    def _give_up(self, reason: str) -> None:
        self._log.warn(
            "closing the connection of {client}: {reason}",
            client=self.name or _host(self.transport),
            reason=reason,
        )
        if self._patience.active():
            self._patience.cancel()
        if self._ending:
            self.transport.abortConnection()
            return
        self._ending = True
        if self.name:
            self.factory.expelled()
        self.factory.limits.cut_off += 1
        self.factory.limits.greeted(self)
        self._unicast.stop()
        self._questions.stop()
        # Under TLS the connection would wait for the producer to end.
        self.transport.unregisterProducer()  # type: ignore[attr-defined]
        self.transport.loseConnection()
        # A peer that reads nothing would keep it for ever.
        self._patience = self.factory.clock.callLater(
            HELLO_TIMEOUT, self._give_up, "it does not end by itself"
        )


class ServerChannelFactory(Factory):
    """
    What all clients of a server share.

    @ivar channels: the clients connected now.
    @ivar told: why TLS failed last, by address.
    @ivar demand: what they ask for of each image.
    @ivar pushes: images that they are asked to pull.
    """

    _log = Logger()
    noisy = False

    def __init__(
        self,
        view: Callable[[str | None], IImageLibrary | None],
        controller: MulticastController,
        keys: Keys,
        read: Reading,
        in_thread: Callable[..., "Deferred[Any]"],
        welcome: Callable[[ServerChannel], Welcome],
        clock: IReactorTime,
        limits: Limits,
    ) -> None:
        """
        @param view: what a client sees of the library, by the name in its certificate, if it has
            one; C{None} if it shall see nothing.
        @param in_thread: calls a function of the library outside the reactor's thread.
        @param welcome: what to tell a client that has said HELLO.
        """
        self.view = view
        self.controller = controller
        self.keys = keys
        self.read = read
        self.in_thread = in_thread
        self.welcome = welcome
        self.clock = clock
        self.limits = limits
        self.channels: set[ServerChannel] = set()
        self.told: dict[str, str] = {}
        self.demand = AccessStatistics(clock)
        self.pushes = Pushes(clock, in_thread)
        self._bytes_over_tcp = 0
        controller.keys_replaced = self._tell_keys

    @property
    def bytes_over_tcp(self) -> int:
        """What went to all clients over TCP, also to those that have gone."""
        return self._bytes_over_tcp + sum(channel.bytes_over_tcp for channel in self.channels)

    def buildProtocol(self, addr: object) -> ServerChannel:  # type: ignore[override]
        """A channel for one more client."""
        return ServerChannel(self, getattr(addr, "host", None))

    def expelled(self) -> None:
        """A client was sent away: what is sealed from now on is not for it."""
        self.controller.expelled()

    def _tell_keys(self) -> None:
        for channel in self.channels:
            channel.tell_key()

    def turned_away(self, transport: ITCPTransport, fault: str) -> None:
        """TLS came to nothing. A client tries again and again: that is said once."""
        host = _host(transport)
        if self.told.get(host) != fault:
            if len(self.told) >= MOST_TOLD:
                self.told.clear()
            self.told[host] = fault
            self._log.warn("no TLS with {host}: {fault}", host=host, fault=fault)

    def lost(self, channel: ServerChannel) -> None:
        """A client has gone."""
        self.channels.discard(channel)
        self.pushes.left(channel)
        self._bytes_over_tcp += channel.bytes_over_tcp
        self.controller.forget(channel)
        self.limits.left(channel, channel.host)
