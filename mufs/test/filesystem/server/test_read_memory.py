"""Memory for what is read of images."""

import numpy
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.server import read_memory
from mufs.filesystem.server.read_memory import MAX_KEPT, take
from mufs.wire.pages import EXTENT, PAGE


def address(view: memoryview) -> int:
    """Where it begins."""
    return int(numpy.frombuffer(view, numpy.uint8).ctypes.data)


class ReadMemoryTests(SynchronousTestCase):
    """What is given out, and when again."""

    def setUp(self) -> None:
        """Keep nothing yet."""
        self.patch(read_memory, "_kept", [])

    def test_again(self) -> None:
        """Memory that nobody refers to is used again, for whatever size."""
        view = take(EXTENT)
        before = address(view)
        del view
        view = take(PAGE)
        self.assertEqual((address(view), len(view)), (before, PAGE))

    def test_in_use(self) -> None:
        """As long as there is a view of any of it, it is not used again."""
        view = take(EXTENT)
        part = view[5:10]
        part[:] = b"right"
        del view
        array = numpy.frombuffer(part, numpy.uint8)[1:]
        del part
        for _ in range(3):
            take(EXTENT)[:] = bytes(EXTENT)
        self.assertEqual(bytes(array), b"ight")

    def test_sizes(self) -> None:
        """Any number of bytes can be had; more than an extent are not kept."""
        for size, kept in [(EXTENT + 1, 0), (0, 1), (1, 1), (EXTENT, 1)]:
            self.assertEqual(len(take(size)), size)
            self.assertEqual(len(read_memory._kept), kept)

    def test_bound(self) -> None:
        """Only a few pieces are kept."""
        views = [take(EXTENT) for _ in range(2 * MAX_KEPT)]
        self.assertEqual(len({address(view) for view in views}), 2 * MAX_KEPT)
        del views
        self.assertEqual(len(read_memory._kept), MAX_KEPT)
