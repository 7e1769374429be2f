"""
Memory for transfers, which is used again and again: new pages would cost as much as receiving.

It is shared by all receivers of a process, in the reactor's thread.
"""

from mufs.wire.pages import EXTENT
from mufs.wire.segments import TAG_SIZE

MAX_KEPT = 4
"""Buffers that are kept while nobody uses them."""

_kept: list[bytearray] = []


def take() -> bytearray:
    """Memory with room for any transfer and its tag, with any content."""
    return _kept.pop() if _kept else bytearray(EXTENT + TAG_SIZE)


def give_back(buffer: bytearray) -> None:
    """Have memory used again; it must not be touched any more."""
    if len(buffer) == EXTENT + TAG_SIZE and len(_kept) < MAX_KEPT:
        _kept.append(buffer)
