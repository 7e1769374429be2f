"""
Where files have data: what their file system has no bytes for, it tells without reading (lseek(2)).

Data that is not on the disk yet, or only in a mapping, counts as data. File systems that know
nothing of holes say that all is data.
"""

import errno
import os
import time

from mufs.wire.metadata import MAX_RUNS, DataMap

MAX_WALK_SECONDS = 0.02
"""Seconds that looking for the data of one map takes, besides the last run."""

CLOCK_TICK = 0.02
"""
Seconds, at least those between two ticks of the clock that stamps files: two changes within one
may have the same time.
"""


def await_tick(fd: int) -> None:
    """Wait, for C{CLOCK_TICK} at most, until a further change of a file has another time."""
    age = time.time() - os.fstat(fd).st_ctime
    if 0 <= age < CLOCK_TICK:
        time.sleep(CLOCK_TICK - age)


def find_data(fd: int, offset: int, size: int) -> DataMap:
    """
    Where a file has data from C{offset} on, as far as one map has room and time for; but at least
    up to the end of the first run, if there is one.

    @param size: where the file ends, in bytes.
    @raise OSError: when the file cannot be looked at.
    """
    deadline = time.monotonic() + MAX_WALK_SECONDS
    bounds: list[int] = []
    at = offset
    while at < size:
        data = _seek(fd, at, os.SEEK_DATA, size)
        if bounds and (len(bounds) == 2 * MAX_RUNS or time.monotonic() > deadline):
            return DataMap(offset, data, tuple(bounds))
        if data < size:
            at = _seek(fd, data, os.SEEK_HOLE, size)
            if bounds and bounds[-1] == data:  # a hole that was here is filled
                bounds[-1] = at
            else:
                bounds += data, at
        else:
            at = size
    return DataMap(offset, max(offset, size), tuple(bounds))


def _seek(fd: int, offset: int, whence: int, size: int) -> int:
    """
    Where the next data or hole begins; C{size} if there is none. Where the file system cannot
    tell, all is data.
    """
    try:
        found = os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        found = offset if whence == os.SEEK_DATA else size
    if whence == os.SEEK_HOLE and found <= offset:  # the data that was here is gone
        return size
    return min(max(found, offset), size)
