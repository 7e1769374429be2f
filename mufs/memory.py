"""Memory that was freed is given back to the system."""

import ctypes

from twisted.internet.interfaces import IReactorTime

from mufs.repeated_call import RepeatedCall

TRIM_INTERVAL = 10.0
"""
Seconds between two times of giving memory back, which takes less than a millisecond. Within a
minute, free chunks all over the heap are used again, and 4 MiB of a client's 46 come back.
"""


def trim() -> None:
    """Give back what malloc holds and nothing uses, where the C library can, as glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class Trimming(RepeatedCall):
    """
    Does so all the time: otherwise a process keeps what its largest bursts took, such as transfers
    in parts on a network that loses much.
    """

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__(clock, TRIM_INTERVAL, trim)
