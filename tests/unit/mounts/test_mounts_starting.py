# SPDX-License-Identifier: Apache-2.0
"""When the start of a mount is over."""

from __future__ import annotations

import pytest

from firstread.mounts.starting import LONGEST_S, QUIET_S, UNUSED_S, Start

Look = tuple[float, int, int]  # seconds since the beginning, reads so far, hot sectors absent


def over_at(looks: list[Look], reads: int = 0, hot: int = 0) -> float | None:
    """Return the time of the first look at which a start is over."""
    start = Start(1000.0, reads, hot, knows_start=hot > 0)
    return next((at for at, *seen in looks if start.is_over(1000.0 + at, *seen)), None)


STEPS = [float(second) for second in range(int(LONGEST_S) + 2)]


def test_a_mount_that_nobody_uses_has_time() -> None:
    assert over_at([(at, 0, 0) for at in STEPS]) == UNUSED_S


def test_reads_of_another_mount_before_do_not_count() -> None:
    assert over_at([(at, 70, 0) for at in STEPS], reads=70) == UNUSED_S


def test_a_start_is_over_when_no_read_waits_any_more() -> None:
    assert over_at([(at, min(int(at), 9), 0) for at in STEPS]) == 9 + QUIET_S


def test_a_pause_shorter_than_that_is_part_of_the_start() -> None:
    looks = [(at, 1 if at < QUIET_S else 2, 0) for at in STEPS[1:]]
    assert over_at(looks) == 2 * QUIET_S


def test_a_start_is_not_over_while_hot_sectors_come() -> None:
    assert over_at([(at, 3, 20 - min(int(at), 20)) for at in STEPS], hot=20) == 20 + UNUSED_S


def test_a_server_that_computes_beside_its_hot_sectors_still_starts() -> None:
    looks = [(at, 3 if at < 20 else 4, max(0, 4 - int(at))) for at in STEPS]
    assert over_at(looks, hot=4) == 20 + UNUSED_S


def test_hot_sectors_that_do_not_come_are_not_waited_for() -> None:
    assert over_at([(at, 3, 20) for at in STEPS], hot=20) == UNUSED_S


def test_a_workload_that_reads_for_ever_has_started_some_time() -> None:
    assert over_at([(at, int(at), 0) for at in STEPS]) == LONGEST_S


@pytest.mark.parametrize("reads", [0, 1])
def test_one_late_look_is_enough(reads: int) -> None:
    assert over_at([(LONGEST_S + 500, reads, 0)]) == LONGEST_S + 500
