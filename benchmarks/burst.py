# SPDX-License-Identifier: Apache-2.0
"""Many pods of one image at once: each sector comes once; the delay of the last pod.

Each pod makes all requests of the kubelet, the pull included, so the same layers are prepared many
times at once; its clock includes its sandbox. The same pods of the original image, with overlayfs
and the whole image on the node, show what starting so many containers costs on this machine without
any fetch.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Goal, Section
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from benchmarks.suite.links import open_link
from benchmarks.suite.modes import OWN, WHOLE, Mode
from benchmarks.suite.nodes import PULL_S, Pod, Site, containerd_node, start
from benchmarks.suite.publish import publish_originals
from benchmarks.suite.runs import MB
from benchmarks.suite.workloads import WORKLOADS, Workload
from firstread.cache.imagestore import ImageStore
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.containerd import Containerd

BURST = "burst"
COUNT = 50
RATIO = 3
LINK = "100Mbit/20ms"
PODS = [WORKLOADS["python-server"], WORKLOADS["python"]]
"""What the pods do: little, so that their start takes long; and a lot, each for itself."""
MODES = {mode.name: mode for mode in (*OWN, *WHOLE)}

_places = itertools.count(1)  # names of nodes


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
    publish_originals(PODS)
    with scratch_directory() as scratch, open_link(LINK) as (site, speed):
        section = Section(BURST, f"{COUNT} pods of one image at once", describe(scratch))
        section.setting["link"] = f"{LINK}; {speed}"
        section.setting["caches"] = (
            "nothing of the image on the node, its blobs in the registry's RAM"
        )
        section.start()
        for workload in PODS:
            _compare(section, site, workload, scratch)
    return section


def _compare(section: Section, site: Site, workload: Workload, scratch: Path) -> None:
    name, lazy = workload.name, MODES["lazy"]
    one, many = (_burst(site, workload, lazy, count, scratch) for count in (1, COUNT))
    present = _burst(site, workload, MODES["overlayfs"], COUNT, scratch)
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


def _burst(site: Site, workload: Workload, mode: Mode, count: int, scratch: Path) -> Burst:
    """Start the pods of one side, on a separate node."""
    image = site.image(workload.image, mode.tag)
    with containerd_node(site, mode, scratch / f"b{next(_places)}") as node:
        node.remove_pod(node.start_pod()[0])  # have the image of sandboxes
        site.forget(workload.image)
        if not mode.lazy:  # have it pulled, and its files in the page cache
            start(node, node.start_pod(), image, workload.ready, workload.command)
        pods, cpu = _at_once(node, image, workload, count)
        if not mode.lazy:
            return Burst(pods, cpu)
        counts, (mount,) = site.registry.counts, node.daemon.status()["mounts"]
        detail = (
            f"{counts.bytes_of('GET') / MB:.1f} MB in {counts.requests_of('GET')} requests,"
            f" {mount['present']} of {mount['sectors']} sectors"
        )
        if not mount["events"] or mount["present"] == mount["sectors"]:
            raise RuntimeError(f"the pods were not lazy: {detail}")
        return Burst(pods, cpu, _times_sent(node, site), detail)


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


def _at_once(node: Containerd, image: str, workload: Workload, count: int) -> tuple[list[Pod], str]:
    """Start pods at once; return them, and the users of the processors meanwhile."""
    gate = threading.Barrier(count)

    def one() -> Pod:
        gate.wait(PULL_S)
        began = time.time()
        sandbox = node.start_pod()
        return start(node, sandbox, image, workload.ready, workload.command, began=began)

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
