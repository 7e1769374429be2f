"""What is kept of what the server told."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.filesystem.client import last_known
from mufs.filesystem.client.attributes import AttributeCache
from mufs.filesystem.client.last_known import LastKnown
from mufs.test.support.doubles import make_attributes
from mufs.wire.metadata import Caller, Opened

OWNER, OTHER = Caller(1000, 100, [100, 7]), Caller(1001, 100, [])


class LastKnownTests(SynchronousTestCase):
    """Has nothing known yet."""

    def setUp(self) -> None:
        """Know nothing."""
        self.attributes = AttributeCache(Clock())
        self.known = LastKnown(self.attributes)

    def open(self, path: bytes, mode: int, caller: Caller = OWNER, generation: int = 1) -> Opened:
        """An image is opened."""
        attributes = evolve(make_attributes(5, generation), mode=mode)
        opened = Opened(3, 1, generation, bytes(16), attributes)
        self.attributes.put(path, attributes, float(generation))
        self.known.note_image(path, opened, caller)
        return opened

    def test_image(self) -> None:
        """An image is for those who opened it before, or for all if all may read it."""
        private = self.open(b"private", 0o100600)
        public = self.open(b"public", 0o100644)
        self.assertIs(self.known.image(b"private", OWNER), private)
        self.assertIsNone(self.known.image(b"private", OTHER))
        self.assertIs(self.known.image(b"public", OTHER), public)
        self.assertIsNone(self.known.image(b"none", OWNER))

    def test_changed(self) -> None:
        """One whose content is known to have changed since is not opened."""
        self.open(b"image", 0o100644)
        self.attributes.put(b"image", make_attributes(6, generation=2), 2.0)
        self.assertIsNone(self.known.image(b"image", OWNER))
        again = self.open(b"image", 0o100644, generation=3)
        self.assertIs(self.known.image(b"image", OWNER), again)

    def test_attributes(self) -> None:
        """Attributes are the last ones, or those of the listing; what it lacks does not exist."""
        self.attributes.put_listing(b"", {b"a": make_attributes(1)}, 0.0)
        self.attributes.put_listing(b"dir", {b"b": make_attributes(2)}, 0.0)
        self.attributes.put(b"a", make_attributes(3), 1.0)
        self.assertEqual(self.known.attributes(b"a"), make_attributes(3))
        self.assertEqual(self.known.attributes(b"dir/b"), make_attributes(2))
        for path in (b"c", b"dir/c"):
            self.assertRaises(FileNotFoundError, self.known.attributes, path)
        self.assertIsNone(self.known.attributes(b"a/c"))
        self.assertEqual(self.known.listing(b"dir"), [(b"b", make_attributes(2))])
        self.assertIsNone(self.known.listing(b"other"))

    def test_forget(self) -> None:
        """Nothing is left of a file that is no more, nor its name in its directory."""
        names = {b"a": make_attributes(1), b"b": make_attributes(2)}
        self.attributes.put_listing(b"", names, 0.0)
        self.known.note_link(b"a", b"there")
        self.open(b"a", 0o100644)
        self.known.forget(b"a")
        self.assertRaises(FileNotFoundError, self.known.attributes, b"a")
        self.assertEqual(self.known.listing(b""), [(b"b", make_attributes(2))])
        self.assertIsNone(self.known.link(b"a"))
        self.assertIsNone(self.known.image(b"a", OWNER))

    def test_bounds(self) -> None:
        """What is kept is bounded, and what was told first is forgotten first."""
        constants: Any = last_known
        self.patch(constants, "MAX_PATHS", 2)
        self.patch(constants, "MAX_CALLERS", 2)
        for number in range(4):
            path = b"%d" % number
            self.known.note_link(path, path)
            self.open(path, 0o100600)
        kept = [number for number in range(4) if self.known.link(b"%d" % number)]
        self.assertEqual(kept, [2, 3])
        kept = [number for number in range(4) if self.known.image(b"%d" % number, OWNER)]
        self.assertEqual(kept, [2, 3])
        for number in range(3):
            self.open(b"3", 0o100600, Caller(number, 0, []))
        self.assertIsNone(self.known.image(b"3", OWNER))
