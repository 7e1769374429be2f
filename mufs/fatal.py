"""Ending a service that cannot go on: one clear line, and a non-zero exit status."""

import atexit
import os
import sys
from contextlib import suppress
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from mufs.journal import is_stream

_log = Logger()


def fail(reactor: Any, name: str, message: str) -> None:
    """
    Log a message, print it on standard error unless that is the journal, too, and stop the process
    with status 1.

    twistd exits with status 0 whenever the reactor was stopped, so the status is set when the
    interpreter exits.
    """
    _log.critical("{message}", message=message)
    if not is_stream(sys.__stderr__):
        print(f"{name}: {message}", file=sys.__stderr__, flush=True)
    atexit.register(_exit)
    reactor.callWhenRunning(_stop, reactor)


def _stop(reactor: Any) -> None:
    with suppress(ReactorNotRunning):
        reactor.stop()


def _exit() -> None:
    sys.stdout.flush()
    os._exit(1)
