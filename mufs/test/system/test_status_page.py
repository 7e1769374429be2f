"""The status pages of real processes, over sockets and in a browser."""

from __future__ import annotations

import os
import socket
import time
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

import mufs
from mufs.status.figures import CLIENT, SERVER
from mufs.test.support import browser
from mufs.test.support.browser import Browser
from mufs.test.support.loopback import Loopback, free_port, why_unavailable
from mufs.test.support.processes import Service, listening, wait_until

MIB = 1 << 20
ODD = [
    b"<script>document.title = 'run'",
    b"\"'><img src=x onerror=\"document.title='run'\">&amp;",
    b"no\xff\xfeutf-8\n\x1b[31m\xe2\x80\xaegmi.img",
    b"long" * 60,
]
"""Names of images that contain HTML, are not UTF-8, or are long."""


NO_UTF8 = r"no\xff\xfeutf-8\n\x1b[31m\u202egmi.img"
"""How the third name is displayed."""


class Scene:
    """A server with oddly named images, and a client that has read all of them."""

    def __init__(self) -> None:
        self.loopback = Loopback()
        try:
            self._start()
        except BaseException:
            self.loopback.close()
            raise

    def _start(self) -> None:
        for name in ODD:
            (self.loopback.images / os.fsdecode(name)).write_bytes(os.urandom(3 * MIB + 5))
        port, another = (free_port(socket.SOCK_STREAM) for _ in range(2))
        self.server = self.loopback.start_server(status_port=port)
        self.client = self.loopback.start_client("client", status_port=another)
        self.point = self.loopback.mount_point("client")
        self.files = [os.open(os.fsencode(self.point) + b"/" + name, os.O_RDONLY) for name in ODD]
        for file in self.files:
            while os.read(file, MIB):
                pass

    def close_files(self) -> None:
        """Close the open images."""
        while self.files:
            os.close(self.files.pop())

    def close(self) -> None:
        """End the processes."""
        self.close_files()
        self.loopback.close()


@cache
def shared_scene() -> Scene:
    """Return the scene shared by tests that change nothing, closed at the end of the process."""
    return Scene()


class StatusTestCase(SynchronousTestCase):
    """Has a scene: a server and a client."""

    skip = why_unavailable()

    def use(self, scene: Scene) -> None:
        """Use this scene."""
        self.scene, self.server, self.client = scene, scene.server, scene.client

    def use_own(self) -> None:
        """Use a new scene that the test may change."""
        scene = Scene()
        self.addCleanup(scene.close)
        self.use(scene)

    def setUp(self) -> None:
        """Use the shared scene."""
        super().setUp()
        self.use(shared_scene())

    def wait_reported(self) -> dict[str, Any]:
        """Return the server's row of the client, once the client has reported."""

        def reported() -> bool:
            (row,) = self.server.status()["clients"]
            return bool(row["reads"] == self.client.status()["reads"])

        wait_until(reported, 20, "the client's report of its last read")
        (row,) = self.server.status()["clients"]
        return dict(row)


