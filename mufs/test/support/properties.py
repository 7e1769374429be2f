"""What tests of properties have in common: settings and strategies for hypothesis."""

from typing import Any

import numpy
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mufs.wire.pages import BLOCK, PAGE
from mufs.wire.segments import HEADER, TAG_SIZE, Descriptor


def examples(most: int) -> settings:
    """So many examples, the same in every run, however long each takes."""
    return settings(
        max_examples=most,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
OFFSETS = st.integers(0, (1 << 64) // PAGE - 1).map(lambda page: page * PAGE)
"""Where a page of an image begins."""


def near_wrap(reach: int) -> "st.SearchStrategy[int]":
    """Numbers mod 2**32, most of them less than C{reach} away from where they start anew."""
    close = st.integers(-reach, reach).map(lambda number: number & 0xFFFFFFFF)
    return st.one_of(close, close, U32)


@st.composite
def descriptors(draw: st.DrawFn) -> Descriptor:
    """Any descriptor of a transfer that begins with a page and ends within its block."""
    offset = draw(OFFSETS)
    return Descriptor(
        transfer=draw(U64),
        first=draw(near_wrap(2048)),
        image=draw(U64),
        generation=draw(U64),
        offset=offset,
        total=draw(st.integers(1, BLOCK - offset % BLOCK)),
        tag=draw(st.binary(min_size=TAG_SIZE, max_size=TAG_SIZE)),
    )


def packets_of(rows: "numpy.ndarray[Any, Any]") -> list[bytes]:
    """The segments that rows made by C{cut} stand for, each as long as its header tells."""
    packets = []
    for row in rows:
        packet = row.tobytes()
        packets.append(packet[: HEADER.size + HEADER.unpack_from(packet)[1]])
    return packets
