"""File attributes that were learnt a moment ago."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client import attributes
from mufs.filesystem.client.attributes import (
    ATTRIBUTE_LIFETIME,
    LOOK_SECONDS,
    MAX_LISTING_LIFETIME,
    AttributeCache,
)
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


class ListingTests(SynchronousTestCase):
    """What a listing brings."""

    def setUp(self) -> None:
        """Start with nothing known, after a while."""
        self.clock = Clock()
        self.clock.advance(100)
        self.cache = AttributeCache(self.clock)

    def put(self, directory: bytes, names: bytes, asked: float = 100.0) -> None:
        """Store a listing of files whose names are one letter each."""
        listed = {bytes([name]): make_attributes(name) for name in names}
        self.cache.put_listing(directory, listed, asked)

    def test_names(self) -> None:
        """Each name of a directory is known from its listing, and no other."""
        self.put(b"", b"ab")
        self.put(b"dir", b"c")
        for path in (b"a", b"b", b"dir/c"):
            self.assertEqual(self.cache.get(path), make_attributes(path[-1]))
        for path in (b"", b"c", b"dir", b"dir/a", b"other/a"):
            self.assertIsNone(self.cache.last(path))
        self.assertEqual(self.cache.listing(b"dir"), {b"c": make_attributes(ord("c"))})
        self.assertIsNone(self.cache.listing(b"other"))

    def test_lifetime(self) -> None:
        """They are current for twice as long as the listing took, within bounds."""
        for took, lifetime in (
            (0.0, ATTRIBUTE_LIFETIME),
            (3.0, 6.0),
            (60.0, MAX_LISTING_LIFETIME),
        ):
            self.put(b"", b"a", self.clock.seconds() - took)
            self.clock.advance(lifetime - 0.001)
            self.assertIsNotNone(self.cache.get(b"a"))
            self.clock.advance(0.002)
            self.assertIsNone(self.cache.get(b"a"))
            self.assertIsNotNone(self.cache.last(b"a"))

    def test_many(self) -> None:
        """Those of a large directory are current for as long as looking at each file takes."""
        names = {b"%d" % number: make_attributes(1) for number in range(10_000)}
        self.cache.put_listing(b"", names, self.clock.seconds())
        self.clock.advance(10_000 * LOOK_SECONDS - 0.001)
        self.assertIsNotNone(self.cache.get(b"7"))
        self.clock.advance(0.002)
        self.assertIsNone(self.cache.get(b"7"))

    def test_walk(self) -> None:
        """A walk through a directory shows once its listing has expired, and once only."""
        names = {b"%d" % number: make_attributes() for number in range(160)}
        for lookups, walked in ((0, False), (9, False), (10, True), (200, True)):
            self.cache.put_listing(b"dir", names, self.clock.seconds())
            for number in range(lookups):
                self.cache.get(b"dir/%d" % (number % 160))
            self.assertFalse(self.cache.take_walk(b"dir"))
            self.clock.advance(ATTRIBUTE_LIFETIME + 0.001)
            self.assertEqual(self.cache.take_walk(b"dir"), walked)
            self.assertFalse(self.cache.take_walk(b"dir"))
        self.assertFalse(self.cache.take_walk(b"other"))
        self.put(b"empty", b"")
        self.clock.advance(ATTRIBUTE_LIFETIME + 0.001)
        self.assertFalse(self.cache.take_walk(b"empty"))

    def test_order(self) -> None:
        """Of a listing and a lookup the one counts that the server was asked for later."""
        self.put(b"dir", b"a", 50.0)
        self.cache.put(b"dir/a", make_attributes(1), 49.0)
        self.assertEqual(self.cache.last(b"dir/a"), make_attributes(ord("a")))
        self.cache.put(b"dir/a", make_attributes(2), 51.0)
        self.assertEqual(self.cache.last(b"dir/a"), make_attributes(2))
        self.put(b"dir", b"a", 52.0)
        self.assertEqual(self.cache.last(b"dir/a"), make_attributes(ord("a")))

    def test_removed(self) -> None:
        """Nothing is left of a path that is no more."""
        self.put(b"", b"ad")
        self.put(b"d", b"b")
        self.cache.put(b"a", make_attributes(1), 1000.0)
        self.cache.remove(b"a")
        self.cache.remove(b"d")
        for path in (b"a", b"d", b"d/b"):
            self.assertIsNone(self.cache.last(path))
        self.assertEqual(self.cache.listing(b""), {})

    def test_bound(self) -> None:
        """The number of names is bounded; what was listed first is forgotten first."""
        self.patch(attributes, "MAX_LISTED_NAMES", 5)
        for number in range(4):
            self.put(b"%d" % number, b"ab")
        kept = [number for number in range(4) if self.cache.listing(b"%d" % number)]
        self.assertEqual(kept, [2, 3])
        self.cache.remove(b"3/a")
        self.put(b"2", b"abcd")
        self.assertIsNotNone(self.cache.listing(b"3"))
        self.put(b"4", b"abcdef")
        self.assertIsNone(self.cache.listing(b"4"))
