"""Figures drawn as SVG."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mufs.status.history import HISTORY_SECONDS
from mufs.status.plots import COLUMNS, Line, cache_map, plot, shares
from mufs.test.status.test_markup import Read
from mufs.test.support.properties import examples


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

    def test_legend(self) -> None:
        """A line is named with its last value, one without values with a dash."""
        lines = [Line("<sent>", [(5, 1), (0, 2)]), Line("lost", [])]
        read = Read(plot("Traffic", lines, lambda value: f"{value:g} u"))
        self.assertEqual(read.text, "Traffic<sent> 2 ulost \N{EN DASH}up to 2 u10 min agonow")
        keys = [attributes["class"] for tag, attributes in read.tags if tag == "i"]
        self.assertEqual(keys, ["key line0", "key line1"])

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
