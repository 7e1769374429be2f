"""The clock of the reactor's timers."""

from time import monotonic
from typing import Any


def use_monotonic_clock(reactor: Any) -> None:
    """
    Make a reactor use the monotonic clock. Call this before its first timer.

    By default Twisted uses the time of day: when that is set forward all timers expire at once, and
    when it is set back none does until it has caught up.
    """
    reactor.seconds = monotonic