class ProcessTests(StatusTestCase):
    """The figures of a server and a client."""

    def test_row(self) -> None:
        """The server's row of a client has what the client reports."""
        row, figures = self.wait_reported(), self.client.status()
        self.assertEqual((row["reads"], row["hits"]), (figures["reads"], figures["hits"]))
        self.assertEqual((row["multicast"], row["over_tcp"]), (figures["multicast"], False))
        self.assertEqual(row["images"], len(ODD))
        self.assertEqual(row["image"], "long" * 60)
        self.assertLess(row["lag"], 8)

    def test_images(self) -> None:
        """The server's list has each image with the requests for it."""
        images = {image["name"]: image for image in self.server.status()["images"]}
        self.assertIn(NO_UTF8, images)
        self.assertEqual(len(images), len(ODD))
        for image in images.values():
            self.assertEqual(image["opens"], 1)
            self.assertGreater(image["bytes_requested"], 3 * MIB)
            self.assertGreater(image["demand"], 0)

    def test_closed(self) -> None:
        """Closed images are not shown as open."""
        self.use_own()
        self.scene.close_files()
        wait_until(
            lambda: not any(image["opens"] for image in self.server.status()["images"]),
            10,
            "the handles are closed",
        )

    def test_figures_documented(self) -> None:
        """Each figure is described in docs/operations/monitoring.md."""
        manual = Path(mufs.__file__).parent.parent / "docs" / "operations" / "monitoring.md"
        text = manual.read_text(encoding="utf-8").split("\n## Figures\n")[1].split("\n## ")[0]
        server = self.server.status()
        for figures in (self.client.status(), server, server["clients"][0], server["images"][0]):
            for name in figures:
                self.assertIn(f"`{name}`", text)

    def test_figures_are_metrics(self) -> None:
        """Each number is a metric, except derived ratios and rates, and the time of the start."""
        known = {table.name: table.figures for table in SERVER.tables}
        server, client = self.server.status(), self.client.status()
        for figures, metrics in (
            (client, CLIENT.figures),
            (server, SERVER.figures),
            (server["clients"][0], known["clients"]),
            (server["images"][0], known["images"]),
        ):
            numbers = {name for name, value in figures.items() if isinstance(value, int | float)}
            self.assertEqual(
                numbers - {"hit_rate", "demand", "started", "uptime"},
                {each.name for each in metrics} - {"certificate_days", "read_seconds"},
            )

    def test_metrics(self) -> None:
        """Server and client serve their metrics."""
        reads = self.client.status()["reads"]
        self.assertIn(f"mufs_client_reads_total {float(reads)}\n", self.client.get("/metrics"))
        self.assertIn("mufs_server_client_connections{", self.server.get("/metrics"))

    def test_this_host_alone(self) -> None:
        """A status port without an address listens only on loopback."""
        port = self.server.status_port
        assert port is not None
        self.assertTrue(listening(self.server.pid, port))
        for address in ("127.0.0.2", "::1"):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family) as other:
                self.assertNotEqual(other.connect_ex((address, port)), 0)

    def test_end_while_somebody_listens(self) -> None:
        """SIGTERM ends a process immediately, with complete responses to event streams."""
        self.use_own()
        self.scene.close_files()
        for service in (self.client, self.server):
            connection = service.connect_status()
            self.addCleanup(connection.close)
            connection.request("GET", "/events")
            response = connection.getresponse()
            self.assertTrue(response.readline().startswith(b"data: <main>"))
            begin = time.monotonic()
            service.stop()
            # An incomplete response raises IncompleteRead.
            self.assertTrue(response.read().endswith(b"\n"))
            self.assertLess(time.monotonic() - begin, 5)
            self.assertNotIn("Traceback", service.output)


