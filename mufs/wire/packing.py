"""
How the bytes of a transfer are packed: pages that are zero are left out, and the others may be
compressed with Zstandard (RFC 8878). docs/protocol.md section 3.

Packed bytes are a bitmap of the pages that are not zero, bit 0 of the first byte for the first
page, then these pages, as they are or as one frame.
"""

import sys
from enum import IntEnum
from typing import Any

import numpy

from mufs.wire.pages import EXTENT, PAGE

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compressor = zstd.ZstdCompressor

MAX_WINDOW_LOG = EXTENT.bit_length() - 1
"""Binary logarithm of the bytes of the window that unpacking may need memory for."""

_LIMITS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}

WORD = 8
"""Bytes that are compared with zero at a time."""

SAVED = 8
"""What packing saves at least for it to be used: one byte in so many."""


class Encoding(IntEnum):
    """What a transfer carries: bytes as they are, pages that are not zero, or these in a frame."""

    PLAIN = 0
    PAGES = 1
    ZSTD = 2


class MalformedPacking(Exception):
    """Packed bytes are not those of a range of that length; the text says how."""


Packed = tuple[Encoding, "bytes | memoryview"]
"""Bytes of a range of an image, as a transfer carries them."""


def make_compressor(level: int) -> Compressor:
    """What L{pack} compresses with. @param level: of Zstandard; negative ones are the fastest."""
    return Compressor(level=level)


def zero_pages(data: bytes | memoryview) -> int:
    """The pages that are zero, as a bitmap, of which only the last may be short."""
    whole = len(data) // PAGE
    words = numpy.frombuffer(data, numpy.uint64, whole * PAGE // WORD)
    words = words.reshape(whole, PAGE // WORD)
    zero = 0
    # Mostly a page that is not zero can be told by its first word, or by that in its middle.
    if whole and not (words[:, 0] | words[:, PAGE // WORD // 2]).all():
        zero = _bitmap(numpy.bitwise_or.reduce(words, axis=1) == 0)
    if len(data) % PAGE and not any(data[whole * PAGE :]):
        zero |= 1 << whole
    return zero


def pack(data: bytes | memoryview, zeros: int, compressor: Compressor | None = None) -> Packed:
    """
    Pack whole pages, of which only the last may be short, if that saves at least an eighth.

    @param zeros: those that are zero, as a bitmap.
    @param compressor: compresses the others; only one thread may use it at a time.
    """
    count = -(-len(data) // PAGE)
    kept = ((1 << count) - 1) & ~zeros
    bitmap = kept.to_bytes(-(-count // 8), "little")
    pages = _kept_pages(data, bitmap) if zeros else memoryview(data)
    most = len(data) - len(data) // SAVED - len(bitmap)
    if compressor is not None and kept:
        frame = compressor.compress(pages, compressor.FLUSH_FRAME)
        if len(frame) <= min(most, len(pages) - len(pages) // SAVED):
            return Encoding.ZSTD, bitmap + frame
    if len(pages) <= most:
        return Encoding.PAGES, b"".join((bitmap, pages))
    return Encoding.PLAIN, data


def unpack(
    encoding: Encoding, packed: memoryview, length: int, memory: memoryview
) -> tuple[memoryview, int]:
    """
    The reverse of L{pack}, for what it did pack. Besides C{memory}, it needs no more than twice
    C{length}, for a frame and its window.

    @param length: how many bytes were packed.
    @param memory: room for them, which is overwritten.
    @return: the bytes, perhaps in C{memory}, and which of their pages are zero.
    @raise MalformedPacking: when C{packed} is not that of C{length} bytes.
    """
    count = -(-length // PAGE)
    bitmap, pages = packed[: -(-count // 8)], packed[-(-count // 8) :]
    kept = int.from_bytes(bitmap, "little")
    size = PAGE * kept.bit_count() - (kept >> count - 1 & 1) * (-length % PAGE)
    if kept >> count or len(bitmap) < -(-count // 8):
        raise MalformedPacking(f"not the bitmap of {count} pages")
    if encoding == Encoding.ZSTD:
        pages = _decompress(pages, size)
    if len(pages) != size:
        raise MalformedPacking(f"{len(pages)} bytes of {size} that are not zero")
    zeros = ((1 << count) - 1) & ~kept
    if zeros:
        pages = _spread(pages, bitmap, memory[:length])
    return pages, zeros


def unpack_bytes(encoding: int, packed: bytes, length: int) -> bytes:
    """The same for any number as encoding, in new memory, and for what was not packed as well."""
    if encoding == Encoding.PLAIN and len(packed) == length:
        return packed
    if encoding not in (Encoding.PAGES, Encoding.ZSTD):
        raise MalformedPacking(f"{len(packed)} bytes of {length}, packed {encoding}")
    memory = memoryview(bytearray(length))
    return bytes(unpack(Encoding(encoding), memoryview(packed), length, memory)[0])


def _decompress(frame: memoryview, size: int) -> memoryview:
    """@raise MalformedPacking: when it is not exactly one frame of C{size} bytes."""
    decompressor = zstd.ZstdDecompressor(options=_LIMITS)
    try:
        data = decompressor.decompress(frame, max_length=size)
    except (zstd.ZstdError, EOFError) as error:
        raise MalformedPacking(f"no frame: {error}") from None
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedPacking(f"a frame of other than {size} bytes")
    return memoryview(data)


def _kept_pages(data: bytes | memoryview, bitmap: bytes) -> memoryview:
    """The pages of C{data} whose bits are set, one after the other."""
    whole, rest = divmod(len(data), PAGE)
    rows = numpy.frombuffer(data, numpy.uint8, whole * PAGE).reshape(whole, PAGE)
    pages = rows[_flags(bitmap, whole)].reshape(-1).data
    has_rest = rest and bitmap[whole // 8] >> whole % 8 & 1
    return memoryview(b"".join((pages, data[whole * PAGE :]))) if has_rest else pages


def _spread(pages: memoryview, bitmap: memoryview, target: memoryview) -> memoryview:
    """Put pages where their bits are set in C{target}, and zeros elsewhere."""
    whole = len(target) // PAGE
    rows = numpy.frombuffer(target, numpy.uint8, whole * PAGE).reshape(whole, PAGE)
    flags = _flags(bitmap, whole)
    there = PAGE * int(flags.sum())
    rows[~flags] = 0
    if there:
        rows[flags] = numpy.frombuffer(pages, numpy.uint8, there).reshape(-1, PAGE)
    rest = pages[there:]
    target[whole * PAGE :] = rest if len(rest) else bytes(len(target) % PAGE)
    return target


def _flags(bitmap: bytes | memoryview, count: int) -> "numpy.ndarray[Any, Any]":
    """The first C{count} bits of a bitmap."""
    bits = numpy.frombuffer(bitmap, numpy.uint8)
    return numpy.unpackbits(bits, count=count, bitorder="little").astype(bool)


def _bitmap(flags: "numpy.ndarray[Any, Any]") -> int:
    """The reverse of L{_flags}, as a number."""
    return int.from_bytes(numpy.packbits(flags, bitorder="little").tobytes(), "little")
