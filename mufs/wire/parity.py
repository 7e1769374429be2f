"""
Parity segments: each replaces any one lost segment of its group.

A systematic maximum distance separable code over GF(2**8), modulo x**8 + x**4 + x**3 + x**2 + 1
(the field of RFC 5510), with a Cauchy matrix (Bloemer et al., "An XOR-based erasure-resilient
coding scheme", 1995), its columns scaled so that the first row is all ones: of the segments and
parity segments of a group of n segments any n restore it.

Segments are rows of 64 bit words here, so that eight bytes are added or doubled at a time.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy

MAX_PARITY = 32
"""Parity segments of a group."""

MAX_COVERED = 256 - MAX_PARITY
"""Segments of a group at most."""

Words = numpy.ndarray[Any, numpy.dtype[numpy.uint64]]

_EXP = [1] * 255
for _power in range(1, 255):
    _EXP[_power] = _EXP[_power - 1] << 1 ^ (0x11D if _EXP[_power - 1] & 0x80 else 0)
_LOG = {value: power for power, value in enumerate(_EXP)}
_EXPS = numpy.array(_EXP, numpy.uint8)
_LOGS = numpy.array([0, *(_LOG[value] for value in range(1, 256))])

_LOW_BITS = numpy.uint64(0x0101010101010101)
_ALL_BUT_LOW_BITS = numpy.uint64(0xFEFEFEFEFEFEFEFE)
_ONE, _SEVEN, _REDUCTION = numpy.uint64(1), numpy.uint64(7), numpy.uint64(0x1D)
_BITS = numpy.arange(8, dtype=numpy.uint8)[:, None]


def words(segments: "numpy.ndarray[Any, Any]") -> Words:
    """A copy of segments (bytes, one per row) as rows of words, padded with zeros."""
    count, size = segments.shape
    padded = numpy.zeros((count, -(-size // 8) * 8), numpy.uint8)
    padded[:, :size] = segments
    return padded.view(numpy.uint64)


def parity(segments: Words, indices: Sequence[int]) -> Words:
    """
    Parity segments, one per row.

    @param segments: all segments of a group.
    @param indices: of the parity segments, below C{MAX_PARITY}. Index 0 takes far less time.
    """
    chosen = [_chosen(index, len(segments)) for index in indices]
    sums = numpy.zeros((max(map(len, chosen)), len(indices), segments.shape[1]), numpy.uint64)
    for place, bits in enumerate(chosen):
        for bit, rows in enumerate(bits):
            # Twice as fast as segments[rows].
            some = segments if rows is None else segments.take(rows, axis=0, mode="clip")
            numpy.bitwise_xor.reduce(some, axis=0, out=sums[bit, place])
    total: Words = sums[-1]
    for each in sums[-2::-1]:
        total = _double(total) ^ each
    return total


def restore(segments: Words, missing: list[int], parities: Mapping[int, Words]) -> None:
    """
    Restore missing segments in place.

    @param segments: of a group; the missing ones are zero.
    @param parities: parity segments by index, at least as many as are missing.
    """
    chosen = list(parities)[: len(missing)]
    lost = parity(segments, chosen) ^ [parities[index] for index in chosen]
    # The multiples by 1, 2, 4, ... 128, which add up to any product.
    powers = numpy.empty((8, *lost.shape), numpy.uint64)
    powers[0] = lost
    for bit in range(1, 8):
        powers[bit] = _double(powers[bit - 1])
    factors = _inverse(chosen, missing)[:, None] >> _BITS & 1
    for i, terms in zip(missing, factors.astype(bool), strict=True):
        segments[i] = numpy.bitwise_xor.reduce(powers[terms], axis=0)


@lru_cache(MAX_PARITY * 16)
def _chosen(index: int, count: int) -> "list[numpy.ndarray[Any, Any] | None]":
    """
    For each bit, from the lowest on, those of C{count} segments whose factor in a parity segment
    has the bit; C{None} stands for all.
    """
    columns = range(MAX_PARITY, MAX_PARITY + count)
    factors = [_EXP[(_LOG[y] - _LOG[index ^ y]) % 255] for y in columns]
    bits = [[i for i, f in enumerate(factors) if f >> bit & 1] for bit in range(8)]
    while not bits[-1]:
        bits.pop()
    return [None if len(rows) == count else numpy.array(rows, numpy.intp) for rows in bits]


def _double(rows: Words) -> Words:
    """Double each byte in the field, eight bytes at a time."""
    return (rows << _ONE & _ALL_BUT_LOW_BITS) ^ (rows >> _SEVEN & _LOW_BITS) * _REDUCTION


def _inverse(indices: list[int], missing: list[int]) -> "numpy.ndarray[Any, Any]":
    """
    The factor of each parity segment in each missing segment: the inverse of a part of the
    matrix, by Cauchy's formula for its determinants.
    """
    x, y = numpy.array(indices), numpy.array(missing) + MAX_PARITY
    sums = _LOGS[x[:, None] ^ y]
    powers = sums.sum(0)[:, None] + sums.sum(1) - sums.T
    powers -= (_LOGS[y[:, None] ^ y].sum(0) + _LOGS[y])[:, None] + _LOGS[x[:, None] ^ x].sum(0)
    inverse: numpy.ndarray[Any, Any] = _EXPS[powers % 255]
    return inverse
