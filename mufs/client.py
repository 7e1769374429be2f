"""The client as a service: request channel, receiver, cache and mount put together."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from attrs import asdict, frozen
from twisted.application.internet import ClientService, backoffPolicy
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, DeferredList, inlineCallbacks, succeed
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from mufs.cache.client.blocks import BlockCache
from mufs.certificate_watch import CertificateWatch
from mufs.communication.client.channel import ClientChannel, ClientChannelFactory, Refused
from mufs.communication.client.group_socket import max_transfer
from mufs.communication.client.membership import Membership
from mufs.communication.interfaces import NetworkChanges
from mufs.control import Control, Record
from mufs.endpoints import CannotConnect, expiry_of
from mufs.fatal import fail
from mufs.filesystem.client.bridge import Bridge
from mufs.filesystem.client.mounting import Mounting, MountSettings
from mufs.filesystem.client.mountpoint import UnusableMountPoint
from mufs.filesystem.client.pull import Pulls
from mufs.filesystem.client.remote import RemoteFileSystem
from mufs.filesystem.client.server_pulls import ServerPulls
from mufs.listening import ListeningService
from mufs.memory import Trimming
from mufs.sockets import CLIENT as CONTROLLED
from mufs.sockets import escape
from mufs.status.about import About
from mufs.status.client_figures import client_figures, client_state, held_images
from mufs.status.client_page import OF_DAY, client_page
from mufs.status.figures import CLIENT
from mufs.status.site import StatusSite
from mufs.status.state import StateFile
from mufs.wire.metadata import Caller, Welcome

CONNECT_TIMEOUT = 10.0
"""
Seconds until a connection is tried anew. TCP itself would try ever more rarely, and find a network
that is back only after a while.
"""

ROOM_INTERVAL = 5.0
"""Seconds between looks at the free space of the cache's disk."""

WRITER_TIMEOUT = 0.5
"""Seconds that the cache may take at the end to write what its directory lacks."""


@frozen(kw_only=True)
class ClientSettings:
    """
    What the operator has set.

    @ivar server: the address of the server, to be shown.
    @ivar interface: address or name of the interface to listen on, or C{None} for that of the
        route to the server.
    @ivar cache_size: bytes.
    @ivar timeout: seconds that an operation may take, 0 for any time.
    @ivar offline_for: seconds for which what was last known does while the server is away.
    @ivar host: the name under which this client is known to the server.
    @ivar tls: whether the server's endpoint is one of TLS.
    """

    server: str
    mount: MountSettings
    interface: str | None
    cache_size: int
    timeout: float
    offline_for: float
    host: str
    tls: bool = False


class _QuietClientService(ClientService):
    # It would log each try to connect, as long as the server is away.
    _log = Logger(observer=LogPublisher())


@implementer(IStreamClientEndpoint)
class _ImpatientEndpoint:
    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        on_failed: Callable[[str], None],
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._on_failed = on_failed

    def connect(self, protocolFactory: IProtocolFactory) -> "Deferred[IProtocol]":
        connecting = self._endpoint.connect(protocolFactory)
        connecting.addTimeout(CONNECT_TIMEOUT, self._clock, _no_answer)
        return connecting.addErrback(self._note)

    def _note(self, failure: Failure) -> Failure:
        self._on_failed(failure.getErrorMessage())
        return failure


def _no_answer(result: IProtocol | Failure, seconds: float) -> IProtocol | Failure:
    if isinstance(result, Failure) and result.check(CancelledError, ConnectingCancelledError):
        raise CannotConnect(f"no answer within {seconds:g} s")
    return result


