"""
Parity: segments any of which stand in for any that were lost of a transfer.

A systematic maximum distance separable code over GF(2**8), modulo x**8 + x**4 + x**3 + x**2 + 1
(the field of RFC 5510), with a Cauchy matrix (Bloemer et al., "An XOR-based erasure-resilient
coding scheme", 1995), its columns scaled so that the first row is all ones: of the segments and
parity segments of a transfer of n segments any n make it whole.

Segments are rows of 64 bit words here, so that eight bytes are added or doubled at a time.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy

MAX_PARITY = 32
"""Parity segments that a transfer may have."""

MAX_COVERED = 256 - MAX_PARITY
"""Segments that a transfer which has parity may have."""

Words = numpy.ndarray[Any, numpy.dtype[numpy.uint64]]

_EXP = [1] * 255
for _power in range(1, 255):
    _EXP[_power] = _EXP[_power - 1] << 1 ^ (0x11D if _EXP[_power - 1] & 0x80 else 0)
_LOG = {value: power for power, value in enumerate(_EXP)}

_LOW_BITS = numpy.uint64(0x0101010101010101)
_ALL_BUT_LOW_BITS = numpy.uint64(0xFEFEFEFEFEFEFEFE)
_ONE, _SEVEN, _REDUCTION = numpy.uint64(1), numpy.uint64(7), numpy.uint64(0x1D)


def words(segments: "numpy.ndarray[Any, Any]") -> Words:
    """A copy of segments (bytes, one a row) as rows of words, with zeros behind."""
    count, size = segments.shape
    padded = numpy.zeros((count, -(-size // 8) * 8), numpy.uint8)
    padded[:, :size] = segments
    return padded.view(numpy.uint64)


def parity(segments: Words, index: int) -> Words:
    """
    One parity segment.

    @param segments: all of a transfer.
    @param index: which one, below C{MAX_PARITY}; the first costs far less than the others.
    """
    return _combine(_coefficients(index)[: len(segments)], segments)


def restore(segments: Words, missing: list[int], parities: Mapping[int, Words]) -> None:
    """
    Fill in what is missing.

    @param segments: of a transfer; those that are missing are zero.
    @param parities: parity segments by index, at least as many as are missing.
    """
    chosen = list(parities)[: len(missing)]
    matrix = [[int(_coefficients(index)[i]) for i in missing] for index in chosen]
    lost = numpy.stack([parity(segments, index) ^ parities[index] for index in chosen])
    for i, row in zip(missing, _inverse(matrix), strict=True):
        segments[i] = _combine(numpy.array(row, numpy.uint8), lost)


@lru_cache(MAX_PARITY)
def _coefficients(index: int) -> "numpy.ndarray[Any, numpy.dtype[numpy.uint8]]":
    """What each segment is multiplied by in a parity segment."""
    row = [_times(y, _EXP[-_LOG[index ^ y]]) for y in range(MAX_PARITY, 256)]
    return numpy.array(row, numpy.uint8)


def _combine(factors: "numpy.ndarray[Any, numpy.dtype[numpy.uint8]]", rows: Words) -> Words:
    """The sum of the rows, each times its factor: Horner's scheme over the factors' bits."""
    total = numpy.zeros(rows.shape[1], numpy.uint64)
    for bit in range(int(factors.max()).bit_length() - 1, -1, -1):
        total = (total << _ONE & _ALL_BUT_LOW_BITS) ^ (total >> _SEVEN & _LOW_BITS) * _REDUCTION
        chosen = (factors >> bit & 1).astype(bool)
        total ^= numpy.bitwise_xor.reduce(rows if chosen.all() else rows[chosen], axis=0)
    return total


def _times(a: int, b: int) -> int:
    return _EXP[(_LOG[a] + _LOG[b]) % 255] if a and b else 0


def _inverse(matrix: list[list[int]]) -> list[list[int]]:
    """The inverse of a square matrix, none of whose leading minors is 0 (Gauss and Jordan)."""
    size = len(matrix)
    rows = [row + [int(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for i, pivot in enumerate(rows):
        scale = _EXP[-_LOG[pivot[i]] % 255]
        pivot[:] = [_times(scale, value) for value in pivot]
        for other in rows:
            if other is not pivot and other[i]:
                factor = other[i]
                other[:] = [a ^ _times(factor, b) for a, b in zip(other, pivot, strict=True)]
    return [row[size:] for row in rows]
