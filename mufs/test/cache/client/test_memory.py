"""A cache's storage in memory."""

import errno
import os
from typing import Any

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from mufs.cache.client.memory import Memory
from mufs.wire.pages import BLOCK, PAGE


class MemoryTests(SynchronousTestCase):
    """Room for three blocks."""

    def setUp(self) -> None:
        """The storage."""
        self.memory = Memory()
        self.assertEqual(list(self.memory.begin(3)), [])

    def read(self, place: int, start: int, length: int) -> bytes:
        """Bytes of a block."""
        target = bytearray(length)
        self.assertTrue(self.memory.read(place, start, memoryview(target)))
        return bytes(target)

    def test_write(self) -> None:
        """What was written is read, and no other block changes."""
        places = [self.memory.place((1, 1), number) for number in range(3)]
        self.assertEqual(len(set(places)), 3)
        for number, place in enumerate(places):
            self.assertEqual(self.memory.write([place], 0, memoryview(bytes(BLOCK))), 1)
            data = memoryview(bytes([number + 1]) * PAGE)
            self.assertEqual(self.memory.write([place], PAGE, data), 1)
        for number, place in enumerate(places):
            self.assertEqual(self.read(place, PAGE - 1, 3), bytes([0, number + 1, number + 1]))
            self.assertEqual(self.read(place, BLOCK - 1, 1), b"\0")

    def test_several(self) -> None:
        """Adjacent blocks are written and read together, wherever they have their places."""
        data = bytes(range(256)) * (2 * BLOCK // 256) + b"end"
        for order in [(0, 1, 2), (1, 2, 0), (2, 1, 0)]:
            places = [self.memory.place((1, 1), number) for number in range(3)]
            chosen = [sorted(places)[number] for number in order]
            self.assertEqual(self.memory.write(chosen, BLOCK - PAGE, memoryview(data)), 3)
            found = self.read(chosen[0], BLOCK - PAGE, PAGE)
            found += self.read(chosen[1], 0, BLOCK)
            found += self.read(chosen[2], 0, len(data) - BLOCK - PAGE)
            self.assertEqual(found, data)
            together = bytearray(len(data))
            target = memoryview(together)
            self.assertTrue(self.memory.read_together(chosen, BLOCK - PAGE, target))
            self.assertEqual(bytes(together), data)
            for place in places:
                self.memory.free(place)

    def test_some(self) -> None:
        """Where memory ends, what was stored before counts."""
        self.memory.place((1, 1), 0)
        pwrite, written = os.pwrite, list[Any]()

        def once(*arguments: Any) -> int:
            if written:
                raise OSError(errno.ENOSPC, "no space")
            written.append(arguments)
            return pwrite(*arguments)

        self.patch(os, "pwrite", once)
        self.assertEqual(self.memory.write([1, 0, 2], 0, memoryview(bytes(3 * BLOCK))), 1)

    def test_free(self) -> None:
        """The place freed last is used next; there are no more than were reserved."""
        places = [self.memory.place((1, 1), number) for number in range(3)]
        self.assertRaises(IndexError, self.memory.place, (1, 1), 3)
        self.memory.free(places[1])
        self.assertEqual(self.memory.place((2, 1), 0), places[1])

    def test_no_memory(self) -> None:
        """Without memory nothing is stored, and the log says so once."""
        place = self.memory.place((1, 1), 0)

        def pwrite(*arguments: Any) -> int:
            raise OSError(errno.ENOSPC, "no space")

        self.patch(os, "pwrite", pwrite)
        with capturedLogs() as logged:
            self.assertEqual(self.memory.write([place], 0, memoryview(bytes(PAGE))), 0)
            self.assertEqual(self.memory.write([place], 0, memoryview(bytes(PAGE))), 0)
        self.assertEqual([each["log_level"].name for each in logged], ["warn"])

    def test_never_waits(self) -> None:
        """Memory is never behind, and has nothing to drop or to write."""
        self.assertFalse(self.memory.is_behind())
        self.assertIsNone(self.memory.pop_overflow())
        self.memory.stop()
        self.memory.run_writer()
