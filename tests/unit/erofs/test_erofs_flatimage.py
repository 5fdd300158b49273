# SPDX-License-Identifier: Apache-2.0
"""The flat form of an image, compared with the image that it was made from."""

from __future__ import annotations

import io
import struct
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.erofs.chunks import chunk_size_of, count_chunks
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import METADATA_SLOT, NO_SLOT, Extent
from firstread.erofs.flatimage import MIN_APART, FlatImage
from firstread.erofs.format import (
    BLOCK,
    BOOT_SIZE,
    CHUNK_BASED,
    HOLE_INDEX,
    SUPER_SIZE,
    Superblock,
    align,
)
from firstread.erofs.inode import Inode
from firstread.erofs.reader import scan
from firstread.erofs.tree import Device, directory
from firstread.erofs.validation import validate
from firstread.erofs.writer import write_erofs
from firstread.errors import ImageError
from firstread.testing.trees import SectorData, feature_tree

NULL = 0xFFFFFFFF


@cache
def whole() -> tuple[bytes, FlatImage, bytes, SectorData]:
    """Return metadata with every feature, its flat form, that form's metadata, and the sectors."""
    root, data = feature_tree(names=2_000)
    out = io.BytesIO()
    write_erofs(out, root, data.devices, boot=b"boot", trailer=b"trailer")
    metadata = out.getvalue()
    flat = FlatImage(ErofsImage(metadata))
    return metadata, flat, bytes(flat.metadata(0, len(metadata))), data


def indexes(metadata: bytes, inode: Inode) -> tuple[int, ...]:
    """Return the chunk indexes of a file as they stand in metadata."""
    count = count_chunks(inode.size, chunk_size_of(inode.i_u))
    return struct.unpack_from(f"<{count}Q", metadata, align(inode.tail_offset, 8))


def test_each_chunk_index_names_its_block_on_device_0() -> None:
    metadata, _, flat, _ = whole()
    image = ErofsImage(metadata)
    bases = [device.mapped_blkaddr for device in image.devices]
    seen = 0
    for inode, _ in scan(image):
        if inode.layout == CHUNK_BASED:
            for before, after in zip(indexes(metadata, inode), indexes(flat, inode), strict=True):
                if before == HOLE_INDEX:
                    assert after == HOLE_INDEX
                else:
                    _, slot, block = struct.unpack("<HHI", before.to_bytes(8, "little"))
                    assert after.to_bytes(8, "little") == struct.pack(
                        "<HHI", 0, 0, block + bases[slot - 1]
                    )
                    seen += 1
    assert seen > 50


