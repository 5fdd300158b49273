# SPDX-License-Identifier: Apache-2.0
"""What a node answers: the documents of its mounts (docs/json.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from firstread.cache.report import OnlineFigures
from firstread.config import PolicyTable
from firstread.documents import Bytes, Digest, Document, Seconds
from firstread.fetch.durations import Distribution
from firstread.fetch.imagehistory import ImageHistory
from firstread.fetch.stats import ReadFigures

if TYPE_CHECKING:
    from firstread.fetch.startplan import StartPlan


class Steps(Document):
    """How long each step of a mount took.

    resolve: until manifest and config were known
    metadata: until it was here
    mount: of the rest
    """

    resolve: Seconds
    metadata: Seconds
    mount: Seconds


class StepTimes(Document):
    """How long steps took.

    resolve: of pulls that asked a registry, until manifest and config were known
    metadata: of the same pulls, until it had come
    mount: of mounts
    """

    resolve: Distribution
    metadata: Distribution
    mount: Distribution


class Totals(ReadFigures, kw_only=True):
    """Counts of all images since the fetcher began; unmounted ones stay in them.

    first_reads: reads that waited for the fetcher
    mounts: that were made
    failed_requests: pulls and mounts that failed, by whose fault: `usage`, `image`, `source`,
        `node`, `firstread`
    found, missing: sectors of images that were on the node at their mount; that were not
    steps: of pulls and mounts
    starts: that are over, from the request for the mount until the last read that waited
    """

    first_reads: Distribution
    mounts: int
    failed_requests: dict[str, int]
    found: int
    missing: int
    steps: StepTimes
    starts: Distribution


class Planned(Document):
    """The plan for sectors of an image that nobody reads yet ([node.md](node.md#prefetch)).

    mode: `none`, `hot` or `all`
    hot_bytes: compressed, of its hot sectors that were absent
    all_bytes: the same of all sectors
    bytes_per_s, latency_s: of the link; null: not measured yet
    hot_s: in which the hot sectors can come
    all_s: in which all of it can: no classic pull is sooner ready
    rest: when the other sectors are fetched: `never`, `at once` behind the hot ones, `when quiet`
    is_guess: the hot sectors are a start set: they come only as far as reads confirm it
    """

    mode: str
    hot_bytes: Bytes
    all_bytes: Bytes
    bytes_per_s: float | None
    latency_s: Seconds | None
    hot_s: Seconds | None
    all_s: Seconds | None
    rest: str
    is_guess: bool

    @classmethod
    def of(cls, plan: StartPlan) -> Planned:
        """Return a plan as a document."""
        return cls(
            mode=plan.mode,
            hot_bytes=plan.hot_bytes,
            all_bytes=plan.all_bytes,
            bytes_per_s=plan.bytes_per_s,
            latency_s=plan.latency_s,
            hot_s=plan.hot_s,
            all_s=plan.all_s,
            rest=plan.rest.value,
            is_guess=plan.is_guess,
        )


class Fetched(Document):
    """An image's fetches before a mount.

    bytes_fetched: compressed
    requests: sent for sectors
    """

    bytes_fetched: Bytes
    requests: int


class Mounted(Document):
    """A mount that was made.

    mountpoint: absolute path
    digest: of the image's manifest
    config: the image's config, as it is in the registry
    device: such as `fanotify`: data comes when it is read
    device_number: `st_dev` of what is mounted
    timeline: how long each step took
    prefetch: what is fetched though nobody reads it; null if it is unmounted again
    before: what came for other mounts of the image: the figures of `status` begin with it
    """

    mountpoint: str
    digest: Digest
    config: dict[str, Any]
    device: str
    device_number: int | None
    timeline: Steps
    prefetch: Planned | None = None
    before: Fetched = msgspec.field(default_factory=lambda: Fetched(0, 0))


class Pulled(Document):
    """An image that was pulled without a mount.

    digest: of its manifest
    config: as it is in the registry
    """

    digest: Digest
    config: dict[str, Any]


class Policies(Document):
    """What holds for reads of a mount, [node.md](node.md#policies).

    stall_s: how long one waits for a source that fails
    on_corruption: `refetch`, `quarantine` or `fail`
    require: `lazy`, or empty
    """

    stall_s: Seconds
    on_corruption: str
    require: str

    @classmethod
    def of(cls, table: PolicyTable) -> Policies:
        """Return policies as a document."""
        return cls(**msgspec.structs.asdict(table))


class MountStatus(ReadFigures):
    """A mount.

    mountpoint: absolute path
    image: reference
    digest: of its manifest
    device: such as `fanotify`
    repository: that is asked
    source: who gave the last bytes: an endpoint, or the repository
    sectors, present: of the image; of them on this node
    self_sufficient: all are: it needs its registry no more
    pinned: all were asked for (`fetch --all`)
    holders: containers that share the mount
    prefetch: what is fetched though nobody reads it: `none`, `hot` or `all`
    hot, hot_present: hot sectors of the image; of them on this node
    wanted: sectors of it that are being fetched or queued
    read_ahead_kib: how far the kernel reads ahead in its files; null if that is not known
    came_by_cause: sectors that came, by `demand`, `prefetch` or `completion`
    last_waits_s: how long the last 8 reads waited, the newest last
    """

    mountpoint: str
    image: str
    digest: Digest
    device: str
    repository: str
    source: str
    sectors: int
    present: int
    self_sufficient: bool
    pinned: bool
    holders: list[str]
    policies: Policies
    prefetch: str
    hot: int
    hot_present: int
    wanted: int
    read_ahead_kib: int | None
    came_by_cause: dict[str, int]
    last_waits_s: list[Seconds]


class MountHistory(ImageHistory):
    """What happened to the image of a mount, as far as the node knows.

    mountpoint: absolute path
    image: reference
    digest: of its manifest
    repository: that is asked
    """

    mountpoint: str
    image: str
    digest: Digest
    repository: str


class EndpointStatus(Document):
    """An endpoint of a registry that the fetcher has met ([registries.md](registries.md)).

    endpoint: host, and path if it is not `/v2`
    registry: whose content it serves
    state: `healthy`; `resting`: left alone after a failure; `probing`: one request finds out
    requests, failures: of the fetcher's life
    hedges: requests that doubled a late one of another endpoint
    first_byte_p95_s: of its last 128 answers; null before 20
    last_error: of its failures
    """

    endpoint: str
    registry: str
    state: str
    requests: int
    failures: int
    hedges: int
    first_byte_p95_s: Seconds | None
    last_error: str | None


class NodeStatus(Document, kw_only=True):
    """What a node knows of itself.

    mounts: all that stand at a mount point
    endpoints: that it has met
    """

    store: OnlineFigures
    totals: Totals | UnsetType = UNSET  # unless it is old
    mounts: list[MountStatus]
    endpoints: list[EndpointStatus]
