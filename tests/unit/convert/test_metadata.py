# SPDX-License-Identifier: Apache-2.0
"""From merged layers to metadata: device slots, limits, and records that lie."""

from __future__ import annotations

import hashlib
import io
import random
import stat
import time
from collections.abc import Sequence

import pytest
import zstandard

from firstread.convert.metadata import (
    _JOBS,
    _MEDIUM,
    _SMALL,
    _compressor,
    assign_slots,
    merge,
    write_metadata_layer,
)
from firstread.convert.record import (
    Entry,
    LayerRecord,
    PackedSector,
    encode_entries,
)
from firstread.erofs.tree import HOLE, chunk_address
from firstread.errors import ImageError, LimitError
from firstread.sectors.format import Blob, Geometry
from firstread.sectors.image import MAX_METADATA_WINDOW, open_image
from firstread.testing.images import File, Image, Layer, Whiteout, feature_image
from firstread.testing.packed import converted, opened
from firstread.units import KiB, MiB

GEOMETRY = Geometry(64 * KiB, 16 * KiB)
BLOB = Blob(hashlib.sha256(b"blob").digest(), 1 << 40)


def sector(name: str, size: int = 64 * KiB, offset: int = 0, length: int = 1000) -> PackedSector:
    return PackedSector(hashlib.sha256(name.encode()).digest(), size, offset, length)


def file(path: str, *chunks: int, chunk_size: int = 64 * KiB, size: int | None = None) -> Entry:
    packed = b"".join(chunk.to_bytes(8, "little") for chunk in chunks)
    length = len(chunks) * chunk_size if size is None else size
    mode = stat.S_IFREG | 0o644
    return Entry(path.encode(), mode, size=length, chunk_size=chunk_size, chunks=packed)


def record(sectors: Sequence[PackedSector], *entries: Entry) -> LayerRecord:
    return LayerRecord("sha256:" + "d" * 64, "", list(sectors), encode_entries(entries), 7)


def at(number: int, block: int = 0) -> int:
    return chunk_address(number, block)


def slots(records: Sequence[LayerRecord]) -> tuple[dict[str, list[int]], list[bytes]]:
    """The chunks of each file and the sector of each slot."""
    merged = merge(records)
    rows = assign_slots(merged, list(range(len(records))), GEOMETRY.sector_size)
    children = merged.root.children or {}
    return {name.decode(): list(node.chunks) for name, node in children.items()}, [
        row.id for row in rows
    ]


def test_sectors_of_hidden_files_have_no_slot() -> None:
    lower = record(
        [sector("a"), sector("b"), sector("c")], *(file(n, at(i)) for i, n in enumerate("xyz"))
    )
    upper = record([sector("d")], Entry(b".wh.y", stat.S_IFREG), file("w", at(0)))
    files, ids = slots([lower, upper])
    assert files == {"x": [at(0)], "z": [at(1)], "w": [at(2)]}
    assert ids == [sector(name).id for name in "acd"]


def test_a_sector_in_two_layers_has_one_slot() -> None:
    lower = record([sector("a"), sector("same", offset=5)], file("x", at(0)), file("y", at(1)))
    upper = record(
        [sector("same", offset=9), sector("b")],
        file("v", at(0, 3), chunk_size=4096),
        file("w", at(1)),
    )
    files, ids = slots([lower, upper])
    assert files == {"x": [at(0)], "y": [at(1)], "v": [at(1, 3)], "w": [at(2)]}
    assert ids == [sector(name).id for name in ("a", "same", "b")]


def test_a_sector_of_zeros_is_a_hole() -> None:
    zeros = PackedSector(b"", 64 * KiB, 0, 0)
    files, ids = slots([record([zeros, sector("a")], file("x", at(0), at(1), HOLE))])
    assert files == {"x": [HOLE, at(0), HOLE]}
    assert ids == [sector("a").id]


def test_a_file_of_one_chunk_has_a_chunk_of_a_whole_sector() -> None:
    small = file("x", at(0), chunk_size=4096, size=5)
    two = file("y", at(0, 1), at(0, 2), chunk_size=4096)
    merged = merge([record([sector("a")], small, two)])
    assign_slots(merged, [0], GEOMETRY.sector_size)
    children = merged.root.children or {}
    assert {name: node.chunk_size for name, node in children.items()} == {
        b"x": GEOMETRY.sector_size,
        b"y": 4096,
    }


def test_metadata_states_its_size() -> None:
    root = merge([record([sector("a")], *(file(f"{n:06}", at(0)) for n in range(5_000)))])
    out = io.BytesIO()
    written = write_metadata_layer(out, root, [BLOB], GEOMETRY)
    assert zstandard.get_frame_parameters(out.getvalue()).content_size == written.size


@pytest.mark.parametrize("size", [_SMALL, _SMALL + 1, _MEDIUM, _MEDIUM + 1])
def test_every_node_can_decompress_metadata(size: int) -> None:
    """The window is 8 MiB at most, whatever the size."""
    frame = zstandard.get_frame_parameters(_compressor(size).compress(bytes(size)))
    assert frame.content_size == size
    assert frame.window_size <= MAX_METADATA_WINDOW


