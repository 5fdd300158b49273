# SPDX-License-Identifier: Apache-2.0
"""Hit ratios of bounded stores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.testing.packed import SMALL
from firstread.testing.tuning import convert
from firstread.tune.hits import Held, count_hits, held
from firstread.tune.layout import Need, PlainLayout
from firstread.tune.replay import Step

CONTENT = convert().content
LAYOUT = PlainLayout(CONTENT, SMALL.sector_size, SMALL.frame_size, ())
UNITS = [number for number, unit in enumerate(LAYOUT.units) if unit.entry.length]
SIZES = [LAYOUT.units[number].entry.size for number in UNITS]
FULL = [number for number, size in enumerate(SIZES) if size == SMALL.sector_size]


def start(*units: int) -> list[Held]:
    return held(LAYOUT, [Step(0, [Need(UNITS[unit], 0, 1)]) for unit in units])


def test_a_store_that_holds_all_misses_once() -> None:
    hits = count_hits([start(0, 1, 1), start(0, 1)] * 5, 1 << 40)
    assert (hits.starts, hits.touched, hits.missed) == (10, 20, 2)
    assert hits.fetched == SIZES[0] + SIZES[1]
    assert hits.ratio == pytest.approx(0.9)


def test_a_store_for_less_than_a_sector_saves_nothing() -> None:
    hits = count_hits([start(0, 1)] * 5, 1)
    assert (hits.missed, hits.ratio) == (10, 0)


def test_a_sector_that_every_start_reads_outlives_those_that_one_does() -> None:
    common, *others = FULL
    room = 3 * SMALL.sector_size
    starts = [start(common, other, common) for other in others for _ in range(2)]
    hits = count_hits(starts, room)
    assert len(others) >= 4
    assert hits.missed == 1 + len(others)


@given(
    st.lists(st.lists(st.integers(0, len(SIZES) - 1), min_size=1, max_size=9), min_size=1),
    st.integers(0, 10),
)
def test_a_larger_store_than_all_is_as_good_as_any(starts: list[list[int]], sectors: int) -> None:
    reads = [start(*units) for units in starts]
    least = len({unit for units in starts for unit in units})
    hits = count_hits(reads, sectors * SMALL.sector_size)
    assert least <= hits.missed <= hits.touched
    assert count_hits(reads, 2 * sum(SIZES)).missed == least


def test_images_share_the_layers_that_they_have_in_common() -> None:
    coarse = PlainLayout(CONTENT, 2 * SMALL.sector_size, SMALL.frame_size, ())
    again = PlainLayout(convert().content, SMALL.sector_size, SMALL.frame_size, ())
    step = [Step(0, [Need(UNITS[1], 0, 1)])]
    assert count_hits([held(LAYOUT, step), held(again, step)], 1 << 40).missed == 1
    assert count_hits([held(LAYOUT, step), held(coarse, step)], 1 << 40).missed == 2


def test_starts_that_need_nothing_miss_nothing() -> None:
    assert count_hits([start(), start()], 1).ratio == 1
