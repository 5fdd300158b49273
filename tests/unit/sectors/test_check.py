# SPDX-License-Identifier: Apache-2.0
"""A sector file is what its id says, or it is found out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstread.errors import NodeError
from firstread.sectors.check import _digests, is_sector, is_whole
from firstread.sectors.format import Geometry
from firstread.testing.memorysource import make_sectors
from firstread.units import KiB, MiB

FRAME = 4 * KiB
GEOMETRY = Geometry(64 * KiB, FRAME)


@pytest.fixture(params=[64 * KiB, 20 * KiB, 4 * KiB])
def sector(request: pytest.FixtureRequest) -> tuple[bytes, bytes]:
    """Id and content of a sector of several sizes: whole, with a short last frame, one frame."""
    made = make_sectors(1, size=request.param, geometry=GEOMETRY)
    return made.wanted[0].entry.id, made.contents[0]


def checked(path: Path, sector_id: bytes, size: int, frame_size: int = FRAME) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return is_sector(fd, sector_id, size, frame_size)
    finally:
        os.close(fd)


def test_only_the_sector_itself_passes(tmp_path: Path, sector: tuple[bytes, bytes]) -> None:
    sector_id, content = sector
    path = tmp_path / "sector"
    path.write_bytes(content)
    assert checked(path, sector_id, len(content))
    assert not checked(path, bytes(32), len(content))
    for place in (0, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert not checked(path, sector_id, len(content))
    for wrong in (b"", content[:-1], content[:-4096], content + b"\0", bytes(len(content))):
        path.write_bytes(wrong)
        assert not checked(path, sector_id, len(content))


def test_frames_of_another_size_are_another_sector(tmp_path: Path) -> None:
    made = make_sectors(1, geometry=GEOMETRY)
    path = tmp_path / "sector"
    path.write_bytes(made.contents[0])
    assert not checked(path, made.wanted[0].entry.id, 64 * KiB, frame_size=8 * KiB)


def test_a_file_is_known_for_a_sector_whatever_an_image_says(tmp_path: Path) -> None:
    """An image that lies about the size of a sector, or its frames, must not have it emptied."""
    made = make_sectors(1, geometry=GEOMETRY)
    sector_id, path = made.wanted[0].entry.id, tmp_path / "sector"

    def whole(data: bytes, frame_size: int) -> bool:
        path.write_bytes(data)
        with path.open("rb") as file:
            return is_whole(file.fileno(), sector_id, frame_size)

    for frame_size in (FRAME, 8 * KiB, 4 * MiB):
        assert whole(made.contents[0], frame_size)
        for wrong in (b"", made.contents[0][:-4096], made.contents[0] + bytes(4096)):
            assert not whole(wrong, frame_size)


def test_what_a_disk_cannot_read_is_no_sector() -> None:
    with open("/proc/self/mem", "rb") as file:  # EIO
        fd = file.fileno()
        assert _digests(fd, 4096, 4096) is None


def test_a_file_that_cannot_be_read_is_a_node_error(tmp_path: Path) -> None:
    made = make_sectors(1, geometry=GEOMETRY)
    path = tmp_path / "sector"
    path.write_bytes(made.contents[0])
    fd = os.open(path, os.O_WRONLY)
    try:
        with pytest.raises(NodeError, match="cannot be read"):
            is_sector(fd, made.wanted[0].entry.id, 64 * KiB, FRAME)
    finally:
        os.close(fd)
