# SPDX-License-Identifier: Apache-2.0
"""Extents of ranges of files, compared with their whole chunk maps."""

from __future__ import annotations

import io
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import NO_SLOT, Extent, extents, next_data
from firstread.erofs.format import BLOCK, DIRENT_SIZE
from firstread.erofs.inode import Inode
from firstread.erofs.tree import HOLE, Device, Node, chunk_address, directory
from firstread.erofs.writer import write_erofs
from firstread.errors import ImageError

MAP = [(0, 0), (0, 2), (0, 4), None, None, (1, 0), (0, 6), (0, 1)]  # slot and block of each chunk
CHUNK = 2 * BLOCK
SIZE = len(MAP) * CHUNK - BLOCK - 100  # the last chunk is short


def image(chunks: list[int], size: int, chunk_size: int = CHUNK) -> tuple[ErofsImage, Inode]:
    """Return an image of one file, and the file."""
    root = directory()
    root.children = {b"f": Node(stat.S_IFREG | 0o644, size=size, chunk_size=chunk_size)}
    root.children[b"f"].chunks = chunks
    out = io.BytesIO()
    write_erofs(out, root, [Device(bytes([slot]) * 32, 8) for slot in range(2)])
    opened = ErofsImage(out.getvalue())
    (nid,) = (n for name, n, _ in opened.readdir(opened.inode(opened.root_nid)) if name == b"f")
    return opened, opened.inode(nid)


FILE = image([HOLE if at is None else chunk_address(*at) for at in MAP], SIZE)


def content(found: list[Extent]) -> list[tuple[int, int]]:
    """Return slot and offset of each byte; zeros have no offset."""
    return [
        (slot, start + at if slot != NO_SLOT else 0)
        for slot, start, length in found
        for at in range(length)
    ]


def _byte(chunk: tuple[int, int] | None, offset: int) -> tuple[int, int]:
    return (NO_SLOT, 0) if chunk is None else (chunk[0], chunk[1] * BLOCK + offset)


EXPECTED = [_byte(chunk, offset) for chunk in MAP for offset in range(CHUNK)][:SIZE]


@given(st.integers(0, SIZE + BLOCK), st.integers(0, SIZE + BLOCK))
def test_a_range_is_covered_in_order_up_to_the_end_of_the_file(offset: int, length: int) -> None:
    assert content(extents(*FILE, offset, length)) == EXPECTED[offset : offset + length]


def test_neighbours_are_one_extent() -> None:
    assert extents(*FILE, 0, SIZE) == [
        Extent(0, 0, 3 * CHUNK),
        Extent(NO_SLOT, 0, 2 * CHUNK),
        Extent(1, 0, CHUNK),
        Extent(0, 6 * BLOCK, CHUNK),
        Extent(0, BLOCK, SIZE - 7 * CHUNK),
    ]


@pytest.mark.parametrize(
    ("offset", "data", "hole"),
    [
        (0, 0, 3 * CHUNK),
        (3 * CHUNK - 1, 3 * CHUNK - 1, 3 * CHUNK),
        (3 * CHUNK + 5, 5 * CHUNK, 3 * CHUNK + 5),
        (SIZE - 1, SIZE - 1, SIZE),
        (SIZE, None, None),
    ],
)
def test_data_and_holes_are_found(offset: int, data: int | None, hole: int | None) -> None:
    assert next_data(*FILE, offset, hole=False) == data
    assert next_data(*FILE, offset, hole=True) == hole


def test_a_directory_has_no_extents() -> None:
    opened, _ = FILE
    assert extents(opened, opened.inode(opened.root_nid), 0, DIRENT_SIZE) == []


def test_a_chunk_outside_its_device_is_refused() -> None:
    opened, file = image([chunk_address(0, 0)], CHUNK)
    data = bytearray(opened.data)
    (at,) = (
        n for n in range(0, len(data), 8) if data[n : n + 8] == bytes([0, 0, 1, 0, 0, 0, 0, 0])
    )
    for index in (bytes([0, 0, 1, 0, 7, 0, 0, 0]), bytes([0, 0, 9, 0, 0, 0, 0, 0])):
        data[at : at + 8] = index
        damaged = ErofsImage(bytes(data))
        with pytest.raises(ImageError):
            extents(damaged, damaged.inode(file.nid), 0, CHUNK)


def test_the_cost_of_a_range_does_not_follow_the_file() -> None:
    opened, file = image([chunk_address(0, 0)] * 1_000_000, 1_000_000 * BLOCK, BLOCK)
    before = os.times().user
    for _ in range(1000):
        assert len(extents(opened, file, 999_999 * BLOCK, BLOCK)) == 1
        assert next_data(opened, file, 7, hole=False) == 7
    assert os.times().user - before < 1.0


def test_a_hole_is_found_far_away() -> None:
    opened, file = image([chunk_address(0, 0)] * 5000 + [HOLE], 5001 * BLOCK, BLOCK)
    assert next_data(opened, file, 3 * BLOCK + 1, hole=True) == 5000 * BLOCK
    assert next_data(opened, file, 5000 * BLOCK, hole=False) is None
