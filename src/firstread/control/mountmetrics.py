# SPDX-License-Identifier: Apache-2.0
"""The metrics of each mount, and of each endpoint of a registry.

Families of a mount end with it: `firstread.control.metrics` has the same of all images together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from firstread.control.daemonstatus import Status
from firstread.control.metricfamily import COUNTER, GAUGE, Family, Samples, Value, by
from firstread.mounts.nodestatus import EndpointStatus, MountStatus

_OF_A_MOUNT: Final = ("image", "mountpoint")


def _each_mount(take: Callable[[MountStatus], Value], status: Status) -> Samples:
    return [((mount.image, mount.mountpoint), take(mount)) for mount in status.mounts]


def _each_part(take: Callable[[MountStatus], dict[str, Value]], status: Status) -> Samples:
    for mount in status.mounts:
        yield from by(take(mount), mount.image, mount.mountpoint)


def _mount(
    name: str, kind: str, unit: str, meaning: str, take: Callable[[MountStatus], Value]
) -> Family[Status]:
    """Return a family with a number for each mount."""
    samples = partial(_each_mount, take)
    return Family(f"mount_{name}", kind, unit, meaning, samples, _OF_A_MOUNT)


def _parts(
    name: str,
    kind: str,
    unit: str,
    meaning: str,
    label: str,
    take: Callable[[MountStatus], dict[str, Value]],
) -> Family[Status]:
    """Return a family with several numbers for each mount, told apart by one more label."""
    samples = partial(_each_part, take)
    return Family(f"mount_{name}", kind, unit, meaning, samples, (*_OF_A_MOUNT, label))


MOUNTS: Final = [
    _mount("sectors", GAUGE, "sectors", "Sectors of the image", lambda m: m.sectors),
    _mount("present_sectors", GAUGE, "sectors", "Of them on the node", lambda m: m.present),
    _mount("hot_sectors", GAUGE, "sectors", "Hot sectors of the image", lambda m: m.hot),
    _mount("present_hot_sectors", GAUGE, "sectors", "Of them on the node", lambda m: m.hot_present),
    _mount(
        "wanted_sectors",
        GAUGE,
        "sectors",
        "Sectors that are being fetched or queued",
        lambda m: m.wanted,
    ),
    _mount(
        "self_sufficient",
        GAUGE,
        "0 or 1",
        "Whether the mount needs its registry no more",
        lambda m: m.self_sufficient,
    ),
    _mount(
        "first_read_p50_seconds",
        GAUGE,
        "seconds",
        "Median wait of the last 4,096 reads that waited",
        lambda m: m.first_read_p50_s,
    ),
    _mount(
        "first_read_p99_seconds",
        GAUGE,
        "seconds",
        "99th percentile of the same",
        lambda m: m.first_read_p99_s,
    ),
    _mount(
        "demanded_sectors",
        COUNTER,
        "sectors",
        "Absent sectors that a read asked for",
        lambda m: m.events,
    ),
    _mount(
        "waited_reads",
        COUNTER,
        "reads",
        "Reads that came while their sector was not whole",
        lambda m: m.waited_reads,
    ),
    _mount("failed_reads", COUNTER, "reads", "Reads that got EIO", lambda m: m.failed_reads),
    _mount(
        "fetch_errors",
        COUNTER,
        "errors",
        "Fetches that failed, and failed reads",
        lambda m: m.fetch_errors,
    ),
    _parts(
        "requests",
        COUNTER,
        "requests",
        "Requests for sectors, by cause",
        "cause",
        lambda m: dict(m.requests_by_cause),
    ),
    _parts(
        "fetched_bytes",
        COUNTER,
        "bytes",
        "Compressed bytes of sectors that came, by cause",
        *("cause", lambda m: dict(m.bytes_by_cause)),
    ),
]


def _endpoint(
    name: str, kind: str, unit: str, meaning: str, take: Callable[[EndpointStatus], Value]
) -> Family[Status]:
    """Return a family with a number for each endpoint."""

    def samples(status: Status) -> Samples:
        return [((each.endpoint, each.registry), take(each)) for each in status.endpoints]

    return Family(f"endpoint_{name}", kind, unit, meaning, samples, ("endpoint", "registry"))


ENDPOINTS: Final = [
    _endpoint("requests", COUNTER, "requests", "Requests to an endpoint", lambda e: e.requests),
    _endpoint(
        "failures",
        COUNTER,
        "requests",
        "Of them failed, or broke off later",
        lambda e: e.failures,
    ),
    _endpoint(
        "hedges",
        COUNTER,
        "requests",
        "Of them doubled a late one of another endpoint",
        lambda e: e.hedges,
    ),
    _endpoint(
        "healthy",
        GAUGE,
        "0 or 1",
        "Whether its last request succeeded",
        lambda e: e.state == "healthy",
    ),
    _endpoint(
        "first_byte_p95_seconds",
        GAUGE,
        "seconds",
        "95th percentile of the wait for its last 128 answers; absent before 20",
        lambda e: e.first_byte_p95_s,
    ),
]
