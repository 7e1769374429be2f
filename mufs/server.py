"""The server as a service: library, queue, controller and request channel put together."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Any

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import (
    Deferred,
    DeferredList,
    ensureDeferred,
    gatherResults,
    maybeDeferred,
)
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IStreamServerEndpoint
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from mufs.cache.server.queue import MulticastQueue
from mufs.cache.server.sent import SentWindow
from mufs.communication.server.access_statistics import ImageAccess
from mufs.communication.server.channel import ServerChannel, ServerChannelFactory
from mufs.communication.server.controller import MulticastController
from mufs.communication.server.limits import MAX_CONNECTIONS, MAX_HANDLES, Limits
from mufs.communication.server.output import MulticastOutput
from mufs.communication.server.pacing import Pace
from mufs.control import Control
from mufs.fatal import fail
from mufs.filesystem.server.access import EVERYBODY, Access
from mufs.filesystem.server.reads import Reads
from mufs.interfaces import IImageLibrary
from mufs.sockets import SERVER as CONTROLLED
from mufs.sockets import escape
from mufs.status.figures import SERVER
from mufs.status.markup import shown
from mufs.status.server_page import server_page
from mufs.status.site import StatusSite
from mufs.wire.metadata import VERSION, Report, Welcome
from mufs.wire.sealing import Keys
from mufs.wire.segments import SEGMENT

MOST_FILES = 65536
"""Files that may be open at a time, where the system lets them."""

UNSENT = 128 * 1024
"""Bytes that wait in the kernel for a connection's turn: more would go past its share later."""

REFUSED = 16
"""Connections that are refused before none are accepted for a moment, of C{DEAF} seconds."""
DEAF = 0.01

ASKING = 8
"""Threads that look at files and directories for clients; twice what one client may keep busy."""

THREADS = 20
"""That read images; some may hang."""

START_RATE = 1e8
"""Bits a second to begin with; it doubles until what comes back speaks against it."""


def _threads(most: int, name: str) -> ThreadPool:
    """Not the reactor's, which waits at the end for its threads: one may hang for long."""
    made = ThreadPool(0, most, name)
    made.threadFactory = partial(ThreadPool.threadFactory, daemon=True)  # type: ignore[assignment]
    return made


@frozen
class ServerSettings:
    """
    What an operator says of a server.

    @ivar interface: address of the interface to send on, or C{None} for that of the route to
        the first client.
    @ivar rate_min: bits a second; C{rate_max} likewise.
    @ivar tls: whether the endpoint to listen on is one of TLS.
    @ivar images: real path of the directory that is shared, if it is one.
    """

    group: str
    port: int
    interface: str | None
    rate_min: int
    rate_max: int
    tls: bool = False
    images: str = ""


