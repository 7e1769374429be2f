"""The time that timers go by."""

from time import monotonic
from typing import Any


def use_monotonic_clock(reactor: Any) -> None:
    """
    Have a reactor count time by the clock that nobody sets; before its first timer.

    Twisted's own is the time of day: set forward, it ends every wait at once; set back, none ends
    until it has caught up.
    """
    reactor.seconds = monotonic
