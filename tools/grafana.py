# SPDX-License-Identifier: Apache-2.0
"""Panels and queries of a Grafana dashboard, as its JSON has them.

Owns how a panel looks; `tools.dashboard` owns which there are. Every query is limited to the nodes
that the dashboard's variable names.
"""

from __future__ import annotations

from typing import Any, Final

_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
NODE: Final = 'instance=~"$instance"'
MOUNT: Final = f'{NODE}, image=~"$image"'
WIDTH: Final = 24  # of a dashboard, in Grafana's units
_HEIGHT: Final = 8  # of a panel

Queries = dict[str, str]  # by legend


def rate(metric: str, by: str = "", labels: str = NODE) -> str:
    """Return the query for the rate of a counter, in seconds, summed but for some labels."""
    return rate_of(f"{metric}_total", by, labels)


def rate_of(series: str, by: str = "", labels: str = NODE) -> str:
    """Return the query for the rate of a series that only grows, likewise."""
    return _sum(f"rate(firstread_{series}{{{labels}}}[$__rate_interval])", by)


def increase(metric: str) -> str:
    """Return the query for what a counter has grown by in the time that is shown."""
    return _sum(f"increase(firstread_{metric}_total{{{NODE}}}[$__range])", "")


def gauge(metric: str, by: str = "", labels: str = NODE) -> str:
    """Return the query for a gauge, summed but for some labels."""
    return _sum(f"firstread_{metric}{{{labels}}}", by)


def quantile(share: float, metric: str, by: str = "") -> str:
    """Return the query for a quantile of a histogram."""
    buckets = rate_of(f"{metric}_bucket", f"le, {by}" if by else "le")
    return f"histogram_quantile({share}, {buckets})"


def quantiles(metric: str) -> Queries:
    """Return the queries for the usual quantiles of a histogram."""
    return {f"p{share * 100:g}": quantile(share, metric) for share in (0.5, 0.9, 0.99)}


def _sum(query: str, by: str) -> str:
    return f"sum by ({by}) ({query})" if by else f"sum({query})"


def _panel(
    kind: str, title: str, text: str, queries: Queries, unit: str, width: int
) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": _SOURCE,
            "expr": query,
            "legendFormat": legend,
            "instant": kind == "stat",
            "range": kind != "stat",
        }
        for number, (legend, query) in enumerate(queries.items())
    ]
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": _SOURCE,
        "gridPos": {"h": _HEIGHT, "w": width, "x": 0, "y": 0},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def chart(
    title: str,
    text: str,
    queries: Queries,
    unit: str = "short",
    *,
    width: int = 8,
    stack: bool = False,
) -> dict[str, Any]:
    """Return a panel with a line for each query."""
    made = _panel("timeseries", title, text, queries, unit, width)
    made["fieldConfig"]["defaults"]["custom"] = {
        "fillOpacity": 20 if stack else 5,
        "stacking": {"mode": "normal" if stack else "none"},
    }
    made["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def number(title: str, text: str, query: str, *, bad_from: float | None = None) -> dict[str, Any]:
    """Return a panel with one number; red from `bad_from` on."""
    made = _panel("stat", title, text, {title: query}, "short", 4) | {
        "options": {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "textMode": "value",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    }
    made["gridPos"]["h"] = _HEIGHT // 2
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if bad_from is not None:
        steps.append({"color": "red", "value": bad_from})
    made["fieldConfig"]["defaults"]["thresholds"] = {"mode": "absolute", "steps": steps}
    return made


def heatmap(title: str, text: str, metric: str, unit: str) -> dict[str, Any]:
    """Return a panel with the buckets of a histogram over time."""
    queries = {"{{le}}": rate_of(f"{metric}_bucket", "le")}
    made = _panel("heatmap", title, text, queries, unit, 8)
    made["targets"][0]["format"] = "heatmap"
    made["options"] = {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
        "yAxis": {"unit": unit},
        "cellGap": 1,
        "tooltip": {"show": True, "yHistogram": False},
        "legend": {"show": True},
    }
    return made


def table(title: str, text: str, queries: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Return a panel with a row for each mount, and a column for each query with its unit."""
    made = _panel("table", title, text, {name: q for name, (q, _) in queries.items()}, "short", 24)
    hidden = {"Time": True, "instance": False}
    names, overrides = {}, []
    for target, (name, (_, unit)) in zip(made["targets"], queries.items(), strict=True):
        target |= {"format": "table", "instant": True, "range": False}
        names[f"Value #{target['refId']}"] = name
        matcher = {"id": "byName", "options": name}
        overrides.append({"matcher": matcher, "properties": [{"id": "unit", "value": unit}]})
    made["fieldConfig"]["overrides"] = overrides
    organize = {"excludeByName": hidden, "indexByName": {}, "renameByName": names}
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": organize},
    ]
    made["options"] = {"showHeader": True, "cellHeight": "sm"}
    return made


def of_a_mount(metric: str) -> str:
    """Return the query for a gauge of each mount."""
    return gauge(metric, "instance, image, mountpoint", MOUNT)


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """Return a variable of the dashboard, whose values a query finds; at first all of them."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "values"},
        "refresh": 2,  # when the time changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }
