# SPDX-License-Identifier: Apache-2.0
"""Reading the whole of an absent image, compared with pulling and unpacking it first."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.host import Host
from benchmarks.measure import median, timed
from benchmarks.places import LAZY, reference, warm
from benchmarks.report import Goal, Section
from benchmarks.trees import discard, step_by_step, tar, unpacked
from firstread.testing.registry import DockerRegistry


def read_everything(
    section: Section, registry: DockerRegistry, name: str, scratch: Path, runs: int
) -> None:
    """Read all files of a cold image with tar, in three ways, in turns."""

    def lazy(number: int) -> float:
        warm(name)
        with Host(scratch / f"all-{number}") as host:
            started = time.perf_counter()
            tar(host.attach(reference(registry, name, LAZY)))
            seconds = time.perf_counter() - started
            if not host.stats()["events"]:
                raise RuntimeError("the mount was not lazy")
        return seconds

    def classic(way: Callable[[DockerRegistry, str, Path], Path]) -> float:
        warm(name)
        directory = scratch / "plain"
        seconds = timed(lambda: tar(way(registry, name, directory)))
        discard(directory)
        return seconds

    rounds = [(lazy(i), classic(step_by_step), classic(unpacked)) for i in range(runs)]
    ours, steps, together = (median(times) for times in zip(*rounds, strict=True))
    section.add(
        "tar c of the cold mount, of the classic way",
        ours / steps,
        "x",
        Goal("<=", 0.7),
        f"{ours:.1f} s; curl, gzip | tar x, then tar c: {steps:.1f} s",
    )
    section.add(
        "... of the fastest classic way",
        ours / together,
        "x",
        detail=f"layers at a time, unpacked by igzip as they come, then tar c: {together:.1f} s",
    )
