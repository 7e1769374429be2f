"""Metrics, alerts and the dashboard, checked by promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mufs.status.figures import CLIENT, SERVER
from mufs.test.status.test_metrics import made_up, metrics, names, pairs
from mufs.test.support.processes import CHECKOUT

ALERTS = "etc/prometheus-alerts.yml"


def document(path: str) -> str:
    """Return the text of a file in the checkout."""
    file = CHECKOUT / path
    if not file.exists():
        raise SkipTest("needs the checkout")
    return file.read_text(encoding="utf-8")


def promtool(*arguments: str, text: str = "") -> None:
    """Run promtool, and fail with its output if it finds an error."""
    tool = shutil.which("promtool")
    if tool is None:
        raise SkipTest("needs promtool")
    done = subprocess.run([tool, *arguments], input=text, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(done.stdout + done.stderr)


class MetricsTests(SynchronousTestCase):
    """The metrics of server and client."""

    def test_promtool(self) -> None:
        """promtool finds no errors in the metrics and their names."""
        for schema in (SERVER, CLIENT):
            promtool("check", "metrics", text=metrics(schema, made_up(schema)))


class DocumentTests(SynchronousTestCase):
    """Documents refer only to existing metrics."""

    def assert_known(self, text: str) -> None:
        """Assert that all metrics of mUFS in a text exist."""
        named = set(re.findall(r"mufs_(?:server|client)_\w+", text))
        self.assertGreater(len(named), 5)
        self.assertEqual(named - names(SERVER) - names(CLIENT), set())

    def test_alerts(self) -> None:
        """The alerts are valid rules over existing metrics."""
        self.assert_known(document(ALERTS))
        promtool("check", "rules", str(CHECKOUT / ALERTS))

    def test_alerts_fire(self) -> None:
        """Each alert fires when its condition lasts, and not otherwise."""
        host = 'host="one",address="192.0.2.11",instance="s"'
        well = {
            'up{job="mufs-server",instance="s"}': "1x40",
            f"mufs_server_client_over_tcp{{{host}}}": "0x40",
            f"mufs_server_client_connections{{{host}}}": "1x40",
            f"mufs_server_client_lag_seconds{{{host}}}": "0.02x40",
            'mufs_server_segments_lost_total{instance="s"}': "0+100x40",
            'mufs_server_segments_awaited_total{instance="s"}': "0+60000x40",
            'mufs_server_certificate_left_seconds{instance="s"}': "2600000x40",
            'mufs_client_certificate_left_seconds{instance="c"}': "2600000x40",
            'mufs_client_connected{instance="c"}': "1x40",
            'mufs_client_transfers_rejected_total{instance="c"}': "0x40",
            'mufs_client_evictions_total{instance="c"}': "0+600x40",
            'mufs_client_evictions_for_space_total{instance="c"}': "7x40",
            'mufs_client_hits_total{instance="c"}': "0+6000x40",
            'mufs_client_misses_total{instance="c"}': "0+60x40",
            'mufs_client_blocks_damaged_total{instance="c"}': "0x40",
            'mufs_server_connections_refused_total{instance="s"}': "0+1x40",
            'mufs_server_connections_cut_off_total{instance="s"}': "0+1x40",
        }
        ill = dict(zip(well, [
            "0x40", "1x40", "1x40", "20x40", "0+6000x40", "0+60000x40", "2500000x40", "2500000x40",
            "0x40", "0+1x40", "0+600x40", "7+1x40", "0+60x40", "0+6000x40", "0+1x40", "0+60x40",
            "0x40",
        ], strict=True))  # fmt: skip
        names = re.findall(r"alert: (\w+)", document(ALERTS))
        self.assertEqual(len(names), 12)
        for name in names:
            self.assert_silent(name, well)
            self.assertRaises(AssertionError, self.assert_silent, name, ill)

    def assert_silent(self, alert: str, series: dict[str, str]) -> None:
        """Assert that an alert does not fire after 40 minutes of these values, one a minute."""
        values = [{"series": name, "values": value} for name, value in series.items()]
        expected = [{"alertname": alert, "eval_time": "40m", "exp_alerts": []}]
        test = {"interval": "1m", "input_series": values, "alert_rule_test": expected}
        file = Path(self.mktemp())
        file.write_text(json.dumps({"rule_files": [str(CHECKOUT / ALERTS)], "tests": [test]}))
        promtool("test", "rules", str(file))

    def test_dashboard(self) -> None:
        """The dashboard is JSON, and its queries are valid, over existing metrics."""
        text = document("etc/grafana-dashboard.json")
        self.assert_known(text)
        panels = json.loads(text)["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        queries = [target["expr"] for panel in panels for target in panel["targets"]]
        self.assertGreater(len(queries), 10)
        rules = [
            {"record": f"query{number}", "expr": re.sub(r"\$__\w+", "1m", query)}
            for number, query in enumerate(queries)
        ]
        # JSON is valid YAML.
        file = Path(self.mktemp())
        file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        promtool("check", "rules", str(file))

    def test_tables(self) -> None:
        """The table in the manual lists each metric with its figure, and no others."""
        part = document("docs/operations/monitoring.md").split("\n### Metrics\n")[1].split("\n#")[0]
        rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", part, re.MULTILINE)
        self.assertEqual(rows, [(m, f) for schema in (SERVER, CLIENT) for f, m in pairs(schema)])
