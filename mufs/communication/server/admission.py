"""Which connections a server accepts, and what their sockets may take."""

import socket
from contextlib import suppress
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITransport
from twisted.internet.protocol import Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory

from mufs.communication.server.limits import MAX_CONNECTIONS, MAX_HANDLES, Limits
from mufs.wire.channel import Type, pack_tagged
from mufs.wire.metadata import Failure, encode

MAX_FILES = 65536
"""Files that the server may have open at a time, where the system lets it."""

MAX_UNSENT_BYTES = 128 * 1024
"""Bytes of a connection that wait in the kernel; more would go out beyond its share of the link."""

REFUSALS_PER_PAUSE = 16
"""Connections that are refused before accepting pauses."""

ACCEPT_PAUSE_SECONDS = 0.01
"""Seconds for which no connection is accepted then, so that others are served."""


def bound_by_files(limits: Limits) -> None:
    """
    Raise the process's limit of open files, and bound connections and handles by it.

    An open image is an open file, so the usual limit, meant for select(2), is too low. Connections
    leave half of the files to images, and no client may use all of them.
    """
    soft, hard = getrlimit(RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == RLIM_INFINITY else min(hard, MAX_FILES)
    if soft == RLIM_INFINITY:
        return
    if soft < wanted:
        setrlimit(RLIMIT_NOFILE, (wanted, hard))
    files = max(soft, wanted)
    limits.max_connections = min(MAX_CONNECTIONS, files // 2)
    limits.max_handles = min(MAX_HANDLES, files // 4)


def bound_unsent_bytes(port: Any) -> None:
    """Limit the unsent bytes that connections of a listening port leave in the kernel."""
    # They inherit it from the listening socket; one that is not TCP does not know it.
    with suppress(AttributeError, OSError):
        port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)


_ERROR = pack_tagged(
    Type.ERROR,
    0,
    encode(Failure("EAGAIN", "it has too many connections, of this host or of all hosts")),
)
_ALERT = bytes.fromhex("15 0303 0002 02 31")
"""A fatal alert of TLS, access_denied (RFC 8446, 6): a handshake would cost the server more."""


class _Refusal(Protocol):
    transport: ITransport

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connectionMade(self) -> None:
        self.transport.write(self._answer)
        self.transport.loseConnection()


class Admission:
    """Refuses connections beyond the limits once they are accepted, before TLS begins."""

    def __init__(self, limits: Limits, clock: IReactorTime) -> None:
        self._limits = limits
        self._clock = clock
        self._pause: IDelayedCall | None = None

    def guard(self, port: Any) -> None:
        """
        Refuse connections at a listening port.

        The port's factory may be one of TLS around that of the channels.
        """
        factory = getattr(port, "factory", None)
        if factory is None:
            return
        build = factory.buildProtocol
        answer = _ALERT if isinstance(factory, TLSMemoryBIOFactory) else _ERROR

        def build_or_refuse(address: Any) -> Any:
            if not self._limits.refuses(getattr(address, "host", None)):
                return build(address)
            # Twisted accepts more connections per turn of the reactor when many came before.
            port.numberAccepts = 1
            if self._limits.refused % REFUSALS_PER_PAUSE == 0 and self._pause is None:
                port.stopReading()
                self._pause = self._clock.callLater(ACCEPT_PAUSE_SECONDS, self._resume, port)
            return _Refusal(answer)

        factory.buildProtocol = build_or_refuse

    def stop(self) -> None:
        """Accept no more."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _resume(self, port: Any) -> None:
        self._pause = None
        port.startReading()
