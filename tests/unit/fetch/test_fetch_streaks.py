# SPDX-License-Identifier: Apache-2.0
"""Sequential readers are recognised, and what is fetched ahead of them grows."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from firstread.fetch.queue import Filling
from firstread.fetch.streaks import (
    AHEAD_S,
    FIRST_SECTORS,
    MOST_AHEAD_BYTES,
    MOST_STREAKS,
    Streaks,
)
from firstread.oci.model import Descriptor
from firstread.sectors.format import Geometry, SectorEntry
from firstread.sectors.source import Wanted
from firstread.units import KiB, MiB

BLOBS = [Descriptor(media_type="x", digest=f"sha256:{n:064x}", size=1 << 40) for n in range(2)]
LENGTH = 3 * MiB
FAST, SLOW = math.inf, 10.0 * MiB
MIDDLE = 2 * MiB  # of a sector


def filling(number: int, *, blob: int = 0, length: int = LENGTH, filled: int = 0) -> Filling:
    """Return sector `number` of a blob of sectors without gaps."""
    entry = SectorEntry(bytes(32), 4 * MiB, blob, number * length, length)
    geometry = Geometry(4 * MiB, 256 * KiB)
    return Filling(Wanted(entry, BLOBS[blob], geometry), filled=filled)


def reaches(
    reads: Iterable[tuple[int, int]], bytes_per_s: float, length: int = LENGTH
) -> list[int]:
    """Return how many sectors of what lies behind each read should be wanted."""
    ahead, found = Streaks(), []
    for number, offset in reads:
        streak = ahead.demand(filling(number, length=length), offset, bytes_per_s)
        found.append(round(streak.reach / length) if streak else 0)
    return found


@pytest.mark.parametrize("link", [FAST, SLOW])
def test_reads_here_and_there_fetch_nothing_ahead(link: float) -> None:
    assert reaches([(n, 0) for n in (0, 5, 3, 9, 20)], link) == [0] * 5


def test_a_sequential_reader_gets_more_and_more_ahead() -> None:
    found = reaches([(n, 0) for n in range(8)], FAST)
    most = round(MOST_AHEAD_BYTES / LENGTH)
    assert found == [0, FIRST_SECTORS, 4, 8, 16, 32, most, most]


def test_further_reads_of_the_same_sector_change_nothing() -> None:
    reads = [(n, at) for n in range(3) for at in (0, MiB, MIDDLE)]
    assert reaches(reads, FAST) == [0, 0, 0, 2, 2, 2, 4, 4, 4]


def test_no_more_is_wanted_than_the_link_brings_in_time() -> None:
    assert max(reaches([(n, 0) for n in range(8)], SLOW)) == round(AHEAD_S * SLOW / LENGTH)


def test_sectors_of_every_size_mean_the_same_bytes() -> None:
    found = reaches([(n, 0) for n in range(20)], FAST, length=200 * KiB)
    assert max(found) == round(MOST_AHEAD_BYTES / (200 * KiB))


def test_neighbours_that_are_not_read_in_order_get_little_on_a_fast_link() -> None:
    assert reaches([(n, MIDDLE) for n in range(6)], FAST) == [0, *[FIRST_SECTORS] * 5]


def test_neighbours_that_are_not_read_in_order_get_nothing_on_a_slow_link() -> None:
    assert reaches([(n, MIDDLE) for n in range(6)], SLOW) == [0] * 6


def test_a_reader_that_waits_where_a_sector_is_being_filled_goes_on() -> None:
    ahead = Streaks()
    ahead.demand(filling(0), 0, SLOW)
    assert ahead.demand(filling(1, filled=MIDDLE), MIDDLE, SLOW)
    assert not ahead.demand(filling(2, filled=MiB), MIDDLE, SLOW)


def test_a_reader_that_meets_what_was_fetched_ahead_is_still_the_same() -> None:
    ahead = Streaks()
    ahead.demand(filling(0), 0, FAST)
    streak = ahead.demand(filling(1), 0, FAST)
    assert streak
    assert streak.is_short(filling(1).sector)
    streak.last = filling(9).sector
    assert ahead.demand(filling(7), 0, FAST) is streak
    assert streak.reach == 4 * LENGTH
    assert not streak.covers(filling(7).sector)
    assert not streak.is_short(filling(7).sector)
    assert streak.is_short(filling(9).sector)
    assert ahead.demand(filling(11), 0, FAST) is None


@pytest.mark.parametrize(
    ("offset", "bytes_per_s", "found"),
    [(0, FAST, [False, False, True, True]), (0, SLOW, [False] * 4), (MIDDLE, FAST, [False] * 4)],
)
def test_a_reader_in_order_waits_for_whole_sectors_on_a_fast_link(
    offset: int, bytes_per_s: float, found: list[bool]
) -> None:
    ahead, said = Streaks(), []
    for number in range(4):
        streak = ahead.demand(filling(number), offset, bytes_per_s)
        said.append(bool(streak and streak.is_in_order(filling(number).sector, bytes_per_s)))
    assert said == found


def test_a_reader_that_leaves_the_order_does_not_wait_for_whole_sectors() -> None:
    ahead = Streaks()
    for number in range(4):
        streak = ahead.demand(filling(number), 0, FAST)
    assert streak
    assert streak.is_in_order(filling(3).sector, FAST)
    streak = ahead.demand(filling(4), MIDDLE, FAST)
    assert streak
    assert not streak.is_in_order(filling(4).sector, FAST)


def test_streaks_of_two_blobs_are_two() -> None:
    ahead = Streaks()
    for number in range(3):
        for blob in (0, 1):
            streak = ahead.demand(filling(number, blob=blob), 0, FAST)
            assert bool(streak) == (number > 0)


def test_only_the_last_readers_are_remembered() -> None:
    ahead = Streaks()
    for number in range(0, 10 * MOST_STREAKS, 5):
        ahead.demand(filling(number), 0, FAST)
    assert ahead.demand(filling(1), 0, FAST) is None
    assert ahead.demand(filling(10 * MOST_STREAKS - 4), 0, FAST)
