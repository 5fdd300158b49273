# SPDX-License-Identifier: Apache-2.0
"""Metrics, alert rules and dashboard: each tells of what there is, and in Prometheus' words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.control.test_control_metrics import status
from tools import dashboard

from firstread.control import metrics
from firstread.control.metricfamily import Families, Family
from firstread.control.metrics import NodeMetrics
from firstread.snapshotter import snapshotmetrics
from firstread.snapshotter.fallbacks import Fallbacks
from firstread.snapshotter.snapshotmetrics import SnapshotterFacts

TOP = Path(__file__).parents[3]
ALERTS = TOP / "packaging" / "monitoring" / "alerts.yaml"
FAMILIES: list[Family[Any]] = [*metrics.FAMILIES, *snapshotmetrics.FAMILIES]

promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="there is no promtool")


def texts() -> tuple[str, str]:
    """Return all metrics of a daemon and of a snapshotter."""
    facts = SnapshotterFacts(Fallbacks())
    facts.calls.add("Prepare", "OK")
    mounted = status(first_read_p50_s=0.1, requests_by_cause={"demand": 1})
    daemon = NodeMetrics(lambda: mounted).text()
    return daemon.decode(), Families(snapshotmetrics.FAMILIES, lambda: facts).text().decode()


def test_the_page_describes_every_metric_as_it_is() -> None:
    page = (TOP / "docs" / "metrics.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `firstread_")]
    assert rows == [
        f"| `{family.exported_name}` | {family.kind} | {family.unit}"
        f" | {', '.join(f'`{label}`' for label in family.labels)} | {family.meaning} |"
        for family in FAMILIES
    ]


def test_every_metric_is_exported() -> None:
    exported = re.findall(r"^# TYPE (\S+) (\S+)$", "".join(texts()), re.MULTILINE)
    assert exported == [(family.exported_name, family.kind) for family in FAMILIES]


@promtool
@pytest.mark.parametrize("number", [0, 1])
def test_names_and_texts_obey_prometheus(number: int) -> None:
    run = ["promtool", "check", "metrics"]
    checked = subprocess.run(
        run, input=texts()[number], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@promtool
def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    cases = Path(__file__).with_name("alerts.test.yaml")
    for file in (ALERTS, cases):
        shutil.copy(file, tmp_path)
    run = ["promtool", "test", "rules", cases.name]
    tested = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    assert all(rule["alert"] in cases.read_text() for rule in group["rules"])


def test_alerts_and_dashboard_ask_for_metrics_that_there_are() -> None:
    known = {family.exported_name: family for family in FAMILIES}
    asked = set(re.findall(r"firstread_[a-z0-9_]+", ALERTS.read_text() + dashboard.text()))
    assert len(asked) > 30
    for name in asked:
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        assert name in known or known[base].kind == "histogram"


def test_the_file_of_the_dashboard_is_what_the_tool_makes() -> None:
    assert dashboard.PATH.read_text() == dashboard.text(), "run: python -m tools.dashboard"


def test_panels_neither_overlap_nor_share_an_identity() -> None:
    panels = dashboard.dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + column, place["y"] + row)
            for column in range(place["w"])
            for row in range(place["h"])
        }
        assert not cells & taken
        taken |= cells


def lost(before: Any, after: Any, path: str) -> Iterator[str]:
    """Yield where a document is not what it was."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, values in enumerate(zip(before, after, strict=True)):
            yield from lost(*values, f"{path}[{number}]")
    elif before != after:
        yield path


def test_the_dashboard_is_of_grafanas_schema() -> None:
    """Grafana's own types drop a field that they do not know."""
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins")
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    plugins.register_default_plugins()

    def through(document: dict[str, Any]) -> Any:
        return json.loads(json.dumps(models.Dashboard.from_json(document), cls=encoder.JSONEncoder))

    made = dashboard.dashboard()
    assert list(lost(made, through(made), "")) == []
    made["panels"][1]["options"]["colour"] = "value"
    assert list(lost(made, through(made), "")) == [".panels[1].options.colour"]
