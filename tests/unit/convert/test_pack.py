# SPDX-License-Identifier: Apache-2.0
"""Packing a layer: places, frames, digests, determinism, and how it ends when something fails."""

from __future__ import annotations

import errno
import hashlib
import io
import random
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from firstread.convert.blobcheck import read_sectors
from firstread.convert.blobwriter import PackedLayer, compress_sector
from firstread.convert.pack import pack_layer
from firstread.convert.record import ENCODER, Entry, LayerRecord, PackedSector, Parameters
from firstread.erofs.tree import HOLE, split_address
from firstread.errors import DigestError, ImageError, LimitError
from firstread.sectors.format import SKIPPABLE_RECORD, FrameTable, Geometry, unpack_skippable
from firstread.testing.entries import Fifo, File, Sparse, Symlink
from firstread.testing.features import content
from firstread.testing.images import Dir, Hardlink, Layer, feature_image
from firstread.testing.packed import SMALL, pack
from firstread.units import KiB, MiB

BLOCK = 4 * KiB
SECTOR = SMALL.sector_size


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before  # one of a test before may end meanwhile


def unpacked(packed: PackedLayer, blob: bytes, parameters: Parameters) -> dict[bytes, bytes]:
    """The files of a packed layer, read from its blob."""
    record = LayerRecord.decode(packed.record)
    by_offset = {
        offset: bytes(data) for offset, _, data in read_sectors([blob], parameters.geometry)
    }
    sectors = [by_offset[s.offset] if s.id else bytes(s.size) for s in record.sectors]
    return {
        entry.path: _content(entry, sectors)
        for entry in record.entries()
        if entry.mode & 0o170000 == 0o100000
    }


def _content(entry: Entry, sectors: list[bytes]) -> bytes:
    parts = []
    for at in range(0, len(entry.chunks), 8):
        chunk = int.from_bytes(entry.chunks[at : at + 8], "little")
        length = min(entry.chunk_size, entry.size - at // 8 * entry.chunk_size)
        if chunk == HOLE:
            parts.append(bytes(length))
        else:
            number, block = split_address(chunk)
            parts.append(sectors[number][block * BLOCK : block * BLOCK + length])
        assert len(parts[-1]) == length
    return b"".join(parts)


def files(*sizes: int) -> list[File]:
    return [
        File(f"{number}-{size}", content(f"{number}", size)) for number, size in enumerate(sizes)
    ]


GEOMETRIES = [
    Parameters(64 * KiB, 16 * KiB),
    Parameters(4 * KiB, 4 * KiB),
    Parameters(64 * KiB, 4 * KiB),
    Parameters(64 * KiB, 64 * KiB),
    Parameters(),
    Parameters(64 * MiB, 256 * KiB),
    Parameters(128 * KiB, 32 * KiB, level=9),
]


@pytest.mark.parametrize("parameters", GEOMETRIES, ids=lambda p: f"{p.sector_size}-{p.frame_size}")
def test_sizes_around_every_border(parameters: Parameters) -> None:
    borders = {BLOCK, parameters.frame_size, min(parameters.sector_size, MiB)}
    borders |= {2 * border for border in borders}
    sizes = sorted({size + more for size in borders for more in (-1, 0, 1)} | {1})
    some = files(0, *sizes)
    packed, blob = pack(Layer(some), parameters, jobs=2)
    assert unpacked(packed, blob, parameters) == {
        bytes(file.path, "ascii") if isinstance(file.path, str) else file.path: file.content
        for file in some
    }
    geometry = parameters.geometry
    for sector in LayerRecord.decode(packed.record).sectors:
        assert 0 < sector.size <= parameters.sector_size
        assert sector.size % BLOCK == 0
        assert geometry.table_size(sector.size) < sector.length
        assert sector.length <= geometry.max_compressed(sector.size)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 200 * KiB), st.lists(st.integers(0, 200 * KiB), max_size=6)),
        max_size=8,
    )
)
def test_sparse_files(shapes: list[tuple[int, list[int]]]) -> None:
    some = []
    for number, (size, cuts) in enumerate(shapes):
        edges = sorted({min(cut, size) for cut in cuts})
        data = {
            start: content(f"{number}{start}", end - start)
            for start, end in zip(edges[::2], edges[1::2], strict=False)
        }
        some.append(Sparse(f"{number}", size=size, data=data))
    packed, blob = pack(Layer([*some, File("after", b"x" * 5000)]))
    expected = {str(file.path).encode(): file.content for file in some} | {b"after": b"x" * 5000}
    assert unpacked(packed, blob, SMALL) == expected


