# SPDX-License-Identifier: Apache-2.0
"""Reading present data, compared with the same tree on the disk's file system."""

from __future__ import annotations

from pathlib import Path

from benchmarks.host import Host
from benchmarks.measure import median
from benchmarks.places import LAZY, reference
from benchmarks.report import Goal, Section
from benchmarks.setting import drop_caches
from benchmarks.trees import discard, merged, read_tree
from firstread.testing.registry import DockerRegistry


def present_data(
    section: Section, registry: DockerRegistry, name: str, scratch: Path, runs: int
) -> None:
    """Read a tree whose sectors are all present, and its copy, in turns: cold, then warm."""
    plain = merged(registry, name, scratch / "plain")
    with Host(scratch / "present") as host:
        mounted = host.attach(reference(registry, name, LAZY))
        host.complete(mounted)
        before, used = host.stats(), host.cpu_s()
        for label, cold in (("page-cache-cold", True), ("warm", False)):
            rounds = [[_read(tree, cold=cold) for tree in (plain, mounted)] for _ in range(runs)]
            theirs, ours = (median(times) for times in zip(*rounds, strict=True))
            section.add(
                f"{label} read of the tree: unpacked takes longer",
                theirs / ours,
                "x",
                Goal(">=", 1),
                f"unpacked {theirs:.2f} s, mounted {ours:.2f} s",
            )
        events = host.stats()["waited_reads"] - before["waited_reads"]
        busy = host.cpu_s() - used
    section.add("events of these reads", events, "", Goal("<=", 0))
    section.add(
        "CPU of the daemon meanwhile",
        busy,
        "s",
        Goal("<=", 0.1),
        "heartbeats, and this benchmark's questions",
    )
    discard(plain.parent)


def _read(tree: Path, *, cold: bool) -> float:
    if cold:
        drop_caches()
    return read_tree(tree)
