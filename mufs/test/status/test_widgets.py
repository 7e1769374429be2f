"""The elements of the status pages, and how they format numbers."""

from twisted.trial.unittest import SynchronousTestCase

from mufs.status.widgets import (
    MAX_NAME_LENGTH,
    bits,
    cards,
    count,
    named,
    note,
    percent,
    rows_left_out,
    seconds,
    section,
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
        """Each number comes after its name."""
        self.assertEqual(Read(cards({"reads": "7", "<hits>": "5"})).text, "reads7<hits>5")

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

    def test_uneven_table(self) -> None:
        """A row with too few or too many cells is an error."""
        for row in (("a",), ("a", "b", "c")):
            self.assertRaises(ValueError, table, ("host", "reads"), [row])
