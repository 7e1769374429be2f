"""The figures that are metrics."""

import re
from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from mufs.status.figures import CLIENT, COUNTER, SERVER, Figure, Schema


def metrics(schema: Schema) -> Iterator[tuple[str, Figure]]:
    """All figures of a schema, each with the whole name of its metric."""
    for figure in schema.figures:
        yield schema.prefix + figure.metric, figure
    for table in schema.tables:
        for figure in table.figures:
            yield schema.prefix + table.prefix + figure.metric, figure


class FigureTests(SynchronousTestCase):
    """Names and meanings of the metrics, by the rules of Prometheus."""

    def test_unique(self) -> None:
        """No two metrics have the same name, and no two figures of a service or of a row."""
        names = [name for schema in (SERVER, CLIENT) for name, _ in metrics(schema)]
        self.assertEqual(len(names), len(set(names)))
        for schema in (SERVER, CLIENT):
            for figures in (schema.figures, *(table.figures for table in schema.tables)):
                own = [figure.name for figure in figures]
                self.assertEqual(len(own), len(set(own)))

    def test_names(self) -> None:
        """A name is of lower-case words; C{_total} is added where the metric is served."""
        for schema in (SERVER, CLIENT):
            for name, _ in metrics(schema):
                self.assertRegex(name, r"^mufs_(server|client)(_[a-z]+)+$")
                self.assertFalse(name.endswith("_total"), name)

    def test_labels(self) -> None:
        """A row's labels have names of their own, and are none of its metrics."""
        for table in SERVER.tables:
            self.assertNotEqual(table.labels, {})
            shown = set(table.labels.values())
            self.assertEqual(len(shown), len(table.labels))
            self.assertEqual(shown & {figure.name for figure in table.figures}, set())

    def test_units(self) -> None:
        """A metric of bytes or seconds says so in its name, and a scale makes it one."""
        for schema in (SERVER, CLIENT):
            for name, figure in metrics(schema):
                text = figure.help.lower()
                if text.startswith("bytes"):
                    self.assertTrue(name.endswith("_bytes"), name)
                if text.startswith("longest wait"):
                    self.assertTrue(name.endswith("_seconds"), name)
                if figure.scale != 1:
                    self.assertRegex(name, r"_(bytes|seconds|bytes_per_second)$")

    def test_help(self) -> None:
        """A help text is one line without a period, which is added where it is served."""
        for schema in (SERVER, CLIENT):
            for name, figure in metrics(schema):
                self.assertRegex(figure.help, r"^[A-Z0-9][^\n]*[^.\s]$", name)

    def test_counters(self) -> None:
        """A flag is no counter."""
        for schema in (SERVER, CLIENT):
            for name, figure in metrics(schema):
                if re.match(r"[01] (if|while)", figure.help):
                    self.assertIsNot(figure.kind, COUNTER, name)
