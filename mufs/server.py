"""The server as a service: the core, its sockets and its threads put together."""

import os
from functools import partial
from typing import Any

from attrs import frozen
from twisted.application.service import MultiService, Service
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import (
    IListeningPort,
    IReactorFDSet,
    IReadDescriptor,
    IStreamServerEndpoint,
)
from twisted.logger import Logger

from mufs.access_rules import AccessRules
from mufs.addresses import join
from mufs.certificate_watch import CertificateWatch
from mufs.communication.interfaces import NetworkChanges
from mufs.communication.server.admission import Admission, bound_by_files, bound_unsent_bytes
from mufs.communication.server.limits import Limits
from mufs.communication.server.outgoing import OutgoingMulticast
from mufs.communication.server.output import MulticastOutput
from mufs.communication.server.packer import Compression
from mufs.control import Control
from mufs.endpoints import expiry_of, revocation_of
from mufs.fatal import fail
from mufs.filesystem.server.access import EVERYBODY, Access
from mufs.filesystem.server.threads import DaemonThreads
from mufs.interfaces import IImageLibrary
from mufs.listening import ListeningService
from mufs.memory import Trimming
from mufs.push_task import push_task
from mufs.server_core import make_server_core
from mufs.sockets import SERVER as CONTROLLED
from mufs.sockets import escape, unbracketed
from mufs.status.about import About
from mufs.status.figures import SERVER
from mufs.status.server_figures import server_figures, server_state, server_totals
from mufs.status.server_page import OF_DAY, server_page
from mufs.status.site import StatusSite
from mufs.status.state import StateFile
from mufs.wire.metadata import Welcome

MAX_LOOKUP_THREADS = 8
"""Threads that look at files and directories for clients: twice what one client keeps busy."""

MAX_READ_THREADS = 20
"""Threads that read images; some of them may hang."""


@frozen(kw_only=True)
class ServerSettings:
    """
    What the operator has set.

    @ivar interface: address or name of the interface to send on, or C{None} for that of the route
        to the first client.
    @ivar rate_min: bits per second, as is C{rate_max}.
    @ivar compression: of what is sent to the group; C{None} for none.
    @ivar tls: whether the endpoint of the request channel is one of TLS.
    @ivar images: real path of the exported directory; empty if the library is not a directory.
    """

    group: str
    port: int
    interface: str | None
    rate_min: int
    rate_max: int
    compression: Compression | None = None
    tls: bool = False
    images: str = ""


