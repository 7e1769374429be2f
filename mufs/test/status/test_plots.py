"""Figures drawn as SVG."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.status.history import HISTORY_SECONDS
from mufs.status.plots import COLUMNS, Line, cache_map, plot, shares
from mufs.status.widgets import bits, count, percent
from mufs.test.status.test_markup import Read
from mufs.test.support.properties import examples


class PlotTests(SynchronousTestCase):
    """Plots, bars and maps."""

    def lines(self, *points: tuple[float, float | None]) -> list[list[list[str]]]:
        """Where the points of a line are drawn, between its gaps."""
        read = Read(plot("title", [Line("", list(points))], count, HISTORY_SECONDS))
        return [
            [pair.split(",") for pair in (attributes["points"] or "").split()]
            for tag, attributes in read.tags
            if tag == "polyline"
        ]

    def test_line(self) -> None:
        """The present is at the right edge, ten minutes ago at the left, the maximum at the top."""
        self.assertEqual(
            self.lines((HISTORY_SECONDS, 5), (HISTORY_SECONDS / 2, 10), (0, 0)),
            [[["0", "50.0"], ["300", "0.0"], ["600", "100.0"]]],
        )

    def test_nothing(self) -> None:
        """Without values, or with only zeros, there is still a plot."""
        self.assertEqual(self.lines(), [])
        self.assertEqual(self.lines((2, 0), (0, 0)), [[["598", "100.0"], ["600", "100.0"]]])

    def test_gaps(self) -> None:
        """A line has gaps where there are no values; a value between two gaps is a dot."""
        found = self.lines((300, 1), (200, 1), (100, None), (60, 1), (30, None))
        self.assertEqual([len(run) for run in found], [2, 2])
        self.assertEqual(found[1][0], found[1][1])

    def test_scale(self) -> None:
        """The scale ends at a round number, and each mark has its unit."""
        cases: list[tuple[float, Any, str]] = [
            (130e6, bits, "200 Mbit/s100 Mbit/s0 bit/s"),
            (0.57, percent, "100.0%50.0%0.0%"),
            (3, count, "520"),
            (1, count, "10"),
            (0, count, "0"),
        ]
        for top, text, marks in cases:
            read = Read(plot("", [Line("", [(5, top), (0, 0)])], text, HISTORY_SECONDS))
            self.assertTrue(read.text.startswith(f" {text(0)}{marks}10 min ago"), read.text)
            (drawn,) = [attributes for tag, attributes in read.tags if tag == "svg"]
            self.assertEqual(drawn["data-unit"], text.__name__)
        day = Read(plot("", [], count, 86400)).text
        self.assertEqual(day, "24 h ago12 h agonow")

    def test_units(self) -> None:
        """The script of the page can write each unit of a plot."""
        script = files("mufs.status").joinpath("refresh.js").read_text(encoding="utf-8")
        for text in (bits, count, percent):
            self.assertIn(f"\n    {text.__name__}: ", script)

    def test_too_old(self) -> None:
        """Values older than ten minutes are not drawn."""
        ((first, _),) = self.lines((HISTORY_SECONDS + 1, 5), (0, 5))
        self.assertEqual(first, ["600", "0.0"])

    def test_legend(self) -> None:
        """A line is named with its last value, one without values with a dash."""
        lines = [Line("<sent>", [(5, 1), (0, 2)]), Line("lost", []), Line("idle", [(0, None)])]
        read = Read(plot("Traffic", lines, count, HISTORY_SECONDS))
        legend = "Traffic<sent> 2lost \N{EN DASH}idle \N{EN DASH}"
        self.assertEqual(read.text, f"{legend}21010 min ago5 min agonow")
        keys = [attributes["class"] for tag, attributes in read.tags if tag == "i"]
        self.assertEqual(keys, ["key line0", "key line1", "key line2"])

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
