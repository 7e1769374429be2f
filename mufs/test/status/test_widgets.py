"""The elements of the status pages, and how they format numbers."""

import time

from twisted.trial.unittest import SynchronousTestCase

from mufs.status.recent import Event
from mufs.status.widgets import (
    MAX_NAME_LENGTH,
    Cell,
    about,
    bits,
    cards,
    count,
    events,
    link,
    named,
    note,
    percent,
    rows_left_out,
    seconds,
    section,
    since,
    table,
)
from mufs.test.status.test_markup import Read


class NumberTests(SynchronousTestCase):
    """Formatted numbers."""

    def test_numbers(self) -> None:
        """Each number has a unit that fits its size."""
        self.assertEqual(
            [bits(n) for n in (0, 999, 1.5e6, 1e10)],
            ["0 bit/s", "999 bit/s", "1.5 Mbit/s", "10 Gbit/s"],
        )
        self.assertEqual([seconds(n) for n in (0, 0.0123, 3.14)], ["0 ms", "12 ms", "3.1 s"])
        self.assertEqual(percent(0.1234), "12.3%")

    def test_large(self) -> None:
        """Thousands are set apart."""
        self.assertEqual([count(n) for n in (0, 999.6, 1234567)], ["0", "1,000", "1,234,567"])


class NameTests(SynchronousTestCase):
    """Names of hosts and images."""

    def test_long_names(self) -> None:
        """A long name is shortened in the middle; the tooltip has all of it."""
        read = Read(named(b"a" * 100 + b".img"))
        self.assertLessEqual(len(read.text), MAX_NAME_LENGTH + 1)
        self.assertTrue(read.text.endswith("a.img"))
        self.assertEqual(read.tags[0][1]["title"], "a" * 100 + ".img")

    def test_fitting_names(self) -> None:
        """A name that fits is shown whole, with what is not printable by its number."""
        name = "a" * (MAX_NAME_LENGTH - 2)
        read = Read(named(name.encode() + b"\n"))
        self.assertEqual(read.text, name + r"\n")
        self.assertEqual(read.tags, [("span", {"class": "name", "title": name + r"\n"})])


class ElementTests(SynchronousTestCase):
    """The elements of a page."""

    def test_cards(self) -> None:
        """Each number comes after its name, and before the time that it is about."""
        tiles = [("reads", "7", "now"), ("<hits>", "5", "since 12:00")]
        self.assertEqual(Read(cards(tiles)).text, "reads7now<hits>5since 12:00")

    def test_since(self) -> None:
        """A beginning has its date unless it was today."""
        noon = time.mktime((2026, 11, 30, 12, 5, 0, 0, 0, -1))
        self.assertEqual(since(noon, lambda: noon + 60), "since 12:05")
        self.assertEqual(since(noon, lambda: noon + 86400), "since 2026-11-30 12:05")

    def test_link(self) -> None:
        """A link leads to a part of the service, whatever its name, or back to all of it."""
        read = Read(link("a", image="x/y&z=\xff", address=""))
        self.assertEqual(read.tags, [("a", {"href": "?image=x%2Fy%26z%3D%C3%BF&address="})])
        self.assertEqual(Read(link("back")).tags, [("a", {"href": "./"})])

    def test_about(self) -> None:
        """The line about a service tells of its certificate, if it has one."""
        figures = {
            "version": "1",
            "libfuse": "",
            "host": "h\n",
            "tls": True,
            "uptime": 61,
            "certificate_days": 9.6,
        }
        self.assertEqual(
            about(figures),
            r"mUFS 1 on h\n; TLS, certificate for 10 more days; up for 1 min 1 s",
        )
        self.assertIn("mUFS 1 with libfuse 3.14 on h", about({**figures, "libfuse": "3.14"}))
        self.assertIn("certificate expired", about({**figures, "certificate_days": -1}))
        self.assertIn("; no TLS; ", about({**figures, "certificate_days": None, "tls": False}))

    def test_events(self) -> None:
        """Lines of the log have their times; only so many are shown, and warnings as such."""
        lines = [Event(0.0, f"<line {number}>", number == 0) for number in range(100)]
        read = Read(events(lines))
        self.assertIn("<line 19>", read.text)
        self.assertNotIn("<line 20>", read.text)
        alarms = [attributes for _, attributes in read.tags if attributes.get("class") == "alarm"]
        self.assertEqual(len(alarms), 1)
        self.assertEqual(Read(events([])).text, "nothing was logged yet")

    def test_section(self) -> None:
        """A section has a title, then what it is given; both are escaped once."""
        self.assertEqual(section("a & b", note("<")), "<h2>a &amp; b</h2><p>&lt;</p>")

    def test_left_out(self) -> None:
        """A note says how many rows are left out, if any are."""
        self.assertEqual(
            Read(rows_left_out(range(5000), 20, "images")).text, "and 4,980 more images"
        )
        for rows in (range(20), range(0)):
            self.assertEqual(rows_left_out(rows, 20, "images"), "")

    def test_table(self) -> None:
        """Each cell knows its column, for a narrow screen, and whether it is a number."""
        read = Read(table(("host", "reads"), [("<a>", 1), ("b", 2)], ("reads",)))
        self.assertEqual(read.text, "hostreads<a>1b2")
        cells = [attributes for tag, attributes in read.tags if tag == "td"]
        host, reads = {"data-label": "host"}, {"data-label": "reads", "class": "number"}
        self.assertEqual(cells, [host, reads] * 2)
        heads = [attributes for tag, attributes in read.tags if tag == "th"]
        self.assertEqual(heads, [{}, {"class": "number"}])

    def test_order(self) -> None:
        """A cell that is sorted by a number carries it."""
        read = Read(table(("size",), [(Cell("1.0 GiB", 1 << 30),)], ("size",)))
        (cell,) = [attributes for tag, attributes in read.tags if tag == "td"]
        self.assertEqual(cell["data-order"], "1.07374e+09")
        self.assertEqual(read.text, "size1.0 GiB")

    def test_uneven_table(self) -> None:
        """A row with too few or too many cells is an error."""
        for row in (("a",), ("a", "b", "c")):
            self.assertRaises(ValueError, table, ("host", "reads"), [row])