class BrowserTests(StatusTestCase):
    """The pages in Chromium."""

    skip = why_unavailable() or (None if browser.find() else "needs chromium")
    both: ClassVar[list[bool]] = [False, True]

    def setUp(self) -> None:
        """Start a browser."""
        super().setUp()
        self.browser = Browser()
        self.addCleanup(self.browser.close)

    def url(self, service: Service) -> str:
        """Return the URL of a service's page."""
        return f"http://127.0.0.1:{service.status_port}/"

    def test_fits(self) -> None:
        """On phones and desktops, light and dark, nothing is wider than the screen."""
        self.wait_reported()
        for service in (self.server, self.client):
            grounds = set()
            for width in (390, 1280):
                for dark in self.both:
                    self.browser.set_screen(width, dark)
                    self.browser.open(self.url(service))
                    wide = self.browser.evaluate("document.documentElement.scrollWidth")
                    self.assertLessEqual(wide, width)
                    ground = "getComputedStyle(document.body).backgroundColor"
                    grounds.add(self.browser.evaluate(ground))
            self.assertEqual(len(grounds), 2)

    def test_names(self) -> None:
        """Odd names are displayed literally, and HTML in them is not interpreted."""
        for service in (self.server, self.client):
            self.browser.open(self.url(service))
            shown = self.browser.evaluate("document.querySelector('main').innerText")
            titled = "[...document.querySelectorAll('[title]')].map(e => e.title)"
            for name in (ODD[0].decode(), ODD[1].decode(), NO_UTF8):
                self.assertIn(name, shown)
            self.assertIn("long" * 60, self.browser.evaluate(titled))
            self.assertNotIn("long" * 60, shown)
            self.assertIs(self.browser.evaluate("document.querySelector('main img')"), None)
            self.assertEqual(self.browser.evaluate("document.title"), f"mufs-{service.name}")

    def test_refreshed(self) -> None:
        """Changes and the loss of the connection are shown without reloading the page."""
        self.use_own()
        self.browser.open(self.url(self.client))
        self.browser.evaluate("window.same = true")
        (self.scene.loopback.images / "new.img").write_bytes(bytes(MIB))
        (self.scene.point / "new.img").read_bytes()
        self.browser.wait_until("document.body.innerText.includes('new.img')")
        self.assertTrue(self.browser.evaluate("window.same"))
        self.client.stop()
        self.browser.wait_until("document.body.classList.contains('stale')")

    def test_without_script(self) -> None:
        """Without scripts, the page shows the same, and is reloaded periodically."""
        self.browser.allow_scripts(False)
        self.browser.open(self.url(self.server))
        text = self.browser.evaluate("document.querySelector('main').innerText")
        self.assertIn("Clients", text)
        refresh = "document.querySelector('noscript meta[http-equiv=refresh]') !== null"
        self.assertTrue(self.browser.evaluate(refresh))

    def test_sorted(self) -> None:
        """A click on the head of a column sorts by it, also after the next refresh."""
        self.browser.open(self.url(self.server))
        names = "[...document.querySelectorAll('table')[1].tBodies[0].rows].map(r => r.innerText)"
        head = "document.querySelectorAll('table')[1].tHead.rows[0].cells[0]"
        self.browser.wait_until(f"{head}.getAttribute('role') === 'button'")
        for order in ("ascending", "descending"):
            self.browser.evaluate(f"{head}.click()")
            self.browser.evaluate("document.querySelector('main').old = true")
            self.browser.wait_until("!document.querySelector('main').old")
            shown = self.browser.evaluate(f"{head}.getAttribute('aria-sort')")
            self.assertEqual(shown, order)
            rows = self.browser.evaluate(names)
            by_name = f"{names}.sort((a, b) => a.localeCompare(b, undefined, {{numeric: true}}))"
            expected = self.browser.evaluate(by_name)
            self.assertEqual(rows, expected if order == "ascending" else expected[::-1])

    def test_hover(self) -> None:
        """A plot shows the values where the pointer is."""
        self.browser.open(self.url(self.server))
        self.browser.wait_until("document.querySelectorAll('polyline').length >= 5")
        self.browser.evaluate(
            "box = document.querySelector('.plot svg').getBoundingClientRect();"
            "document.dispatchEvent(new PointerEvent('pointermove',"
            " {clientX: box.right - 1, clientY: box.top + 5}))"
        )
        shown = self.browser.evaluate("document.querySelector('output').textContent")
        self.assertRegex(
            shown,
            r"^\d+ s ago: multicast \d.* [kM]?bit/s, TCP 0 bit/s, before packing \d.* [kM]?bit/s$",
        )

    def test_parts(self) -> None:
        """A client and an image have pages of their own, linked and refreshed."""
        self.browser.open(self.url(self.server))
        for page, said in (("client", "Open images"), ("image", "Clients that have it open")):
            link = f"document.querySelector('a[href^=\"?{page}=\"]').href"
            self.browser.open(self.browser.evaluate(link))
            text = "document.querySelector('main').innerText"
            self.assertIn(said, self.browser.evaluate(text))
            self.browser.evaluate("document.querySelector('main').old = true")
            self.browser.wait_until("!document.querySelector('main').old")
            self.assertIn(said, self.browser.evaluate(text))
            self.browser.open(self.browser.evaluate("document.querySelector('p > a').href"))

    def test_policy(self) -> None:
        """The page does not violate its content security policy."""
        self.browser.open(self.url(self.server))
        self.browser.wait_until("document.querySelectorAll('polyline').length >= 5")
        self.assertNotIn("Log.entryAdded", self.browser.events)
