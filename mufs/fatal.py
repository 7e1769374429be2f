"""Ending a service that cannot go on: one clear line, and a non-zero exit status."""

import atexit
import os
import sys
from contextlib import suppress
from typing import IO, Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from mufs.journal import is_stream

_log = Logger()


def fail(reactor: Any, name: str, message: str) -> None:
    """
    Log a message, print it on standard error, and stop the process with status 1. Where both are
    the same place, such as the journal or a terminal, it comes once.

    twistd exits with status 0 whenever the reactor was stopped, so the status is set when the
    interpreter exits.
    """
    if not _has_log(sys.__stderr__):
        _log.critical("{message}", message=message)
    if not is_stream(sys.__stderr__):
        print(f"{name}: {message}", file=sys.__stderr__, flush=True)
    atexit.register(_exit)
    reactor.callWhenRunning(_stop, reactor)


def _has_log(stream: IO[str] | None) -> bool:
    """Whether twistd's log goes to standard output, which leads to the same place as a stream."""
    elsewhere = ("-l", "--log", "--syslog")
    try:
        if stream is None or sys.__stdout__ is None:
            return False
        ends = [os.fstat(each.fileno()) for each in (stream, sys.__stdout__)]
        is_shown = os.path.samestat(*ends) and not os.path.samestat(ends[0], os.stat(os.devnull))
    except (OSError, ValueError):
        return False
    return is_shown and not any(word.startswith(elsewhere) for word in sys.argv[1:])


def _stop(reactor: Any) -> None:
    with suppress(ReactorNotRunning):
        reactor.stop()


def _exit() -> None:
    sys.stdout.flush()
    os._exit(1)
