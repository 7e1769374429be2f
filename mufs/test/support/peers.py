"""Hypothesis strategies for the packets of a misbehaving peer on the request channel."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from mufs.test.support.properties import U32, U64
from mufs.wire.channel import (
    HEADER,
    Data,
    Gone,
    Occasion,
    Priority,
    Read,
    Repair,
    Sent,
    Type,
    pack,
    pack_tagged,
)
from mufs.wire.metadata import (
    At,
    Close,
    Failure,
    Hello,
    Link,
    Names,
    Opened,
    Pull,
    Pulled,
    Report,
    encode,
)

SMALL = st.integers(0, 6)
"""Tags, handles and transfer numbers: few, so that they often match existing ones."""

OFFSETS = st.one_of(st.integers(0, 1 << 19), U64)
LENGTHS = st.one_of(st.integers(0, 1 << 18), U32)
PATHS = st.sampled_from([b"", b"disk.img", b"none", b"../x", b"/", b"\xff" * 300])

_tagged: "st.SearchStrategy[bytes]" = st.builds(
    pack_tagged,
    st.sampled_from([Type.GETATTR, Type.READDIR, Type.READLINK, Type.OPEN, Type.STATFS]),
    SMALL,
    st.one_of(PATHS.map(At).map(encode), st.binary(max_size=40)),
)

_values: "st.SearchStrategy[Any]" = st.one_of(
    st.builds(Link, PATHS),
    st.just(Names([])),
    st.builds(Failure, st.sampled_from(["EIO", "ESTALE", "EFANCY", ""]), st.text(max_size=5)),
    st.builds(Hello, st.integers(0, 3), st.text(max_size=5)),
)


def _encoded(make: "Callable[..., Any]", *fields: "st.SearchStrategy[Any]") -> Any:
    return st.builds(make, *fields).map(lambda value: value.encode())


_garbage = st.one_of(
    st.binary(max_size=60),
    st.builds(pack, st.integers(0, 255), st.binary(max_size=60), U32),
    st.builds(lambda kind, size: HEADER.pack(kind, 0, size), st.integers(0, 255), U32),
)

_reports = st.just(b"") | st.builds(
    lambda hits, more, lag: encode(Report(hits + more, hits, lag, hits, True, "working")),
    SMALL,
    SMALL,
    U32,
)

FROM_CLIENTS: "st.SearchStrategy[bytes]" = st.one_of(
    _tagged,
    _tagged,
    st.builds(pack_tagged, st.just(Type.PING), SMALL, _reports | st.binary(max_size=3)),
    st.builds(pack, st.just(Type.CLOSE), st.builds(Close, SMALL).map(encode)),
    st.builds(
        lambda number, held, more, ended: pack(
            Type.PULLED, encode(Pulled(number, held, held + more, ended, "why"))
        ),
        SMALL,
        SMALL,
        SMALL,
        st.booleans(),
    ),
    _encoded(Read, SMALL, SMALL, OFFSETS, LENGTHS, st.sampled_from(Priority), st.booleans()),
    _encoded(Repair, SMALL, SMALL, st.integers(0, 4), st.integers(0, 1 << 120)),
    _garbage,
)
"""Packets of a client that knows the protocol but violates it."""


def from_servers(image: int, generation: int) -> "st.SearchStrategy[bytes]":
    """Return packets of a server that knows the protocol but violates it."""
    return st.one_of(
        _encoded(Sent, SMALL, SMALL, U32, OFFSETS, LENGTHS, st.sampled_from(Occasion)),
        _encoded(
            Data,
            st.sampled_from([image, 99]),
            st.just(generation),
            st.integers(0, 40).map(lambda page: page * 4096),
            st.binary(max_size=9000),
        ),
        _encoded(Gone, SMALL, SMALL),
        st.builds(lambda number, path: pack(Type.PULL, encode(Pull(number, path))), SMALL, PATHS),
        st.builds(pack_tagged, st.just(Type.SEGMENTS), SMALL, st.binary(max_size=200)),
        st.builds(
            pack_tagged,
            st.sampled_from([Type.REPLY, Type.MORE, Type.ERROR, Type.WELCOME, Type.PONG]),
            SMALL,
            _values.map(encode),
        ),
        _garbage,
    )


def opened(handle: int, image: Any, key: bytes = bytes(16)) -> Opened:
    """Make the answer to an OPEN of an image."""
    data = image.find_data(0)
    return Opened(handle, image.image, image.generation, key, image.attributes, data)
