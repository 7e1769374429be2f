"""The content of the status pages."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mufs.status import client_page, server_page
from mufs.status.client_page import HeldImage, held_parts
from mufs.status.figures import CLIENT, SERVER
from mufs.status.history import History
from mufs.status.plots import COLUMNS
from mufs.test.status.test_markup import Read
from mufs.wire.pages import BLOCK, PAGE

SQUARES = client_page.MAX_MAP_ROWS * COLUMNS


def row(name: str, **changes: Any) -> dict[str, Any]:
    """A client among the server's figures."""
    return {
        "name": name, "address": "192.0.2.11", "image": "disk.img", "images": 1, "reads": 4,
        "hits": 3, "lag": 0.02, "over_tcp": False, "multicast": "working", **changes,
    }  # fmt: skip


def image(name: str, demand: int, **changes: Any) -> dict[str, Any]:
    """An image among them."""
    return {"name": name, "opens": 1, "bytes_requested": 5, "demand": demand, **changes}


class ServerPageTests(SynchronousTestCase):
    """The server's page."""

    def show(self, clients: list[dict[str, Any]], images: list[dict[str, Any]]) -> Read:
        """The page for these figures."""
        figures: dict[str, Any] = {figure.name: 0 for figure in SERVER.figures}
        figures |= {"clients": clients, "images": images, "interface": None}
        history = History(Clock(), lambda: figures)
        history.sample()
        return Read(server_page.server_page(lambda: figures, history))

    def test_nobody(self) -> None:
        """Without clients and images it says so."""
        text = self.show([], []).text
        for said in ("no client is connected", "no image was opened yet", "nothing is sent"):
            self.assertIn(said, text)

    def test_ways(self) -> None:
        """Each row says whether multicast reaches the client, and if not, why not."""
        lossy = "not working: too lossy: 57% of the segments"
        cases: list[tuple[dict[str, Any], str]] = [
            ({}, "multicast"),
            ({"over_tcp": True, "multicast": lossy}, "TCP: too lossy: 57% of the segments"),
            ({"over_tcp": True}, "TCP: what multicast did not bring"),
            ({"multicast": "not used yet"}, "not used yet"),
            ({"multicast": ""}, "\N{EN DASH}"),
            ({"multicast": "a\n\u202eb"}, r"a\n\u202eb"),
        ]
        for changes, said in cases:
            self.assertTrue(self.show([row("host", **changes)], []).text.endswith(
                f"{said}Imagesno image was opened yet"), (changes, said))  # fmt: skip

    def test_images_of_a_client(self) -> None:
        """A row names the image read last, and how many more are open."""
        cases: list[tuple[dict[str, Any], str]] = [
            ({}, "disk.img"),
            ({"images": 3}, "disk.img and 2 more"),
            ({"images": 0}, "disk.img"),
            ({"image": None}, "none yet"),
        ]
        for changes, said in cases:
            text = self.show([row("host", **changes, reads=0)], []).text
            self.assertIn(f"192.0.2.11{said}\N{EN DASH}", text)

    def test_order(self) -> None:
        """Clients over TCP come first, then long waits; the most requested image is the hottest."""
        text = self.show(
            [row("a"), row("b", lag=1), row("c", over_tcp=True), row("d", lag=2, over_tcp=True)],
            [image("cold", 1), image("hot", 9), image("warm", 5)],
        ).text
        for names in ("dcba", ["hot", "warm", "cold"]):
            places = [text.index(f"{name}192" if len(name) == 1 else f"{name}1") for name in names]
            self.assertEqual(places, sorted(places))

    def test_very_many(self) -> None:
        """The number of rows is limited, and a note says how many more there are."""
        read = self.show(
            [row(f"host{number}") for number in range(1000)],
            [image(f"image{number}", 0) for number in range(1000)],
        )
        rows = [tag for tag, _ in read.tags].count("tr")
        self.assertEqual(rows, server_page.MAX_CLIENT_ROWS + server_page.MAX_IMAGE_ROWS + 2)
        self.assertIn("and 800 more clients", read.text)
        self.assertIn("and 980 more images", read.text)


class ClientPageTests(SynchronousTestCase):
    """The client's page."""

    def show(self, images: list[HeldImage], **changes: Any) -> Read:
        """The page for these figures."""
        figures: dict[str, Any] = {figure.name: 0 for figure in CLIENT.figures}
        figures |= {
            "hit_rate": 0.0, "multicast": "working", "multicast_works": True, "connected": True,
            "mount": "/mnt/<b>", "server": "tcp:here", **changes,
        }  # fmt: skip
        page = partial(client_page.client_page, lambda: figures, lambda: images)
        return Read(page(History(Clock(), lambda: figures)))

    def test_states(self) -> None:
        """What does not work, and only that, is shown as an alarm."""
        self.assertNotIn({"class": "alarm"}, [attributes for _, attributes in self.show([]).tags])
        cases: list[tuple[dict[str, Any], str]] = [
            ({"connected": False}, "no connection to the server"),
            ({"multicast": "not working: <i>", "multicast_works": False}, "not working: <i>"),
        ]
        for changes, said in cases:
            read = self.show([], **changes)
            self.assertEqual(read.tags.count(("p", {"class": "alarm"})), 1)
            self.assertIn(said, read.text)

    def test_reads(self) -> None:
        """Hits, joined reads and misses are each shown with their share."""
        text = self.show([], reads=1000, hits=900, joined=75, misses=25).text
        for said in ("in the cache 900 90.0%", "way already 75 7.5%", "of the server 25 2.5%"):
            self.assertIn(said, text)

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