def test_only_superblock_and_chunk_indexes_differ() -> None:
    metadata, flat, rewritten, _ = whole()
    image = ErofsImage(metadata)
    after = Superblock.unpack(rewritten[BOOT_SIZE : BOOT_SIZE + SUPER_SIZE])
    assert after == image.superblock._replace(devices=0, blocks=flat.size // BLOCK)
    assert after.feature_incompat == 0x04
    spans = [(BOOT_SIZE, BOOT_SIZE + SUPER_SIZE)]
    for inode, _ in scan(image):
        if inode.layout == CHUNK_BASED:
            start = align(inode.tail_offset, 8)
            spans.append((start, start + 8 * len(indexes(metadata, inode))))
    place = 0
    for start, end in sorted(spans):
        assert rewritten[place:start] == metadata[place:start]
        place = end
    assert rewritten[place:] == metadata[place:]


def test_the_parts_are_the_metadata_and_all_sectors_in_order() -> None:
    metadata, flat, _, data = whole()
    expected = [Extent(METADATA_SLOT, 0, len(metadata))]
    expected += [Extent(slot, 0, len(sector)) for slot, sector in enumerate(data.sectors)]
    assert flat.extents(0, flat.size + 1) == expected
    assert flat.size == len(metadata) + sum(map(len, data.sectors))
    assert flat.metadata_size == len(metadata)


def content(found: list[Extent]) -> bytes:
    """Return the bytes of extents."""
    *_, metadata, data = whole()
    parts = {METADATA_SLOT: metadata, **dict(enumerate(data.sectors))}
    return b"".join(bytes(parts[slot][start : start + size]) for slot, start, size in found)


@cache
def flat_bytes() -> bytes:
    """Return the whole flat form."""
    *_, metadata, data = whole()
    return metadata + b"".join(map(bytes, data.sectors))


@given(st.data())
def test_any_range_is_the_part_of_the_whole(draw: st.DataObject) -> None:
    _, flat, metadata, _ = whole()
    near = [flat.metadata_size, flat.size, *range(0, flat.size, BLOCK)]
    offset = draw.draw(st.sampled_from(near)) + draw.draw(st.integers(-9, 9))
    offset, length = max(0, offset), draw.draw(st.integers(0, 300_000))
    assert content(flat.extents(offset, length)) == flat_bytes()[offset : offset + length]
    assert flat.metadata(offset, length) == metadata[offset : offset + length]


def test_a_gap_lies_between_metadata_and_sectors() -> None:
    metadata, flat, _, data = whole()
    image, gap = ErofsImage(metadata), 3 * BLOCK
    apart = FlatImage(image, gap)
    assert apart.size == flat.size + gap
    for offset in (len(metadata) - 5, len(metadata), len(metadata) + 5, len(metadata) + gap - 1):
        (inside, *_) = (e for e in apart.extents(offset, 2 * gap) if e.slot == NO_SLOT)
        assert inside.start == 0
    assert apart.extents(len(metadata) - 5, gap + 10) == [
        Extent(METADATA_SLOT, len(metadata) - 5, 5),
        Extent(NO_SLOT, 0, gap),
        Extent(0, 0, 5),
    ]
    assert apart.extents(apart.size - 5, 100) == [
        Extent(len(data.sectors) - 1, len(data.sectors[-1]) - 5, 5)
    ]
    assert FlatImage(image, apart=gap).size == flat.size + gap * sum(
        device.blocks * BLOCK >= MIN_APART for device in image.devices
    )
    inode = next(i for i, _ in scan(image) if i.layout == CHUNK_BASED and i.size < BLOCK)
    before, after = (indexes(bytes(f.metadata(0, len(metadata))), inode)[0] for f in (flat, apart))
    assert after == before + (3 << 32)


def test_runs_that_are_known_are_not_looked_for() -> None:
    metadata, _, rewritten, _ = whole()
    runs = validate(ErofsImage(metadata)).runs
    damaged = bytearray(metadata)
    damaged[BOOT_SIZE + 14] ^= 0xFF  # the number of the root, where a scan begins
    with pytest.raises(ImageError):
        FlatImage(ErofsImage(bytes(damaged)))
    flat = FlatImage(ErofsImage(bytes(damaged)), runs=runs)
    assert flat.metadata(BLOCK, len(metadata)) == rewritten[BLOCK:]


def test_large_sectors_lie_apart() -> None:
    out = io.BytesIO()
    blocks = (256, 255, 256, 300)
    write_erofs(out, directory(), [Device(bytes([n]) * 32, b) for n, b in enumerate(blocks)])
    flat, size = FlatImage(ErofsImage(out.getvalue()), apart=2 * BLOCK), len(out.getvalue())
    assert flat.extents(size, flat.size) == [
        Extent(0, 0, 256 * BLOCK),
        Extent(NO_SLOT, 0, 2 * BLOCK),
        Extent(1, 0, 255 * BLOCK),
        Extent(2, 0, 256 * BLOCK),
        Extent(NO_SLOT, 0, 2 * BLOCK),
        Extent(3, 0, 300 * BLOCK),
        Extent(NO_SLOT, 0, 2 * BLOCK),
    ]
    assert flat.extents(size + 257 * BLOCK, BLOCK + 1) == [
        Extent(NO_SLOT, 0, BLOCK),
        Extent(1, 0, 1),
    ]


def test_an_image_that_no_address_reaches_is_an_error() -> None:
    out = io.BytesIO()
    write_erofs(out, directory(), [Device(bytes(32), 0xFFFFFFFF - 300)])
    with pytest.raises(ImageError, match="can address"):
        FlatImage(ErofsImage(out.getvalue()), gap=300 * BLOCK)


def test_an_image_without_sectors_is_flat() -> None:
    out = io.BytesIO()
    write_erofs(out, directory(), [])
    flat = FlatImage(ErofsImage(out.getvalue()))
    assert flat.metadata(0, flat.size) == out.getvalue()
    assert flat.extents(0, flat.size) == [Extent(METADATA_SLOT, 0, flat.size)]


@pytest.mark.parametrize(
    ("device", "block"), [(0, 0), (9999, 0), (1, NULL - 1)], ids=["primary", "unknown", "too far"]
)
def test_a_wrong_chunk_index_is_an_error(device: int, block: int) -> None:
    damaged = bytearray(whole()[0])
    image = ErofsImage(bytes(damaged))
    inode = next(i for i, _ in scan(image) if i.layout == CHUNK_BASED)
    struct.pack_into("<HHI", damaged, align(inode.tail_offset, 8), 0, device, block)
    with pytest.raises(ImageError):
        FlatImage(ErofsImage(bytes(damaged)))
    flat = FlatImage(ErofsImage(bytes(damaged)), runs=validate(image).runs)
    with pytest.raises(ImageError):
        flat.metadata(0, len(damaged))
