"""The client's end of the request channel (docs/protocol.md section 2)."""

from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure as Error
from zope.interface import Interface

from mufs.communication.client.silence import SilenceDetector
from mufs.communication.tls import check_names, why_lost
from mufs.wire.channel import (
    Data,
    Framer,
    Gone,
    Key,
    ProtocolError,
    Sent,
    Type,
    pack,
    pack_tagged,
    parse_tagged,
)
from mufs.wire.metadata import (
    VERSION,
    Close,
    Failure,
    Hello,
    Names,
    Opened,
    Pull,
    Report,
    Welcome,
    decode,
    encode,
)
from mufs.wire.pages import BLOCK

ANSWER_TIMEOUT = 10.0
"""Seconds without a byte from the server after which it is taken for dead."""

REPORT_INTERVAL = ANSWER_TIMEOUT / 2
"""Seconds between two reports to the server, each of which it answers."""

T = TypeVar("T")


class ChannelLost(Exception):
    """The connection ended before the answer came."""


class Refused(Exception):
    """The server will not serve this client; the text says why."""


class IChannelUser(Interface):
    """Is called with what the server says on a channel."""

    def connected(channel: "ClientChannel", welcome: Welcome) -> None:
        """The server answered HELLO; requests may be made."""

    def moved(welcome: Welcome) -> None:
        """The group's datagrams come from elsewhere now, or come at all."""

    def refused(reason: Refused) -> None:
        """The server answered HELLO with an error."""

    def silent() -> None:
        """The server leaves requests about metadata and a PING without an answer, for now."""

    def disconnected() -> None:
        """The connection has ended; another will follow."""

    def sent(sent: Sent) -> None:
        """A transfer carried what a READ asked for."""

    def data(data: Data) -> None:
        """File bytes came over TCP."""

    def segments(packets: bytes) -> None:
        """Packets of the group came over TCP."""

    def transfer_expired(tag: int) -> None:
        """The server no longer holds the transfer that a repair asked for."""

    def failed(tag: int, error: OSError) -> None:
        """The server cannot answer a READ."""

    def key(key: Key) -> None:
        """The keys of what is sent to the group: the first ones, or new ones."""

    def pull(pull: Pull) -> None:
        """The server asks for an image to be pulled. May raise L{ProtocolError}."""

    def report() -> Report:
        """A report on this host for the server; the next one covers the time from now on."""


