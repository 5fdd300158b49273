# SPDX-License-Identifier: Apache-2.0
"""Figures of sector sizes: what is kept of a run that is cut short, and what the tables say."""

from __future__ import annotations

from pathlib import Path

from benchmarks.sizes import LOCAL, Footprint, Kept, Sized
from benchmarks.sizetables import sizes_section
from benchmarks.suite.runs import Run

from firstread.units import MiB

LINK = "100Mbit/20ms"
SMALL, LARGE = Sized("plain", MiB), Sized("plain", 4 * MiB)


def run(link: str, workload: str, sized: Sized, ready_s: float) -> Run:
    return Run(link, workload, str(sized), 0, ready_s=ready_s, sent_bytes=7_000_000, requests=9)


def test_a_later_run_knows_the_figures_of_the_earlier(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    assert Kept.read(path).runs == []
    kept = Kept(path)
    kept.add_run(run(LINK, "redis", SMALL, 2.0))
    kept.add_footprint(Footprint("redis", MiB, 147, 53_000_000, 117_000, 0.02, 0.01, 270_000, 0))
    assert Kept.read(path) == kept
    assert kept.count(LINK, "redis", str(SMALL)) == 1
    assert kept.count(LINK, "redis", str(LARGE)) == 0
    assert kept.footprint("redis", MiB)
    assert kept.footprint("redis", 4 * MiB) is None


def test_only_what_was_asked_for_is_shown(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.jsonl")
    local = run(LOCAL, "redis", SMALL, 1.0)
    shown = run(LINK, "redis", SMALL, 2.0)
    for one in (local, shown, run(LINK, "nginx", SMALL, 2.0), run(LINK, "redis", LARGE, 3.0)):
        kept.add_run(one)
    assert kept.of(["redis"], [LINK], [SMALL]).runs == [local, shown]


def test_sizes_are_compared_by_the_best_of_each_workload(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.jsonl")
    for workload, small_s, large_s in (("redis", 2.0, 4.0), ("python", 20.0, 10.0)):
        kept.add_run(run(LINK, workload, SMALL, small_s))
        kept.add_run(run(LINK, workload, LARGE, large_s))
        kept.add_run(run(LOCAL, workload, LARGE, 0.1))
    kept.add_run(run(LINK, "nginx", SMALL, 2.0))  # not with every size: it does not count
    section = sizes_section(kept, {}, 1)
    assert [round(figure.value, 2) for figure in section.figures] == [1.41, 1.41]
    assert "| redis | **2.00**, 7.0, 9 | **4.00**, 7.0, 9 |" in section.table
    assert "| nginx | **2.00**, 7.0, 9 |  |" in section.table
