"""
Memory for what is read of images, which is used again once nobody refers to it any more.

It lasts only until it is sealed. If it came and went between the transfers that are kept, these
would lie scattered, and a process would hold a fifth more than they have.
"""

from weakref import finalize

import numpy

from mufs.wire.pages import EXTENT

MAX_KEPT = 4
"""Pieces of memory that are kept while nobody uses them."""

_kept: "list[numpy.ndarray[tuple[int], numpy.dtype[numpy.uint8]]]" = []


def take(size: int) -> memoryview:
    """Memory of C{size} bytes with any content; in any thread."""
    if size > EXTENT:
        return numpy.empty(size, numpy.uint8).data
    try:
        memory = _kept.pop()
    except IndexError:
        memory = numpy.empty(EXTENT, numpy.uint8)
    part = memory[:size]
    # What refers to a view of it, or to a part of that, refers to this array.
    finalize(part, _give_back, memory).atexit = False
    return part.data


def _give_back(memory: "numpy.ndarray[tuple[int], numpy.dtype[numpy.uint8]]") -> None:
    if len(_kept) < MAX_KEPT:
        _kept.append(memory)