class ClientChannel(Protocol):
    """
    One connection to the server.

    @ivar last_received: when the last bytes came, in seconds.
    """

    _log = Logger()
    factory: "ClientChannelFactory | None" = None
    transport: ITCPTransport

    def __init__(
        self, user: IChannelUser, clock: IReactorTime, name: str, *, max_transfer: int = BLOCK
    ) -> None:
        """
        @param name: of this host, for the server's status.
        @param max_transfer: see L{Hello}.
        """
        self._user = user
        self._clock = clock
        self._hello = Hello(VERSION, name, max_transfer)
        self._framer = Framer()
        self._welcomed = False
        self._requests: dict[int, tuple[type, Deferred[Any], list[Any]]] = {}
        self._cancelled_opens: set[int] = set()
        self._last_tag = 0
        self.last_received = 0.0
        self._silence = SilenceDetector(
            clock,
            is_waiting=lambda: bool(self._requests),
            ping=self._report,
            on_silent=user.silent,
        )
        self._ending = False

    def connectionMade(self) -> None:
        """Say HELLO."""
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self.last_received = self._clock.seconds()
        self._silence_check = self._clock.callLater(REPORT_INTERVAL, self._check_silence)
        self.send(pack_tagged(Type.HELLO, 0, encode(self._hello)))

    def dataReceived(self, data: bytes) -> None:
        """Handle each packet; end the connection at the first malformed one."""
        self.last_received = self._clock.seconds()
        self._silence.heard()
        if self._ending:
            return
        try:
            for kind, offset, body in self._framer.feed(data):
                self._packet(kind, offset, body)
                if self._ending:
                    return
        except ProtocolError as error:
            self._log.warn("closing the connection: {error}", error=error)
            self._end()

    def connectionLost(self, reason: Error = connectionDone) -> None:
        """Fail the requests."""
        if self._silence_check.active():
            self._silence_check.cancel()
        self._silence.stop()
        if self._welcomed:
            self._welcomed = False
            self._user.disconnected()
        elif self.factory is not None and not self._ending:
            self.factory.connect_failed(why_lost(reason))
        # Last: whoever asked may ask again at once, and must find another channel.
        requests, self._requests = self._requests, {}
        for _, answer, _ in requests.values():
            answer.errback(ChannelLost())

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come since L{IChannelUser.silent} was called."""
        return self._silence.is_silent

    def new_tag(self) -> int:
        """A tag that no request in flight uses; never 0."""
        self._last_tag = self._last_tag % 0xFFFFFFFF + 1
        return self._last_tag

    def send(self, packet: bytes) -> None:
        """Write a packet."""
        self.transport.write(packet)

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abortConnection()

    def ask(self, kind: Type, body: object, answer: type[T]) -> "Deferred[T]":
        """
        Send a request about metadata.

        @param answer: the class of the answer.
        @return: fires with the answer; fails with the server's C{OSError}, or L{ChannelLost}.
        """
        tag = self.new_tag()

        def forget(_: object) -> None:
            if self._requests.pop(tag, None) is not None and answer is Opened:
                self._cancelled_opens.add(tag)

        waiting: Deferred[T] = Deferred(forget)
        self._requests[tag] = answer, waiting, []
        self._silence.watch()
        self.send(pack_tagged(kind, tag, encode(body)))
        return waiting

    def _packet(self, kind: int, offset: int, body: bytes) -> None:
        if not self._welcomed:
            self._greeted(kind, parse_tagged(body)[1])
        elif kind == Type.SENT:
            self._user.sent(Sent.parse(offset, body))
        elif kind == Type.DATA:
            self._user.data(Data.parse(offset, body))
        elif kind == Type.SEGMENTS:
            self._user.segments(parse_tagged(body)[1])
        elif kind == Type.GONE:
            self._user.transfer_expired(Gone.parse(offset, body).tag)
        elif kind == Type.KEY:
            self._user.key(Key.parse(offset, body))
        elif kind == Type.PULL:
            self._user.pull(decode(Pull, body))
        elif kind == Type.WELCOME:
            self._user.moved(decode(Welcome, parse_tagged(body)[1]))
        else:
            tag, rest = parse_tagged(body)
            if kind == Type.REPLY:
                self._reply(tag, rest)
            elif kind == Type.MORE:
                names = decode(Names, rest)
                if tag in self._requests:
                    if self._requests[tag][0] is not Names:
                        raise ProtocolError("MORE for a request that has no list for an answer")
                    self._requests[tag][2].extend(names.entries)
            elif kind == Type.ERROR:
                self._error(tag, decode(Failure, rest).error())
            elif kind != Type.PONG:
                raise ProtocolError(f"packet of unknown type {kind}")

    def _greeted(self, kind: int, body: bytes) -> None:
        if kind == Type.ERROR:
            failure = decode(Failure, body)
            self._end()
            if failure.errno != "EAGAIN":
                self._user.refused(Refused(failure.text))
            elif self.factory is not None:
                self.factory.connect_failed(failure.text)
        elif kind == Type.WELCOME:
            try:
                check_names(self.transport)
            except ValueError as error:
                raise ProtocolError(str(error)) from None
            welcome = decode(Welcome, body)
            self._welcomed = True
            if self.factory is not None:
                self.factory.welcomed()
            self._user.connected(self, welcome)
        else:
            raise ProtocolError(f"packet of type {kind} before WELCOME")

    def _reply(self, tag: int, body: bytes) -> None:
        if tag in self._cancelled_opens:
            self._cancelled_opens.discard(tag)
            self.send(pack(Type.CLOSE, encode(Close(decode(Opened, body).handle))))
        if tag not in self._requests:
            return
        kind, waiting, parts = self._requests[tag]
        value: Any = decode(kind, body)
        if isinstance(value, Names):
            value = Names(parts + value.entries)
        del self._requests[tag]
        waiting.callback(value)

    def _error(self, tag: int, error: OSError) -> None:
        if tag in self._requests:
            self._requests.pop(tag)[1].errback(error)
        elif tag in self._cancelled_opens:
            self._cancelled_opens.discard(tag)
        else:
            self._user.failed(tag, error)

    def _end(self) -> None:
        self._ending = True
        self.transport.loseConnection()

    def _check_silence(self) -> None:
        """Report, which the server must answer; end the connection if it does not."""
        silent = self._clock.seconds() - self.last_received
        if silent >= ANSWER_TIMEOUT:
            self._log.warn("no answer from the server for {silent:.0f} s", silent=silent)
            self._ending = True
            self.transport.abortConnection()
            return
        if self._welcomed:
            self._report()
        self._silence_check = self._clock.callLater(REPORT_INTERVAL, self._check_silence)

    def _report(self) -> None:
        self.send(pack_tagged(Type.PING, self.new_tag(), encode(self._user.report())))


class ClientChannelFactory(Factory):
    """
    Makes the channel of each connection.

    @ivar failed_connects: connections in a row that ended before a WELCOME.
    @ivar last_connect_error: why the last of them ended.
    @ivar max_transfer: see L{Hello}.
    """

    _log = Logger()
    noisy = False

    def __init__(self, user: IChannelUser, clock: IReactorTime, name: str) -> None:
        self._user = user
        self._clock = clock
        self._name = name
        self.last_connect_error = ""
        self.failed_connects = 0
        self.max_transfer = BLOCK

    def buildProtocol(self, addr: object) -> ClientChannel:  # type: ignore[override]
        """A channel for a new connection."""
        channel = ClientChannel(self._user, self._clock, self._name, max_transfer=self.max_transfer)
        channel.factory = self
        return channel

    def welcomed(self) -> None:
        """The server accepted this client."""
        self.failed_connects, self.last_connect_error = 0, ""

    def connect_failed(self, reason: str) -> None:
        """A connection ended before a WELCOME: log it unless the reason is the last one again."""
        self.failed_connects += 1
        if reason != self.last_connect_error:
            self.last_connect_error = reason
            self._log.warn("waiting for the server: {reason}", reason=reason)
