# SPDX-License-Identifier: Apache-2.0
"""The status of a node as Prometheus metrics, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from firstread.control.daemonstatus import Status
from firstread.mounts.nodestatus import EndpointStatus, MountStatus

_COUNTERS = {
    "events": "Sectors that a read asked for while they were absent",
    "waited_reads": "Reads that came while their sector was not whole",
    "bytes_fetched": "Compressed bytes fetched",
    "failed_reads": "Reads that failed",
    "fetch_errors": "Fetches that failed",
}
_ENDPOINT_COUNTERS = {
    "requests": "Requests to an endpoint of a registry",
    "failures": "Those of them that failed, or broke off later",
    "hedges": "Those of them that doubled a late one of another endpoint",
}
_STORE_GAUGES = {
    "bytes": "Bytes of sectors",
    "sectors": "Sectors in the store",
    "metadata_bytes": "Bytes of metadata of images",
    "files": "Files of sectors and images",
    "limit_bytes": "What sectors and metadata may take; 0: no limit",
    "limit_files": "How many files they may be; 0: no limit",
    "min_free_bytes": "What the file system is to keep free; 0: no limit",
    "free_bytes": "What the file system has free",
    "free_files": "Inodes that the file system has free; 0 also if it has no bound",
}
_STORE_COUNTERS = {
    "evictions": "Sectors of mounted images that were emptied to make room",
    "evicted_bytes": "Bytes of them",
    "removals": "Sectors of other images that were removed to make room",
    "removed_bytes": "Bytes of them",
    "checked": "Sectors that were checked against their ids",
    "damaged": "Those of them that were damaged",
}
_GAUGES = {
    "sectors": "Sectors of the image",
    "present": "Sectors on this node",
    "hot": "Hot sectors of the image",
    "hot_present": "Hot sectors on this node",
    "wanted": "Sectors being fetched or queued",
    "first_read_p50_s": "Median wait of the last first reads",
    "first_read_p99_s": "99th percentile of it",
    "self_sufficient": "Whether the mount needs its registry no more",
}


class NodeMetrics(Collector):
    """Collects from `status`, which gives the document of ``firstread status``."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Return the metrics in the text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        store, fetcher = status.store, status.fetcher
        for name, text in _STORE_GAUGES.items():
            yield GaugeMetricFamily(
                f"firstread_store_{name}", text, value=getattr(store, name) or 0
            )
        for name, text in _STORE_COUNTERS.items():
            yield CounterMetricFamily(f"firstread_store_{name}", text, value=getattr(store, name))
        yield GaugeMetricFamily(
            "firstread_waiting_reads", "Reads that wait now", value=fetcher.waiting_reads
        )
        yield CounterMetricFamily(
            "firstread_fetcher_restarts", "Restarts of the fetcher", value=fetcher.restarts
        )
        mounts = status.mounts
        for name, text in _COUNTERS.items():
            yield _family(CounterMetricFamily, name, text, mounts)
        for name, text in _GAUGES.items():
            yield _family(GaugeMetricFamily, name, text, mounts)
        yield _by_cause("requests", "Requests by cause", mounts, lambda m: m.requests_by_cause)
        text = "Compressed bytes fetched, by cause"
        yield _by_cause("cause_bytes", text, mounts, lambda m: m.bytes_by_cause)
        yield from _of_endpoints(status.endpoints)


def _of_endpoints(endpoints: list[EndpointStatus]) -> Iterator[Metric]:
    labels = ["endpoint", "registry"]
    for name, text in _ENDPOINT_COUNTERS.items():
        family = CounterMetricFamily(f"firstread_endpoint_{name}", text, labels=labels)
        for endpoint in endpoints:
            names = [endpoint.endpoint, endpoint.registry]
            family.add_metric(names, getattr(endpoint, name))
        yield family
    healthy = GaugeMetricFamily(
        "firstread_endpoint_healthy", "Whether its last request did not fail", labels=labels
    )
    for endpoint in endpoints:
        state = float(endpoint.state == "healthy")
        healthy.add_metric([endpoint.endpoint, endpoint.registry], state)
    yield healthy


def _by_cause(
    name: str,
    text: str,
    mounts: list[MountStatus],
    counts: Callable[[MountStatus], dict[str, int]],
) -> CounterMetricFamily:
    labels = ["image", "mountpoint", "cause"]
    family = CounterMetricFamily(f"firstread_{name}", text, labels=labels)
    for mount in mounts:
        for cause, count in counts(mount).items():
            family.add_metric([mount.image, mount.mountpoint, cause], count)
    return family


def _family(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    text: str,
    mounts: list[MountStatus],
) -> Metric:
    family = kind(f"firstread_{name}", text, labels=["image", "mountpoint"])
    for mount in mounts:
        if (value := getattr(mount, name)) is not None:
            family.add_metric([mount.image, mount.mountpoint], float(value))
    return family
