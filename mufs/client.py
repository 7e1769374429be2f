"""The client as a service: request channel, receiver, cache and mount put together."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from attrs import asdict, frozen
from twisted.application.internet import ClientService, backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.internet.interfaces import (
    IListeningPort,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessValue
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure

from mufs.cache.client.blocks import BlockCache
from mufs.communication.client.channel import ClientChannel, ClientChannelFactory, Refused
from mufs.communication.client.membership import Membership
from mufs.control import Control
from mufs.fatal import fail
from mufs.filesystem.client.bridge import Bridge
from mufs.filesystem.client.mount import Operations, serve
from mufs.filesystem.client.mountpoint import TYPE, Mounted, uppermost
from mufs.filesystem.client.pull import Pulls
from mufs.filesystem.client.remote import RemoteFileSystem
from mufs.filesystem.client.server_pulls import ServerPulls
from mufs.sockets import CLIENT as CONTROLLED
from mufs.sockets import escape
from mufs.status.client_page import HeldImage, client_page
from mufs.status.figures import CLIENT
from mufs.status.site import StatusSite
from mufs.wire.metadata import Caller, Welcome
from mufs.wire.pages import BLOCK

UNMOUNT_TIME = 1.0
"""Seconds that FUSE may take to end once it is unmounted."""

UNWRITTEN_TIME = 0.5
"""Seconds that it may take to write what a cache directory does not have yet."""

UNMOUNT_TRIES = 5
"""Looks in that time for a mount that was only being made when the client had to end."""

SPARE = 10
"""Descriptors kept for unmounting, which has to be possible when there are none left."""


@frozen
class ClientSettings:
    """
    What an operator says of a client.

    @ivar server: the endpoint string, for people.
    @ivar interface: address of the interface to listen on, or C{None} for that of the route to
        the server.
    @ivar cache_size: bytes.
    @ivar timeout: seconds that an operation may take.
    @ivar source: what is shown as the device of the mount.
    @ivar tls: whether the server's endpoint is one of TLS.
    """

    server: str
    directory: str
    interface: str | None
    cache_size: int
    timeout: float
    allow_other: bool
    host: str
    source: str
    noexec: bool = False
    tls: bool = False


class _QuietClientService(ClientService):
    # One line for each try, with the address of an object in it, as long as the server is away.
    _log = Logger(observer=LogPublisher())


class ClientMount(Service):
    """Mounts what a server shares."""

    _log = Logger()
    name = "mufs-client"

    def __init__(
        self,
        reactor: Any,
        settings: ClientSettings,
        cache: BlockCache,
        server: IStreamClientEndpoint,
        status: IStreamServerEndpoint | None,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._status = status
        page = partial(client_page, self.figures, self._held_images)
        self._site = StatusSite(reactor, self.name, CLIENT, self.figures, self.figures, page)
        self._control = Control(reactor, CONTROLLED, self._site, {"pull": self._pull})
        self._status_port: IListeningPort | None = None
        self._mounting = False
        self._why_absent = ""
        self._mount_before: Mounted | None = None
        self._mount_there: Mounted | None = None
        self._unmounted: Deferred[None] | None = None
        self._spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(SPARE)]
        self._cache = cache
        self._remote = RemoteFileSystem(
            reactor,
            self._cache,
            settings.cache_size // 4,
            on_welcome=self._welcomed,
            on_refused=self._refused,
        )
        self._pulls = Pulls(self._remote, cache, reactor)
        self._remote.server_pulls = ServerPulls(self._pulls, reactor, self._remote.send)
        self._membership = Membership(
            reactor,
            self._remote.receiver,
            self._remote.multicast_health,
            interface=settings.interface,
            on_joined=self._joined,
            on_unusable=partial(fail, reactor, self.name),
        )
        self._bridge = Bridge(reactor, self._remote, settings.timeout)
        self.ready: Deferred[None] = Deferred()
        self._factory = factory = ClientChannelFactory(self._remote, reactor, settings.host)
        backoff = backoffPolicy(initialDelay=0.2, maxDelay=2.0, factor=1.5)
        self._connection = _QuietClientService(
            server,
            factory,
            retryPolicy=lambda attempts: backoff(max(attempts, factory.failed_connects)),
            clock=reactor,
        )

    def startService(self) -> None:
        """Connect, now or when the server comes, and mount then."""
        super().startService()
        self._control.listen(escape(self._settings.directory))
        if self._status is not None:
            self._status.listen(self._site).addCallbacks(self._listening, self._cannot_listen)
        if not self._settings.tls:
            self._log.warn("no TLS: names and keys come in the clear, from whoever answers")
        self._log.info("connecting to the server at {server}", server=self._settings.server)
        self._working = self._bridge.run(self._cache.work, "cache")
        self._working.addErrback(lambda failure: self._log.failure("cannot keep blocks", failure))
        self._connection.startService()
        self._connection.whenConnected(failAfterFailures=1).addErrback(self._absent)

    @inlineCallbacks
    def stopService(self) -> Any:
        """Fail what waits, unmount, and end the connection."""
        super().stopService()
        self._site.end()
        yield self._control.stop()
        self._bridge.stop()
        if self._unmounted is not None and not self._unmounted.called:
            yield self._unmount()
        self._remote.stop()
        self._cache.stop()
        late = deferLater(self._reactor, UNWRITTEN_TIME, lambda: None)
        yield DeferredList([self._working, late], fireOnOneCallback=True)
        yield self._membership.stop()
        if self._status_port is not None:
            yield self._status_port.stopListening()
        yield self._connection.stopService()

    def figures(self) -> dict[str, object]:
        """The figures of /status.json (docs/operations/monitoring.md)."""
        coalescer, receiver, repairs = (
            self._remote.coalescer,
            self._remote.receiver,
            self._remote.repairs,
        )
        reads, hits = self._remote.reads_and_hits
        return {
            "reads": reads,
            "hits": hits,
            "joined": coalescer.joined,
            "misses": coalescer.misses,
            "hit_rate": hits / reads if reads else 0.0,
            "lag": self._remote.lag,
            "bytes_requested": coalescer.bytes_requested,
            "bytes_overheard": coalescer.bytes_overheard,
            "bytes_over_tcp": coalescer.bytes_over_tcp,
            "cache_bytes": self._cache.held,
            "cache_size": self._settings.cache_size,
            "evictions": self._cache.evictions,
            "blocks_damaged": self._cache.damaged,
            "segments_received": receiver.segments_received,
            "segments_lost": repairs.segments_lost,
            "repairs_sent": repairs.repairs_sent,
            "transfers_rejected": receiver.transfers_rejected,
            "datagrams_dropped": receiver.datagrams_dropped,
            "multicast": self._remote.multicast_health.state,
            "multicast_works": self._remote.multicast_health.works,
            "connected": self._remote.is_connected,
            "tls": self._settings.tls,
            "server": self._settings.server,
            "mount": self._settings.directory,
        }

    def state(self) -> str:
        """How it is, in one line."""
        # Not the files of TLS.
        server = ":".join(self._settings.server.split(":")[:3])
        if self._remote.is_connected:
            connection = f"connected to {server}"
        else:
            connection = f"waiting for the server at {server}"
            why = self._factory.last_connect_error or self._why_absent
            connection += f": {why}" if why else ""
        if not self.ready.called:
            return connection
        figures = self.figures()
        return (
            f"mounted at {self._settings.directory}; {connection}; "
            f"multicast: {figures['multicast']}; hit rate: {figures['hit_rate']:.0%}; "
            f"cache: {self._cache.held >> 20} of {self._settings.cache_size >> 20} MiB"
        )

    # The connection.

    def _absent(self, failure: Failure) -> None:
        self._why_absent = failure.getErrorMessage()
        if self.running:
            self._log.warn(
                "waiting for the server at {server}: {reason}",
                server=self._settings.server,
                reason=self._why_absent,
            )

    def _refused(self, reason: Refused) -> None:
        fail(self._reactor, self.name, f"the server at {self._settings.server} refused: {reason}")

    def _welcomed(self, channel: ClientChannel, welcome: Welcome) -> None:
        self._log.info("connected to the server at {server}", server=self._settings.server)
        self._why_absent = ""
        self._membership.welcomed(channel.transport.getHost(), welcome)
        if not self._mounting:
            self._mounting = True
            self._remote.getattr(b"").addCallbacks(self._mount, self._cannot_mount)

    def _joined(self) -> None:
        buffer = self._remote.receiver.buffer
        self._remote.window.limit(max(BLOCK, min(self._settings.cache_size // 4, buffer // 3)))

    # The mount.

    def _mount(self, _: object) -> None:
        if not self.running:
            return
        settings = self._settings
        self._mount_before = uppermost(settings.directory)
        operations = Operations(self._bridge, self._mounted)
        self._unmounted = self._bridge.run(
            lambda: serve(
                operations,
                settings.directory,
                source=settings.source,
                allow_other=settings.allow_other,
                noexec=settings.noexec,
            ),
            "fuse",
        )
        self._unmounted.addBoth(self._ended)

    def _mounted(self) -> None:
        there = uppermost(self._settings.directory)
        # Something may be mounted over it already.
        if there is not None and there.type == TYPE:
            self._mount_there = there
        self._log.info("mounted at {directory}", directory=self._settings.directory)
        self.ready.callback(None)

    def _cannot_mount(self, failure: Failure) -> None:
        fail(self._reactor, self.name, f"cannot mount: {failure.getErrorMessage()}")

    def _ended(self, result: object) -> None:
        # libfuse puts the default back, which would end the process at the next broken pipe.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        if not self.running:
            return
        directory = self._settings.directory
        # Of a mount that is gone the kernel says in either of two ways that it was aborted.
        failed = isinstance(result, Failure)
        if failed and self._mount_there is None:
            message = f"cannot mount at {directory} (libfuse says why above)"
            fail(self._reactor, self.name, message)
        elif failed and uppermost(directory) == self._mount_there:
            fail(self._reactor, self.name, f"the mount at {directory} was aborted")
        else:
            self._log.info("unmounted: ending")
            self._reactor.stop()

    @inlineCallbacks
    def _unmount(self) -> Any:
        assert self._unmounted is not None
        directory = self._settings.directory
        while self._spare:
            os.close(self._spare.pop())
        for _ in range(UNMOUNT_TRIES):
            if self._is_ours(uppermost(directory)):
                yield getProcessValue("fusermount", ["-u", "-z", "-q", "--", directory], os.environ)
            late = deferLater(self._reactor, UNMOUNT_TIME / UNMOUNT_TRIES, lambda: None)
            yield DeferredList([self._unmounted, late], fireOnOneCallback=True)
            if self._unmounted.called:
                return

    def _is_ours(self, there: Mounted | None) -> bool:
        """Whether this is the mount of this client, or, if it does not know yet, a new one."""
        if self._mount_there is not None:
            return there == self._mount_there
        return there is not None and there.type == TYPE and there != self._mount_before

    # The status.

    def _held_images(self) -> Iterator[HeldImage]:
        """The images opened last, the latest first."""
        handles = self._remote.open_images()
        for image in reversed(self._remote.images.values()):
            missing = partial(self._cache.missing, image.key)
            yield HeldImage(image.path, image.size, image.key in handles, missing)

    def _pull(
        self, asked: dict[str, Any], tell: Callable[[dict[str, object]], None]
    ) -> "Deferred[dict[str, object]]":
        """Fill the cache for somebody on this host: who may ask is this user, or root."""
        caller = Caller(os.geteuid(), os.getegid(), os.getgroups()[:256])
        path = os.fsencode(str(asked.get("path", "")))
        pulling = self._pulls.pull(path, caller, lambda progress: tell(asdict(progress)))
        return pulling.addCallback(lambda progress: {**asdict(progress), "ended": True})

    def _listening(self, port: IListeningPort) -> None:
        self._status_port = port

    def _cannot_listen(self, failure: Failure) -> None:
        fail(self._reactor, self.name, f"cannot serve the status: {failure.getErrorMessage()}")
