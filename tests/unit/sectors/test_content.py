# SPDX-License-Identifier: Apache-2.0
"""Reading files of an image without a mount."""

from __future__ import annotations

import random

import pytest

from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, Node
from firstread.errors import ImageError, NotFoundError
from firstread.oci.model import Manifest
from firstread.sectors.content import KEEP, ContentReader
from firstread.testing.images import File, Image, Layer, Sparse
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
    return place, manifest, ContentReader(place, image), children


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
