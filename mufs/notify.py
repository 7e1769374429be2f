"""
What a service tells systemd (sd_notify(3), Type=notify), and SIGHUP, which reloads certificates.
"""

import os
import signal
import socket
from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import Any, Protocol

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python import usage

from mufs.communication.certificates import UnusableFile
from mufs.ending import end_once

STATUS_INTERVAL = 5.0
"""Seconds between two checks for a new state to report."""

STARTING_INTERVAL = 0.5
"""The same while the service starts, and somebody waits for it."""

NOTIFY_TIMEOUT = 1.0
"""Seconds that systemd may take to accept a datagram."""


class Supervised(Protocol):
    """A service that can report its state."""

    ready: Deferred[None]

    def state(self) -> str:
        """The state in one line."""


class Notifier:
    """Sends to the socket on which systemd listens, if it does."""

    _log = Logger()

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def __bool__(self) -> bool:
        """Whether systemd listens."""
        return bool(self._address)

    def tell(self, *assignments: str) -> None:
        """Send assignments, such as C{READY=1}, in one datagram."""
        if not self:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(NOTIFY_TIMEOUT)
                sender.sendto("\n".join(assignments).encode(), self._address)
        except (FileNotFoundError, ConnectionRefusedError):
            # Whatever started the service waited only for READY=1. The socket is closed a moment
            # before its name is removed.
            self._address = ""
        except OSError as error:
            self._log.warn("cannot tell systemd {what}: {error}", what=assignments, error=error)


class Supervision(Service):
    """Reports the state of the service beside it; stops before that service."""

    _log = Logger()
    name = "supervision"

    def __init__(
        self,
        reactor: Any,
        service: Supervised,
        reload: Callable[[], None] | None,
        *,
        rules: Callable[[], None] | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """
        @param reload: reloads certificates, or raises L{UnusableFile}; C{None}: no TLS.
        @param rules: reads access rules again, or raises C{usage.UsageError}; C{None}: none.
        """
        self._reactor = reactor
        self._service = service
        self._reload = reload
        self._rules = rules
        self._environment = environment
        self._notifier = Notifier(environment)
        self._last_state = ""
        self._calls: list[LoopingCall] = []

    def startService(self) -> None:
        """Report to systemd from now on, and reload at SIGHUP."""
        super().startService()
        # When a terminal is closed, SIGHUP is to end the service.
        if not os.isatty(0):
            signal.signal(signal.SIGHUP, self._hangup)
        if not self._notifier:
            return
        self._starting = self._call(STARTING_INTERVAL, self._tell_state)
        self._service.ready.addCallback(self._ready)
        watched = self._environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = int(self._environment.get("WATCHDOG_USEC", "0"))
        if watched and microseconds:
            self._call(microseconds / 2e6, lambda: self._notifier.tell("WATCHDOG=1"))

    def stopService(self) -> None:
        """Report that the service is stopping."""
        super().stopService()
        self._notifier.tell("STOPPING=1")
        for call in self._calls:
            # One that failed has logged why.
            if call.running:
                call.stop()

    def reload(self) -> None:
        """Reload certificates and access rules; the former ones stay in use if that fails."""
        ready = self._service.ready.called
        if ready:
            self._notifier.tell("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}")
        if self._reload is None:
            self._log.info("nothing to reload: no TLS")
        else:
            try:
                self._reload()
            except UnusableFile as error:
                self._log.error("certificates not reloaded: {error}", error=error)
            else:
                self._log.info("certificates reloaded, for new connections")
        if self._rules is not None:
            try:
                self._rules()
            except usage.UsageError as error:
                self._log.error("access rules not read again: {error}", error=error)
        if ready:
            self._notifier.tell("READY=1")

    def _call(self, seconds: float, function: Callable[[], None]) -> LoopingCall:
        call = LoopingCall(function)
        call.clock = self._reactor
        call.start(seconds)
        self._calls.append(call)
        return call

    def _hangup(self, *_: object) -> None:
        # A signal may interrupt any code of the reactor's thread.
        self._reactor.callFromThread(self.reload)

    def _ready(self, _: None) -> None:
        if self.running:
            self._notifier.tell("READY=1")
            if self._starting.running:
                self._starting.stop()
            self._call(STATUS_INTERVAL, self._tell_state)

    def _tell_state(self) -> None:
        # Each line would be an assignment of its own.
        state = " ".join(self._service.state().split())
        if state != self._last_state:
            self._last_state = state
            self._notifier.tell(f"STATUS={state}")


def supervised(
    reactor: Any,
    service: Any,
    reload: Callable[[], None] | None,
    *,
    rules: Callable[[], None] | None = None,
) -> MultiService:
    """A service together with its L{Supervision}, which one signal ends."""
    end_once(reactor)
    both = MultiService()
    service.setServiceParent(both)
    Supervision(reactor, service, reload, rules=rules).setServiceParent(both)
    return both
