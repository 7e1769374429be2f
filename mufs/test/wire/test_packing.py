"""How transfers are packed."""

import os
import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.test.support.properties import examples
from mufs.wire.packing import (
    Encoding,
    MalformedPacking,
    make_compressor,
    pack,
    unpack,
    zero_pages,
)
from mufs.wire.pages import EXTENT, EXTENT_PAGES, PAGE

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

KINDS = st.lists(st.sampled_from("0tr"), min_size=1, max_size=EXTENT_PAGES)
"""What each page has: zeros, text, or random bytes."""


def page(kind: str, number: int) -> bytes:
    """A page of that kind; no two of text or random bytes are alike."""
    if kind == "0":
        return bytes(PAGE)
    if kind == "t":
        return (b"page %d of the image. " % number * 256)[:PAGE]
    return os.urandom(PAGE)


def unpacked(encoding: Encoding, packed: bytes | memoryview, length: int) -> tuple[bytes, int]:
    """What L{unpack} returns, as bytes, for memory that had other content."""
    data, zeros = unpack(encoding, memoryview(packed), length, memoryview(bytearray(b"x" * EXTENT)))
    return bytes(data), zeros


class PackingTests(SynchronousTestCase):
    """Packing and its reverse."""

    def setUp(self) -> None:
        """A compressor of the level that servers use."""
        self.compressor = make_compressor(1)

    @examples(150)
    @given(KINDS, st.integers(0, PAGE - 1), st.booleans())
    def test_any(self, kinds: list[str], cut: int, compress: bool) -> None:
        """What was packed is unpacked; what is zero is known; it is smaller, or as it was."""
        data = b"".join(page(kind, i) for i, kind in enumerate(kinds))
        data = data[: len(data) - cut]
        zeros = zero_pages(data)
        self.assertEqual(zeros, sum(1 << i for i, kind in enumerate(kinds) if kind == "0"))
        encoding, packed = pack(data, zeros, self.compressor if compress else None)
        if encoding == Encoding.PLAIN:
            self.assertEqual(packed, data)
        else:
            self.assertLessEqual(len(packed), len(data) - len(data) // 8)
            self.assertEqual(unpacked(encoding, packed, len(data)), (data, zeros))

    def test_sizes(self) -> None:
        """An extent of zeros takes 32 bytes, text a few hundred, random bytes what they are."""
        self.assertEqual(pack(bytes(EXTENT), zero_pages(bytes(EXTENT))), (1, bytes(32)))
        text = b"".join(page("t", i) for i in range(EXTENT_PAGES))
        encoding, packed = pack(text, zero_pages(text), self.compressor)
        self.assertEqual(encoding, Encoding.ZSTD)
        self.assertLess(len(packed), len(text) // 50)
        noise = memoryview(os.urandom(EXTENT))
        encoding, packed = pack(noise, zero_pages(noise), self.compressor)
        self.assertEqual(encoding, Encoding.PLAIN)
        self.assertIs(packed, noise)

    def test_saves_too_little(self) -> None:
        """What saves less than an eighth goes as it is."""
        kinds = "0" * (EXTENT_PAGES // 8) + "r" * (EXTENT_PAGES - EXTENT_PAGES // 8)
        data = b"".join(page(kind, i) for i, kind in enumerate(kinds))
        self.assertEqual(pack(data, zero_pages(data))[0], Encoding.PLAIN)
        data = bytes(PAGE) + data[:-PAGE]
        self.assertEqual(pack(data, zero_pages(data))[0], Encoding.PAGES)

    def test_nearly_zero(self) -> None:
        """A single bit anywhere makes a page one that is not zero."""
        for where in [0, 7, 8, PAGE // 2, PAGE - 1, PAGE, 3 * PAGE + 4]:
            data = bytearray(3 * PAGE + 5)
            data[where] = 128
            self.assertEqual(zero_pages(bytes(data)), 0b1111 & ~(1 << where // PAGE))


class MalformedTests(SynchronousTestCase):
    """Packed bytes that say something else than their descriptor."""

    def setUp(self) -> None:
        """Text, packed."""
        self.data = b"".join(page("t", i) for i in range(9)) + b"end"
        self.compressor = make_compressor(1)
        self.packed = bytes(pack(self.data, 0, self.compressor)[1])

    def refused(self, encoding: Encoding, packed: bytes, length: int) -> str:
        """Why that is refused."""
        error = self.assertRaises(MalformedPacking, unpacked, encoding, packed, length)
        return str(error)

    def test_whole(self) -> None:
        """As a control: the packing is right."""
        self.assertEqual(unpacked(Encoding.ZSTD, self.packed, len(self.data)), (self.data, 0))

    def test_lengths(self) -> None:
        """More or fewer bytes than the descriptor says, however the frame declares its size."""
        for length in (len(self.data) - 1, len(self.data) + 1, PAGE, EXTENT):
            self.refused(Encoding.ZSTD, self.packed, length)
        streamed = zstd.ZstdCompressor(level=1)
        frame = streamed.compress(self.data) + streamed.flush()  # does not say how long it is
        self.assertEqual(unpacked(Encoding.ZSTD, b"\xff\3" + frame, len(self.data))[0], self.data)
        for length in (len(self.data) - 1, len(self.data) + 1):
            self.refused(Encoding.ZSTD, b"\xff\3" + frame, length)

    def test_bomb(self) -> None:
        """A frame of far more bytes is given up once there is one byte more than allowed."""
        bomb = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 20})
        frame = bomb.compress(bytes(1 << 26)) + bomb.flush()
        self.assertIn("other than", self.refused(Encoding.ZSTD, b"\xff" * 32 + frame, EXTENT))

    def test_window(self) -> None:
        """A frame that needs more memory than an extent is refused."""
        options: dict[int, int] = {
            zstd.CompressionParameter.window_log: 23,
            zstd.CompressionParameter.content_size_flag: 0,
        }
        frame = zstd.ZstdCompressor(options=options)
        data = frame.compress(self.data) + frame.flush()
        self.assertIn("no frame", self.refused(Encoding.ZSTD, b"\xff\3" + data, len(self.data)))

    def test_truncated(self) -> None:
        """Each prefix of it, and anything behind it."""
        for end in range(len(self.packed)):
            self.refused(Encoding.ZSTD, self.packed[:end], len(self.data))
        self.refused(Encoding.ZSTD, self.packed + b"\0", len(self.data))
        self.refused(Encoding.ZSTD, self.packed + self.packed[2:], len(self.data))

    def test_foreign(self) -> None:
        """Bytes that are no frame."""
        self.assertIn("no frame", self.refused(Encoding.ZSTD, b"\1" + b"not a frame", PAGE))

    def test_pages(self) -> None:
        """A bitmap that has other pages than follow it."""
        self.assertEqual(unpacked(Encoding.PAGES, b"\2" + b"a" * PAGE, 2 * PAGE)[1], 1)
        for packed in [b"", b"\2", b"\3" + b"a" * PAGE, b"\4" + b"a" * PAGE, b"\0a"]:
            self.refused(Encoding.PAGES, packed, 2 * PAGE)
        self.refused(Encoding.PAGES, b"\2" + b"a" * PAGE, 2 * PAGE - 1)