class ClientMount(MultiService):
    """
    Mounts what a server exports.

    It has many attributes because it puts the parts of the client together.

    @ivar ready: fires once it is mounted.
    """

    _log = Logger()
    name = "mufs-client"

    def __init__(
        self,
        reactor: Any,
        settings: ClientSettings,
        *,
        cache: BlockCache,
        server: IStreamClientEndpoint,
        status: IStreamServerEndpoint | None,
        state: StateFile | None = None,
        warning: str = "",
    ) -> None:
        """
        @param status: the endpoint of the status page, if there is to be one.
        @param state: keeps its figures of the last day over restarts.
        @param warning: is logged at the start, if there is something to warn of.
        """
        super().__init__()
        self._reactor = reactor
        self._settings = settings
        libfuse = settings.mount.libfuse
        self._about = About(libfuse.version)
        self._cache = cache
        self._warning = warning
        self._looks_for_room = LoopingCall(cache.look_for_room)
        self._looks_for_room.clock = reactor
        self.ready: Deferred[None] = Deferred()
        self._why_absent = ""
        self._mount_begun = self._ending = False
        self._writer: Deferred[None] = succeed(None)
        self._remote = remote = RemoteFileSystem(
            reactor,
            cache,
            settings.cache_size // 4,
            offline_for=settings.offline_for,
            on_welcome=self._welcomed,
            on_moved=self._moved,
            on_refused=self._refused,
        )
        pulls = Pulls(remote, cache, reactor)
        remote.server_pulls = ServerPulls(pulls, reactor, remote.send)
        self._membership = Membership(
            reactor,
            remote.receiver,
            remote.multicast_health,
            interface=settings.interface,
            on_joined=self._joined,
        )
        NetworkChanges(reactor, self._membership.network_changed).setServiceParent(self)
        self._bridge = Bridge(reactor, remote, settings.timeout, asker=libfuse.asking_thread)
        self._mounting = Mounting(reactor, self._bridge, settings.mount, on_mounted=self._mounted)
        page = partial(client_page, self.figures, partial(held_images, remote, cache))
        self._site = StatusSite(
            reactor,
            self.name,
            CLIENT,
            figures=self.figures,
            totals=self.figures,
            body=page,
            of_day=OF_DAY,
            state=state,
        )
        tasks = {"pull": partial(_pull, pulls)}
        self._control = Control(reactor, CONTROLLED, status=self._site, tasks=tasks)
        if status is not None:
            self._listener(status).setServiceParent(self)
        self._certificate = CertificateWatch(reactor, partial(expiry_of, server))
        self._certificate.setServiceParent(self)
        self._factory = ClientChannelFactory(remote, reactor, settings.host)
        self._connector(server).setServiceParent(self)
        Trimming(reactor).setServiceParent(self)

    def startService(self) -> None:
        """Connect as soon as the server is there, and mount then."""
        try:
            self._mounting.claim()
        except (UnusableMountPoint, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self._fail(f"--mount: {self._settings.mount.directory}: {reason}")
            return
        self._control.listen(escape(self._settings.mount.directory))
        if not self._settings.tls:
            self._log.warn("no TLS: the server is not verified, and keys are received in the clear")
        if self._warning:
            self._log.warn("{warning}", warning=self._warning)
        self._log.info("connecting to the server at {server}", server=self._settings.server)
        self._writer = self._bridge.run(self._cache.run_writer, "cache")
        self._writer.addErrback(lambda failure: self._log.failure("cannot keep blocks", failure))
        self._factory.max_transfer = max_transfer()
        self._looks_for_room.start(ROOM_INTERVAL, now=False)
        super().startService()

    @inlineCallbacks
    def stopService(self) -> Any:
        """Fail what waits, unmount, and end the connection."""
        self._ending = True
        self._site.end()
        yield self._control.stop()
        self._bridge.stop()
        yield self._mounting.unmount()
        self._remote.stop()
        if self._looks_for_room.running:
            self._looks_for_room.stop()
        self._cache.stop()
        late: Deferred[None] = deferLater(self._reactor, WRITER_TIMEOUT)
        yield DeferredList([self._writer, late], fireOnOneCallback=True)
        yield self._membership.stop()
        yield super().stopService()

    def figures(self) -> dict[str, object]:
        """The figures of /status.json."""
        settings = self._settings
        figures = client_figures(
            self._remote,
            self._cache,
            cache_size=settings.cache_size,
            tls=settings.tls,
            server=settings.server,
            mount=settings.mount.directory,
            why_absent=self._why_disconnected(),
            certificate_days=self._certificate.days_left(),
        )
        return {**self._about.figures(), **figures}

    def state(self) -> str:
        """The state in one line."""
        settings = self._settings
        return client_state(
            self._remote,
            self._cache,
            cache_size=settings.cache_size,
            mount=settings.mount.directory if self.ready.called else None,
            server=settings.server,
            why_absent=self._why_disconnected(),
        )

    def _why_disconnected(self) -> str:
        return self._factory.last_connect_error or self._why_absent

    def _fail(self, message: str) -> None:
        fail(self._reactor, self.name, message)

    def _connector(self, server: IStreamClientEndpoint) -> ClientService:
        backoff = backoffPolicy(initialDelay=0.2, maxDelay=2.0, factor=1.5)
        factory = self._factory
        connector = _QuietClientService(
            _ImpatientEndpoint(server, self._reactor, self._unreachable),
            factory,
            retryPolicy=lambda attempts: backoff(max(attempts, factory.failed_connects)),
            clock=self._reactor,
        )
        connector.whenConnected(failAfterFailures=1).addErrback(self._absent)
        return connector

    def _listener(self, status: IStreamServerEndpoint) -> ListeningService:
        def failed(reason: str) -> None:
            self._fail(f"cannot serve the status: {reason}: choose another, such as --status 7090")

        return ListeningService(status, self._site, on_failed=failed)

    def _unreachable(self, why: str) -> None:
        self._why_absent = why

    def _absent(self, failure: Failure) -> None:
        if not self._ending:
            self._log.warn(
                "waiting for the server at {server}: {reason}",
                server=self._settings.server,
                reason=self._why_absent,
            )

    def _refused(self, reason: Refused) -> None:
        if self._mount_begun:
            # Machines may run from the mount: what refuses it now may accept it again.
            self._factory.connect_failed(f"it refused: {reason}")
            return
        self._fail(f"the server at {self._settings.server} refused: {reason}")

    def _welcomed(self, channel: ClientChannel, welcome: Welcome) -> None:
        self._log.info("connected to the server at {server}", server=self._settings.server)
        self._why_absent = ""
        self._membership.welcomed(channel.transport.getHost(), welcome)
        if not self._mount_begun:
            self._mount_begun = True
            # From now on both are known, and nobody waits for the server to answer them.
            asking: Deferred[Any] = self._remote.getattr(b"")
            asking.addCallback(lambda _: self._remote.statfs())
            asking.addCallbacks(self._mount, self._cannot_mount)

    def _moved(self, welcome: Welcome) -> None:
        self._membership.moved(welcome)

    def _joined(self) -> None:
        self._remote.reads.limit(self._remote.receiver.buffer)

    def _mount(self, _: object) -> None:
        if not self._ending:
            self._mounting.mount().addCallbacks(self._unmounted, self._mount_failed)

    def _cannot_mount(self, failure: Failure) -> None:
        self._fail(f"cannot mount: {failure.getErrorMessage()}")

    def _mounted(self) -> None:
        settings = self._settings.mount
        self._log.info(
            "mounted at {directory}, by libfuse {version}",
            directory=settings.directory, version=settings.libfuse.version,
        )  # fmt: skip
        self.ready.callback(None)

    def _unmounted(self, _: None) -> None:
        if not self._ending:
            self._log.info("unmounted: ending")
            self._reactor.stop()

    def _mount_failed(self, failure: Failure) -> None:
        if not self._ending:
            self._fail(failure.getErrorMessage())


def _pull(
    pulls: Pulls, asked: dict[str, Any], tell: Callable[[Record], None]
) -> "Deferred[Record]":
    """
    Fill the cache with an image, for somebody at the control socket.

    The socket is for the user of this process and for root, so the server is told this user.
    """
    caller = Caller(os.geteuid(), os.getegid(), os.getgroups()[:256])
    path = os.fsencode(str(asked.get("path", "")))
    pulling = pulls.pull(path, caller, lambda progress: tell(asdict(progress)))
    return pulling.addCallback(lambda progress: {**asdict(progress), "ended": True})
