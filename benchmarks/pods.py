# SPDX-License-Identifier: Apache-2.0
"""Pods through a real containerd: the time from the kubelet's first request until one is ready.

Owns a node with containerd, and the clock of a pod, which runs from the request for its sandbox to
the time that containerd gives the workload's line in the log. The same containerd with its own
overlayfs snapshotter and the original image is the other side. Invariant: when the clock starts,
the node has nothing of the image, only the image of the sandbox.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.link import Link
from benchmarks.near import near
from benchmarks.places import LAZY, ORIGINAL, publish, storage, warm
from benchmarks.report import Goal, Section
from benchmarks.run import LARGE, MB, MBIT_S, RTT_S, distant_registry
from benchmarks.run import SERVER as SMALL_SERVER
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.testing.containerd import Containerd
from firstread.testing.containers import find_busybox
from firstread.testing.registry import DockerRegistry
from firstread.testing.runnable import push_pause

PODS = "pods"
RUNS = 3
PAUSE = "bench/pause:1"
READY = "ready"
SERVER = """
import contextlib, fastapi, uvicorn

@contextlib.asynccontextmanager
async def up(app):
    print("ready", flush=True)
    yield

app = fastapi.FastAPI(lifespan=up)
uvicorn.run(app, host="127.0.0.1", port=8097, log_level="error")
"""
WORKLOADS: dict[str, tuple[str, ...]] = {
    "a web server of the standard library": SMALL_SERVER,
    "a web server on fastapi": ("python3", "-c", SERVER),
    "numpy, scipy and pandas are imported": (),  # the command of the image
}
PULL_S, READY_S = 600.0, 120.0


@dataclass(frozen=True)
class Site:
    """The place and the command of pods.

    Args:
        registry: that has the image.
        host: how nodes name it.
        scratch: an empty directory, for nodes.
        command: of the pods; empty for that of the image.
    """

    registry: DockerRegistry
    host: str
    scratch: Path
    command: tuple[str, ...] = ()

    def image(self, tag: str) -> str:
        """Return how nodes name the image."""
        return f"{self.host}/bench/{LARGE}:{tag}"


@dataclass
class Pod:
    """A pod that became ready; all times are seconds from the request for its sandbox.

    Args:
        sandbox_s: the sandbox runs.
        pulled_s: the image is pulled.
        started_s: the container runs.
        ready_s: the workload says so.
    """

    sandbox_s: float
    pulled_s: float
    started_s: float
    ready_s: float

    def __str__(self) -> str:
        pull, start = self.pulled_s - self.sandbox_s, self.started_s - self.pulled_s
        work = self.ready_s - self.started_s
        return f"sandbox {self.sandbox_s:.2f}, pull {pull:.2f}, start {start:.2f}, work {work:.2f}"


def measure() -> Section:
    """The large image over a slow link, with both snapshotters."""
    publish_pods(LARGE)
    with scratch_directory() as scratch, far_registry() as (link, registry, host):
        title = f"A pod at {MBIT_S} Mbit/s and {RTT_S * 1000:.0f} ms, by way of containerd"
        section = Section(PODS, title, describe(scratch))
        begin(section, link, f"lazy: median of {RUNS}; overlayfs: pulled once, then a pod of each")
        site = Site(registry, host, scratch)
        lazy = {name: _lazy(site, name) for name in WORKLOADS}
        theirs, sent = _overlayfs(site)
        for name, (pod, detail) in lazy.items():
            other = theirs[name]
            section.add(
                f"{name}: overlayfs takes longer",
                other.ready_s / pod.ready_s,
                "x",
                Goal(">=", 10),
                f"overlayfs {other.ready_s:.1f} s ({other}), {sent:.1f} MB;"
                f" lazy {pod.ready_s:.2f} s ({pod}), {detail}",
            )
    return section


def _lazy(site: Site, name: str) -> tuple[Pod, str]:
    """Start a pod on new nodes; return the median one, and what the registry sent."""
    pods = []
    for number in range(RUNS):
        with cluster_node(site, f"{list(WORKLOADS).index(name)}-{number}") as node:
            pod = start(node, site.image(LAZY), *WORKLOADS[name])
            pods.append((pod, lazily(node, site.registry)))
    return sorted(pods, key=lambda pair: pair[0].ready_s)[RUNS // 2]


def _overlayfs(site: Site) -> tuple[dict[str, Pod], float]:
    """Pull once; return a pod of each workload, as if it had pulled itself, and MB sent."""
    with cluster_node(site, "overlayfs", "overlayfs") as node:
        began = time.time()
        node.pull(site.image(ORIGINAL), PULL_S)
        pull = time.time() - began
        sent = site.registry.counts.bytes_of("GET") / MB
        pods = {}
        for name, command in WORKLOADS.items():
            pod = start(node, site.image(ORIGINAL), *command)
            pods[name] = Pod(
                pod.sandbox_s, pod.pulled_s + pull, pod.started_s + pull, pod.ready_s + pull
            )
        return pods, sent


@contextlib.contextmanager
def far_registry() -> Iterator[tuple[Link, DockerRegistry, str]]:
    """Yield a link, the registry at its end, and its name on the near side."""
    with distant_registry(MBIT_S, RTT_S) as (link, registry), near(registry.host) as host:
        yield link, registry, host


def publish_pods(name: str) -> None:
    """Put the image of sandboxes into the storage, too."""
    publish([name])
    busybox = find_busybox()
    if busybox is None:
        raise RuntimeError("there is no static busybox: apt install busybox-static")
    with DockerRegistry(storage=storage()) as registry:
        push_pause(registry, busybox, PAUSE)


def begin(section: Section, link: Link, runs: str) -> None:
    """Note the common setting of both sides."""
    section.setting["link"] = f"{link}; {link.measure()}"
    section.setting["runs"] = runs
    section.setting["pods"] = "CRI of Debian's containerd 1.6 and runc; the host's network"
    section.setting["caches"] = (
        "nothing of the image on the node, its blobs in the registry's RAM; pause is there"
    )
    section.start()


@contextlib.contextmanager
def cluster_node(site: Site, name: str, snapshotter: str = "firstread") -> Iterator[Containerd]:
    """Yield a node whose containerd has started a sandbox; reset the registry's counters."""
    scratch = site.scratch / name
    scratch.mkdir()
    pause = f"{site.host}/{PAUSE}"
    with Containerd(scratch, pause, snapshotter=snapshotter) as node:
        node.remove_pod(node.start_pod()[0])
        warm(LARGE)
        site.registry.forget()
        yield node


