# SPDX-License-Identifier: Apache-2.0
"""Where chunk indexes lie in metadata."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.indexruns import IndexRuns
from firstread.erofs.validation import validate
from firstread.erofs.writer import write_erofs
from firstread.testing.trees import feature_tree


def packed(start: int, count: int) -> int:
    """Return a run that begins at an offset, as `pack_run` does."""
    return start // 8 << 32 | count


RUNS = [(64, 1), (96, 3), (4088, 2), (8192, 600), (20480, 1)]
KEPT = IndexRuns(packed(*run) for run in RUNS).to_bytes()
MANY = IndexRuns(packed(start, 1) for start in range(0, 1 << 17, 8)).to_bytes()


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_a_range_has_the_indexes_that_lie_in_it(first: int, stop: int) -> None:
    runs = IndexRuns(packed(*run) for run in RUNS)
    there = {at for start, count in RUNS for at in range(start, start + 8 * count, 8)}
    assert runs.indexes(8 * first, 8 * stop) == sorted(there & set(range(8 * first, 8 * stop, 8)))


def test_runs_can_be_kept() -> None:
    root, data = feature_tree()
    out = io.BytesIO()
    write_erofs(out, root, data.devices)
    image = ErofsImage(out.getvalue())
    kept = validate(image).runs.to_bytes()
    assert kept == validate(image).runs.to_bytes()
    runs = IndexRuns.from_bytes(kept)
    assert runs.indexes(0, image.size) == validate(image).runs.indexes(0, image.size)
    assert len(runs.indexes(0, image.size)) > 50


@pytest.mark.parametrize(
    "damaged",
    [b"", KEPT[:-1], KEPT[:-8], KEPT[8:], bytes([KEPT[0] ^ 1]) + KEPT[1:]],
    ids=["empty", "cut off", "without a digest", "without the first", "another"],
)
def test_damaged_runs_are_not_taken(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        IndexRuns.from_bytes(damaged)


@given(st.integers(0, len(MANY)), st.sets(st.integers(0, len(MANY) >> 12)))
def test_what_a_power_cut_leaves_is_not_taken(size: int, lost: set[int]) -> None:
    """A file that was never flushed: as long as it was, or shorter, and pages of it are zeros."""
    torn = bytearray(MANY)
    for page in lost:
        torn[page << 12 : (page + 1) << 12] = bytes(len(torn[page << 12 : (page + 1) << 12]))
    if torn[:size] != MANY:
        with pytest.raises(ValueError, match="damaged"):
            IndexRuns.from_bytes(bytes(torn[:size]))


def test_there_may_be_no_runs() -> None:
    runs = IndexRuns.from_bytes(IndexRuns([]).to_bytes())
    assert runs.indexes(0, 1 << 20) == []