def test_buffers_that_are_used_again_leave_nothing_behind() -> None:
    """Small files after large ones: what follows their data in a block is zeros."""
    packed, blob = pack(Layer([File("large", b"\xff" * 20 * SECTOR), *files(*range(1, 60, 3))]))
    sectors = {offset: bytes(data) for offset, _, data in read_sectors([blob], SMALL.geometry)}
    record = LayerRecord.decode(packed.record)
    for entry in record.entries():
        if entry.size < BLOCK:
            number, block = split_address(int.from_bytes(entry.chunks, "little"))
            data = sectors[record.sectors[number].offset]
            assert not any(data[block * BLOCK + entry.size : (block + 1) * BLOCK])


def test_a_sector_of_zeros_is_a_hole() -> None:
    some = [File("zeros", bytes(3 * SECTOR + 5)), File("x", b"x")]
    packed, blob = pack(Layer(some))
    record = LayerRecord.decode(packed.record)
    holes = [sector for sector in record.sectors if not sector.id]
    assert holes == [PackedSector(b"", SECTOR, 0, 0)] * 3
    assert unpacked(packed, blob, SMALL)[b"zeros"] == bytes(3 * SECTOR + 5)
    assert len(blob) < 2000


@pytest.mark.parametrize("items", [[], [Dir("d/"), Symlink("l", "d")], [File("empty", b"")]])
def test_a_layer_without_data_has_a_blob_of_its_record(items: list[File]) -> None:
    packed, blob = pack(Layer(items))
    assert unpack_skippable(SKIPPABLE_RECORD, blob) == packed.record
    assert (packed.record_offset, packed.size) == (0, len(blob))
    assert packed.diff_id == "sha256:" + hashlib.sha256(b"").hexdigest()
    assert zstandard.ZstdDecompressor().decompressobj().decompress(blob) == b""
    assert len(list(LayerRecord.decode(packed.record).entries())) == len(items)


def test_entries_keep_their_order_and_what_they_say() -> None:
    items = [
        Dir("d/", mode=0o1777, uid=70_000, mtime=-5, mtime_nsec=3),
        File("d/f", b"x", xattrs={"user.b": b"2", "user.a": b"1", "system.nfs4_acl": b"?"}),
        Hardlink("h", "d/f"),
        File("d/.wh.gone", b""),
        File("d/f", b"yy"),
    ]
    record = LayerRecord.decode(pack(Layer(items))[0].record)
    entries = list(record.entries())
    assert [entry.path for entry in entries] == [b"d/", b"d/f", b"h", b"d/.wh.gone", b"d/f"]
    assert (entries[0].mode, entries[0].uid) == (0o041777, 70_000)
    assert (entries[0].mtime, entries[0].mtime_nsec) == (-5, 3)
    assert list((entries[1].xattrs or {}).items()) == [(b"user.a", b"1"), (b"user.b", b"2")]
    assert (entries[2].mode, entries[2].link) == (0, b"d/f")
    assert record.dropped_xattrs == [b"system.nfs4_acl"]
    assert record.size == len(Layer(items).tar)


# -- the blob ---------------------------------------------------------------------------------


def test_zstd_prints_the_sectors(tmp_path_factory: pytest.TempPathFactory) -> None:
    packed, blob = pack(feature_image().layers[0])
    path = tmp_path_factory.mktemp("blob") / "blob.zst"
    path.write_bytes(blob)
    printed = subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
    sectors = [bytes(data) for _, _, data in read_sectors([blob], SMALL.geometry)]
    assert printed == b"".join(sectors)
    assert packed.diff_id == "sha256:" + hashlib.sha256(printed).hexdigest()
    assert packed.digest == "sha256:" + hashlib.sha256(blob).hexdigest()


def test_the_record_ends_the_blob() -> None:
    packed, blob = pack(feature_image().layers[0])
    assert unpack_skippable(SKIPPABLE_RECORD, blob[packed.record_offset :]) == packed.record
    assert packed.size == len(blob)
    sectors = LayerRecord.decode(packed.record).sectors
    assert sectors[-1].offset + sectors[-1].length == packed.record_offset
    for sector in sectors:
        table = blob[sector.offset : sector.offset + SMALL.geometry.table_size(sector.size)]
        assert FrameTable.unpack(table, SMALL.geometry).id(SMALL.frame_size) == sector.id


