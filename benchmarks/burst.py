# SPDX-License-Identifier: Apache-2.0
"""Many pods of one image at once: each sector comes once; the delay of the last pod.

Each pod makes all requests of the kubelet, the pull included, so the same layers are prepared many
times at once. The same pods of the original image, with overlayfs and the whole image on the node,
show what starting so many containers costs on this machine without any fetch.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.places import LAZY, ORIGINAL
from benchmarks.pods import (
    PULL_S,
    WORKLOADS,
    Pod,
    Site,
    begin,
    cluster_node,
    far_registry,
    lazily,
    publish_pods,
    start,
)
from benchmarks.report import Goal, Section
from benchmarks.run import LARGE
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.cache.imagestore import ImageStore
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.containerd import Containerd

BURST = "burst"
COUNT = 50
RATIO = 3
COMMANDS: dict[str, tuple[str, ...]] = {
    name: WORKLOADS[name]
    for name in (
        "a web server of the standard library",
        "numpy, scipy and pandas are imported",
    )
}
"""What the pods do: little, so that their start takes long; and a lot, each for itself."""


@dataclass(frozen=True)
class Burst:
    """Pods that started at once.

    Args:
        pods: the first to be ready first.
        cpu: users of the processors meanwhile.
        times_sent: see `_times_sent`.
        detail: what the registry sent.
    """

    pods: list[Pod]
    cpu: str
    times_sent: float = 0.0
    detail: str = ""

    @property
    def p99_s(self) -> float:
        return self.pods[int(0.99 * len(self.pods))].ready_s

    @property
    def p50_s(self) -> float:
        return self.pods[len(self.pods) // 2].ready_s


def measure() -> Section:
    """One pod, all at once, and all at once of an image that is already present."""
    publish_pods(LARGE)
    with scratch_directory() as scratch, far_registry() as (link, registry, host):
        section = Section(BURST, f"{COUNT} pods of one image at once", describe(scratch))
        begin(section, link, "1 of each")
        for number, (name, command) in enumerate(COMMANDS.items()):
            (scratch / str(number)).mkdir()
            _compare(section, Site(registry, host, scratch / str(number), command), name)
    return section


def _compare(section: Section, site: Site, name: str) -> None:
    one, many, present = (_burst(site, side) for side in ("one", "lazy", "present"))
    section.add(
        f"{name}: p99 of {COUNT}, over one",
        many.p99_s / one.p99_s,
        "x",
        Goal("<=", RATIO),
        f"one {one.p99_s:.2f} s ({one.pods[0]}); {COUNT}: p50 {many.p50_s:.2f} s,"
        f" p99 {many.p99_s:.2f} s ({many.pods[-1]}), CPU: {many.cpu}",
    )
    section.add(
        f"{name}: p99 of {COUNT}, over that of an image that is there",
        many.p99_s / present.p99_s,
        "x",
        detail=f"overlayfs, nothing to fetch: p50 {present.p50_s:.2f} s, p99 {present.p99_s:.2f} s"
        f" ({present.pods[-1]}), CPU: {present.cpu}",
    )
    section.add(
        f"{name}: times that a sector was sent for {COUNT}",
        many.times_sent,
        "",
        Goal("<=", 1),
        f"{many.detail}; for one {one.detail}",
    )


def _burst(site: Site, side: str) -> Burst:
    """Start the pods of one side, on a separate node."""
    lazy, count = side != "present", 1 if side == "one" else COUNT
    image = site.image(LAZY if lazy else ORIGINAL)
    with cluster_node(site, side, "firstread" if lazy else "overlayfs") as node:
        if not lazy:
            start(node, image, *site.command)  # pulls it, and has its files in the page cache
        pods, cpu = _at_once(node, image, site.command, count)
        if not lazy:
            return Burst(pods, cpu)
        return Burst(pods, cpu, _times_sent(node, site), lazily(node, site.registry))


def _times_sent(node: Containerd, site: Site) -> float:
    """Return how often the registry has sent each present sector: 1, if each came once."""
    node.wait(lambda: node.daemon.status()["mounts"][0]["wanted"] == 0)
    digest = str(node.daemon.status()["mounts"][0]["digest"])
    index = ImageStore(node.daemon.root, tidy=False).load(digest).block_image.index
    counts = site.registry.counts
    sent = sum(counts.bytes_of(f"/blobs/sha256:{blob.digest.hex()}") for blob in index.blobs)
    lengths = {sector.id: sector.length for sector in index.sectors}
    with SectorStore(node.daemon.root) as store:
        here = {sector.id for sector in index.sectors if store.size(sector.id) == sector.size}
    return float(sent / sum(lengths[sector_id] for sector_id in here))


def _at_once(
    node: Containerd, image: str, command: tuple[str, ...], count: int
) -> tuple[list[Pod], str]:
    """Start pods at once; return them, and the users of the processors meanwhile."""
    gate = threading.Barrier(count)

    def one() -> Pod:
        gate.wait(PULL_S)
        return start(node, image, *command)

    before = node.cpu_s() | {"all": _all_cpu_s()}
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(one) for _ in range(count)]
        pods = [future.result(PULL_S) for future in futures]
    after = node.cpu_s() | {"all": _all_cpu_s()}
    used = {name: after[name] - before[name] for name in after}
    parts = [f"{name} {seconds:.1f} s" for name, seconds in used.items() if name != "all"]
    rest = used["all"] - sum(seconds for name, seconds in used.items() if name != "all")
    cpu = f"{', '.join(parts)}, runc, shims, workloads and all else {rest:.1f} s"
    return sorted(pods, key=lambda pod: pod.ready_s), cpu


def _all_cpu_s() -> float:
    """Return the time that the processors were not idle, in seconds."""
    first = Path("/proc/stat").read_text().partition("\n")[0]
    ticks = [int(field) for field in first.split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