class ServerService(Service):
    """Shares a library of images with whoever connects."""

    _log = Logger()
    name = "mufs-server"

    def __init__(
        self,
        reactor: Any,
        settings: ServerSettings,
        library: IImageLibrary,
        secret: bytes,
        listen: IStreamServerEndpoint,
        status: IStreamServerEndpoint | None,
        access: Access = EVERYBODY,
    ) -> None:
        """@param secret: random bytes of this run, from which the keys derive."""
        self._reactor = reactor
        self._settings = settings
        self._library = library
        self._listen = listen
        self._status = status
        page = partial(server_page, self.figures)
        self._site = StatusSite(reactor, self.name, SERVER, self.figures, self.numbers, page)
        self._control = Control(reactor, CONTROLLED, self._site, {"push": self._push})
        self._ports: list[IListeningPort] = []
        self._opening: list[Deferred[None]] = []
        self.ready: Deferred[None] = Deferred()
        self._output: MulticastOutput | None = None
        self._source = ("", 0)
        self._deaf: IDelayedCall | None = None
        self._threads = _threads(THREADS, "images")
        # Others: what is asked about files shall not keep those from being read.
        self._asking = _threads(ASKING, "asking")
        in_thread = partial(deferToThreadPool, reactor, self._threads)
        ask_in_thread = partial(deferToThreadPool, reactor, self._asking)
        self._limits = Limits(reactor)
        window = SentWindow()
        self._queue = MulticastQueue(window)
        self._reads = Reads(in_thread)
        self._keys = keys = Keys(secret, reactor.seconds)
        self._pace = Pace(
            reactor, floor=settings.rate_min, ceiling=settings.rate_max, start=START_RATE
        )
        self._controller = MulticastController(
            self._queue,
            window,
            keys=keys,
            pace=self._pace,
            read=self._reads,
            clock=reactor,
        )
        self._factory = ServerChannelFactory(
            partial(access.view, library),
            self._controller,
            keys,
            self._reads,
            ask_in_thread,
            self._welcome,
            reactor,
            self._limits,
        )

    def startService(self) -> None:
        """Listen, and send on the interface if one is set; a port that is taken ends it all."""
        super().startService()
        self._threads.start()
        self._asking.start()
        # An image that is open is a file that is open: the limit for all, not that for programs
        # that use select(2).
        soft, hard = getrlimit(RLIMIT_NOFILE)
        most = MOST_FILES if hard == RLIM_INFINITY else min(hard, MOST_FILES)
        if soft != RLIM_INFINITY and soft < most:
            setrlimit(RLIMIT_NOFILE, (most, hard))
        if not self._settings.tls:
            self._log.warn("no TLS: whoever can connect may read, and the keys travel in the clear")
        # No client shall use up all files, and connections leave half of them to images.
        files = getrlimit(RLIMIT_NOFILE)[0]
        if files != RLIM_INFINITY:
            self._limits.most = min(MAX_CONNECTIONS, files // 2)
            self._limits.handles = min(MAX_HANDLES, files // 4)
        if self._settings.interface is not None:
            self._send_on(self._settings.interface)
        self._open(self._listen, self._factory, "clients")
        if self._status is not None:
            self._open(self._status, self._site, "status requests")
        opened = gatherResults(self._opening, consumeErrors=True)
        opened.addCallbacks(lambda _: self.ready.callback(None), lambda _: None)

    def stopService(self) -> "Deferred[Any]":
        """Stop listening, and end every connection."""
        super().stopService()
        self._site.end()
        self._controller.stop()
        if self._deaf is not None:
            self._deaf.cancel()
        for channel in list(self._factory.channels):
            channel.transport.abortConnection()
        ports: list[Any] = [*self._ports]
        if self._output is not None:
            ports.append(self._output.transport)
        ends = [maybeDeferred(port.stopListening) for port in ports]
        return DeferredList([self._control.stop(), *ends], consumeErrors=True)

    def figures(self) -> dict[str, object]:
        """The figures of /status.json (docs/operations.md)."""
        return {
            **self.numbers(),
            "interface": None if self._output is None else self._output.interface,
            "clients": [_client(each) for each in self._factory.channels if each.name],
            "images": [_image(image, rate) for image, rate in self._factory.demand],
        }

    def numbers(self) -> dict[str, object]:
        """Those of them that are of the server as a whole."""
        controller = self._controller
        return {
            "image_reads": self._reads.image_reads,
            "image_read_bytes": self._reads.image_read_bytes,
            "requests": self._queue.requests,
            "requests_merged": self._queue.merged,
            "queue": len(self._queue),
            "transfers": controller.transfers,
            "segments_sent": controller.segments_sent,
            "segments_repaired": controller.segments_repaired,
            "segments_awaited": self._pace.segments_awaited,
            "segments_lost": self._pace.segments_lost,
            "parity_sent": controller.parity_sent,
            "bytes_multicast": controller.bytes_multicast,
            "bytes_over_tcp": self._factory.bytes_over_tcp,
            "rate": round(self._pace.rate),
            "key_epoch": self._keys.epoch.number,
            "connections": self._limits.connections,
            "refused": self._limits.refused,
            "cut_off": self._limits.cut_off,
            "tls": self._settings.tls,
        }

    def state(self) -> str:
        """How it is, in one line."""
        clients = [channel for channel in self._factory.channels if channel.name]
        over_tcp = sum(_over_tcp(channel) for channel in clients)
        return (
            f"clients: {len(clients)}, of these over TCP: {over_tcp}; queue: {len(self._queue)}; "
            f"rate: at most {self._pace.rate / 1e6:.0f} Mbit/s"
        )

    def _open(self, endpoint: IStreamServerEndpoint, factory: Any, what: str) -> None:
        def listening(port: IListeningPort) -> None:
            where = _name(port.getHost())
            self._ports.append(port)
            if factory is self._factory:
                self._refuse_at(port)
                self._control.listen(escape(where))
            # Connections have it of the socket that they come by; one that is not TCP has it not.
            with suppress(AttributeError, OSError):
                port.socket.setsockopt(  # type: ignore[attr-defined]  # only real ports have one
                    socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT
                )
            self._log.info("listening for {what} on {where}", what=what, where=where)

        def failed(failure: Failure) -> Failure:
            reason: object = failure.value
            if isinstance(reason, CannotListenError):
                reason = f"{reason.interface or '*'}:{reason.port}: {reason.socketError}"
            fail(self._reactor, self.name, f"cannot listen for {what}: {reason}")
            return failure

        self._opening.append(endpoint.listen(factory).addCallbacks(listening, failed))

    def _refuse_at(self, port: Any) -> None:
        """
        Have connections that are too many ended as soon as they are accepted: by the factory that
        the port knows, which may be one of TLS around that of the channels.
        """
        outer = getattr(port, "factory", None)
        if outer is None:
            return
        build = outer.buildProtocol

        def build_unless(address: Any) -> Any:
            if not self._limits.refuses(getattr(address, "host", None)):
                return build(address)
            # As many as there are: who comes without end shall not be all that is seen to.
            port.numberAccepts = 1
            if self._limits.refused % REFUSED == 0 and self._deaf is None:
                port.stopReading()
                self._deaf = self._reactor.callLater(DEAF, hear)
            return None

        def hear() -> None:
            self._deaf = None
            port.startReading()

        outer.buildProtocol = build_unless

    def _welcome(self, channel: ServerChannel) -> Welcome:
        address = channel.transport.getHost()
        here = address.host if isinstance(address, IPv4Address) else None
        if self._output is None and self._settings.interface is None:
            if here is None:
                self._log.warn(
                    "{client} came by {address}, which tells no interface to send multicast on: "
                    "it reads over TCP (set --interface)",
                    client=channel.name,
                    address=address,
                )
            else:
                self._send_on(here)
        sending_on = None if self._output is None else self._output.interface
        if self._settings.interface is None and sending_on not in (None, here):
            self._log.warn(
                "{client} came by {here}, and multicast goes out on {interface}: it may have to "
                "read over TCP (set --interface)",
                client=channel.name,
                here=here,
                interface=sending_on,
            )
        self._log.info(
            "{client} connected from {peer}",
            client=channel.name,
            peer=channel.address or "?",
        )
        group = "" if self._output is None else self._settings.group
        return Welcome(VERSION, group, self._settings.port, self._source, SEGMENT)

    async def _push_asked(
        self, asked: dict[str, Any], tell: Callable[[dict[str, object]], None]
    ) -> dict[str, object]:
        """Have clients pull an image, for somebody on this host."""
        names = asked.get("to")
        if not (names is None or isinstance(names, list)):
            raise ValueError("'to' is no list of names")
        paths = [os.fsencode(str(asked.get("path", ""))).strip(b"/")]
        file, root = str(asked.get("file", "")), self._settings.images
        if root and file.startswith(f"{root}/"):
            paths.insert(0, os.fsencode(file[len(root) + 1 :]))
        failed: OSError | None = None
        for path in paths:
            try:
                image = await self._factory.in_thread(self._library.open, path)
            except OSError as error:
                failed = failed or error
                continue
            size, clients = image.attributes.size, [c for c in self._factory.channels if c.name]
            to = None if names is None else set(map(str, names))
            return await self._factory.pushes.push(path, size, clients, to, tell)
        assert failed is not None
        raise failed

    def _push(
        self, asked: dict[str, Any], tell: Callable[[dict[str, object]], None]
    ) -> "Deferred[dict[str, object]]":
        return ensureDeferred(self._push_asked(asked, tell))

    def _send_on(self, interface: str) -> None:
        settings = self._settings
        output = MulticastOutput(
            self._reactor, settings.group, settings.port, interface=interface, segment=SEGMENT
        )
        try:
            port = self._reactor.listenMulticast(0, output, interface=interface)
        except (OSError, CannotListenError) as error:
            message = f"cannot send multicast on interface {interface}: {error}"
            if settings.interface is not None:
                fail(self._reactor, self.name, message)
            else:
                self._log.warn("{message}; clients read over TCP", message=message)
            return
        self._output = self._controller.output = output
        self._source = (interface, port.getHost().port)
        self._log.info(
            "multicast to {group}:{port} on interface {interface}",
            group=settings.group,
            port=settings.port,
            interface=interface,
        )


def _name(address: Any) -> str:
    """Where it listens, in a word."""
    if isinstance(address, UNIXAddress):
        return os.fsdecode(address.name or b"")
    return f"{address.host}:{address.port}"


def _client(channel: ServerChannel) -> dict[str, object]:
    """Its row in the figures; what it did not tell yet is nothing."""
    report = channel.report or Report(0, 0, 0, True, "")
    return {
        "name": channel.name,
        "address": channel.address,
        "connections": 1,
        "requests": channel.requests,
        "repairs": channel.repairs,
        "bytes_over_tcp": channel.bytes_over_tcp,
        "over_tcp": _over_tcp(channel),
        "waiting": channel.share.waiting,
        "held_back": channel.host.held_back,
        "image": None if channel.reading is None else shown(channel.reading.path),
        "images": channel.images_open,
        "reads": report.reads,
        "hits": report.hits,
        "lag": report.lag / 1000,
        "multicast": report.multicast,
    }


def _over_tcp(channel: ServerChannel) -> bool:
    return channel.over_tcp or not (channel.report is None or channel.report.works)


def _image(image: ImageAccess, rate: float) -> dict[str, object]:
    """Its row in the figures; C{rate} is in bytes a second."""
    return {
        "name": shown(image.path),
        "opens": image.opens,
        "requests": image.requests,
        "bytes_requested": image.bytes_requested,
        "demand": round(rate),
    }
