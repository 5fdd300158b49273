# SPDX-License-Identifier: Apache-2.0
"""A small run of the benchmark of many mounts meets its goals, and notices a missed one."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import many
from benchmarks.host import Host

from firstread.testing.plainimage import PlainImage

pytestmark = pytest.mark.privileged

IMAGES, MOUNTS, FILES, ROUNDS = 3, 20, 16, 8


def cells(measured: many.Many) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in measured.cells[1:]}


def test_some_mounts_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("IMAGES", IMAGES), ("MOUNTS", MOUNTS), ("FILES", FILES)):
        monkeypatch.setattr(many, name, value)
    monkeypatch.setattr(many, "ROUNDS", ROUNDS)
    measured = many.Many(tmp_path)
    measured.run()
    found = cells(measured)
    assert found["files read"][0] == str(MOUNTS * FILES)
    assert found["reads that failed"][0] == "0"
    left = {name: row for name, row in found.items() if name.endswith(" left")}
    assert left == {f"{name} left": ("0", "<= 0", "yes") for name in many.Held.__dataclass_fields__}


def test_leftovers_are_found(tmp_path: Path, plain: tuple[str, PlainImage]) -> None:
    """A check that never finds leftovers would prove nothing."""
    with Host(tmp_path / "node") as host:
        before = many.Held.by(host)
        place = host.mount(plain[0])
        held = many.Held.by(host)
        assert held.mounts == before.mounts + 1
        assert held.marks > before.marks
        assert held.records == before.records + 1
        assert held.processes == before.processes == 2
        beyond = held.beyond(before)
        assert beyond == {**beyond, "mounts": 1, "records": 1, "processes": 0}
        host.detach(place)
        after = many.Held.by(host)
    assert (after.mounts, after.marks, after.records) == (0, 0, 0)
    assert after.processes == 2


def test_a_missed_goal(tmp_path: Path) -> None:
    measured = many.Many(tmp_path)
    measured._add("marks left", 0, "", 0)
    assert measured.met
    measured._add("marks left", 1, "", 0)
    assert not measured.met
    assert measured.cells[-1][-1] == "NO"
