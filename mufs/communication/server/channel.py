"""The server's end of the request channel (docs/protocol.md section 2)."""

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure as Error
from zope.interface import implementer

from mufs.cache.server.sent import SentTransfer
from mufs.communication.server.client_log import ClientLog, why_ended
from mufs.communication.server.clients import Clients, IClient
from mufs.communication.server.handles import Handles
from mufs.communication.server.intake import Intake
from mufs.communication.server.metadata_requests import METADATA_TYPES, MetadataRequests
from mufs.communication.server.unicast import UnicastReads
from mufs.communication.tls import TLS_RECORD, handshake_fault, is_tls, peer_name
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
    Close,
    DataMap,
    Failure,
    Hello,
    Opened,
    Pull,
    Pulled,
    Report,
    Welcome,
    decode,
    encode,
)
from mufs.wire.pages import BLOCK, PAGE

SENT_DELAY = 0.01
"""
Seconds for which SENT packets are held back, to be written together: the client already has the
bytes that they announce.
"""

_NO_WORK = frozenset({Type.PING, Type.PULLED})
"""Packets that show that the client is alive, and do not make it an active one."""


@implementer(IClient, IPushProducer)
class ServerChannel(Protocol):
    """
    One client: its many attributes are the parts that answer its packets, and its figures.

    @ivar share: see L{mufs.cache.server.sent.IReader}, also for C{max_transfer}.
    @ivar report: what the client reported of itself last.
    @ivar name: what the client is called; empty until it was welcomed.
    @ivar library: what the client sees, once it was welcomed.
    @ivar log: what is logged of it from then on.
    @ivar requests: how many it has made, C{repairs} how many of segments.
    @ivar bytes_delivered: what it gave to readers, as it reported on this connection.
    @ivar over_tcp: whether its last READ asked for an answer over TCP.
    """

    _log = Logger()
    transport: ITCPTransport
    library: IImageLibrary
    log: ClientLog

    def __init__(self, clients: "Clients[ServerChannel]", address: object) -> None:
        """@param address: of the client's host, see L{Limits.add}."""
        self._clients = clients
        self.host = clients.limits.add(self, address)
        self.share = self.host.share
        self.handles = Handles(clients.limits, clients.access_statistics)
        self.report: Report | None = None
        self.name = ""
        self.requests = 0
        self.repairs = 0
        self.bytes_delivered = 0
        self.over_tcp = False
        self.max_transfer = BLOCK
        self._welcome: Welcome | None = None
        self._framer = Framer()
        self._sent_packets: list[bytes] = []

    def connectionMade(self) -> None:
        """Wait for the client's HELLO."""
        clients = self._clients
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self._intake = Intake(
            clients.clock,
            self.host,
            self.transport,
            answer=self._answer_on,
            read=partial(self.dataReceived, b""),
            close=self.close,
        )
        self._unicast = UnicastReads(
            clients.clock,
            clients.controller.pace,
            read=clients.read,
            write=self._write,
            failed=self.failed,
            share=self.share,
        )
        self._metadata = MetadataRequests(
            self.host,
            self._intake,
            in_thread=partial(clients.in_thread, clients.limits.timed),
            reply=self._reply,
            image=self.handles.image,
            opened=self._opened,
            failed=self._request_failed,
        )
        self.transport.registerProducer(self, True)  # type: ignore[attr-defined]  # ITransport has it not
        clients.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Handle the packets that have come; close the connection at the first malformed one."""
        intake = self._intake
        if intake.closed:
            return
        if not self.name and data.startswith(TLS_RECORD):
            intake.stop()
            self._clients.tls_failed(self.address, "it speaks TLS, and this server does not")
            self.transport.abortConnection()
            return
        intake.begin_turn()
        try:
            for kind, offset, body in self._framer.feed(data):
                self._packet(kind, offset, body)
                if not intake.may_read_on():
                    break
        except ProtocolError as error:
            self.close(str(error))
        intake.end_turn()

    def connectionLost(self, reason: Error = connectionDone) -> None:
        """Forget what this client asked for, and what it reported."""
        if not (self.name or self._intake.closed) and is_tls(self.transport):
            fault = handshake_fault(reason)
            self._clients.tls_failed(
                self.address,
                fault or "it disconnected, and may not accept this server's certificate",
            )
        why = "the server closed the connection" if self._intake.closed else why_ended(reason)
        self._intake.stop()
        self._unicast.stop()
        self._metadata.stop()
        self.handles.close_all()
        self._framer = Framer()
        self._clients.remove(self)
        if self.name:
            delivered, over_tcp = self.bytes_delivered, self.bytes_over_tcp
            self.log.left(why, delivered=delivered, over_tcp=over_tcp)

    def close(self, reason: str) -> None:
        """See L{IClient.close}; abort the connection if it was closed before."""
        if self.name:
            self.log.closing(reason)
        else:
            text = "closing the connection of {client}: {reason}"
            self._log.warn(text, client=self.address or "?", reason=reason)
        if self._intake.closed:
            self.transport.abortConnection()
            return
        # A peer that reads nothing would keep the connection for ever.
        self._intake.begin_close()
        self._unicast.stop()
        self._metadata.stop()
        limits = self._clients.limits
        limits.cut_off += 1
        limits.note_hello(self)
        if self.name:
            # What is sealed from now on is not for it.
            self._clients.controller.expelled()
        # Under TLS the connection would wait for the producer to end.
        self.transport.unregisterProducer()  # type: ignore[attr-defined]
        self.transport.loseConnection()

    def sent(self, tag: int, transfer: SentTransfer, occasion: Occasion) -> None:
        """See L{IReader.sent}."""
        d = transfer.descriptor
        packet = Sent(tag, d.transfer, d.first, d.offset, d.length, occasion, d.total).encode()
        if occasion is not Occasion.NOW:
            self._write(packet)
            return
        if not self._sent_packets:
            self._clients.clock.callLater(SENT_DELAY, self._write_sent)
        self._sent_packets.append(packet)

    def _write_sent(self) -> None:
        packets, self._sent_packets = self._sent_packets, []
        self._write(b"".join(packets))

    def failed(self, tag: int, error: OSError) -> None:
        """See L{IReader.failed}."""
        self._write(pack_tagged(Type.ERROR, tag, encode(Failure.of(error))))

    def tell_key(self) -> None:
        """See L{IClient.tell_key}; a client that was not welcomed is told nothing."""
        if self.name:
            epoch = self._clients.keys.epoch
            self._write(Key(epoch.number, epoch.secret).encode())

    def tell_welcome(self, welcome: Welcome) -> None:
        """Tell a client that was welcomed where the group's datagrams come from now."""
        if self._welcome not in (None, welcome):
            self._welcome = welcome
            self._reply(welcome, 0, Type.WELCOME)

    def pull(self, number: int, path: bytes) -> None:
        """See L{IPushed.pull}."""
        self._write(pack(Type.PULL, encode(Pull(number, path))))

    @property
    def address(self) -> str:
        """See L{IPushed.address}."""
        return str(getattr(self.transport.getPeer(), "host", ""))

    @property
    def bytes_over_tcp(self) -> int:
        """See L{IClient.bytes_over_tcp}."""
        return self._unicast.bytes_sent

    def pauseProducing(self) -> None:
        """The connection's buffer is full: take no more requests until it is not."""
        self._unicast.pause()
        self._intake.send_buffer_full()

    def resumeProducing(self) -> None:
        """It has room again."""
        self._intake.send_buffer_empty()

    def stopProducing(self) -> None:
        """The connection is ending."""
        self._unicast.stop()

    def _answer_on(self) -> None:
        if self._intake.may_send:
            self._unicast.resume()
        self._metadata.go_on()

    def _packet(self, kind: int, offset: int, body: bytes) -> None:
        if kind not in _NO_WORK:
            self._clients.limits.note_request(self.host)
        if not self.name:
            if kind != Type.HELLO:
                raise ProtocolError(f"packet of type {kind} before HELLO")
            self._hello(body)
        elif kind in self._handlers:
            self._handlers[kind](self, offset, body)
        elif kind in METADATA_TYPES:
            tag, rest = parse_tagged(body)
            self.requests += 1
            self._metadata.handle(self.library, kind, tag, rest)
        else:
            raise ProtocolError(f"packet of unknown type {kind}")

    def _hello(self, body: bytes) -> None:
        tag, rest = parse_tagged(body)
        hello = decode(Hello, rest)
        clients = self._clients
        if hello.version != VERSION:
            text = f"this server speaks version {VERSION}, the client {hello.version}"
            self._refuse(tag, "EPROTONOSUPPORT", text)
            return
        certified = peer_name(self.transport)
        if certified == "":
            self.close("its certificate has no name, or TLS asked for none")
            return
        library = clients.view(certified)
        if library is None:
            self._refuse(tag, "EACCES", f"nothing is shared with {certified}")
            return
        self.library = library
        self.name = certified or hello.name or "?"
        self.max_transfer = hello.max_transfer // BLOCK * BLOCK
        self.log = ClientLog(clients.clock, self.name, self.address)
        self._intake.welcomed()
        clients.limits.note_hello(self)
        clients.tls_succeeded(self.address)
        self._welcome = clients.welcome(self)
        self._reply(self._welcome, tag, Type.WELCOME)
        self.tell_key()
        clients.pushes.add_client(self)

    def _refuse(self, tag: int, error: str, text: str) -> None:
        self._write(pack_tagged(Type.ERROR, tag, encode(Failure(error, text))))
        self.close(text)

    def _opened(self, path: bytes, found: tuple[IImage, DataMap], tag: int) -> None:
        image, data = found
        handle = self.handles.add(path, image)
        key = self._clients.keys.key(image.image, image.generation)
        opened = Opened(handle, image.image, image.generation, key, image.attributes, data)
        self._reply(opened, tag)

    def _reply(self, value: Any, tag: int, kind: int = Type.REPLY) -> None:
        self._write(pack_tagged(kind, tag, encode(value)))

    def _request_failed(self, failure: Error, tag: int, path: bytes | None) -> None:
        error = failure.value
        if isinstance(error, OSError):
            if path is not None and error.errno != errno.ENOENT:
                self.log.refused_open(path, error)
            self.failed(tag, error)
        else:
            self._log.failure("request of {client} failed", failure, client=self.name)
            self.failed(tag, OSError(errno.EIO, "the server failed"))

    def _close_handle(self, offset: int, body: bytes) -> None:
        self.handles.close(decode(Close, body).handle)

    def _ping(self, offset: int, body: bytes) -> None:
        tag, report = parse_tagged(body)
        if report:
            self.report = decode(Report, report)
            self.log.reported(self.report)
            self.bytes_delivered += self.report.delivered
            self._clients.bytes_delivered += self.report.delivered
        self._write(pack_tagged(Type.PONG, tag, b""))

    def _pulled(self, offset: int, body: bytes) -> None:
        self._clients.pushes.pulled(self, decode(Pulled, body))

    def _read(self, offset: int, body: bytes) -> None:
        read = Read.parse(offset, body)
        self.requests += 1
        opened = self.handles.get(read.handle)
        if opened is None:
            self.failed(read.tag, OSError(errno.EBADF, "no such handle"))
            return
        image, access = opened
        end, size = read.offset + read.length, image.attributes.size
        if read.offset % PAGE or end > size or (end % PAGE and end != size):
            self.failed(read.tag, OSError(errno.EINVAL, "not pages of the image"))
            return
        self.over_tcp = read.over_tcp
        self.handles.note_read(access, read.length)
        controller = self._clients.controller
        if read.over_tcp or controller.output is None:
            self._unicast.request(image, read)
        else:
            controller.request(self, image, read)

    def _repair(self, offset: int, body: bytes) -> None:
        repair = Repair.parse(offset, body)
        self.repairs += 1
        controller = self._clients.controller
        # A client gets segments only of images that it may open, although they are sealed.
        transfer = controller.repair(self, repair, self.handles.generations)
        if transfer is None:
            self._write(Gone(repair.tag, repair.transfer).encode())
        elif repair.attempt == 2:
            controller.segments_repaired += self._unicast.send_segments(
                transfer, repair.missing, repair.tag
            )
            self.sent(repair.tag, transfer, Occasion.TCP)

    def _write(self, packet: bytes) -> None:
        # The connection is closing: nobody is left to receive this.
        if not self._intake.closed:
            self.transport.write(packet)

    _handlers: dict[int, Callable[["ServerChannel", int, bytes], None]] = {
        Type.READ: _read,
        Type.REPAIR: _repair,
        Type.CLOSE: _close_handle,
        Type.PING: _ping,
        Type.PULLED: _pulled,
    }


class ServerChannelFactory(Clients[ServerChannel], Factory):
    """Makes a channel for each client that connects."""

    noisy = False

    def buildProtocol(self, addr: object) -> ServerChannel:
        """See C{IProtocolFactory.buildProtocol}."""
        return ServerChannel(self, getattr(addr, "host", None))
