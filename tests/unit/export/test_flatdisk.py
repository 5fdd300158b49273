# SPDX-License-Identifier: Apache-2.0
"""The map of an image's disk: every byte once, files that nobody sees as zeros."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import METADATA_SLOT, NO_SLOT
from firstread.erofs.format import BLOCK
from firstread.errors import DigestError, ImageError, UsageError
from firstread.export.flatdisk import FlatDisk
from firstread.export.rawfile import write_raw
from firstread.sectors.content import ContentReader
from firstread.sectors.image import BlockImage
from firstread.testing.featurestory import content
from firstread.testing.images import Dir, File, Image, Layer, Sparse, Whiteout
from firstread.testing.packed import MemoryRepository, converted, opened
from firstread.testing.wholedisk import whole_disk

REPLACED = Image(
    [
        Layer([
            Dir("d/"), File("d/old", content("old", 300_000)), File("kept", content("k", 5000)),
        ]),
        Layer([
            Whiteout("d/old"), File("new", content("new", 200_000)),
            Sparse("s", size=1 << 20, data={4096 * 100: b"x" * 9000}),
        ]),
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def image() -> tuple[MemoryRepository, BlockImage]:
    place, manifest = converted(REPLACED)
    return place, opened(place, manifest)


def read(disk: FlatDisk, content: ContentReader, offset: int, length: int) -> bytes:
    """Read the pieces of a range, and check that they touch."""
    data = b""
    for start, piece in disk.pieces(offset, length):
        assert start == offset + len(data)
        assert piece.length > 0
        if piece.slot == METADATA_SLOT:
            data += disk.metadata(piece.start, piece.length)
        elif piece.slot == NO_SLOT:
            data += bytes(piece.length)
        else:
            data += content.sector(piece.slot)[piece.start : piece.start + piece.length]
    return data


def test_ranges_are_those_of_the_whole_disk(image: tuple[MemoryRepository, BlockImage]) -> None:
    place, block_image = image
    expected, _ = whole_disk(place, block_image)
    disk, content = FlatDisk(block_image.erofs), ContentReader.of(place, block_image)
    assert disk.size == len(expected)
    assert read(disk, content, 0, disk.size) == expected
    chance = random.Random(1)
    ranges = [(chance.randrange(disk.size), chance.randrange(1, 99_999)) for _ in range(100)]
    for offset, length in [*ranges, (disk.size - 1, 5), (disk.size, 5), (5, 0)]:
        assert read(disk, content, offset, length) == expected[offset : offset + length]


def test_blocks_that_no_file_refers_to_are_zeros(
    image: tuple[MemoryRepository, BlockImage],
) -> None:
    place, block_image = image
    _, used = whole_disk(place, block_image)
    disk = FlatDisk(block_image.erofs)
    runs = list(disk.runs(0, disk.size))
    assert {
        block
        for start, stop, is_data in runs
        if is_data
        for block in range(start // BLOCK, stop // BLOCK)
    } == used
    assert [stop for _, stop, _ in runs[:-1]] == [start for start, _, _ in runs[1:]]
    turns = [is_data for _, _, is_data in runs]
    assert turns == [number % 2 == 0 for number in range(len(runs))]
    assert len(used) * BLOCK < disk.size  # the replaced file shares a sector with one that stays


def test_an_image_without_files_is_metadata() -> None:
    place, manifest = converted(Image([Layer([Dir("d/")])]))
    disk = FlatDisk(opened(place, manifest).erofs)
    assert list(disk.runs(0, 1 << 40)) == [(0, disk.size, True)]


def test_damaged_metadata_is_refused(image: tuple[MemoryRepository, BlockImage]) -> None:
    _, block_image = image
    data = bytearray(block_image.metadata)
    erofs = block_image.erofs
    at = (erofs.superblock.meta_blkaddr * BLOCK) + (erofs.root_nid << 5)
    data[at] ^= 0x40
    with pytest.raises(ImageError):
        FlatDisk(ErofsImage(bytes(data)))


# -- the disk as a file ------------------------------------------------------------------------


@pytest.mark.parametrize("which", [REPLACED, Image([Layer([Dir("d/")])])])
def test_a_raw_file_is_the_whole_disk(which: Image, tmp_path: Path) -> None:
    place, manifest = converted(which)
    block_image = opened(place, manifest)
    expected, used = whole_disk(place, block_image)
    path = tmp_path / "raw"
    path.write_bytes(b"old")
    assert write_raw(place, block_image, path) == len(expected)
    assert path.read_bytes() == expected
    assert os.listdir(tmp_path) == ["raw"]
    extra = 16 * BLOCK  # that the file system takes for the map of a file with holes
    assert path.stat().st_blocks * 512 <= len(used) * BLOCK + extra


def test_a_damaged_sector_leaves_no_file(tmp_path: Path) -> None:
    place, manifest = converted(REPLACED)
    block_image = opened(place, manifest)
    digest = block_image.blobs[1].digest
    damaged = bytearray(place.blobs[digest])
    damaged[len(damaged) // 2] ^= 1
    place.blobs[digest] = bytes(damaged)
    path = tmp_path / "raw"
    path.write_bytes(b"old")
    with pytest.raises((ImageError, DigestError)):
        write_raw(place, block_image, path)
    assert (os.listdir(tmp_path), path.read_bytes()) == (["raw"], b"old")


def test_a_pipe_is_no_place_for_a_raw_file(
    tmp_path: Path, image: tuple[MemoryRepository, BlockImage]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is not a file"):
        write_raw(*image, tmp_path / "pipe")
