# SPDX-License-Identifier: Apache-2.0
"""By how much limits are exceeded, and what of it must go."""

from __future__ import annotations

import pytest

from firstread.cache.limits import CALM_SHARE, READY_SHARE, Holdings, Limits
from firstread.cache.room import Room
from firstread.units import GiB, MiB

NONE = Limits(0, 0, 0)


def holding(
    sectors: int = 0, metadata: int = 0, reserved: int = 0, files: int = 0, free: int = 0
) -> Holdings:
    return Holdings(sectors, metadata, reserved, files, free)


def test_without_limits_nothing_is_too_much() -> None:
    held = holding(100 * GiB, GiB, GiB, 10**9)
    assert NONE.over(held, GiB) == NONE.over_files(held, 1) == 0
    assert not NONE.surplus(held, GiB)
    assert NONE.ready(held, GiB, hurry=True) == 0


def test_what_fills_were_admitted_for_counts() -> None:
    limits = Limits(100, 0, 0)
    assert limits.over(holding(60, 0, 30), 10) == 0
    assert limits.over(holding(60, 0, 31), 10) == 1


@pytest.mark.parametrize(("metadata", "over"), [(0, -60), (20, -40), (50, -10), (90, -10)])
def test_metadata_takes_half_of_the_limit_from_sectors_at_most(metadata: int, over: int) -> None:
    assert Limits(100, 0, 0).over(holding(40, metadata), 0) == over


def test_all_metadata_counts_for_what_is_idle() -> None:
    limits = Limits(100, 8, 0)
    assert limits.surplus(holding(40, 90, files=10), 0) == Room(30, 2)
    assert limits.surplus(holding(40, 90, files=8), 5) == Room(35, 0)


def test_the_file_system_keeps_what_it_is_to_keep() -> None:
    limits = Limits(0, 0, 100)
    assert limits.over(holding(reserved=30, free=150), 20) == 0
    assert limits.over(holding(reserved=30, free=150), 21) == 1


def test_sectors_drain_in_advance_when_the_limit_is_near() -> None:
    limits = Limits(16 * GiB, 0, 0)
    assert limits.headroom == 64 * MiB
    far = holding(16 * GiB - 3 * limits.headroom)
    near = holding(16 * GiB - limits.headroom)
    assert limits.ready(far, limits.headroom, hurry=False) == 0
    assert limits.ready(near, limits.headroom, hurry=False) == 16 * GiB // CALM_SHARE
    assert limits.ready(near, limits.headroom, hurry=True) == 16 * GiB // READY_SHARE
