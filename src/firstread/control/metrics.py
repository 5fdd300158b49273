# SPDX-License-Identifier: Apache-2.0
"""The status of a node as Prometheus metrics, made when somebody asks for them.

Families of ``firstread_mount_`` have the labels of a mount, and end with it. All others are of the
node, so that their rates stay true when short-lived mounts come and go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import structs

from firstread.control.daemonstatus import Status
from firstread.control.metricfamily import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    Families,
    Family,
    Samples,
    by,
    one,
)
from firstread.control.mountmetrics import ENDPOINTS, MOUNTS
from firstread.fetch.queue import CAUSES
from firstread.mounts.nodestatus import Totals

_NODE: Final[list[Family[Status]]] = [
    Family(
        "build_info",
        GAUGE,
        "1",
        "The version of the fetcher, and how the kernel asks it",
        lambda s: [((s.fetcher.version or "", s.device.name if s.device else ""), 1)],
        ("version", "device"),
    ),
    Family(
        "upgrades",
        COUNTER,
        "upgrades",
        "Daemons that took over from the one before",
        lambda s: one(s.supervisor.upgrades or 0),
    ),
    Family(
        "fetcher_restarts",
        COUNTER,
        "restarts",
        "Fetchers that replaced one that had failed",
        lambda s: one(s.fetcher.restarts),
    ),
    Family("mounts", GAUGE, "mounts", "Mounts of images", lambda s: one(len(s.mounts))),
    Family(
        "waiting_reads",
        GAUGE,
        "reads",
        "Reads that wait now",
        lambda s: one(s.fetcher.waiting_reads),
    ),
]


def _total(
    name: str,
    kind: str,
    unit: str,
    meaning: str,
    take: Callable[[Totals], Samples],
    labels: tuple[str, ...] = (),
) -> Family[Status]:
    """Return a family whose numbers are of all images together."""

    def samples(status: Status) -> Samples:
        return take(status.totals) if status.totals else []

    return Family(name, kind, unit, meaning, samples, labels)


_TOTALS: Final = [
    _total(
        "mounts_made",
        COUNTER,
        "mounts",
        "Mounts that were made",
        lambda t: one(t.mounts),
    ),
    _total(
        "failed_requests",
        COUNTER,
        "requests",
        "Pulls and mounts that failed, by whose fault",
        lambda t: by(t.failed_requests),
        ("fault",),
    ),
    _total(
        "step_seconds",
        HISTOGRAM,
        "seconds",
        "Steps of pulls and mounts",
        lambda t: by(structs.asdict(t.steps)),
        ("step",),
    ),
    _total(
        "start_seconds",
        HISTOGRAM,
        "seconds",
        "Starts, from the request for the mount until its last read that waited",
        lambda t: one(t.starts),
    ),
    _total(
        "mounted_sectors",
        COUNTER,
        "sectors",
        "Sectors of images at their mount: present are hits of the cache, absent ones misses",
        lambda t: by({"present": t.found, "absent": t.missing}),
        ("state",),
    ),
    _total(
        "first_read_seconds",
        HISTOGRAM,
        "seconds",
        "Reads that waited for the fetcher",
        lambda t: one(t.first_reads),
    ),
    _total(
        "waited_reads",
        COUNTER,
        "reads",
        "Reads that came while their sector was not whole",
        lambda t: one(t.waited_reads),
    ),
    _total(
        "failed_reads",
        COUNTER,
        "reads",
        "Reads that got EIO",
        lambda t: one(t.failed_reads),
    ),
    _total(
        "fetch_errors",
        COUNTER,
        "errors",
        "Fetches that failed, and failed reads",
        lambda t: one(t.fetch_errors),
    ),
    _total(
        "requests",
        COUNTER,
        "requests",
        "Requests for sectors, by cause",
        lambda t: by(dict.fromkeys(CAUSES, 0) | t.requests_by_cause),
        ("cause",),
    ),
    _total(
        "fetched_bytes",
        COUNTER,
        "bytes",
        "Compressed bytes of sectors that came, by cause",
        lambda t: by(dict.fromkeys(CAUSES, 0) | t.bytes_by_cause),
        ("cause",),
    ),
]


def _store(name: str, kind: str, unit: str, meaning: str, field: str = "") -> Family[Status]:
    """Return a family whose number is a field of the status of the store."""
    return Family(
        f"store_{name}", kind, unit, meaning, lambda s: one(getattr(s.store, field or name))
    )


_STORE: Final = [
    _store("bytes", GAUGE, "bytes", "Sectors on the node"),
    _store("sectors", GAUGE, "sectors", "Sectors on the node, whole or in part"),
    _store("metadata_bytes", GAUGE, "bytes", "Metadata, manifests and configs of images"),
    _store("files", GAUGE, "files", "Files of sectors and images"),
    _store("limit_bytes", GAUGE, "bytes", "Limit of sectors and metadata; absent: none"),
    _store("limit_files", GAUGE, "files", "Limit of files; absent: none"),
    _store("min_free_bytes", GAUGE, "bytes", "What the file system is to keep free; absent: 0"),
    _store("free_bytes", GAUGE, "bytes", "What the file system has free"),
    _store("free_files", GAUGE, "inodes", "Inodes that the file system has free; absent: no bound"),
    _store("evictions", COUNTER, "sectors", "Sectors of mounted images emptied to make room"),
    _store("evicted_bytes", COUNTER, "bytes", "Bytes of these sectors"),
    _store("removals", COUNTER, "sectors", "Sectors of other images removed to make room"),
    _store("removed_bytes", COUNTER, "bytes", "Bytes of these sectors"),
    _store(
        "checked_sectors",
        COUNTER,
        "sectors",
        "Sectors that were checked against their ids",
        "checked",
    ),
    _store(
        "damaged_sectors",
        COUNTER,
        "sectors",
        "Sectors that such a check found damaged",
        "damaged",
    ),
]

FAMILIES: Final = [*_NODE, *_TOTALS, *_STORE, *MOUNTS, *ENDPOINTS]


class NodeMetrics(Families[Status]):
    """The metrics of a daemon.

    Args:
        status: gives the document of ``firstread status``.
    """

    def __init__(self, status: Callable[[], Status]) -> None:
        super().__init__(FAMILIES, status)
