"""Memory that was freed is given back to the system."""

import ctypes
from typing import Any

from twisted.application.internet import TimerService

TRIM_INTERVAL = 60.0
"""Seconds between two times of giving memory back, which takes less than a millisecond."""


def trim() -> None:
    """Give back what malloc holds and nothing uses, where the C library can, as glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def trimming(reactor: Any) -> TimerService:
    """
    A service that does so all the time: otherwise a process keeps what its largest bursts took,
    such as transfers in parts on a network that loses much.
    """
    service = TimerService(TRIM_INTERVAL, trim)
    service.clock = reactor
    return service
