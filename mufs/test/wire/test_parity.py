"""Tests of L{mufs.wire.parity}."""

import random
from typing import Any

import numpy
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.wire.parity import MAX_COVERED, MAX_PARITY, parity, restore, words


def slow_parity(segments: list[bytes], index: int) -> bytes:
    """The same parity segment byte by byte, from the definition alone."""
    total = [0] * len(segments[0])
    for i, segment in enumerate(segments):
        factor = times(i + MAX_PARITY, inverse(index ^ (i + MAX_PARITY)))
        total = [a ^ times(factor, b) for a, b in zip(total, segment, strict=True)]
    return bytes(total)


def times(a: int, b: int) -> int:
    """The product in GF(2**8): polynomials over GF(2), reduced."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11D << (bit - 8)
    return product


def inverse(a: int) -> int:
    """What a must be multiplied with to give 1."""
    return next(b for b in range(1, 256) if times(a, b) == 1)


class ParityTests(SynchronousTestCase):
    """Parity segments and what is restored by them."""

    def segments(self, count: int, size: int) -> "numpy.ndarray[Any, Any]":
        data = random.Random(count * size).randbytes(count * size)
        return numpy.frombuffer(data, numpy.uint8).reshape(count, size)

    def test_definition(self) -> None:
        """A parity segment is the sum of the segments times the scaled Cauchy matrix."""
        segments = self.segments(7, 21)
        indices = (0, 1, 2, 17, MAX_PARITY - 1)
        for index, row in zip(indices, parity(words(segments), indices), strict=True):
            made = row.tobytes()
            self.assertEqual(made[:21], slow_parity([row.tobytes() for row in segments], index))
            self.assertEqual(made[21:], bytes(3))

    def test_first_is_exclusive_or(self) -> None:
        """The first parity segment is the exclusive or of all segments."""
        segments = self.segments(94, 1400)
        made = parity(words(segments), [0]).tobytes()
        self.assertEqual(made, numpy.bitwise_xor.reduce(segments, axis=0).tobytes())

    @given(st.data(), st.integers(1, MAX_COVERED), st.integers(1, 40))
    def test_any_make_it_whole(self, data: st.DataObject, count: int, size: int) -> None:
        """Whichever segments are lost, as many parity segments of any index bring them back."""
        lost = data.draw(st.integers(1, min(count, MAX_PARITY)))
        missing = data.draw(st.permutations(range(count)))[:lost]
        indices = data.draw(st.permutations(range(MAX_PARITY)))[:lost]
        whole = words(self.segments(count, size))
        parities = dict(zip(indices, parity(whole, indices), strict=True))
        left = whole.copy()
        left[missing] = 0
        restore(left, missing, parities)
        self.assertEqual(left.tobytes(), whole.tobytes())

    def test_more_than_needed(self) -> None:
        """Parity segments beyond those needed do no harm."""
        whole = words(self.segments(5, 8))
        left = whole.copy()
        left[3] = 0
        restore(left, [3], dict(zip((9, 4, 30), parity(whole, (9, 4, 30)), strict=True)))
        self.assertEqual(left.tobytes(), whole.tobytes())
