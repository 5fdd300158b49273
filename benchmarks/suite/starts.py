# SPDX-License-Identifier: Apache-2.0
"""One cold start, by any mode, with the bytes and requests that it took.

Owns the order of a start: a new node, the registry's memory warm, counters at zero, the clock.
Invariant: a mode that claims to be lazy and has fetched the whole image fails; no figure comes of
that. Bytes are those that the registry has logged, and those that came over the link: a request
that still runs when the workload is ready is only in the second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.host import Host
from benchmarks.scratch import set_aside
from benchmarks.start import start_classic, start_lazy
from benchmarks.suite.modes import Mode
from benchmarks.suite.nodes import Site, containerd_node, start
from benchmarks.suite.publish import Made
from benchmarks.suite.runs import Run
from benchmarks.suite.workloads import Workload
from firstread.sectors.format import DEFAULT_SECTOR_SIZE
from firstread.testing.containerd import Containerd

FEW_BYTES = 4 * DEFAULT_SECTOR_SIZE

_nodes = itertools.count(1)  # names of a socket's path, which can have 107 bytes in all


@dataclass(frozen=True)
class Case:
    """One start of a workload in one mode over one link.

    Args:
        link: its name.
        site: the registry behind it.
        workload: to start.
        mode: of the start.
        made: the image in that mode.
    """

    link: str
    site: Site
    workload: Workload
    mode: Mode
    made: Made

    @property
    def image(self) -> str:
        """How a node names the image."""
        return self.site.image(self.workload.image, self.made.tag)


def cold_start(case: Case, number: int, scratch: Path) -> Run:
    """Start once on a new node below `scratch`.

    Raises:
        RuntimeError: it did not become ready, or was not lazy.
    """
    place = scratch / f"n{next(_nodes)}"
    way = {"containerd": _by_containerd, "run": _by_run, "classic": _by_classic}
    blank = Run(case.link, case.workload.name, case.mode.name, number)
    run = way[case.mode.client](case, replace(blank, hot_bytes=case.made.hot_bytes), place)
    prove_lazy(case.mode, run, case.made.whole_bytes)
    return run


def prove_lazy(mode: Mode, run: Run, whole_bytes: int) -> None:
    """Fail if a lazy mode has fetched everything, or never had to wait for a byte.

    An image of `FEW_BYTES` has nothing to be lazy about: its start reads some of each sector.

    Args:
        mode: of the start.
        run: its figures.
        whole_bytes: compressed layers of the original image.
    """
    if not mode.lazy or mode.background or whole_bytes <= FEW_BYTES:
        return
    if 0 < run.sectors == run.present or run.bytes_to_ready >= whole_bytes:
        raise RuntimeError(
            f"{mode.name} was not lazy: {run.bytes_to_ready:,} of {whole_bytes:,} bytes,"
            f" {run.present} of {run.sectors} sectors"
        )


def _by_containerd(case: Case, run: Run, place: Path) -> Run:
    workload = case.workload
    with containerd_node(case.site, case.mode, place) as node:
        if case.mode.present:
            with case.site.wide():
                _fetch_all(node, case)
        sandbox = node.start_pod()  # which pulls an image, too
        counted = _counting(case)
        pod = start(node, sandbox, case.image, workload.ready, workload.command)
        run = counted(run)
        if case.mode.snapshotter == "firstread":
            (mount,) = node.daemon.status()["mounts"]
            run = replace(run, present=mount["present"], sectors=mount["sectors"])
    return replace(run, pulled_s=pod.pulled_s, ready_s=pod.ready_s)


def _fetch_all(node: Containerd, case: Case) -> None:
    """Start the pod once and fetch all of its image."""
    sandbox = node.start_pod()
    start(node, sandbox, case.image, case.workload.ready, case.workload.command)
    (mount,) = node.daemon.status()["mounts"]
    fetched = node.daemon.run("fetch", "--all", mount["mountpoint"])
    if fetched.code:
        raise RuntimeError(fetched.stderr)
    node.remove_pod(sandbox[0])


def _by_run(case: Case, run: Run, place: Path) -> Run:
    workload, mode = case.workload, case.mode
    try:
        with Host(place, *(("--device", mode.device) if mode.device else ())) as host:
            if mode.present:
                with case.site.wide():
                    mounted = host.attach(case.image)
                    host.complete(mounted)
                    host.detach(mounted)
            counted, after = _counting(case), [run]
            started = start_lazy(
                host,
                case.image,
                workload.ready,
                workload.command,
                lambda: after.append(counted(run)),
                mode.options,
            )
    finally:
        set_aside(place)
    present, sectors = started.sectors
    return replace(after[-1], ready_s=started.ready_s, present=present, sectors=sectors)


def _by_classic(case: Case, run: Run, place: Path) -> Run:
    workload = case.workload
    try:
        counted, after = _counting(case), [run]
        started = start_classic(
            place,
            case.image,
            workload.ready,
            workload.command,
            lambda: after.append(counted(run)),
        )
    finally:
        set_aside(place)
    return replace(after[-1], pulled_s=started.steps["pull, unpack"], ready_s=started.ready_s)


def _counting(case: Case) -> Callable[[Run], Run]:
    """Begin to count; return what adds the counts so far to a run."""
    site, link = case.site, case.site.link
    site.forget(case.workload.image)
    before = link.received_bytes() if link else 0

    def counted(run: Run) -> Run:
        wire = link.received_bytes() - before if link else 0  # first: it grows
        counts = site.registry.counts
        return replace(
            run,
            wire_bytes=wire,
            sent_bytes=counts.bytes_of("GET"),
            requests=counts.requests_of("GET"),
        )

    return counted
