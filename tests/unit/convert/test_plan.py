# SPDX-License-Identifier: Apache-2.0
"""The planner: what must hold of every placement, and what a few of them are."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.convert.plan import (
    MAX_CHUNK_SIZE,
    MAX_CHUNKS,
    MAX_CHUNKS_PER_FILE,
    Placement,
    Planner,
)
from firstread.erofs.tree import HOLE, split_address
from firstread.errors import LimitError
from firstread.units import KiB, MiB, TiB

BLOCK = 4 * KiB
PiB = 1024 * TiB

Extents = tuple[tuple[int, int], ...]
File = tuple[int, Extents | None]


@st.composite
def files(draw: st.DrawFn) -> File:
    """A file, sparse or not, of up to a few sectors of 64 KiB."""
    size = draw(
        st.one_of(
            st.integers(0, 300 * KiB),
            st.sampled_from([BLOCK, 64 * KiB, 128 * KiB]).flatmap(
                lambda n: st.integers(n - 1, n + 1)
            ),
        )
    )
    if draw(st.booleans()):
        return size, None
    cuts = sorted(draw(st.sets(st.integers(0, size), max_size=12)))
    extents = [(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    return size, tuple(extents)


def place_all(contents: list[File], sector_size: int) -> list[Placement]:
    planner = Planner(sector_size)
    return [planner.place(*file) for file in contents]


@given(st.lists(files(), max_size=20), st.sampled_from([4 * KiB, 8 * KiB, 64 * KiB, 4 * MiB]))
def test_every_placement(contents: list[File], sector_size: int) -> None:
    placements = place_all(contents, sector_size)
    assert placements == place_all(contents, sector_size)
    taken: list[tuple[int, int, int]] = []  # sector, first block, end, in order of placement
    for (size, extents), (chunk_size, chunks, pieces) in zip(contents, placements, strict=True):
        if not size:
            assert (len(chunks), len(pieces)) == (0, 0)
            continue
        assert chunk_size >= BLOCK
        assert chunk_size.bit_count() == 1
        assert len(chunks) == -(-size // chunk_size)
        places = {number: chunk for number, chunk in enumerate(chunks) if chunk != HOLE}
        assert len(places) == len(pieces)
        for (number, chunk), piece in zip(places.items(), pieces, strict=True):
            assert split_address(chunk) == (piece.sector, piece.block)
            assert piece.offset == number * chunk_size
            assert piece.length == min(chunk_size, size - piece.offset)
            assert piece.block * BLOCK + piece.length <= sector_size  # straddles no sector
            assert piece.whole == (piece.length == sector_size)
            blocks = -(-piece.length // BLOCK)
            taken.append((piece.sector, piece.block, piece.block + blocks))
        stored = ((0, size),) if extents is None else extents
        for number in range(len(chunks)):  # a chunk is a hole if and only if no data is in it
            start, end = number * chunk_size, (number + 1) * chunk_size
            has_data = any(at < end and at + length > start for at, length in stored if length)
            assert (number in places) == has_data
    for (sector, _, end), (following, first, _) in pairwise(sorted(taken)):
        assert sector != following or end <= first  # nothing overlaps
    sectors = {sector for sector, _, _ in taken}
    assert sectors == set(range(len(sectors)))  # numbered in order of first use
    assert list(dict.fromkeys(sector for sector, _, _ in taken)) == sorted(sectors)


@given(st.lists(st.integers(1, 64 * KiB), min_size=1, max_size=40))
def test_small_files_stand_side_by_side_in_order(sizes: list[int]) -> None:
    placements = place_all([(size, None) for size in sizes], 64 * KiB)
    addresses = [chunks[0] for _, chunks, _ in placements]
    assert all(len(chunks) == 1 for _, chunks, _ in placements)
    packed = [chunk for chunk, size in zip(addresses, sizes, strict=True) if size < 64 * KiB]
    assert packed == sorted(packed)
    for (address, size), (following, _) in pairwise(
        (chunk, size) for chunk, size in zip(addresses, sizes, strict=True) if size < 64 * KiB
    ):
        (sector, block), (next_sector, next_block) = map(split_address, (address, following))
        if sector == next_sector:
            assert next_block == block + -(-size // BLOCK)  # no block is left free


def test_a_large_file_fills_sectors_and_shares_the_one_of_its_tail() -> None:
    planner = Planner(64 * KiB)
    planner.place(100)
    pieces = planner.place(128 * KiB + 5).pieces
    assert [(p.sector, p.block, p.length, p.whole) for p in pieces] == [
        (1, 0, 64 * KiB, True),
        (2, 0, 64 * KiB, True),
        (0, 1, 5, False),
    ]


@pytest.mark.parametrize(
    ("size", "extents", "chunk_size"),
    [
        (1 * MiB, (), 1 * MiB),  # one index for the hole
        (1 * MiB, ((0, 1),), 4 * KiB),  # 255 indexes more cost less than a stored block
        (1 * MiB, ((0, 1 * MiB),), 64 * KiB),
        (1 * MiB, ((0, 32 * KiB), (512 * KiB, 32 * KiB)), 32 * KiB),
        (100, ((0, 50),), 4 * KiB),
        (1 * TiB, (), 1 * TiB),
        (PiB, (), MAX_CHUNK_SIZE),
        ((1 << 63) - 1, (), MAX_CHUNK_SIZE),
    ],
)
def test_the_chunk_size_of_a_sparse_file(size: int, extents: Extents, chunk_size: int) -> None:
    assert Planner(64 * KiB).place(size, extents).chunk_size == chunk_size


def test_a_sparse_file_that_is_all_data_lies_like_an_ordinary_one() -> None:
    sparse = Planner(64 * KiB).place(200 * KiB, ((0, 200 * KiB),))
    assert sparse == Planner(64 * KiB).place(200 * KiB)


@given(files().filter(lambda file: bool(file[0] and file[1])))
def test_no_other_chunk_size_costs_less(file: File) -> None:
    size, extents = file
    assert extents is not None

    def cost(chunk_size: int) -> int:
        touched = {
            number
            for at, length in extents
            for number in range(at // chunk_size, -(-(at + length) // chunk_size))
        }
        end = -(-size // BLOCK) * BLOCK  # the last chunk takes no more than the file has
        stored = sum(min(chunk_size, end - number * chunk_size) for number in touched)
        return stored + 8 * -(-size // chunk_size)

    chosen = Planner(64 * KiB).place(size, extents).chunk_size
    largest = min(64 * KiB, max(BLOCK, 1 << (size - 1).bit_length()))
    assert cost(chosen) == min(cost(BLOCK << n) for n in range(5) if BLOCK << n <= largest)


@pytest.mark.parametrize(
    ("size", "extents"),
    [
        (PiB, None),
        (PiB, ((0, PiB),)),  # claims data that would fill a rack, and has none
        (PiB, ((PiB - 1, 1),)),
        ((1 << 63) - 1, None),
        (5 * TiB, ((0, 1),)),
    ],
)
def test_petabytes_are_refused_at_once(size: int, extents: Extents | None) -> None:
    started = time.process_time()
    with pytest.raises(LimitError, match="chunks") as caught:
        Planner(4 * MiB).place(size, extents)
    assert time.process_time() - started < 1
    assert "--sector-size" in (caught.value.hint or "")


def test_a_map_of_many_extents_costs_little() -> None:
    extents = tuple((2 * number, 1) for number in range(256 * 1024))
    started = time.process_time()
    assert Planner(4 * MiB).place(512 * KiB, extents).chunk_size == 512 * KiB
    assert time.process_time() - started < 10


def test_the_chunks_of_all_files_together_are_limited() -> None:
    planner = Planner(4 * KiB)
    for _ in range(MAX_CHUNKS // MAX_CHUNKS_PER_FILE):
        planner.place(MAX_CHUNKS_PER_FILE * 4 * KiB, ((0, 1),))
    with pytest.raises(LimitError, match=str(MAX_CHUNKS)):
        planner.place(1)
