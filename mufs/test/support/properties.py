"""Settings and strategies for hypothesis that several property tests use."""

from collections.abc import Iterable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mufs.wire.packing import Encoding
from mufs.wire.pages import BLOCK, PAGE
from mufs.wire.segments import TAG_SIZE, Descriptor


def examples(count: int) -> settings:
    """Return settings for C{count} examples, the same in every run, without a time limit."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
OFFSETS = st.integers(0, (1 << 64) // PAGE - 1).map(lambda page: page * PAGE)
"""Page-aligned offsets in an image."""


def near_wrap(reach: int) -> "st.SearchStrategy[int]":
    """Numbers mod 2**32, most of them within C{reach} of the wrap-around."""
    close = st.integers(-reach, reach).map(lambda number: number & 0xFFFFFFFF)
    return st.one_of(close, close, U32)


@st.composite
def descriptors(draw: st.DrawFn) -> Descriptor:
    """Any descriptor of a transfer that begins at a page and ends within its block."""
    offset = draw(OFFSETS)
    length = draw(st.integers(1, BLOCK - offset % BLOCK))
    encoding = draw(st.sampled_from(Encoding if length > 1 else [Encoding.PLAIN]))
    total = length if encoding == Encoding.PLAIN else draw(st.integers(1, length - 1))
    return Descriptor(
        transfer=draw(U64),
        first=draw(near_wrap(2048)),
        image=draw(U64),
        generation=draw(U64),
        offset=offset,
        total=total,
        length=length,
        encoding=encoding,
        tag=draw(st.binary(min_size=TAG_SIZE, max_size=TAG_SIZE)),
    )


def packets_of(rows: "Iterable[Any]") -> list[bytes]:
    """Return the segments made by C{cut}, or parity segments."""
    return [bytes(row) for row in rows]
