# SPDX-License-Identifier: Apache-2.0
"""What ``--explain`` says of a plan."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from firstread.cli.explain import explained
from firstread.fetch.rate import Rate
from firstread.fetch.startplan import Mode, decide
from firstread.mounts.nodestatus import Planned
from firstread.units import MiB


def mount(
    mode: Mode, *, rest: int, is_measured: bool = True, knows_start: bool = True
) -> dict[str, Any]:
    link = Rate()
    if is_measured:
        link.note(10 * MiB, 1.0)
        link.note_latency(0.02)
    plan = decide(mode, 20 * MiB, 20 * MiB + rest, link, knows_start=knows_start)
    return {"prefetch": msgspec.to_builtins(Planned.of(plan))}


def test_the_numbers_of_a_distant_image() -> None:
    assert explained(mount("hot", rest=180 * MiB)) == [
        "prefetch     hot: hot sectors first, the others when they are read",
        "hot sectors  20.0 MiB to come, in 2.02 s",
        "all sectors  200.0 MiB to come, in 20.02 s; no pull is ready before",
        "link         84 Mbit/s, an answer begins after 20.0 ms",
    ]


@pytest.mark.parametrize(
    ("mode", "rest", "expected"),
    [
        ("hot", MiB, "the others right behind them"),
        ("all", 180 * MiB, "in the background"),
        ("none", MiB, "nothing; all sectors when they are read"),
    ],
)
def test_the_order(mode: Mode, rest: int, expected: str) -> None:
    assert expected in explained(mount(mode, rest=rest))[0]


def test_a_link_that_was_not_measured_gives_no_times() -> None:
    lines = explained(mount("hot", rest=MiB, is_measured=False))
    assert lines[1] == "hot sectors  20.0 MiB to come"
    assert lines[3] == "link         not measured yet"


def test_a_start_set_is_a_guess() -> None:
    line = explained(mount("hot", rest=MiB, knows_start=False))[0]
    assert "hot: hot sectors around a read of them, the others when they are read" in line


def test_an_older_daemon_has_no_plan() -> None:
    assert len(explained({})) == 1
