# SPDX-License-Identifier: Apache-2.0
"""Reading files of an image without a mount."""

from __future__ import annotations

import random

import pytest

from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, Node, chunk_address
from firstread.errors import ImageError, NotFoundError
from firstread.oci.model import Manifest
from firstread.sectors.content import KEEP, ContentReader, read_frames
from firstread.sectors.format import Geometry
from firstread.sectors.native import NativeSource
from firstread.testing.images import File, Image, Layer, Sparse
from firstread.testing.memorysource import MemorySource, make_sectors
from firstread.testing.packed import MemoryRepository, converted, opened
from firstread.units import KiB

LARGE = random.Random(1).randbytes(300_000)
SPARSE = Sparse("sparse", size=1 << 24, data={5 << 20: b"data", 9 << 20: LARGE[:100_000]})
IMAGE = Image(
    [
        Layer([File("large", LARGE), File("a", b"a" * 5000)]),
        Layer([SPARSE, File("b", b"b" * 4096), File("empty", b""), File("zeros", bytes(200_000))]),
    ]
)


def reader() -> tuple[MemoryRepository, Manifest, ContentReader, dict[bytes, Node]]:
    place, manifest = converted(IMAGE)
    image = opened(place, manifest)
    place.reads.clear()
    children = read_tree(image.erofs).children
    assert children is not None
    return place, manifest, ContentReader.of(place, image), children


def whole(content: ContentReader, node: Node) -> bytes:
    data = bytearray(node.size)
    for offset, piece in content.data(node):
        assert len(piece) <= node.chunk_size
        data[offset : offset + len(piece)] = piece
    return bytes(data)


def test_files() -> None:
    _, _, content, children = reader()
    for layer in IMAGE.layers:
        for item in layer.items:
            assert isinstance(item, File | Sparse)
            name = str(item.path).encode()
            assert whole(content, children[name]) == item.content


def test_holes_are_left_out() -> None:
    place, _, content, children = reader()
    data = sum(len(piece) for _, piece in content.data(children[b"sparse"]))
    assert 100_000 <= data <= 120_000
    holes = [chunk == HOLE for chunk in children[b"zeros"].chunks]
    assert holes == [True, True, True, False]
    place.reads.clear()
    empty = children[b"empty"]
    assert list(content.data(empty)) == []
    assert not place.reads


def test_a_sector_is_fetched_once_for_files_side_by_side() -> None:
    place, manifest, content, children = reader()
    for _ in range(3):
        whole(content, children[b"a"])
    assert place.reads == {manifest.layers[1].digest: 1}


def test_kept_sectors_are_bounded() -> None:
    place, _, content, _ = reader()
    content._limit = 2
    for slot in (0, 1, 2, 0, 2):
        content.sector(slot)
    assert place.reads.total() == 4  # the second 0 had been given up
    assert KEEP // (64 * KiB) > 2


def test_sectors_are_read_only() -> None:
    _, _, content, _ = reader()
    with pytest.raises(TypeError):
        content.sector(0)[0] = 1


def test_damage() -> None:
    place, manifest, content, children = reader()
    blob = manifest.layers[1].digest
    data = bytearray(place.blobs[blob])
    data[1000] ^= 1
    place.blobs[blob] = bytes(data)
    with pytest.raises(ImageError) as caught:
        whole(content, children[b"large"])
    assert caught.value.layer == blob
    place.blobs[blob] = bytes(data[:2000])
    with pytest.raises(ImageError):
        whole(content, children[b"large"])
    del place.blobs[blob]
    with pytest.raises(NotFoundError) as missing:
        whole(content, children[b"large"])
    assert missing.value.layer == blob
    assert whole(content, children[b"b"]) == b"b" * 4096


@pytest.mark.parametrize(
    ("name", "offset", "length"),
    [
        (b"large", 0, 300_000),
        (b"large", 65_000, 2_000),
        (b"large", 299_000, 9_999),
        (b"large", 400_000, 1),
        (b"sparse", (5 << 20) - 10, 20),
        (b"sparse", 0, 100),
        (b"zeros", 5, 10),
        (b"empty", 0, 10),
    ],
)
def test_a_range_of_a_file(name: bytes, offset: int, length: int) -> None:
    _, _, content, children = reader()
    expected = whole(content, children[name])[offset : offset + length]
    assert reader()[2].read(children[name], offset, length) == expected


def test_a_range_costs_its_frames_alone() -> None:
    """Frames have 16 KiB here, and what they hold cannot be compressed."""
    place, manifest, content, children = reader()
    blob = manifest.layers[1].digest
    content.read(children[b"large"], 50_000, 10)
    assert place.reads[blob] == 2  # the frame table, and the fourth frame
    assert content.read(children[b"large"], 50_100, 99) == LARGE[50_100:50_199]
    assert place.reads[blob] == 2
    assert whole(content, children[b"large"]) == LARGE


def test_frames_of_small_gaps_come_along() -> None:
    sectors = make_sectors(1, size=256 * KiB, geometry=Geometry(256 * KiB, 4 * KiB))
    (sector,) = sectors.wanted
    source = NativeSource(MemorySource(sectors))
    asked = [40, 43, 50]
    got = {f.number: bytes(f.data) for f in read_frames(source, sector, asked)}
    assert {40, 41, 42, 43, 50} <= set(got)
    assert not {44, 49} & set(got)
    for number, data in got.items():
        assert data == sectors.contents[0][number * 4 * KiB :][: 4 * KiB]


@pytest.mark.parametrize("block", [15, 1000])
def test_a_chunk_outside_its_sector_is_refused(block: int) -> None:
    _, _, content, children = reader()
    children[b"b"].chunks = [chunk_address(0, block)]
    children[b"b"].size = 8192
    children[b"b"].chunk_size = 8192
    with pytest.raises(ImageError, match="outside"):
        list(content.data(children[b"b"]))
    with pytest.raises(ImageError, match="outside"):
        content.read(children[b"b"], 0, 8192)
