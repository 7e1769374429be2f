"""SIGINT and SIGTERM, which end a service once."""

import signal
from functools import partial
from types import FrameType
from typing import Any

from twisted.internet.interfaces import IReactorCore

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def end_once(reactor: Any) -> None:
    """
    Have the reactor, when it runs, end at the first of these signals, and ignore further ones, for
    each of which it would log a traceback.
    """
    if IReactorCore.providedBy(reactor):
        # The reactor takes SIGINT over only from Python.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        reactor.callWhenRunning(_ignore_further)


def _ignore_further() -> None:
    for number in NUMBERS:
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, partial(_end, handler))


def _end(handler: Any, number: int, frame: FrameType | None) -> None:
    for each in NUMBERS:
        signal.signal(each, signal.SIG_IGN)
    handler(number, frame)