def test_threads_do_not_decide_the_bytes_of_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may be too busy for two, or give them whatever turns it likes."""
    data = random.Random(1).randbytes(64 * KiB) * 144 + random.Random(2).randbytes(64 * KiB) * 3
    assert _SMALL < len(data) <= _MEDIUM
    two = _compressor(len(data)).compress(data)
    monkeypatch.setitem(_JOBS, "threads", 1)
    assert _compressor(len(data)).compress(data) == two


def test_names_of_one_file_are_readdressed_once() -> None:
    lower = record([sector("gone"), sector("a")], file("g", at(0)), file("x", at(1)))
    upper = record([], Entry(b"y", 0, link=b"x"), Entry(b".wh.g", stat.S_IFREG))
    assert slots([lower, upper])[0] == {"x": [at(0)], "y": [at(0)]}


def test_more_sectors_than_erofs_has_devices() -> None:
    sectors = [sector(str(number), 4096) for number in range(65_536)]
    chunks = file("x", *map(at, range(65_536)), chunk_size=4096)
    with pytest.raises(LimitError, match="65536 sectors") as caught:
        assign_slots(merge([record(sectors, chunks)]), [0], GEOMETRY.sector_size)
    assert "--sector-size" in (caught.value.hint or "")
    fewer = record(sectors[:65_535], file("x", *map(at, range(65_535)), chunk_size=4096))
    assert len(assign_slots(merge([fewer]), [0], GEOMETRY.sector_size)) == 65_535


def test_thousands_of_layers() -> None:
    """No step is quadratic in the number of layers: a manifest has room for 25,000 of them."""
    blobs = [Blob(hashlib.sha256(b"%d" % number).digest(), 1 << 20) for number in range(10_000)]
    records = [record([], Entry(b"f", stat.S_IFREG)) for _ in blobs]
    started = time.process_time()
    write_metadata_layer(io.BytesIO(), merge(records), blobs, GEOMETRY)
    assert time.process_time() - started < 15


@pytest.mark.parametrize(
    "bad",
    [
        record([sector("a", offset=1 << 40)], file("x", at(0))),
        record([sector("a", length=10)], file("x", at(0))),
        record([sector("a", length=1 << 30)], file("x", at(0))),
        record([sector("a", length=1 << 40)], file("x", at(0))),
        record([sector("a", size=4095)], file("x", at(0), chunk_size=4096, size=1)),
        record([sector("a", size=128 * KiB)], file("x", at(0))),
        record([sector("a", size=4096)], file("x", at(0))),  # the chunk is longer
        record([PackedSector(b"short", 64 * KiB, 0, 1000)], file("x", at(0))),
        record([sector("a")], file("x", at(0), size=5 * 64 * KiB)),
        record([sector("a")], file("x", at(0), size=0)),
        record([sector("a")], file("x", at(0), chunk_size=0, size=5)),
        record([sector("a")], file("x", at(0), chunk_size=5000)),
        record([], file("x", size=5)),
        record([], Entry(b"x", 0o070000)),
        record([], Entry(b"x", stat.S_IFLNK | 0o777)),
        record([], Entry(b"x", stat.S_IFCHR, rdev=(1 << 20, 0))),
        record([], Entry(b"x" * 256, stat.S_IFREG)),
        record([], Entry(b"x\0", stat.S_IFREG)),
        record([], Entry(b"x", stat.S_IFREG, xattrs={b"system.other": b""})),
        record([], Entry(b"x", stat.S_IFREG, xattrs={b"user.a": bytes(70_000)})),
    ],
)
def test_a_record_that_lies_is_an_image_error(bad: LayerRecord) -> None:
    with pytest.raises(ImageError):
        write_metadata_layer(io.BytesIO(), merge([bad]), [BLOB], GEOMETRY)


def test_metadata_is_limited() -> None:
    large = {b"user.%d" % number: bytes(60_000) for number in range(4)}

    def entries() -> list[Entry]:
        return [
            Entry(b"%d" % number, stat.S_IFREG, xattrs=large | {b"user.own": b"%d" % number})
            for number in range(10)
        ]

    out = io.BytesIO()
    merged = merge([record([], *entries())])
    with pytest.raises(LimitError, match="the metadata is larger"):
        write_metadata_layer(out, merged, [BLOB], GEOMETRY, limit=MiB // 8)


def test_the_layer_is_what_it_says_of_itself() -> None:
    place, manifest = converted(feature_image())
    metadata = place.blobs[manifest.layers[0].digest]
    content = zstandard.ZstdDecompressor().decompressobj().decompress(metadata)
    assert zstandard.get_frame_parameters(metadata).window_size <= 8 * MiB
    image = opened(place, manifest)
    assert image.digest() == hashlib.sha256(content).hexdigest()
    again = open_image(manifest, content)
    assert again.index == image.index
    assert image.erofs.superblock.uuid == hashlib.sha256(image.index.pack()).digest()[:16]
    assert content[: len(image.index.header())] == image.index.header()


def test_equal_layers_in_another_image_have_equal_blobs() -> None:
    lower = Layer([File("a", b"a" * 100_000)])
    others = [Layer([File("b", b"b" * 100_000)]), Layer([Whiteout("a")])]
    blobs = [converted(Image([lower, other]))[1].layers[1].digest for other in others]
    blobs += [converted(Image([other, lower]))[1].layers[2].digest for other in others]
    assert len(set(blobs)) == 1


def test_an_image_without_data() -> None:
    place, manifest = converted(Image([Layer([])]))
    assert len(manifest.layers) == 2
    assert opened(place, manifest).index.sectors == []