def test_a_frame_is_a_zstd_frame_that_needs_no_more_memory_than_itself() -> None:
    geometry = Geometry(64 * KiB, 16 * KiB)
    for data in (random.Random(1).randbytes(40 * KiB), bytes(64 * KiB)):
        identity, stored = compress_sector(memoryview(data), geometry, 3)
        size = geometry.table_size(len(data))
        table = FrameTable.unpack(stored[:size], geometry)
        assert table.id(geometry.frame_size) == identity
        position = size
        for number, length in enumerate(table.lengths):
            frame = stored[position : position + length]
            parameters = zstandard.get_frame_parameters(frame)
            expected = data[number * 16 * KiB : (number + 1) * 16 * KiB]
            assert parameters.content_size == len(expected)
            assert parameters.window_size <= geometry.frame_size
            assert zstandard.decompress(frame) == expected
            assert table.digests[number] == hashlib.sha256(expected).digest()
            position += length
        assert position == len(stored)


# -- determinism ------------------------------------------------------------------------------

PINNED = {  # encoder -> blob, record
    "zstd-1.5.7": (
        "sha256:816b97fa219871b31d829cf04acccc4862b76a2ea2e70ff8410a453eaf8ba024",
        "sha256:04667856d199b2e3a81f8e7913c78acad585b4a73891b74399bdedd694fabec7",
    ),
}


def test_pinned_digests() -> None:
    """Changing this is a format break: blobs in registries would be made, and sent, again."""
    assert ENCODER in PINNED, "another zstd library: pin its digests beside the others"
    items = [
        Dir("d/", mtime=1_700_000_000, mtime_nsec=5),
        *files(0, 1, 4096, 70_000, 300_000),
        File("d/text", b"all work and no play\n" * 5000, xattrs={"user.a": b"b"}),
        Sparse("d/sparse", size=1 << 30, data={1 << 20: b"x" * 5000}),
        Hardlink("d/hard", "d/text"),
        Symlink("d/soft", "text"),
        File("d/.wh.gone"),
    ]
    packed, blob = pack(Layer(items))
    record = "sha256:" + hashlib.sha256(packed.record).hexdigest()
    assert (packed.digest, record) == PINNED[ENCODER]
    assert packed.digest == "sha256:" + hashlib.sha256(blob).hexdigest()


def test_the_only_sector_of_a_layer_is_packed_tighter() -> None:
    words = [b"%d bottles\n" % random.Random(n).randrange(1000) for n in range(4000)]
    text = b"".join(words)[: 40 * KiB]
    several = [File("a", text), File("b", text[::-1])]
    for items, level in ((several[:1], 9), (several, 1), ([*several, *several], 1)):
        _, blob = pack(Layer(items), Parameters(64 * KiB, 16 * KiB, level=1))
        stored = compress_sector(memoryview(text), SMALL.geometry, level)[1]
        assert blob.startswith(stored)
        assert stored != compress_sector(memoryview(text), SMALL.geometry, 10 - level)[1]


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_neither_jobs_nor_the_cut_of_the_stream_changes_a_byte(jobs: int) -> None:
    layer = Layer(files(*[1000 * n for n in range(60)]), "zstd")
    expected = pack(layer)
    for step in (1 << 20, 977):
        chunks = [layer.blob[at : at + step] for at in range(0, len(layer.blob), step)]
        blob = io.BytesIO()
        packed = pack_layer(
            chunks, layer.media_type(), layer.diff_id, SMALL, blob, jobs=jobs, in_flight=jobs
        )
        assert (packed, blob.getvalue()) == expected


def test_the_compression_of_the_layer_does_not_matter() -> None:
    items = files(5, 100_000, 70_000)
    first, *others = [pack(Layer(items, form)) for form in ("gzip", "zstd", "none")]
    assert others == [first, first]


# -- failure ----------------------------------------------------------------------------------


