"""The content of the client's status page."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.status import client_page
from mufs.status.about import About
from mufs.status.client_page import HeldImage, held_parts
from mufs.status.figures import CLIENT
from mufs.status.history import History
from mufs.status.plots import COLUMNS
from mufs.status.recent import RecentEvents
from mufs.status.site import View
from mufs.test.status.test_markup import Read
from mufs.wire.pages import BLOCK, PAGE

SQUARES = client_page.MAX_MAP_ROWS * COLUMNS


class ClientPageTests(SynchronousTestCase):
    """The client's page."""

    def show(
        self, images: list[HeldImage], query: dict[str, str] | None = None, **changes: Any
    ) -> Read:
        """The page for these figures."""
        figures: dict[str, Any] = {figure.name: 0 for figure in CLIENT.figures}
        figures |= {
            "hit_rate": 0.0, "multicast": "working", "multicast_works": True, "connected": True,
            "why_disconnected": "",
            "mount": "/mnt/<b>", "server": "tcp:here", "certificate_days": None,
            **About("2.9").figures(), **changes,
        }  # fmt: skip
        view = View(History(Clock(), lambda: figures), RecentEvents(), query or {})
        return Read(client_page.client_page(lambda: figures, lambda: images, view))

    def test_states(self) -> None:
        """What does not work, and only that, is shown as an alarm."""
        self.assertNotIn({"class": "alarm"}, [attributes for _, attributes in self.show([]).tags])
        cases: list[tuple[dict[str, Any], str]] = [
            ({"connected": False}, "no connection to the server"),
            (
                {"connected": False, "why_disconnected": "it refused: <no>"},
                "no connection to the server: it refused: <no>",
            ),
            ({"multicast": "not working: <i>", "multicast_works": False}, "not working: <i>"),
        ]
        for changes, said in cases:
            read = self.show([], **changes)
            self.assertEqual(read.tags.count(("p", {"class": "alarm"})), 1)
            self.assertIn(said, read.text)

    def test_disk(self) -> None:
        """Blocks that were given up for lack of space are told, if there are any."""
        self.assertNotIn("given up", self.show([]).text)
        text = self.show([], evictions_for_space=1200).text
        self.assertIn("1,200 blocks given up as the disk was filling up, since ", text)

    def test_reads(self) -> None:
        """Hits, joined reads and misses are each shown with their share."""
        text = self.show([], reads=1000, hits=900, joined=75, misses=25).text
        for said in ("in the cache 900 90.0%", "way already 75 7.5%", "of the server 25 2.5%"):
            self.assertIn(said, text)

    def test_nothing_yet(self) -> None:
        """Before the first read there is no hit rate, and before the first image no map."""
        text = self.show([]).text
        self.assertRegex(text, "hit rate\N{EN DASH}since [0-9:]+reads0")
        self.assertIn("no image was opened yet", text)
        self.assertIn("hit rate75.0%", self.show([], reads=4, hits=3, hit_rate=0.75).text)

    def test_names(self) -> None:
        """Names are text, whatever is in them."""
        image = HeldImage(b"<i>\n.img", PAGE, True, lambda block, pages: pages & ~1)
        text = self.show([image]).text
        self.assertIn("/mnt/<b> from tcp:here", text)
        self.assertIn(r"<i>\n.img 4.0 KiB, all held", text)

    def test_full(self) -> None:
        """An image that is held in full has a line, and no map; on its own page it has one."""
        full = HeldImage(b"a/full.img", BLOCK, True, lambda block, pages: 0)
        other = HeldImage(b"other", BLOCK, True, lambda block, pages: 0)
        read = self.show([full])
        self.assertIn("a/full.img 128.0 KiB, all held", read.text)
        maps = [attributes for _, attributes in read.tags if attributes.get("class") == "map"]
        self.assertEqual(maps, [])
        read = self.show([other, full], {"image": "a/full.img"})
        maps = [attributes for _, attributes in read.tags if attributes.get("class") == "map"]
        self.assertEqual(len(maps), 1)
        self.assertNotIn("other", read.text)
        self.assertIn("not opened yet", self.show([full], {"image": "<none>"}).text)

    def test_sampled_map(self) -> None:
        """The map of an image that is too large to look at all of it says so."""
        large = HeldImage(b"large", 1 << 40, True, lambda block, pages: 0)
        self.assertIn("large 1.0 TiB, about 100.0% held", self.show([large]).text)

    def test_maps(self) -> None:
        """The images opened last have a map, with how much is held, and whether they are open."""
        some = HeldImage(b"some", 2 * BLOCK, True, lambda block, pages: pages if block else 0)
        none = HeldImage(b"none", PAGE, False, lambda block, pages: pages)
        text = self.show([some, none]).text
        self.assertIn("some 256.0 KiB, 50.0% held", text)
        self.assertIn("none 4.0 KiB, 0.0% held; closed", text)
        many = self.show([some] * 100)
        maps = [attributes for _, attributes in many.tags if attributes.get("class") == "map"]
        self.assertEqual(len(maps), client_page.MAX_MAPS)


class HeldTests(SynchronousTestCase):
    """The parts of an image that are held."""

    def parts(self, size: int, held: dict[int, int]) -> tuple[list[float], bool]:
        """The parts of an image of that size when these pages of its blocks are held."""
        self.looks = 0

        def missing(block: int, pages: int) -> int:
            self.looks += 1
            self.assertLess(block * BLOCK, size)
            return pages & ~held.get(block, 0)

        return held_parts(HeldImage(b"image", size, True, missing))

    def test_blocks(self) -> None:
        """A small image has a part for each block, with the fraction of its pages that is held."""
        self.assertEqual(
            self.parts(4 * BLOCK, {0: 0xFFFFFFFF, 1: 0xFFFF, 3: 1}),
            ([1, 0.5, 0, 1 / 32], True),
        )

    def test_last_page(self) -> None:
        """A short last block counts as held when all of its pages are."""
        self.assertEqual(self.parts(BLOCK + 2 * PAGE + 1, {0: 0, 1: 7}), ([0, 1], True))
        self.assertEqual(self.parts(1, {0: 1}), ([1], True))

    def test_empty(self) -> None:
        """An empty image has no parts."""
        self.assertEqual(self.parts(0, {}), ([], True))

    def test_several_blocks(self) -> None:
        """With many blocks a part covers several; all of them are looked up."""
        parts, exact = self.parts(2 * SQUARES * BLOCK, dict.fromkeys((0, 2, 3), 0xFFFFFFFF))
        self.assertEqual((len(parts), parts[:3], exact), (SQUARES, [0.5, 1, 0], True))

    def test_bounded(self) -> None:
        """The number of blocks looked up is bounded for any size, and the result says so."""
        for size in (1 << 40, 1 << 60):
            parts, exact = self.parts(size + 1, {})
            self.assertLessEqual(len(parts), SQUARES)
            self.assertLessEqual(self.looks, SQUARES * client_page.MAX_SAMPLES_PER_SQUARE)
            self.assertFalse(exact)
