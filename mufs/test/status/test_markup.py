"""Markup, formatted numbers and plots."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.status.history import HISTORY_SECONDS
from mufs.status.markup import Markup, element, join, shown
from mufs.status.plots import COLUMNS, Line, cache_map, plot, shares
from mufs.status.widgets import MAX_NAME_LENGTH, bits, named, percent, seconds
from mufs.test.support.properties import examples
from mufs.units import format_bytes


class Read(HTMLParser):
    """Reads markup as a browser does."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Text."""
        self.text += data


class MarkupTests(SynchronousTestCase):
    """Text in markup."""

    @examples(200)
    @given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
    def test_any_text(self, text: str) -> None:
        """Any text is read as that text again, in content and in an attribute."""
        read = Read(element("p", text, title=text))
        self.assertEqual(read.tags, [("p", {"title": text})])
        self.assertEqual(read.text, text)

    def test_nested(self) -> None:
        """Markup is not escaped again; an attribute that is C{None} is left out."""
        inner = element("b", "<", class_="x", data_label="&", title=None)
        self.assertEqual(inner, '<b class="x" data-label="&amp;">&lt;</b>')
        self.assertEqual(join(inner, ">"), Markup(inner + "&gt;"))

    @examples(200)
    @given(st.one_of(st.binary(), st.text()))
    def test_any_name(self, name: Any) -> None:
        """A name is shown in one line of printable text."""
        text = shown(name)
        self.assertTrue(text.isprintable())
        text.encode()

    def test_names(self) -> None:
        """Printable characters are shown as they are, all others by their numbers."""
        names: list[tuple[bytes | str, str]] = [
            (b"disk.img", "disk.img"),
            ("снимок <&> \\".encode(), "снимок <&> \\"),
            (b"\xff\n\x1b[1m", r"\xff\n\x1b[1m"),
            ("\N{RIGHT-TO-LEFT OVERRIDE}gmi\u2028", r"\u202egmi\u2028"),
        ]
        for name, text in names:
            self.assertEqual(shown(name), text)

    def test_long_names(self) -> None:
        """A long name is shortened in the middle; the tooltip has all of it."""
        read = Read(named(b"a" * 100 + b".img"))
        self.assertLessEqual(len(read.text), MAX_NAME_LENGTH + 1)
        self.assertTrue(read.text.endswith("a.img"))
        self.assertEqual(read.tags[0][1]["title"], "a" * 100 + ".img")


class NumberTests(SynchronousTestCase):
    """Formatted numbers."""

    def test_numbers(self) -> None:
        """Each number has a unit that fits its size."""
        self.assertEqual(
            [format_bytes(n) for n in (0, 1023, 1536, 3 << 30, 5 << 40)],
            ["0 B", "1023 B", "1.5 KiB", "3.0 GiB", "5.0 TiB"],
        )
        self.assertEqual(
            [bits(n) for n in (0, 999, 1.5e6, 1e10)],
            ["0 bit/s", "999 bit/s", "1.5 Mbit/s", "10 Gbit/s"],
        )
        self.assertEqual([seconds(n) for n in (0, 0.0123, 3.14)], ["0 ms", "12 ms", "3.1 s"])
        self.assertEqual(percent(0.1234), "12.3%")


class PlotTests(SynchronousTestCase):
    """Plots, bars and maps."""

    def points(self, *points: tuple[float, float]) -> list[list[str]]:
        """Where the points of a line are drawn."""
        read = Read(plot("title", [Line("", list(points))], str))
        ((_, attributes),) = [tag for tag in read.tags if tag[0] == "polyline"]
        return [pair.split(",") for pair in (attributes["points"] or "").split()]

    def test_line(self) -> None:
        """The present is at the right edge, ten minutes ago at the left, the maximum at the top."""
        self.assertEqual(
            self.points((HISTORY_SECONDS, 5), (HISTORY_SECONDS / 2, 10), (0, 0)),
            [["0", "50.0"], ["300", "0.0"], ["600", "100.0"]],
        )

    def test_nothing(self) -> None:
        """Without values, or with only zeros, there is still a plot."""
        self.assertEqual(self.points(), [])
        self.assertEqual(self.points((2, 0), (0, 0)), [["598", "100.0"], ["600", "100.0"]])

    def test_too_old(self) -> None:
        """Values older than ten minutes are not drawn."""
        self.assertEqual(len(self.points((HISTORY_SECONDS + 1, 5), (0, 5))), 1)

    def test_shares(self) -> None:
        """The parts fill a bar in their order; with nothing to show it is empty."""
        for parts, widths in [((3, 0, 1), ["450.0", "0.0", "150.0"]), ((0, 0, 0), ["0.0"] * 3)]:
            read = Read(shares([("a", parts[0]), ("b", parts[1]), ("c", parts[2])]))
            drawn = [attributes["width"] for tag, attributes in read.tags if tag == "rect"]
            self.assertEqual(drawn, widths)

    def test_map(self) -> None:
        """A square is full only if all of it is held, and empty only if none of it is."""
        squares = [1.0, 1.0, 0.99, 0.01, 0.0] + [0.0] * (COLUMNS - 5) + [1.0]
        read = Read(cache_map(squares, "label"))
        drawn = {a["class"]: a["d"] for tag, a in read.tags if tag == "path"}
        self.assertEqual(drawn, {
            "shade4": "M0 0.5h2M0 1.5h1", "shade3": "M2 0.5h1", "shade1": "M3 0.5h1",
            "shade0": f"M4 0.5h{COLUMNS - 4}",
        })  # fmt: skip

    @examples(50)
    @given(st.lists(st.floats(0, 1), max_size=300))
    def test_any_map(self, squares: list[float]) -> None:
        """Each square is drawn once."""
        read = Read(cache_map(squares, "label"))
        drawn = "".join(a["d"] or "" for tag, a in read.tags if tag == "path")
        lengths = [int(run.partition("h")[2]) for run in drawn.split("M")[1:]]
        self.assertEqual(sum(lengths), len(squares))