class ServerService(MultiService):
    """
    Exports a library of images to clients. It has many attributes because it puts the parts of the
    server together.

    @ivar core: its parts.
    @ivar rules: the access rules.
    @ivar clients: listens for clients.
    @ivar ready: fires once it listens at all endpoints.
    """

    _log = Logger()
    name = "mufs-server"

    def __init__(
        self,
        reactor: Any,
        settings: ServerSettings,
        *,
        library: IImageLibrary,
        secret: bytes,
        listen: IStreamServerEndpoint,
        status: IStreamServerEndpoint | None,
        access: Access = EVERYBODY,
        state: StateFile | None = None,
        changes: IReadDescriptor | None = None,
    ) -> None:
        """
        @param secret: random bytes of this run, from which the keys are derived.
        @param listen: the endpoint of the request channel.
        @param status: the endpoint of the status page, if there is to be one.
        @param state: keeps its figures of the last day over restarts.
        @param changes: reads the events of changes of images, if there are such.
        """
        super().__init__()
        self._settings = settings
        self._about = About()
        self._fail = partial(fail, reactor, self.name)
        self._read_threads = DaemonThreads(reactor, MAX_READ_THREADS, "reads")
        self._pack_threads = DaemonThreads(reactor, os.cpu_count() or 1, "packing")
        self._lookup_threads = DaemonThreads(reactor, MAX_LOOKUP_THREADS, "lookups")
        self.rules = AccessRules(library, access, self._lookup_threads.call)
        self._outgoing = OutgoingMulticast(
            reactor,
            settings.group,
            settings.port,
            interface=settings.interface,
            on_output=self._send_by,
            on_moved=self._tell_clients,
        )
        NetworkChanges(reactor, self._outgoing.network_changed).setServiceParent(self)
        self.core = make_server_core(
            reactor,
            rate_min=settings.rate_min,
            rate_max=settings.rate_max,
            secret=secret,
            view=self.rules.view,
            read_in_thread=self._read_threads.call,
            look_up_in_thread=self._lookup_threads.call,
            pack_in_thread=self._pack_threads.call,
            welcome=self._outgoing.welcome,
            limits=Limits(reactor),
            compression=settings.compression,
        )
        self._admission = Admission(self.core.limits, reactor)
        self._certificate = CertificateWatch(reactor, partial(expiry_of, listen))
        self._is_revoked = revocation_of(listen)
        totals = partial(server_totals, self.core, tls=settings.tls)
        page = partial(server_page, self.figures)
        self._site = StatusSite(
            reactor,
            self.name,
            SERVER,
            figures=self.figures,
            totals=totals,
            body=page,
            of_day=OF_DAY,
            state=state,
        )
        push = push_task(self.core.factory, library, settings.images)
        self._control = Control(reactor, CONTROLLED, status=self._site, tasks={"push": push})
        Trimming(reactor).setServiceParent(self)
        self.ready: Deferred[None] = Deferred()
        self._certificate.setServiceParent(self)
        self.clients = self._listener(listen, self.core.factory, "clients")
        self._listeners = [self.clients]
        if changes is not None:
            _Reading(reactor, changes).setServiceParent(self)
        if status is not None:
            self._listeners.append(self._listener(status, self._site, "status requests"))

    def startService(self) -> None:
        """Listen, and send on the interface if one is set; without either the process ends."""
        self._site.begin()
        self._read_threads.start()
        self._pack_threads.start()
        self._lookup_threads.start()
        bound_by_files(self.core.limits)
        if not self._settings.tls:
            self._log.warn(
                "no TLS: anybody who can connect may read, and keys are sent in the clear"
            )
        self._outgoing.network_changed()
        self.rules.check_paths()
        super().startService()

    def stopService(self) -> "Deferred[Any]":
        """Stop listening, and end every connection."""
        self._site.end()
        self.core.controller.stop()
        self._admission.stop()
        for channel in list(self.core.factory.channels):
            channel.transport.abortConnection()
        stopping = [super().stopService(), self._outgoing.stop(), self._control.stop()]
        return DeferredList(stopping, consumeErrors=True)

    def figures(self) -> dict[str, object]:
        """The figures of /status.json."""
        figures = server_figures(
            self.core,
            tls=self._settings.tls,
            interface=self._outgoing.interface,
            certificate_days=self._certificate.days_left(),
        )
        settings = self._settings
        group = f"{settings.group}:{settings.port}"
        return {**self._about.figures(), "directory": settings.images, "group": group, **figures}

    def reloaded(self) -> None:
        """TLS was reloaded: disconnect the clients whose certificates are revoked now."""
        for channel in list(self.core.factory.channels):
            if not channel.name:
                # Its certificate was checked with the former lists, or is being so now.
                channel.close("certificates were read again before its HELLO came")
            elif self._is_revoked(channel.transport):
                channel.close("its certificate is revoked")

    def state(self) -> str:
        """The state in one line."""
        return server_state(self.core)

    def _send_by(self, output: MulticastOutput | None) -> None:
        self.core.controller.output = output

    def _tell_clients(self, welcome: Welcome) -> None:
        for channel in self.core.factory.channels:
            channel.tell_welcome(welcome)

    def _listener(
        self, endpoint: IStreamServerEndpoint, factory: Any, purpose: str
    ) -> ListeningService:
        def listening(port: IListeningPort) -> None:
            address = _address(port)
            if factory is self.core.factory:
                self._admission.guard(port)
                self._control.listen(escape(unbracketed(address)))
            bound_unsent_bytes(port)
            self._log.info("listening for {what} on {where}", what=purpose, where=address)
            if all(each.port for each in self._listeners):
                self.ready.callback(None)

        def failed(reason: str) -> None:
            other = "--listen 7050" if purpose == "clients" else "--status 7090"
            self._fail(f"cannot listen for {purpose}: {reason}: choose another, such as {other}")

        listener = ListeningService(endpoint, factory, on_listening=listening, on_failed=failed)
        listener.setServiceParent(self)
        return listener


class _Reading(Service):
    """Has the reactor read a descriptor while the server runs."""

    def __init__(self, reactor: IReactorFDSet, reader: IReadDescriptor) -> None:
        self._reactor = reactor
        self._reader = reader

    def startService(self) -> None:
        super().startService()
        self._reactor.addReader(self._reader)

    def stopService(self) -> None:
        super().stopService()
        self._reactor.removeReader(self._reader)


def _address(port: IListeningPort) -> str:
    """Where a port listens: C{HOST:PORT}, or the path of a socket."""
    address: Any = port.getHost()
    if isinstance(address, UNIXAddress):
        return os.fsdecode(address.name or b"")
    return join(address.host, address.port)
