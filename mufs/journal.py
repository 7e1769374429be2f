"""
Logging to the journal, by its native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/), or
to syslog(3) where there is no journal.

twistd takes the observers by name: C{--logger mufs.journal.server}.
"""

import os
import socket
import sys
import syslog
from struct import pack
from typing import IO

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText
from zope.interface import implementer

JOURNAL = "/run/systemd/journal/socket"

MAX_FIELD_BYTES = 64 * 1024
"""Bytes of a field: the size of a datagram is limited, and longer text is of little use."""

_PRIORITIES = {
    LogLevel.debug: syslog.LOG_DEBUG,
    LogLevel.info: syslog.LOG_INFO,
    LogLevel.warn: syslog.LOG_WARNING,
    LogLevel.error: syslog.LOG_ERR,
    LogLevel.critical: syslog.LOG_CRIT,
}

_FIELDS = {
    "address": "MUFS_ADDRESS",
    "client": "MUFS_CLIENT",
    "group": "MUFS_GROUP",
    "interface": "MUFS_INTERFACE",
    "server": "MUFS_SERVER",
    "directory": "MUFS_MOUNT",
}
"""The fields of the journal for keys of an event."""


def server() -> "Observer":
    """The observer for the server."""
    return Observer("mufs-server")


def client() -> "Observer":
    """The observer for a client."""
    return Observer("mufs-client")


def is_stream(stream: IO[str] | None) -> bool:
    """Whether a stream leads to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        if stream is None:
            return False
        there = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def priority(event: LogEvent) -> int:
    """
    The priority of an event, as in syslog(3).

    A failure that did not end the service is only an error, and routine messages of Twisted are
    for debugging.
    """
    level = event.get("log_level", LogLevel.info)
    if level is LogLevel.critical and "log_failure" in event:
        level = LogLevel.error
    if level is LogLevel.info and not event.get("log_namespace", "").startswith(("mufs", "std")):
        level = LogLevel.debug
    return _PRIORITIES[level]


@implementer(ILogObserver)
class Observer:
    """Writes each event as one entry, without blocking."""

    def __init__(self, name: str, journal: str = JOURNAL) -> None:
        """
        @param name: the identifier of the entries, for C{journalctl -t}.
        @param journal: path of the socket of the journal.
        """
        self._name = name
        self._journal = journal
        self._socket: socket.socket | None = None
        if os.path.exists(journal):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        else:
            syslog.openlog(name, syslog.LOG_PID, syslog.LOG_DAEMON)

    def __call__(self, event: LogEvent) -> None:
        """See C{ILogObserver}."""
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
        if self._socket is None:
            for line in text.splitlines():
                syslog.syslog(priority(event), line.replace("\0", "?"))
            return
        fields = {
            "MESSAGE": text,
            "PRIORITY": priority(event),
            "SYSLOG_IDENTIFIER": self._name,
            "MUFS_NAMESPACE": event.get("log_namespace", ""),
            **{field: event[key] for key, field in _FIELDS.items() if event.get(key)},
        }
        datagram = b"".join(_field(name, value) for name, value in fields.items())
        try:
            self._socket.sendto(datagram, socket.MSG_DONTWAIT, self._journal)
        except OSError as error:
            # Logging it would fail in the same way.
            print(f"{self._name}: {text} (the journal: {error})", file=sys.__stderr__)


def _field(name: str, value: object) -> bytes:
    """A field in the form with a length, in which a value may contain any bytes."""
    data = str(value).encode(errors="backslashreplace")[:MAX_FIELD_BYTES]
    return name.encode() + b"\n" + pack("<Q", len(data)) + data + b"\n"
