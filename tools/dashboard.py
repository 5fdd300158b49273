# SPDX-License-Identifier: Apache-2.0
"""Makes packaging/monitoring/dashboard.json for Grafana: ``python -m tools.dashboard``.

Owns what an operator sees, and in which order. `firstread.control.metrics` has the metrics. A test
fails when the file is not what this makes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from tools.grafana import (
    MOUNT,
    NODE,
    WIDTH,
    chart,
    gauge,
    heatmap,
    increase,
    number,
    of_a_mount,
    quantile,
    quantiles,
    rate,
    rate_of,
    table,
    variable,
)

PATH: Final = Path(__file__).parents[1] / "packaging" / "monitoring" / "dashboard.json"

_TOP: Final = 10  # images in one chart
_PRESENT: Final = f"{of_a_mount('mount_present_sectors')} / {of_a_mount('mount_sectors')}"
_FOUND: Final = rate("mounted_sectors", labels=f'{NODE}, state="present"')

ROWS: Final[dict[str, list[dict[str, Any]]]] = {
    "Now": [
        number("Nodes", "Daemons that Prometheus reaches.", gauge("build_info")),
        number("Mounts", "Images that are mounted.", gauge("mounts")),
        number(
            "Reads that wait",
            "Reads that wait for their data. Many for long mean a slow or absent registry.",
            gauge("waiting_reads"),
        ),
        number(
            "Failed reads",
            "Reads that got EIO in the time that is shown. Programs have seen an error.",
            increase("failed_reads"),
            bad_from=1,
        ),
        number(
            "Failed pulls and mounts",
            "In the time that is shown, whoever's fault it was.",
            increase("failed_requests"),
            bad_from=1,
        ),
        number(
            "Endpoints that rest",
            "Endpoints of registries that failed last.",
            f"count(firstread_endpoint_healthy{{{NODE}}} == 0) or vector(0)",
            bad_from=1,
        ),
    ],
    "Starts": [
        chart(
            "Mounts and starts",
            "A minute. A start is over when its reads no longer wait.",
            {
                "mounts": f"60 * {rate('mounts_made')}",
                "starts": f"60 * {rate_of('start_seconds_count')}",
            },
        ),
        chart(
            "Length of starts",
            "From the request for the mount until the last read that waited.",
            quantiles("start_seconds"),
            "s",
        ),
        chart(
            "Steps, 95th percentile",
            "Resolving a name, fetching the metadata, mounting.",
            {"{{step}}": quantile(0.95, "step_seconds", "step")},
            "s",
        ),
        chart(
            "Pulls through containerd",
            "A minute. An ordinary pull has a cause; the log of the snapshotter has the image.",
            {
                "lazy": f"60 * {rate('lazy_pulls')}",
                "ordinary, {{cause}}": f"60 * {rate('ordinary_pulls', 'cause')}",
            },
            width=12,
        ),
        chart(
            "Failed pulls and mounts",
            "A minute, by whose fault: caller, image, registry, node or firstread.",
            {"{{fault}}": f"60 * {rate('failed_requests', 'fault')}"},
            width=12,
        ),
    ],
    "First reads": [
        chart(
            "Wait of first reads",
            "Reads that waited for the fetcher. All others cost nothing, and nobody sees them.",
            quantiles("first_read_seconds"),
            "s",
        ),
        heatmap("First reads by wait", "A second.", "first_read_seconds", "s"),
        chart(
            "Reads that wait",
            "At the moment of the scrape.",
            {"{{instance}}": gauge("waiting_reads", "instance")},
        ),
        chart(
            "Reads that waited",
            "A second.",
            {"{{instance}}": rate("waited_reads", "instance")},
            width=12,
        ),
        chart(
            "Errors",
            "A minute. A failed fetch is tried again, elsewhere too; a failed read got EIO.",
            {
                "fetches": f"60 * {rate('fetch_errors')}",
                "reads": f"60 * {rate('failed_reads')}",
            },
            width=12,
        ),
    ],
    "Bytes": [
        chart(
            "Bytes by cause",
            "Compressed. demand: a read waits; hot: a start reads it; prefetch: a sequential reader"
            " comes to it; completion: the rest of a sector; background: nobody reads it yet.",
            {"{{cause}}": rate("fetched_bytes", "cause")},
            "Bps",
            stack=True,
        ),
        chart(
            "Requests by cause",
            "A second.",
            {"{{cause}}": rate("requests", "cause")},
            "reqps",
            stack=True,
        ),
        chart(
            "Bytes by image",
            f"The {_TOP} images that fetch most.",
            {"{{image}}": f"topk({_TOP}, {rate('mount_fetched_bytes', 'image', MOUNT)})"},
            "Bps",
        ),
    ],
    "Cache": [
        chart(
            "Room",
            "Sectors and metadata on each node, its limit, and what its file system has free.",
            {
                "used, {{instance}}": f"{gauge('store_bytes', 'instance')}"
                f" + {gauge('store_metadata_bytes', 'instance')}",
                "limit, {{instance}}": gauge("store_limit_bytes", "instance"),
                "free, {{instance}}": gauge("store_free_bytes", "instance"),
            },
            "bytes",
        ),
        chart(
            "Hits",
            "Share of an image's sectors that a mount finds on the node.",
            {"hits": f"{_FOUND} / {rate('mounted_sectors')}"},
            "percentunit",
        ),
        chart(
            "Evictions",
            "Bytes that went to make room. Those of mounted images come again when read.",
            {
                "of mounted images": rate("store_evicted_bytes"),
                "of other images": rate("store_removed_bytes"),
            },
            "Bps",
        ),
    ],
    "Sources and mirrors": [
        chart(
            "Requests by endpoint",
            "A second.",
            {"{{endpoint}} for {{registry}}": rate("endpoint_requests", "endpoint, registry")},
            "reqps",
        ),
        chart(
            "Wait for the first byte, 95th percentile",
            "The worst node, of its last 128 answers.",
            {
                "{{endpoint}}": "max by (endpoint)"
                f" (firstread_endpoint_first_byte_p95_seconds{{{NODE}}})"
            },
            "s",
        ),
        chart(
            "Failures and hedges",
            "A minute. A hedge doubles a late request at another endpoint.",
            {
                "failed, {{endpoint}}": f"60 * {rate('endpoint_failures', 'endpoint')}",
                "hedges, {{endpoint}}": f"60 * {rate('endpoint_hedges', 'endpoint')}",
            },
        ),
        chart(
            "Nodes for which an endpoint rests",
            "It failed last, and gets a probe now and then.",
            {"{{endpoint}}": f"sum by (endpoint) (firstread_endpoint_healthy{{{NODE}}} == bool 0)"},
            width=24,
        ),
    ],
    "Mounts": [
        table(
            "Mounts",
            "What stands now. A mount that has all of its sectors needs its registry no more.",
            {
                "on the node": (_PRESENT, "percentunit"),
                "wanted": (of_a_mount("mount_wanted_sectors"), "short"),
                "p99 of first reads": (of_a_mount("mount_first_read_p99_seconds"), "s"),
                "failed reads": (of_a_mount("mount_failed_reads_total"), "short"),
            },
        ),
    ],
    "Daemons": [
        chart(
            "Versions",
            "Nodes by version of the fetcher, and by device.",
            {"{{version}}, {{device}}": gauge("build_info", "version, device")},
            stack=True,
        ),
        chart(
            "Upgrades and restarts",
            "In the last rate interval. An upgrade loses no read; a restart follows a failure.",
            {
                "upgrades": f"sum(increase(firstread_upgrades_total{{{NODE}}}[$__rate_interval]))",
                "restarts": "sum(increase("
                f"firstread_fetcher_restarts_total{{{NODE}}}[$__rate_interval]))",
            },
        ),
        chart(
            "Damaged sectors",
            "Sectors that a check against their ids found damaged. Look at the disk.",
            {"{{instance}}": gauge("store_damaged_sectors_total", "instance")},
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"h": 1, "w": WIDTH, "x": 0, "y": top}
        panels.append(
            {"type": "row", "title": title, "gridPos": place, "collapsed": False, "panels": []}
        )
        left, top, height = 0, top + 1, 0
        for panel in row:
            size = panel["gridPos"]
            if left + size["w"] > WIDTH:
                left, top = 0, top + height
            height = size["h"]
            panels.append(panel | {"gridPos": size | {"x": left, "y": top}})
            left += size["w"]
        top += height
    for identity, panel in enumerate(panels, start=1):
        panel["id"] = identity
    source = {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
    }
    return {
        "uid": "firstread",
        "title": "firstread",
        "description": "Lazy images: starts, first reads, bytes, cache and registries",
        "tags": ["containers", "firstread"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one cross-hair in all panels
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                source,
                variable("instance", "Node", "label_values(firstread_build_info, instance)"),
                variable(
                    "image", "Image", f"label_values(firstread_mount_sectors{{{NODE}}}, image)"
                ),
            ]
        },
        "panels": panels,
    }


def text() -> str:
    """Return the file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
    sys.stdout.write(f"{PATH} is written\n")
