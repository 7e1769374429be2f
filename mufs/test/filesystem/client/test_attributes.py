"""File attributes that were learnt a moment ago."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client import attributes
from mufs.filesystem.client.attributes import ATTRIBUTE_LIFETIME, AttributeCache
from mufs.test.support.doubles import make_attributes


class AttributeCacheTests(SynchronousTestCase):
    """What is known, and for how long."""

    def setUp(self) -> None:
        """Start with nothing known."""
        self.clock = Clock()
        self.cache = AttributeCache(self.clock)

    def put(self, path: bytes, size: int) -> None:
        """Store attributes that the server is asked for now, and answers at once."""
        self.cache.put(path, make_attributes(size), self.clock.seconds())

    def test_lifetime(self) -> None:
        """Attributes are current for a second, and the last ones stay known."""
        self.assertIsNone(self.cache.get(b"file"))
        self.assertIsNone(self.cache.last(b"file"))
        self.put(b"file", 1)
        self.clock.advance(ATTRIBUTE_LIFETIME)
        self.assertEqual(self.cache.get(b"file"), make_attributes(1))
        self.clock.advance(0.001)
        self.assertIsNone(self.cache.get(b"file"))
        self.assertEqual(self.cache.last(b"file"), make_attributes(1))

    def test_anew(self) -> None:
        """New attributes replace old ones, and are current from then on."""
        self.put(b"file", 1)
        self.clock.advance(ATTRIBUTE_LIFETIME)
        self.put(b"file", 2)
        self.clock.advance(ATTRIBUTE_LIFETIME)
        self.assertEqual(self.cache.get(b"file"), make_attributes(2))

    def test_overtaken(self) -> None:
        """The late answer to an earlier request does not replace that to a later one."""
        self.cache.put(b"file", make_attributes(2), 5.0)
        self.cache.put(b"file", make_attributes(1), 4.0)
        self.assertEqual(self.cache.get(b"file"), make_attributes(2))
        self.cache.put(b"file", make_attributes(3), 5.0)
        self.assertEqual(self.cache.get(b"file"), make_attributes(3))

    def test_bound(self) -> None:
        """The number of paths is bounded; the last one is always known."""
        self.patch(attributes, "MAX_PATHS", 3)
        for number in range(20):
            path = b"%d" % number
            self.put(path, number)
            self.assertEqual(self.cache.get(path), make_attributes(number))
            known = [n for n in range(20) if self.cache.last(b"%d" % n) is not None]
            self.assertLessEqual(len(known), 3)

    def test_full(self) -> None:
        """Updating a path in a full cache does not forget the others."""
        self.patch(attributes, "MAX_PATHS", 2)
        for size in (1, 2, 3):
            self.put(b"a", size)
            self.put(b"b", size)
        self.assertEqual(self.cache.get(b"a"), make_attributes(3))
