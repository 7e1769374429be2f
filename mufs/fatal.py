"""How a service ends that cannot go on: one clear line, and a status that is not zero."""

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
    Say why on standard error and in the log, once where both are the journal, and stop the process
    with status 1.

    twistd ends with status 0 whenever the reactor was stopped in an orderly way, so the status
    is set at the very end of the process.
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
