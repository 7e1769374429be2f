"""Packs what is read, before it is sealed: whether that pays is measured."""

from collections import deque
from collections.abc import Callable
from time import thread_time
from typing import Any
from weakref import WeakKeyDictionary

from attrs import define, frozen
from twisted.internet.defer import Deferred, succeed

from mufs.interfaces import IImage
from mufs.wire.packing import Compressor, Encoding, Packed, make_compressor, pack, zero_pages
from mufs.wire.pages import PAGE

DEFAULT_LEVEL = 1
"""Of Zstandard: the fastest of the ordinary ones."""

INITIAL_COST = 2.5e-9
"""Seconds that compressing a byte is taken to cost before any was compressed."""

COST_DECAY = 0.98
"""
By what the cost is multiplied for each transfer that is not compressed because of it: what comes
later may compress faster, so it is measured again some time.
"""

COST_WEIGHT = 1 / 8
"""What the last transfer weighs in the cost of compressing."""

MAX_SKIPPED = 3
"""Transfers of an image at most that go as they are after one that did not compress well."""

MAX_AT_ONCE = 16 * 1024
"""Bytes that are compressed in the reactor's thread: handing them over would take longer."""


@frozen
class Compression:
    """
    How transfers are compressed.

    @ivar level: of Zstandard.
    @ivar if_faster: only while that makes sending faster, as measured.
    """

    level: int = DEFAULT_LEVEL
    if_faster: bool = True


@define
class _Skips:
    """
    How an image compressed last.

    @ivar left: transfers that are not tried before the next one is.
    @ivar span: how many these were after the last one that did not compress well.
    """

    left: int = 0
    span: int = 0


class Packer:
    """
    Packs transfers, in threads.

    Zeros are always left out. The rest is compressed if a byte takes less time to compress than to
    send, both as measured, but for a while not where it did not compress well.

    @ivar bytes_taken: bytes of images that were packed, or went as they are.
    @ivar bytes_zero: those of them that were zero, and left out.
    @ivar bytes_compressed: those of them that were compressed.
    @ivar bytes_of_frames: what these became, in bytes.
    @ivar seconds: seconds of processor time that compressing took, also in vain.
    """

    def __init__(
        self,
        in_thread: Callable[..., "Deferred[Any]"],
        compression: Compression | None,
        *,
        cpu: Callable[[], float] = thread_time,
    ) -> None:
        """
        @param in_thread: calls a function outside the reactor's thread.
        @param compression: C{None} for none.
        @param cpu: the processor time of the thread that calls it, in seconds.
        """
        self._in_thread = in_thread
        self._compression = compression
        self._cpu = cpu
        self._cost = INITIAL_COST
        self._skips: WeakKeyDictionary[IImage, _Skips] = WeakKeyDictionary()
        self._compressors: deque[Compressor] = deque()
        self.bytes_taken = 0
        self.bytes_zero = 0
        self.bytes_compressed = 0
        self.bytes_of_frames = 0
        self.seconds = 0.0

    def pack(self, image: IImage, data: memoryview, link_cost: float) -> "Deferred[Packed]":
        """
        Pack whole pages of an image, which must not change until that is done.

        @param link_cost: seconds that sending a byte takes; 0 if it is not known.
        """
        zeros = zero_pages(data)
        self.bytes_taken += len(data)
        if PAGE * zeros.bit_count() >= len(data) or not self._should_compress(image, link_cost):
            packed = pack(data, zeros)
            self._count_zeros(packed, len(data), zeros)
            return succeed(packed)
        if len(data) <= MAX_AT_ONCE:
            return succeed(self._compressed(self._compress(data, zeros), image, zeros))
        compressing = self._in_thread(self._compress, data, zeros)
        return compressing.addCallback(self._compressed, image, zeros)

    def _should_compress(self, image: IImage, link_cost: float) -> bool:
        if self._compression is None:
            return False
        skips = self._skips.setdefault(image, _Skips())
        if skips.left:
            skips.left -= 1
            return False
        if self._compression.if_faster and self._cost >= link_cost:
            self._cost *= COST_DECAY
            return False
        return True

    def _compress(self, data: memoryview, zeros: int) -> tuple[Packed, int, float]:
        """In a thread. @return: the packed bytes, how many they were, and the seconds it took."""
        assert self._compression is not None
        began = self._cpu()
        try:
            compressor = self._compressors.pop()
        except IndexError:
            compressor = make_compressor(self._compression.level)
        packed = pack(data, zeros, compressor)
        self._compressors.append(compressor)
        return packed, len(data), self._cpu() - began

    def _compressed(
        self, compressed: tuple[Packed, int, float], image: IImage, zeros: int
    ) -> Packed:
        packed, size, seconds = compressed
        self._cost += COST_WEIGHT * (seconds / size - self._cost)
        self.seconds += seconds
        left_out = self._count_zeros(packed, size, zeros)
        skips = self._skips.setdefault(image, _Skips())
        if packed[0] == Encoding.ZSTD:
            skips.span = 0
            self.bytes_compressed += size - left_out
            self.bytes_of_frames += len(packed[1])
        else:
            skips.span = min(MAX_SKIPPED, 2 * skips.span + 1)
        skips.left = skips.span
        return packed

    def _count_zeros(self, packed: Packed, size: int, zeros: int) -> int:
        """@return: how many zeros were left out; a few alone are not worth it."""
        is_plain = packed[0] == Encoding.PLAIN
        left_out = 0 if is_plain else min(size, PAGE * zeros.bit_count())
        self.bytes_zero += left_out
        return left_out
