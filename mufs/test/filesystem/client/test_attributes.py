"""Attributes known from a moment ago."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client import attributes
from mufs.filesystem.client.attributes import ATTRIBUTE_LIFETIME, AttributeCache
from mufs.test.support.doubles import make_attributes


class AttributeCacheTests(SynchronousTestCase):
    """What is known, and for how long."""

    def setUp(self) -> None:
        """Begin with nothing known."""
        self.clock = Clock()
        self.cache = AttributeCache(self.clock)

    def put(self, path: bytes, size: int) -> None:
        """Learn at once what the server is asked for now."""
        self.cache.put(path, make_attributes(size), self.clock.seconds())

    def test_lifetime(self) -> None:
        """Attributes are known for a second, and as the last ones for good."""
        self.assertIsNone(self.cache.get(b"file"))
        self.assertIsNone(self.cache.last(b"file"))
        self.put(b"file", 1)
        self.clock.advance(ATTRIBUTE_LIFETIME)
        self.assertEqual(self.cache.get(b"file"), make_attributes(1))
        self.clock.advance(0.001)
        self.assertIsNone(self.cache.get(b"file"))
        self.assertEqual(self.cache.last(b"file"), make_attributes(1))

    def test_anew(self) -> None:
        """What is learnt anew takes the place of what was known, and lasts from then on."""
        self.put(b"file", 1)
        self.clock.advance(ATTRIBUTE_LIFETIME)
        self.put(b"file", 2)
        self.clock.advance(ATTRIBUTE_LIFETIME)
        self.assertEqual(self.cache.get(b"file"), make_attributes(2))

    def test_overtaken(self) -> None:
        """An answer that comes after that to a later question does not take its place."""
        self.cache.put(b"file", make_attributes(2), 5.0)
        self.cache.put(b"file", make_attributes(1), 4.0)
        self.assertEqual(self.cache.get(b"file"), make_attributes(2))
        self.cache.put(b"file", make_attributes(3), 5.0)
        self.assertEqual(self.cache.get(b"file"), make_attributes(3))

    def test_bound(self) -> None:
        """No more paths are known than there may be; the last that came always is."""
        self.patch(attributes, "MAX_PATHS", 3)
        for number in range(20):
            path = b"%d" % number
            self.put(path, number)
            self.assertEqual(self.cache.get(path), make_attributes(number))
            known = [n for n in range(20) if self.cache.last(b"%d" % n) is not None]
            self.assertLessEqual(len(known), 3)

    def test_full(self) -> None:
        """A full cache takes news of paths that it knows without forgetting the others."""
        self.patch(attributes, "MAX_PATHS", 2)
        for size in (1, 2, 3):
            self.put(b"a", size)
            self.put(b"b", size)
        self.assertEqual(self.cache.get(b"a"), make_attributes(3))