class FullDisk(io.BytesIO):
    """Takes some bytes and then no more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def write(self, data: object) -> int:
        self._room -= len(memoryview(data))  # type: ignore[arg-type]
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("room", [0, 1000, 100_000, 400_000])
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_full_disk(room: int, jobs: int) -> None:
    layer = Layer(files(*[50_000] * 20))
    with pytest.raises(OSError, match="No space left"):
        pack_layer(
            [layer.blob], layer.media_type(), layer.diff_id, SMALL, FullDisk(room), jobs=jobs
        )


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("form", ["gzip", "zstd", "none"])
def test_a_layer_that_is_cut_off(part: float, form: str) -> None:
    layer = Layer(files(*[50_000] * 20), form)  # type: ignore[arg-type]
    cut = layer.blob[: int(len(layer.blob) * part)]
    with pytest.raises(ImageError):
        pack_layer([cut], layer.media_type(), layer.diff_id, SMALL, io.BytesIO(), jobs=2)


def test_a_source_that_breaks_off() -> None:
    layer = Layer(files(*[50_000] * 20), "none")

    def chunks() -> Iterator[bytes]:
        yield layer.blob[:400_000]
        raise ConnectionResetError("reset by peer")

    with pytest.raises(ConnectionResetError):
        pack_layer(chunks(), layer.media_type(), layer.diff_id, SMALL, io.BytesIO())


def test_the_diff_id_is_verified_also_behind_the_end_of_the_archive() -> None:
    layer = Layer(files(5))
    other = Layer(layer.tar + bytes(512), "none")
    with pytest.raises(DigestError, match=layer.diff_id):
        pack_layer([other.blob], other.media_type(), layer.diff_id, SMALL, io.BytesIO())


def test_any_algorithm_of_a_diff_id() -> None:
    layer = Layer([File("a", b"data")])
    diff_id = "sha512:" + hashlib.sha512(layer.tar).hexdigest()
    packed = pack_layer([layer.tar], "", diff_id, SMALL, io.BytesIO())
    assert LayerRecord.decode(packed.record).diff_id == diff_id
    with pytest.raises(DigestError, match="content is sha512:"):
        pack_layer([layer.tar + bytes(512)], "", diff_id, SMALL, io.BytesIO())


def test_omissions_are_reported() -> None:
    acl = ("SCHILY.acl.access", "user::rw-,user:ann:rw-,group::r--,mask::rw-,other::---")
    xattrs = {"user.a": b"", "com.b": b"", "trusted.overlay.redirect": b"/etc"}
    layer = Layer([File("a", xattrs=xattrs, records=[acl])])
    record = LayerRecord.decode(pack(layer)[0].record)
    assert record.dropped_xattrs == [b"SCHILY.acl.access", b"com.b", b"trusted.overlay.redirect"]
    assert [entry.xattrs for entry in record.entries()] == [{b"user.a": b""}]


def test_only_files_and_directories_have_attributes_of_users() -> None:
    xattrs = {"user.a": b"1", "security.b": b"2"}
    with_it = [File("file", xattrs=xattrs), Dir("dir", xattrs=xattrs)]
    without = [Symlink("s", "x", xattrs=xattrs), Fifo("p", xattrs=xattrs)]
    record = LayerRecord.decode(pack(Layer([*with_it, *without]))[0].record)
    assert [list(entry.xattrs or {}) for entry in record.entries()] == [
        *[[b"security.b", b"user.a"]] * 2,
        *[[b"security.b"]] * 2,
    ]
    assert record.dropped_xattrs == [b"user.a"]


def test_a_file_that_claims_petabytes() -> None:
    layer = Layer([Sparse("huge", size=1 << 50, data={1 << 49: b"x"})])
    with pytest.raises(LimitError, match=r"'huge'.*chunks"):
        pack(layer)


def test_memory_is_bounded_by_the_sectors_in_flight() -> None:
    """A writer that is slower than everything else holds the others up."""

    class Slow(io.BytesIO):
        def write(self, data: object) -> int:
            time.sleep(0.002)
            return len(memoryview(data))  # type: ignore[arg-type]

    layer = Layer([File("large", b"not zeros " * (6 * MiB))], "none")
    view = memoryview(layer.blob)
    chunks = (view[at : at + MiB] for at in range(0, len(view), MiB))
    diff_id = layer.diff_id
    tracemalloc.start()
    try:
        parameters = Parameters(MiB, 256 * KiB)
        pack_layer(chunks, layer.media_type(), diff_id, parameters, Slow(), jobs=2, in_flight=2)
        assert tracemalloc.get_traced_memory()[1] < 20 * MiB
    finally:
        tracemalloc.stop()