def start(node: Containerd, image: str, *command: str) -> Pod:
    """Start a pod as the kubelet does, which pulls the image once the sandbox runs."""
    began = time.time()
    pod = node.start_pod()
    sandbox = time.time()
    node.pull(image, PULL_S)
    pulled = time.time()
    _, log = node.start_container(pod, image, *command)
    started = time.time()
    node.wait(lambda: said(log), READY_S)
    times = (sandbox, pulled, started, said(log) or 0.0)
    return Pod(*(at - began for at in times))


def said(log: Path) -> float | None:
    """Return the time at which the workload said that it is ready, in seconds since 1970."""
    for line in log.read_text().splitlines():
        at, _, _, text = line.split(" ", 3)
        if text == READY:
            return datetime.fromisoformat(at).timestamp()
    return None


def lazily(node: Containerd, registry: DockerRegistry) -> str:
    """Return what the registry sent; fail if that was the whole image, or nothing."""
    (mount,) = node.daemon.status()["mounts"]
    present, total = mount["present"], mount["sectors"]
    if not mount["events"] or present == total:
        raise RuntimeError(f"the pod was not lazy: {mount}")
    counts = registry.counts
    return (
        f"{counts.bytes_of('GET') / MB:.1f} MB in {counts.requests_of('GET')} requests,"
        f" {present} of {total} sectors"
    )
