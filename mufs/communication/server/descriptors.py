"""Whether this process may open more files."""

import os
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

RESERVED_FDS = 64
"""File descriptors that connections leave free: for the threads, which walk paths."""

RESERVED_FDS_OF_IMAGES = 128
"""File descriptors that open images leave free: for the threads, and for connections."""


def exhausted(reserved: int) -> bool:
    """
    Whether no more than C{reserved} descriptors are free.

    Of a limit below 512 descriptors, C{reserved} is taken in proportion.
    """
    limit, _ = getrlimit(RLIMIT_NOFILE)
    if limit == RLIM_INFINITY:
        return False
    try:
        probe = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    os.close(probe)
    # The kernel gives the lowest number that is free, so it tells how many are in use.
    return probe >= limit - min(reserved, limit * reserved // 512)
