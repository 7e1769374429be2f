"""The figures as metrics for Prometheus."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from time import CLOCK_BOOTTIME, clock_gettime, time
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from twisted.web.resource import Resource
from twisted.web.server import Request

from mufs.status.figures import Figure, Kind, Schema, Table
from mufs.units import shown

Figures = Callable[[], Mapping[str, Any]]

BUILD = "mufs_build", "Versions of mUFS, Python and, in a client, libfuse."

_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class FiguresCollector(Collector):
    """Makes metrics of the figures at the time of each request."""

    def __init__(self, schema: Schema, figures: Figures) -> None:
        self._schema = schema
        self._figures = figures

    def describe(self) -> Iterator[Metric]:
        """The metrics without values, so that registering does not collect the figures."""
        yield InfoMetricFamily(*BUILD)
        for figure in self._schema.figures:
            yield _family(self._schema.prefix, figure)
        for table in self._schema.tables:
            for figure in table.figures:
                yield _family(self._schema.prefix + table.prefix, figure, list(table.labels))

    def collect(self) -> Iterator[Metric]:
        """See C{Collector.collect}."""
        values, prefix = self._figures(), self._schema.prefix
        build = {name: str(values.get(name, "")) for name in ("version", "python", "libfuse")}
        yield InfoMetricFamily(*BUILD, build)
        for figure in self._schema.figures:
            yield _filled(_family(prefix, figure), values[figure.name], figure.scale)
        for table in self._schema.tables:
            rows = _by_labels(table, values[table.name])
            for figure in table.figures:
                family = _family(prefix + table.prefix, figure, list(table.labels))
                assert not isinstance(family, HistogramMetricFamily)
                for labels, same in rows.items():
                    numbers = [row[figure.name] for row in same]
                    value = max(numbers) if figure.largest else sum(numbers)
                    family.add_metric(labels, value * figure.scale)
                yield family


def _by_labels(
    table: Table, rows: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    """Rows by their labels: a host may have several mounts, but a metric has one value for it."""
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        labels = tuple(shown(row[name]) for name in table.labels.values())
        found.setdefault(labels, []).append(row)
    return found


def _family(prefix: str, figure: Figure, labels: Sequence[str] = ()) -> _Family:
    name, text = prefix + figure.metric, f"{figure.help}."
    if figure.kind is Kind.HISTOGRAM:
        return HistogramMetricFamily(name, text, labels=["kind"])
    kind = CounterMetricFamily if figure.kind is Kind.COUNTER else GaugeMetricFamily
    return kind(name, text, labels=labels)


def _filled(family: _Family, value: Any, scale: float) -> _Family:
    if isinstance(family, HistogramMetricFamily):
        for kind, waits in value.items():
            totals = accumulate(waits["reads"].values())
            buckets = list(zip(waits["reads"], totals, strict=True))
            family.add_metric([kind], buckets, waits["seconds"])
    elif value is not None:
        family.add_metric([], value * scale)
    return family


class _Process(ProcessCollector):
    """The metrics of the process, also where /proc shows only processes (ProcSubset=pid)."""

    def _boot_time(self) -> float:
        return time() - clock_gettime(CLOCK_BOOTTIME)


class Metrics(Resource):
    """C{/metrics}: the figures, and the metrics of the process."""

    isLeaf = True

    def __init__(self, schema: Schema, figures: Figures) -> None:
        super().__init__()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(FiguresCollector(schema, figures))
        _Process(registry=self._registry)

    def render_GET(self, request: Request) -> bytes:
        """The metrics, in the version of the format that the request asks for."""
        encoder, kind = choose_encoder(request.getHeader("accept") or "")
        request.setHeader("content-type", kind)
        request.setHeader("cache-control", "no-store")
        text: bytes = encoder(self._registry)
        return text
