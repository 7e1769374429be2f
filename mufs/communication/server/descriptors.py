"""Whether this process may open more files."""

import os
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

SPARE = 64
"""Files that connections leave of those that may be open: for the threads, which walk paths."""

SPARE_OF_IMAGES = 128
"""Files that open images leave: for connections, too."""


def exhausted(spare: int) -> bool:
    """Whether no more than C{spare} files may still be opened, of 512; of fewer, in proportion."""
    most, _ = getrlimit(RLIMIT_NOFILE)
    if most == RLIM_INFINITY:
        return False
    try:
        probe = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    os.close(probe)
    # The lowest number that is free is given, so it tells how many are open.
    return probe >= most - min(spare, most * spare // 512)
