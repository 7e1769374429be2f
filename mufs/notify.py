"""
What systemd is told of a service, and what it asks of it: sd_notify(3), the datagrams of
Type=notify; and SIGHUP, by which certificates are read anew.
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

STATUS_INTERVAL = 5.0
"""Seconds between two looks whether there is something new to tell."""

STARTING_INTERVAL = 0.5
"""The same while the service starts: somebody waits for it."""

NOTIFY_TIMEOUT = 1.0
"""Seconds that systemd may take to accept a datagram."""


class Supervised(Protocol):
    """A service that can tell of itself."""

    ready: Deferred[None]

    def state(self) -> str:
        """How it is, in one line."""


class Notifier:
    """Where systemd listens; nowhere, if it does not."""

    _log = Logger()

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def __bool__(self) -> bool:
        """Whether somebody listens."""
        return bool(self._address)

    def tell(self, *assignments: str) -> None:
        """Send assignments as C{READY=1} in one datagram."""
        if not self:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(NOTIFY_TIMEOUT)
                sender.sendto("\n".join(assignments).encode(), self._address)
        except (FileNotFoundError, ConnectionRefusedError):
            # Who started the service wanted to know no more than that it is ready; the socket
            # is closed a moment before its name is gone.
            self._address = ""
        except OSError as error:
            self._log.warn("cannot tell systemd {what}: {error}", what=assignments, error=error)


class Supervision(Service):
    """Stands beside the service that it tells of, and ends before it."""

    _log = Logger()
    name = "supervision"

    def __init__(
        self,
        reactor: Any,
        service: Supervised,
        renew: Callable[[], None] | None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """@param renew: reads certificates anew, or raises C{usage.UsageError}; C{None}: no TLS."""
        self._reactor = reactor
        self._service = service
        self._renew = renew
        self._environment = environment
        self._notifier = Notifier(environment)
        self._told = ""
        self._calls: list[LoopingCall] = []

    def startService(self) -> None:
        """Tell from now on what is to be told, and wait for SIGHUP."""
        super().startService()
        # Of a terminal that is closed SIGHUP is the end.
        if not os.isatty(0):
            signal.signal(signal.SIGHUP, self._hangup)
        if not self._notifier:
            return
        self._looking = self._call(STARTING_INTERVAL, self._tell_state)
        self._service.ready.addCallback(self._ready)
        watched = self._environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = int(self._environment.get("WATCHDOG_USEC", "0"))
        if watched and microseconds:
            self._call(microseconds / 2e6, lambda: self._notifier.tell("WATCHDOG=1"))

    def stopService(self) -> None:
        """Tell that it ends, as long as it takes."""
        super().stopService()
        self._notifier.tell("STOPPING=1")
        for call in self._calls:
            # One that failed has said so in the log.
            if call.running:
                call.stop()

    def reload(self) -> None:
        """Read certificates anew; those of before stay if that fails."""
        ready = self._service.ready.called
        if ready:
            self._notifier.tell("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}")
        if self._renew is None:
            self._log.info("nothing to read anew: no TLS")
        else:
            try:
                self._renew()
            except usage.UsageError as error:
                self._log.error("the certificates stay as they were: {error}", error=error)
            else:
                self._log.info("certificates were read anew, for new connections")
        if ready:
            self._notifier.tell("READY=1")

    def _call(self, seconds: float, function: Callable[[], None]) -> LoopingCall:
        call = LoopingCall(function)
        call.clock = self._reactor
        call.start(seconds)
        self._calls.append(call)
        return call

    def _hangup(self, *_: object) -> None:
        # It may come in the middle of anything.
        self._reactor.callFromThread(self.reload)

    def _ready(self, _: None) -> None:
        if self.running:
            self._notifier.tell("READY=1")
            if self._looking.running:
                self._looking.stop()
            self._call(STATUS_INTERVAL, self._tell_state)

    def _tell_state(self) -> None:
        # One line, for each further one would be an assignment of its own.
        state = " ".join(self._service.state().split())
        if state != self._told:
            self._told = state
            self._notifier.tell(f"STATUS={state}")


def supervised(reactor: Any, service: Any, renew: Callable[[], None] | None) -> MultiService:
    """A service, and beside it what tells systemd of it."""
    both = MultiService()
    service.setServiceParent(both)
    Supervision(reactor, service, renew).setServiceParent(both)
    return both
