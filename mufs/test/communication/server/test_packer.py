"""What is compressed, and when."""

import os
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.trial.unittest import SynchronousTestCase

from mufs.communication.server.packer import (
    INITIAL_COST,
    MAX_AT_ONCE,
    MAX_SKIPPED,
    Compression,
    Packer,
)
from mufs.test.support.doubles import ImageInMemory
from mufs.wire.packing import Encoding, Packed, unpack
from mufs.wire.pages import EXTENT, PAGE

PLAIN, PAGES, ZSTD = Encoding

TEXT = memoryview(b"".join(b"%7d," % i for i in range(EXTENT // 8)))

NOISE = memoryview(os.urandom(EXTENT))

HALF = memoryview(bytes(EXTENT // 2) + os.urandom(EXTENT // 2))

SLOW = 100 * INITIAL_COST
"""Seconds that a slow link takes for a byte."""


class PackerTests(SynchronousTestCase):
    """A packer whose clock the test sets."""

    def setUp(self) -> None:
        """Compressing takes no time."""
        self.image = ImageInMemory(b"")
        self.threads = 0
        self.now = 0.0
        self.seconds_for_each = 0.0
        self.packer = self.make(Compression())

    def make(self, compression: Compression | None) -> Packer:
        """A packer."""
        return Packer(self.in_thread, compression, cpu=self.seconds)

    def in_thread(self, function: Any, *args: Any) -> "Deferred[Any]":
        """Call at once, and count the calls."""
        self.threads += 1
        return execute(function, *args)

    def seconds(self) -> float:
        """The processor time: compressing lies between two looks at it."""
        self.now += self.seconds_for_each
        return self.now

    def pack(self, data: memoryview, link_cost: float = SLOW) -> Encoding:
        """How that is packed; it can be unpacked."""
        encoding, packed = self.successResultOf(self.packer.pack(self.image, data, link_cost))
        if encoding != PLAIN:
            memory = memoryview(bytearray(len(data)))
            unpacked, _ = unpack(encoding, memoryview(packed), len(data), memory)
            self.assertEqual(bytes(unpacked), bytes(data))
        return encoding

    def test_slow_link(self) -> None:
        """What is slow to send is compressed if that helps, in a thread unless it is small."""
        self.assertEqual([self.pack(each) for each in (TEXT, HALF, NOISE)], [ZSTD, PAGES, PLAIN])
        self.assertEqual(self.threads, 2)
        self.packer = self.make(Compression())
        self.assertEqual(self.pack(TEXT[:PAGE]), ZSTD)
        self.assertEqual(self.pack(TEXT[:MAX_AT_ONCE]), ZSTD)
        self.assertEqual(self.threads, 2)

    def test_fast_link(self) -> None:
        """What is fast to send is not compressed; zeros are left out all the same."""
        self.assertEqual([self.pack(each, 0.0) for each in (TEXT, HALF)], [PLAIN, PAGES])
        self.assertEqual(self.pack(memoryview(bytes(PAGE)), 0.0), PAGES)
        self.assertEqual(self.threads, 0)

    def test_measured(self) -> None:
        """It stops when compressing proves slower than sending, and tries again some time."""
        self.seconds_for_each = 4 * SLOW * EXTENT
        kinds = [self.pack(TEXT) for _ in range(200)]
        tried = kinds.index(PLAIN)
        self.assertEqual(kinds[:tried], [ZSTD] * tried)
        self.assertLess(tried, 5)
        self.assertLess(1 + kinds[tried:].count(ZSTD), 20)
        self.seconds_for_each = 0.0
        kinds = [self.pack(TEXT) for _ in range(400)]
        self.assertEqual(kinds[-100:], [ZSTD] * 100)

    def test_settings(self) -> None:
        """It may be off, or always on."""
        self.packer = self.make(None)
        self.assertEqual([self.pack(each) for each in (TEXT, HALF)], [PLAIN, PAGES])
        self.packer = self.make(Compression(3, if_faster=False))
        self.assertEqual([self.pack(each, 0.0) for each in (TEXT, NOISE)], [ZSTD, PLAIN])

    def test_does_not_compress(self) -> None:
        """An image that does not compress is hardly tried any more; another one is."""
        for _ in range(256):
            self.pack(NOISE)
        self.assertLess(self.threads, 256 / MAX_SKIPPED)
        self.image = ImageInMemory(b"")
        self.assertEqual(self.pack(TEXT), ZSTD)

    def test_compresses_again(self) -> None:
        """Once a part compresses well, all is tried again."""
        for _ in range(256):
            self.pack(NOISE)
        kinds = [self.pack(TEXT) for _ in range(MAX_SKIPPED + 10)]
        self.assertLessEqual(kinds.index(ZSTD), MAX_SKIPPED)
        self.assertEqual(set(kinds[kinds.index(ZSTD) :]), {ZSTD})

    def test_figures(self) -> None:
        """It counts what was zero, and what was compressed to how much, in how much time."""
        self.seconds_for_each = 0.5
        data = memoryview(bytes(EXTENT // 4) + TEXT[: EXTENT // 4])
        _, packed = self.packed(data)
        self.pack(NOISE, 0.0)
        # Leaving a single page out saves too little.
        self.pack(memoryview(bytes(PAGE) + NOISE[PAGE:]), 0.0)
        packer = self.packer
        self.assertEqual(packer.bytes_taken, len(data) + 2 * EXTENT)
        self.assertEqual(packer.bytes_zero, EXTENT // 4)
        self.assertEqual(packer.bytes_compressed, EXTENT // 4)
        self.assertEqual(packer.bytes_of_frames, len(packed))
        self.assertEqual(packer.seconds, 0.5)

    def packed(self, data: memoryview) -> Packed:
        """What becomes of that."""
        return self.successResultOf(self.packer.pack(self.image, data, SLOW))

    def test_failure(self) -> None:
        """If it fails, whoever waits is told."""
        self.patch(Packer, "_compress", lambda packer, data, zeros: 1 / 0)
        self.failureResultOf(self.packer.pack(self.image, TEXT, SLOW), ZeroDivisionError)
