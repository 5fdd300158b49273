# SPDX-License-Identifier: Apache-2.0
"""Sets of frames, and what the store remembers of files with holes."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.sectors.frameset import NOTHING, FrameSet
from firstread.sectors.sectorstore import SectorStore

A, B = (bytes([number]) * 32 for number in range(2))
WHOLE = 16384


def test_a_prefix_is_one_number() -> None:
    frames = NOTHING.having(0, 4).having(4, 8).having(2, 6)
    assert frames == FrameSet(8)
    assert (frames.size, frames.end, frames.has_holes) == (8, 8, False)


def test_pieces_merge_when_the_hole_between_them_is_filled() -> None:
    frames = NOTHING.having(8, 12).having(0, 4)
    assert frames == FrameSet(4, ((8, 12),))
    assert (frames.size, frames.end, frames.has_holes) == (8, 12, True)
    assert frames.having(4, 8) == FrameSet(12)


pieces = st.tuples(st.integers(0, 24), st.integers(1, 8)).map(lambda p: (p[0], p[0] + p[1]))


@given(st.lists(pieces, max_size=8), pieces)
def test_a_set_of_frames_is_a_set(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    frames, model = NOTHING, set[int]()
    for start, end in added:
        frames = frames.having(start, end)
        model |= set(range(start, end))
    assert frames.size == len(model)
    assert frames.end == max(model, default=-1) + 1
    assert frames.covers(*asked) == model.issuperset(range(*asked))
    found = [(0, frames.prefix), *frames.pieces]
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(found))
    assert frames.has_holes == (frames.size < frames.end)


# Files with holes.


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def claimed(root: Path) -> SectorStore:
    store = SectorStore(root, filesystems=None)
    store.claim()
    return store


@pytest.fixture
def store(root: Path) -> Iterator[SectorStore]:
    with claimed(root) as store:
        store.ensure([A, B])
        yield store


def write(store: SectorStore, sector_id: bytes, start: int, end: int) -> None:
    with store.path(sector_id).open("r+b") as file:
        file.seek(start)
        file.write(b"\xaa" * (end - start))


def with_a_hole(store: SectorStore) -> None:
    write(store, A, 0, 4096)
    store.allow_holes(A, 4096)
    write(store, A, 8192, WHOLE)
    store.note_frames(A, 8192, WHOLE)


def test_a_file_with_holes_is_never_taken_for_a_prefix(store: SectorStore) -> None:
    with_a_hole(store)
    assert store.path(A).stat().st_size == WHOLE
    assert store.holed(A) == FrameSet(4096, ((8192, WHOLE),))
    assert store.size(A) == dict(store.sizes())[A] == store.ensure([A])[0] == 12288
    store.flush(A)
    assert not store.is_flushed(A)
    assert store.set_aside([A]) == []


def test_an_older_version_takes_it_for_unverified(store: SectorStore) -> None:
    """It knows no records: the execute bit says that the bytes are not to be trusted."""
    with_a_hole(store)
    assert store.path(A).stat().st_mode & stat.S_IXUSR


def test_it_survives_a_restart_as_such(root: Path, store: SectorStore) -> None:
    with_a_hole(store)
    store.close()
    with claimed(root) as again:
        assert again.with_holes() == {A: FrameSet(4096, ((8192, WHOLE),))}


def test_after_a_reboot_it_is_emptied(root: Path, store: SectorStore) -> None:
    with_a_hole(store)
    write(store, B, 0, WHOLE)
    store.close()
    (root / "boot").write_text("another boot\n")
    with claimed(root) as again:
        assert (again.size(A), again.with_holes()) == (0, {})
        assert stat.S_IMODE(again.path(A).stat().st_mode) == 0o600
        assert again.set_aside([A, B]) == [B]


def test_once_whole_it_is_like_others(store: SectorStore) -> None:
    with_a_hole(store)
    write(store, A, 4096, 8192)
    store.note_frames(A, 4096, 8192)
    assert store.holed(A) == FrameSet(WHOLE)
    store.close_holes(A)
    assert (store.holed(A), store.with_holes(), store.size(A)) == (None, {}, WHOLE)
    store.flush(A)
    assert store.is_flushed(A)


def test_one_that_is_emptied_is_like_others(store: SectorStore) -> None:
    with_a_hole(store)
    store.empty(A)
    assert (store.holed(A), store.with_holes(), store.size(A)) == (None, {}, 0)
    assert stat.S_IMODE(store.path(A).stat().st_mode) == 0o600


def test_a_record_claims_too_little_when_a_process_dies(root: Path, store: SectorStore) -> None:
    store._holes.begin(A, 0)  # and no hole was made yet
    with_a_hole(store)
    write(store, A, 4096, 8192)  # and not noted
    with (root / "frames" / A.hex()).open("ab") as file:
        file.write(b"torn")
    assert store.holed(A) == FrameSet(4096, ((8192, WHOLE),))
    store.note_frames(A, 4096, 8192)
    assert store.holed(A) == FrameSet(WHOLE)


@pytest.mark.parametrize("how", ["no record", "a record that makes no sense", "a shorter file"])
def test_unproved_frames_are_unverified(store: SectorStore, how: str) -> None:
    with_a_hole(store)
    record = store.root / "frames" / A.hex()
    if how == "no record":
        record.unlink()
    elif how == "a shorter file":
        os.truncate(store.path(A), 8192)
    else:
        record.write_bytes(bytes([9]) * 8 + bytes(8))
    assert store.holed(A) is None
    assert store.with_holes() == {}
    assert store.set_aside([A]) == [A]


def test_a_record_of_another_file_goes(store: SectorStore) -> None:
    store._holes.begin(A, 0)
    store._holes.begin(b"\x09" * 32, 0)
    assert store.with_holes() == {}
    assert list((store.root / "frames").iterdir()) == []


def test_a_file_that_was_being_emptied_is_not_set_aside(store: SectorStore) -> None:
    """A process can die between the two steps of that."""
    store.path(A).chmod(0o700)
    assert store.set_aside([A]) == []
    assert stat.S_IMODE(store.path(A).stat().st_mode) == 0o600
