# SPDX-License-Identifier: Apache-2.0
"""Damage to everything from a registry except the EROFS image itself.

Invariant: any bytes give a result within the declared bounds, or an ImageError and no other
exception; time and memory do not depend on the claims of the bytes. The seed is fixed, so failures
repeat; `FIRSTREAD_FUZZ=100000` makes a longer run.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import resource
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from firstread.convert import metadata
from firstread.convert.blobcheck import read_sectors
from firstread.convert.metadata import merge, write_metadata_layer
from firstread.convert.record import LayerRecord
from firstread.erofs.reader import read_tree
from firstread.errors import ImageError
from firstread.oci.model import Manifest
from firstread.sectors.decode import SectorDecoder
from firstread.sectors.format import (
    MAX_SECTOR_SIZE,
    MAX_SECTORS,
    Blob,
    FrameTable,
    Header,
    SectorEntry,
    SectorIndex,
    compress_bound,
    unpack_index,
)
from firstread.sectors.image import open_image, write_metadata
from firstread.testing.images import feature_image
from firstread.testing.mutate import mutate
from firstread.testing.packed import SMALL, converted, pack
from firstread.units import MiB

GEOMETRY = SMALL.geometry
ROUNDS = int(os.environ.get("FIRSTREAD_FUZZ", "400"))


@dataclass
class Valid:
    """One good image, taken apart."""

    blob: bytes
    record: bytes
    sector: SectorEntry
    manifest: Manifest
    layer: bytes
    metadata: bytes
    index: SectorIndex


@pytest.fixture(scope="module")
def valid() -> Valid:
    packed, blob = pack(feature_image().layers[0])
    sector = LayerRecord.decode(packed.record).sectors[1]
    place, manifest = converted(feature_image())
    layer = place.blobs[manifest.layers[0].digest]
    metadata = zstandard.ZstdDecompressor().decompressobj().decompress(layer)
    return Valid(
        blob,
        packed.record,
        SectorEntry(sector.id, sector.size, 0, 0, sector.length),
        manifest,
        layer,
        metadata,
        open_image(manifest, metadata).index,
    )


@pytest.fixture(autouse=True)
def memory_does_not_follow_claims(valid: Valid) -> object:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 200 * MiB


def fuzz(data: bytes, read: Callable[[bytes], object], rounds: int = ROUNDS) -> int:
    """Read `data` damaged in many ways; return how often the parser noticed."""
    rng = random.Random(len(data))
    noticed = 0
    for _ in range(rounds):
        try:
            read(mutate(data, range(len(data)), rng))
        except ImageError:
            noticed += 1
    return noticed


def test_frame_tables(valid: Valid) -> None:
    size = GEOMETRY.table_size(valid.sector.size)
    table = valid.blob[:size]

    def read(data: bytes) -> None:
        found = FrameTable.unpack(data, GEOMETRY)
        assert 0 < found.size <= GEOMETRY.sector_size
        assert len(found.lengths) == GEOMETRY.frames(found.size)
        assert max(found.lengths) <= compress_bound(GEOMETRY.frame_size)

    read(table)
    fuzz(table, read, 4 * ROUNDS)


@given(st.binary(max_size=400))
def test_frame_tables_of_nonsense(data: bytes) -> None:
    for prefix in (b"", b"\x50\x2a\x4d\x18"):
        with pytest.raises(ImageError):
            FrameTable.unpack(prefix + data, GEOMETRY)


def test_blobs(valid: Valid) -> None:
    def read(data: bytes) -> None:
        for _, table, content in read_sectors([data], GEOMETRY):
            assert len(content) == table.size

    read(valid.blob)
    assert fuzz(valid.blob, read, 60) > 40


def test_sectors(valid: Valid) -> None:
    start = LayerRecord.decode(valid.record).sectors[1].offset
    data = valid.blob[start : start + valid.sector.length]

    def read(damaged: bytes) -> None:
        decoder = SectorDecoder(valid.sector, GEOMETRY)
        decoder.buffer[:] = damaged[: len(data)].ljust(len(data), b"\0")
        for _ in decoder.advance(len(data)):
            pass
        assert decoder.done

    read(data)
    assert fuzz(data, read) > ROUNDS * 0.9


def test_headers(valid: Valid) -> None:
    def read(data: bytes) -> None:
        header = Header.unpack(data)
        assert header.sectors <= MAX_SECTORS
        assert header.geometry.frame_size <= header.geometry.sector_size <= MAX_SECTOR_SIZE

    header = valid.index.header()
    read(header)
    fuzz(header, read, 4 * ROUNDS)
    for at in range(len(header)):
        for value in range(256):
            try:
                read(header[:at] + bytes([value]) + header[at + 1 :])
            except ImageError:
                continue


def test_indexes(valid: Valid) -> None:
    header = Header.unpack(valid.index.header())
    devices = [(row.id, row.size) for row in valid.index.sectors]

    def read(data: bytes) -> None:
        index = unpack_index(header, data.ljust(header.index_size, b"\0"), devices)
        for row in index.sectors:
            assert row.blob < len(index.blobs)
            assert row.offset + row.length <= index.blobs[row.blob].size
            assert row.length <= GEOMETRY.max_compressed(row.size)

    read(valid.index.pack())
    fuzz(valid.index.pack(), read, 2 * ROUNDS)


def test_metadata(valid: Valid) -> None:
    """Header, superblock, device table and index together; another test has the tree."""

    def read(data: bytes) -> None:
        image = open_image(valid.manifest, data)
        assert len(image.index.sectors) == len(image.erofs.devices) <= MAX_SECTORS

    read(valid.metadata)
    heads = list(range(2048)) + list(range(len(valid.metadata) - 4096, len(valid.metadata)))
    rng = random.Random(5)
    for _ in range(4 * ROUNDS):
        try:
            read(mutate(valid.metadata, heads, rng))
        except ImageError:
            continue


def test_metadata_layers(valid: Valid) -> None:
    digest = hashlib.sha256(valid.metadata).digest()

    def read(data: bytes) -> None:
        out = io.BytesIO()
        size = write_metadata([data], out)
        assert size == len(out.getvalue())

    read(valid.layer)
    assert fuzz(valid.layer, read) > ROUNDS // 4
    assert hashlib.sha256(valid.metadata).digest() == digest


def test_layer_records(valid: Valid, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readable part of a damaged record makes acceptable metadata, or an ImageError."""
    fast = zstandard.ZstdCompressor(level=1)  # 19 takes most of the time
    monkeypatch.setattr(metadata, "_compressor", lambda _: fast)
    blob = Blob(bytes(32), len(valid.blob))

    def read(data: bytes) -> None:
        found = LayerRecord.decode(zstandard.ZstdCompressor(level=1).compress(data))
        out = io.BytesIO()
        written = write_metadata_layer(out, merge([found]), [blob], GEOMETRY)
        metadata = zstandard.ZstdDecompressor().decompressobj().decompress(out.getvalue())
        assert len(metadata) == written.size
        manifest = msgspec.structs.replace(
            valid.manifest,
            layers=[
                valid.manifest.layers[0],
                msgspec.structs.replace(
                    valid.manifest.layers[1],
                    digest="sha256:" + blob.digest.hex(),
                    size=blob.size,
                ),
            ],
        )
        read_tree(open_image(manifest, metadata).erofs)

    plain = zstandard.ZstdDecompressor().decompress(valid.record)
    read(plain)
    assert fuzz(plain, read, ROUNDS // 3) > ROUNDS // 20


def test_compressed_layer_records(valid: Valid) -> None:
    noticed = fuzz(valid.record, lambda data: list(LayerRecord.decode(data).entries()))
    assert noticed > ROUNDS // 4


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_layer_records_of_nonsense(data: bytes) -> None:
    with pytest.raises(ImageError):
        LayerRecord.decode(data)
    with pytest.raises(ImageError):
        list(LayerRecord.decode(zstandard.ZstdCompressor().compress(data)).entries())
