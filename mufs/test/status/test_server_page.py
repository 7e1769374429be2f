"""The content of the server's status page."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from mufs.status import server_page
from mufs.status.about import About
from mufs.status.figures import SERVER
from mufs.status.history import History
from mufs.status.recent import RecentEvents
from mufs.status.site import View
from mufs.test.status.test_markup import Read


def row(name: str, **changes: Any) -> dict[str, Any]:
    """A client among the server's figures."""
    return {
        "name": name, "address": "192.0.2.11", "image": "disk.img", "images": 1, "reads": 4,
        "hits": 3, "lag": 0.02, "bytes_delivered": 6 << 20, "over_tcp": False,
        "multicast": "working", "open_images": ["disk.img"], "connected": 61, "requests": 5,
        "repairs": 0, "bytes_over_tcp": 0, "waiting": 0, "held_back": 0, **changes,
    }  # fmt: skip


def image(name: str, demand: int, **changes: Any) -> dict[str, Any]:
    """An image among them."""
    return {
        "name": name, "size": 3 << 20, "opens": 1, "requests": 2, "bytes_requested": 5,
        "demand": demand, **changes,
    }  # fmt: skip


class ServerPageTests(SynchronousTestCase):
    """The server's page."""

    def setUp(self) -> None:
        """Have no events."""
        self.events = RecentEvents()

    def show(
        self,
        clients: list[dict[str, Any]],
        images: list[dict[str, Any]],
        query: dict[str, str] | None = None,
        **changes: Any,
    ) -> Read:
        """The page for these figures."""
        figures: dict[str, Any] = {figure.name: 0 for figure in SERVER.figures}
        figures |= {
            "clients": clients, "images": images, "interface": None, "certificate_days": None,
            "directory": "/srv/<images>", "group": "239.5.5.0:7041", **About().figures(), **changes,
        }  # fmt: skip
        history = History(Clock(), lambda: figures, of_day=server_page.OF_DAY)
        history.sample()
        view = View(history, self.events, query or {})
        return Read(server_page.server_page(lambda: figures, view))

    def test_nobody(self) -> None:
        """Without clients and images it says so."""
        text = self.show([], []).text
        for said in ("no client is connected", "no image was opened yet", "nothing is sent"):
            self.assertIn(said, text)

    def test_saving(self) -> None:
        """What was sent is compared with what readers were given, in all and for each client."""
        figures: dict[str, Any] = {"bytes_multicast": 3 << 20, "bytes_over_tcp": 1 << 20}
        text = self.show([row("host")], [], **figures, bytes_delivered=16 << 20).text
        self.assertIn("sent for each byte delivered0.25since", text)
        self.assertIn("delivered to readers16.0 MiB", text)
        self.assertIn("6.0 MiB", text)
        nothing = self.show([], [], **figures).text
        self.assertIn("sent for each byte delivered\N{EN DASH}", nothing)

    def test_packing(self) -> None:
        """It shows what packing saved; what was compressed, in relation to what that became."""
        figures: dict[str, Any] = {"image_bytes_multicast": 8 << 20, "bytes_zero": 5 << 20}
        text = self.show([], [], **figures, bytes_compressed=4000, bytes_compressed_to=1000).text
        self.assertIn("of images, before packing8.0 MiBsince", text)
        self.assertIn("zeros left out5.0 MiBsince", text)
        self.assertIn("compressed to25.0%since", text)
        self.assertIn("compressed to\N{EN DASH}since", self.show([], [], **figures).text)

    def test_interface(self) -> None:
        """It says what is shared, and where multicast goes out."""
        text = self.show([], [], interface="192.0.2.1").text
        self.assertIn("/srv/<images>; multicast to 239.5.5.0:7041 goes out on 192.0.2.1", text)

    def test_client(self) -> None:
        """A client has a page with each of its connections, its images and its events."""
        query = {"client": "host", "address": "192.0.2.11"}
        others = [row("host", address="192.0.2.12", reads=7777), row("other")]
        self.events.start()
        self.addCleanup(self.events.stop)
        for address in ("192.0.2.11", "192.0.2.12"):
            Logger("mufs.x").info("{client} is at {address}", client="host", address=address)
        text = self.show([row("host"), row("host", images=30), *others], [], query).text
        self.assertEqual(text.count("Connected for 1 min 1 s"), 2)
        self.assertIn("disk.imgand 29 more handles", text)
        self.assertNotIn("7,777", text)
        self.assertIn("host is at 192.0.2.11", text)
        self.assertNotIn("host is at 192.0.2.12", text)
        gone = self.show(others, [], query).text
        self.assertIn("not connected now", gone)
        self.assertIn("host is at 192.0.2.11", gone)

    def test_image(self) -> None:
        """An image has a page with its size and the clients that have it open."""
        query = {"image": "disk.img"}
        clients = [row("reader"), row("idle", open_images=[])]
        text = self.show(clients, [image("disk.img", 5), image("other", 3)], query).text
        self.assertIn("size3.0 MiB", text)
        self.assertIn("reader192.0.2.11multicast", text)
        for absent in ("idle", "other"):
            self.assertNotIn(absent, text)
        self.assertIn("nobody has opened it yet", self.show(clients, [], {"image": "<i>"}).text)

    def test_heat(self) -> None:
        """An image's heat is its share of that of the hottest."""
        read = self.show([], [image("a", 8), image("b", 2), image("c", 0)])
        heat = [attributes["value"] for tag, attributes in read.tags if tag == "meter"]
        self.assertEqual(heat, ["1.000", "0.250", "0.000"])

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
            text = self.show([row("host", **changes)], []).text
            self.assertIn(f"{said}Imagesno image was opened yet", text, (changes, said))

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
            places = [text.index(f"{name}192" if len(name) == 1 else f"{name}3") for name in names]
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
