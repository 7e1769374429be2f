"""The metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from mufs.status.figures import CLIENT, SERVER, Kind, Schema
from mufs.status.metrics import Metrics


def durations() -> dict[str, Any]:
    """How long reads of two kinds took."""
    return {
        kind: {"seconds": 2.5, "reads": {"0.001": 4, "1.0": 2, "+Inf": last}}
        for kind, last in (("hit", 0), ("miss", 1))
    }


def made_up(schema: Schema, start: int = 1) -> dict[str, Any]:
    """Figures of a service, all different; two rows of one host, and one of another."""
    numbers = iter(range(start, 1000))
    figures: dict[str, Any] = {
        figure.name: durations() if figure.kind is Kind.HISTOGRAM else next(numbers)
        for figure in schema.figures
    }
    for table in schema.tables:
        figures[table.name] = [
            {**dict.fromkeys(table.labels.values(), name),
             **{figure.name: next(numbers) for figure in table.figures}}
            for name in ("one", "one", 'two "\\\n<&')
        ]  # fmt: skip
    return figures


def metrics(schema: Schema, figures: dict[str, Any], accept: str = "") -> str:
    """The response to a request for metrics."""
    request: Any = DummyRequest([b""])
    request.requestHeaders.setRawHeaders("accept", [accept])
    return Metrics(schema, lambda: figures).render_GET(request).decode()


def pairs(schema: Schema) -> Iterator[tuple[str, str]]:
    """Each figure, and the name of its metric in queries."""
    tables = [(schema.prefix + table.prefix, table.figures) for table in schema.tables]
    for prefix, figures in [(schema.prefix, schema.figures), *tables]:
        for each in figures:
            yield each.name, prefix + each.metric + "_total" * (each.kind is Kind.COUNTER)


def names(schema: Schema) -> set[str]:
    """The names of all metrics, as they are in queries."""
    return {
        metric + suffix
        for figure, metric in pairs(schema)
        for suffix in (("_bucket", "_sum", "_count") if figure in HISTOGRAMS else ("",))
    }


HISTOGRAMS = {each.name for each in CLIENT.figures if each.kind is Kind.HISTOGRAM}


class MetricsTests(SynchronousTestCase):
    """The metrics as Prometheus reads them."""

    def test_values(self) -> None:
        """Each figure is there, in base units and with a help text; counters end in _total."""
        for schema in (SERVER, CLIENT):
            figures = made_up(schema)
            families = {
                family.name: family
                for family in text_string_to_metric_families(metrics(schema, figures))
            }
            for figure in schema.figures:
                family = families[schema.prefix + figure.metric]
                self.assertEqual(family.type, figure.kind.name.lower())
                self.assertEqual(family.documentation, figure.help + ".")
                if figure.kind is Kind.HISTOGRAM:
                    continue
                (sample,) = family.samples
                self.assertEqual(sample.value, figures[figure.name] * figure.scale)
            found = {sample.name for family in families.values() for sample in family.samples}
            ours = {name for name in found if name.startswith("mufs_")}
            self.assertEqual(ours, names(schema) | {"mufs_build_info"})
            self.assertIn("process_resident_memory_bytes", found)

    def test_build(self) -> None:
        """The versions are labels of one metric."""
        versions = {"version": "1.2", "python": "3.13.1", "libfuse": "2.9"}
        text = metrics(CLIENT, {**made_up(CLIENT), **versions})
        expected = 'mufs_build_info{libfuse="2.9",python="3.13.1",version="1.2"} 1.0'
        self.assertIn(f"\n{expected}\n", text)

    def test_durations(self) -> None:
        """A histogram counts in each bucket all that took no longer, for each kind of read."""
        text = metrics(CLIENT, made_up(CLIENT))
        for line in (
            'bucket{kind="hit",le="0.001"} 4.0', 'bucket{kind="hit",le="1.0"} 6.0',
            'bucket{kind="miss",le="+Inf"} 7.0', 'count{kind="miss"} 7.0', 'sum{kind="miss"} 2.5',
        ):  # fmt: skip
            self.assertIn(f"\nmufs_client_read_seconds_{line}\n", text)

    def test_rows(self) -> None:
        """Rows of one host make one metric, their sum or the largest; no name breaks the format."""
        figures = made_up(SERVER)
        text = metrics(SERVER, figures)
        families = {family.name: family for family in text_string_to_metric_families(text)}
        one, other, _ = figures["clients"]
        reads = families["mufs_server_client_reads"].samples
        self.assertEqual([s.labels["host"] for s in reads], ["one", 'two "\\\\n<&'])
        self.assertEqual(reads[0].value, one["reads"] + other["reads"])
        for figure, metric in (("lag", "lag_seconds"), ("held_back", "held_back")):
            largest = families[f"mufs_server_client_{metric}"].samples
            self.assertEqual(largest[0].value, max(one[figure], other[figure]))

    def test_as_it_is_now(self) -> None:
        """Each response has the figures of its time."""
        figures = made_up(CLIENT)
        page = Metrics(CLIENT, lambda: figures)
        figures["reads"] = 77
        request: Any = DummyRequest([b""])
        self.assertIn(b"mufs_client_reads_total 77.0\n", page.render_GET(request))

    def test_formats(self) -> None:
        """A request that accepts OpenMetrics gets it, whatever else it accepts."""
        figures = made_up(CLIENT)
        accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5,\xff;;=,"
        self.assertTrue(metrics(CLIENT, figures, accept).endswith("# EOF\n"))
        self.assertNotIn("# EOF", metrics(CLIENT, figures, "text/html"))
