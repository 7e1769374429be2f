"""The table of open images."""

import errno
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client import images
from mufs.filesystem.client.images import (
    MAX_RECENT_IMAGES,
    OpenImage,
    OpenImages,
    PageCache,
    stale,
)
from mufs.filesystem.client.reading.sequences import SequenceDetector
from mufs.test.support.doubles import make_attributes


def make_image(path: bytes = b"image", generation: int = 1, size: int = 10) -> OpenImage:
    """An image as the server opened it."""
    detector = SequenceDetector(size)
    return OpenImage(path, (1, generation), make_attributes(size, generation), detector)


class HandleTests(SynchronousTestCase):
    """Images by their handles."""

    def setUp(self) -> None:
        """Nothing is open."""
        self.images = OpenImages()

    def test_add(self) -> None:
        """Each open gets a handle that was never used, and its own image for it."""
        one, two = make_image(), make_image()
        first, _ = self.images.add(one)
        second, _ = self.images.add(two)
        self.assertNotEqual(first, second)
        self.assertIs(self.images[first], one)
        self.assertIs(self.images[second], two)
        self.assertIs(self.images.remove(first), one)
        self.assertNotIn(first, self.images)
        self.assertIn(second, self.images)
        self.assertRaises(KeyError, self.images.__getitem__, first)
        self.assertNotIn(self.images.add(make_image())[0], (first, second))

    def test_iterate(self) -> None:
        """Who iterates over the images may close them meanwhile."""
        handles = [self.images.add(make_image(b"%d" % number))[0] for number in range(3)]
        for _ in self.images:
            if handles:
                self.images.remove(handles.pop())
        self.assertEqual(list(self.images), [])

    def test_recent(self) -> None:
        """The images opened last are remembered, also when closed; opening one renews it."""
        for generation in range(MAX_RECENT_IMAGES + 1):
            self.images.remove(self.images.add(make_image(generation=generation))[0])
            self.images.remove(self.images.add(make_image(generation=0))[0])
        self.assertEqual(len(self.images.recent), MAX_RECENT_IMAGES)
        self.assertEqual([generation for _, generation in self.images.recent][-2:], [64, 0])
        self.assertNotIn((1, 1), self.images.recent)


class StaleTests(SynchronousTestCase):
    """Images whose file has changed."""

    def setUp(self) -> None:
        """Nothing is open."""
        self.images = OpenImages()

    def test_error(self) -> None:
        """Reading a stale image is ESTALE."""
        self.assertEqual(stale().errno, errno.ESTALE)

    def test_other_generation(self) -> None:
        """A new generation at a path makes the older ones there stale, and no others."""
        old, elsewhere = make_image(), make_image(b"other")
        self.images.add(old)
        self.images.add(elsewhere)
        same = make_image()
        self.images.add(same)
        self.assertFalse(old.stale)
        new = make_image(generation=2)
        self.images.add(new)
        self.assertEqual(
            [each.stale for each in (old, same, elsewhere, new)], [True, True, False, False]
        )

    def test_attributes(self) -> None:
        """Another generation makes an image stale; its mode, links and times do not."""
        attributes = make_attributes(10)
        for changes, expected in (
            ({"generation": 2}, True),
            ({"mode": 0o100600, "nlink": 2, "atime": 1, "mtime": 1, "ctime": 1}, False),
        ):
            opened = make_image()
            handle, _ = self.images.add(opened)
            change: dict[str, Any] = changes
            self.images.mark_stale(b"image", evolve(attributes, **change), self.images.next_handle)
            self.assertIs(opened.stale, expected, changes)
            self.images.remove(handle)
        self.images.mark_stale(b"image", attributes, self.images.next_handle)

    def test_newer(self) -> None:
        """An image opened after the attributes were asked for is not judged by them."""
        before = self.images.next_handle
        opened = make_image()
        self.images.add(opened)
        self.images.mark_stale(b"image", make_attributes(11, 2), before)
        self.assertFalse(opened.stale)


class PageCacheTests(SynchronousTestCase):
    """What the kernel may do with its pages."""

    def setUp(self) -> None:
        """Nothing is open."""
        self.images = OpenImages()

    def open(self, *, read: bool, generation: int = 1, path: bytes = b"image") -> PageCache:
        """Open an image, perhaps read from it, and close it; what its pages are good for."""
        opened = make_image(path, generation)
        handle, pages = self.images.add(opened)
        opened.was_read = read
        self.images.remove(handle)
        return pages

    def test_kept(self) -> None:
        """Pages are kept while the generation that was read is opened again, and no other."""
        self.assertIs(self.open(read=True), PageCache.RENEW)
        self.assertIs(self.open(read=False), PageCache.KEEP)
        self.assertIs(self.open(read=False), PageCache.KEEP)
        self.assertIs(self.open(read=True, path=b"other"), PageCache.RENEW)
        self.assertIs(self.open(read=True, generation=2), PageCache.RENEW)
        self.assertIs(self.open(read=True, generation=1), PageCache.RENEW)
        self.assertIs(self.open(read=True, generation=1), PageCache.KEEP)

    def test_unread(self) -> None:
        """Unless somebody read through the handle, the kernel may have older pages still."""
        self.assertIs(self.open(read=True), PageCache.RENEW)
        self.assertIs(self.open(read=False, generation=2), PageCache.RENEW)
        self.assertIs(self.open(read=False, generation=2), PageCache.RENEW)

    def test_mixed(self) -> None:
        """While two generations are open at a path, reads bypass its pages."""
        handle, _ = self.images.add(make_image())
        self.assertIs(self.open(read=True, generation=2), PageCache.BYPASS)
        self.images.remove(handle)
        self.assertIs(self.open(read=True, generation=2), PageCache.RENEW)

    def test_bound(self) -> None:
        """With too many paths all are forgotten: pages are then dropped without need."""
        self.patch(images, "MAX_PAGE_CACHE_PATHS", 2)
        for path in (b"a", b"b", b"c"):
            self.assertIs(self.open(read=True, path=path), PageCache.RENEW)
        self.assertIs(self.open(read=True, path=b"c"), PageCache.KEEP)
        self.assertIs(self.open(read=True, path=b"a"), PageCache.RENEW)
