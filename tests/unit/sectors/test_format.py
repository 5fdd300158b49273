# SPDX-License-Identifier: Apache-2.0
"""The structs of docs/format.md: bytes, bounds, and what must be refused."""

from __future__ import annotations

import hashlib
import random
import struct
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from firstread.errors import ImageError, LimitError, UsageError
from firstread.sectors.format import (
    BLOCK_SIZE,
    MAX_SECTORS,
    SKIPPABLE_RECORD,
    SKIPPABLE_TABLE,
    Blob,
    FrameTable,
    Geometry,
    Header,
    SectorEntry,
    SectorIndex,
    check_row,
    compress_bound,
    index_offset,
    pack_skippable,
    sector_id,
    skippable_header,
    unpack_index,
    unpack_skippable,
)
from firstread.units import GiB, KiB, MiB

GEOMETRY = Geometry(64 * KiB, 16 * KiB)
DIGESTS = [hashlib.sha256(b"%d" % number).digest() for number in range(16)]

geometries = st.tuples(st.integers(12, 30), st.integers(12, 30)).map(
    lambda bits: Geometry(1 << max(bits), 1 << min(*bits, 22))
)


# -- geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sector", "frame"),
    [
        (0, 0),
        (-4096, 4096),
        (2048, 2048),
        (5000, 4096),
        (4 * MiB, 100_000),
        (4 * KiB, 8 * KiB),
        (2 * GiB, 4 * KiB),
        (3 * MiB, 4 * KiB),
    ],
)
def test_geometries_that_are_not_possible(sector: int, frame: int) -> None:
    with pytest.raises(UsageError) as caught:
        Geometry(sector, frame)
    assert "size" in caught.value.message


@given(geometries, st.integers(1, 1 << 18))
def test_sizes(geometry: Geometry, blocks: int) -> None:
    size = min(blocks * BLOCK_SIZE, geometry.sector_size)
    frames = geometry.frames(size)
    assert (frames - 1) * geometry.frame_size < size <= frames * geometry.frame_size
    assert geometry.table_size(size) == 16 + 36 * frames
    whole, rest = divmod(size, geometry.frame_size)
    most = whole * compress_bound(geometry.frame_size) + (compress_bound(rest) if rest else 0)
    assert geometry.max_compressed(size) == geometry.table_size(size) + most


@pytest.mark.parametrize("size", [1, 100, 4 * KiB, 128 * KiB - 1, 128 * KiB, 256 * KiB, 4 * MiB])
def test_noise_fits_in_the_bound_of_zstd(size: int) -> None:
    noise = random.Random(size).randbytes(size)
    for level in (1, 3, 19):
        assert len(zstandard.ZstdCompressor(level=level).compress(noise)) <= compress_bound(size)


# -- frame table ------------------------------------------------------------------------------


def table(size: int = 40 * KiB) -> FrameTable:
    frames = GEOMETRY.frames(size)
    return FrameTable(size, list(range(100, 100 + frames)), DIGESTS[:frames])


def test_the_bytes_of_a_frame_table() -> None:
    packed = FrameTable(8192, [7, 9], DIGESTS[:2]).pack(4096)
    expected = struct.pack("<IIII", 0x184D2A50, 8 + 72, 8192, 4096)
    expected += struct.pack("<I", 7) + DIGESTS[0] + struct.pack("<I", 9) + DIGESTS[1]
    assert packed == expected
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == b""


def test_the_id_of_a_sector() -> None:
    expected = hashlib.sha256(b"firstread sector v1\0" + struct.pack("<II", 8192, 4096))
    expected.update(DIGESTS[0] + DIGESTS[1])
    assert sector_id(8192, 4096, DIGESTS[:2]) == expected.digest()
    assert FrameTable(8192, [7, 9], DIGESTS[:2]).id(4096) == expected.digest()
    assert FrameTable(8192, [8, 8], DIGESTS[:2]).id(4096) == expected.digest()  # as compressed
    others = {
        sector_id(4096, 4096, DIGESTS[:2]),
        sector_id(8192, 8192, DIGESTS[:2]),
        sector_id(8192, 4096, DIGESTS[1::-1]),
        sector_id(8192, 4096, DIGESTS[:1]),
    }
    assert len(others | {expected.digest()}) == 5


@given(st.integers(1, 16))
def test_frame_table_round_trip(blocks: int) -> None:
    one = table(blocks * BLOCK_SIZE)
    assert FrameTable.unpack(one.pack(GEOMETRY.frame_size), GEOMETRY) == one


def damaged(offset: int, value: int) -> bytes:
    packed = bytearray(table().pack(GEOMETRY.frame_size))
    packed[offset : offset + 4] = struct.pack("<I", value)
    return bytes(packed)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        table().pack(16 * KiB)[:15],
        table().pack(16 * KiB)[:-1],
        table().pack(16 * KiB) + b"\0",
        table().pack(4 * KiB),
        damaged(0, SKIPPABLE_RECORD),
        damaged(4, 0xFFFFFFFF),
        damaged(8, 0),
        damaged(8, 40 * KiB + 1),
        damaged(8, 4 * KiB),
        damaged(8, 128 * KiB),
        damaged(12, 0),
        damaged(16, compress_bound(16 * KiB) + 1),
    ],
)
def test_damaged_frame_tables(data: bytes) -> None:
    with pytest.raises(ImageError):
        FrameTable.unpack(data, GEOMETRY)


def entry_of(one: FrameTable) -> SectorEntry:
    length = GEOMETRY.table_size(one.size) + sum(one.lengths)
    return SectorEntry(one.id(GEOMETRY.frame_size), one.size, 0, 0, length)


def test_a_table_is_checked_against_its_row() -> None:
    entry = entry_of(table())
    table().check(entry, GEOMETRY)
    for bad in (
        replace(entry, id=bytes(32)),
        replace(entry, size=entry.size - BLOCK_SIZE),
        replace(entry, length=entry.length + 1),
    ):
        with pytest.raises(ImageError):
            table().check(bad, GEOMETRY)


# -- skippable frames -------------------------------------------------------------------------


def test_skippable_frames() -> None:
    frame = pack_skippable(SKIPPABLE_RECORD, b"payload")
    assert frame == b"\x51\x2a\x4d\x18\x07\0\0\0payload"
    assert skippable_header(frame) == (SKIPPABLE_RECORD, 7)
    assert unpack_skippable(SKIPPABLE_RECORD, frame) == b"payload"
    for bad in (b"", frame[:7], frame[:-1], frame + b"\0"):
        with pytest.raises(ImageError):
            unpack_skippable(SKIPPABLE_RECORD, bad)
    with pytest.raises(ImageError):
        unpack_skippable(SKIPPABLE_TABLE, frame)


def test_a_skippable_frame_has_at_most_4_gib() -> None:
    class Large(bytes):
        def __len__(self) -> int:
            return 1 << 32

    with pytest.raises(LimitError):
        pack_skippable(SKIPPABLE_RECORD, Large())


# -- header and index -------------------------------------------------------------------------


def index(sectors: int = 3, blobs: int = 2) -> SectorIndex:
    some = [Blob(DIGESTS[number], 1 << 20) for number in range(blobs)]
    rows = [
        SectorEntry(
            hashlib.sha256(b"%d" % number).digest(), 64 * KiB, number % blobs, number * 5000, 4000
        )
        for number in range(sectors)
    ]
    return SectorIndex(GEOMETRY, some, rows)


def devices(one: SectorIndex) -> list[tuple[bytes, int]]:
    return [(row.id, row.size) for row in one.sectors]


def test_the_bytes_of_the_header() -> None:
    expected = b"FIRSTRD\x01" + struct.pack("<HBBIIIQ", 1, 16, 14, 3, 2, 40 * 2 + 16 * 3, 0)
    assert index().header() == expected
    assert Header.unpack(expected + bytes(4064)) == Header(GEOMETRY, 3, 2)


def test_the_bytes_of_the_index() -> None:
    packed = index(2, 1).pack()
    assert packed[:40] == DIGESTS[0] + struct.pack("<Q", 1 << 20)
    assert packed[40:56] == struct.pack("<IIQ", 0, 4000, 0)
    assert packed[56:] == struct.pack("<IIQ", 0, 4000, 5000)


@given(st.integers(0, 40), st.integers(1, 5))
def test_index_round_trip(sectors: int, blobs: int) -> None:
    one = index(sectors, blobs)
    header = Header.unpack(one.header())
    assert header.index_size == len(one.pack())
    assert unpack_index(header, one.pack() + bytes(100), devices(one)) == one


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"FIRSTRD\x02", "not firstread metadata"),
        (8, b"\x02\0", "format version 2"),
        (8, b"\0\0", "format version 0"),
        (10, b"\x0b", "impossible sizes"),
        (10, b"\x1f", "impossible sizes"),
        (10, b"\xff", "impossible sizes"),
        (11, b"\0", "impossible sizes"),
        (11, b"\x11", "impossible sizes"),
        (12, b"\xff\xff\xff\xff", "contradicts"),
        (12, struct.pack("<I", MAX_SECTORS + 1), "contradicts"),
        (16, b"\xff\xff\xff\xff", "contradicts"),
        (20, b"\0\0\0\0", "contradicts"),
        (24, b"\x01", "contradicts"),
    ],
)
def test_headers_that_are_refused(offset: int, data: bytes, message: str) -> None:
    header = bytearray(index().header())
    header[offset : offset + len(data)] = data
    with pytest.raises(ImageError, match=message):
        Header.unpack(bytes(header))


def test_a_short_header() -> None:
    for length in range(32):
        with pytest.raises(ImageError):
            Header.unpack(index().header()[:length])


def test_where_the_index_is() -> None:
    header = Header(GEOMETRY, 3, 2)
    assert index_offset(header, 10 * BLOCK_SIZE) == 9 * BLOCK_SIZE
    assert index_offset(Header(GEOMETRY, 0, 0), BLOCK_SIZE) == BLOCK_SIZE
    assert index_offset(Header(GEOMETRY, 300, 0), 10 * BLOCK_SIZE) == 8 * BLOCK_SIZE
    for size in (0, BLOCK_SIZE, 10 * BLOCK_SIZE + 1):
        with pytest.raises(ImageError):
            index_offset(header, size)
    with pytest.raises(ImageError):
        index_offset(Header(GEOMETRY, MAX_SECTORS, 1 << 26), 1 << 30)


@pytest.mark.parametrize(
    "change",
    [
        {"blob": 2},
        {"blob": 0xFFFFFFFF},
        {"offset": (1 << 20) - 3999},
        {"offset": (1 << 64) - 1},
        {"length": 16 + 36 * 4},
        {"length": GEOMETRY.max_compressed(64 * KiB) + 1},
        {"size": 0},
        {"size": 128 * KiB},
        {"size": 4095},
    ],
)
def test_rows_that_are_refused(change: dict[str, int]) -> None:
    one = index()
    bad = replace(one.sectors[1], **change)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="sector 1"):
        check_row(bad, 1, GEOMETRY, one.blobs)
    lying = replace(one, sectors=[one.sectors[0], bad, one.sectors[2]])
    with pytest.raises(ImageError):
        unpack_index(Header.unpack(lying.header()), lying.pack(), devices(lying))


def test_an_index_that_does_not_match_the_devices() -> None:
    one = index()
    header = Header.unpack(one.header())
    for other in (devices(one)[:-1], [*devices(one), devices(one)[0]], []):
        with pytest.raises(ImageError, match="rows"):
            unpack_index(header, one.pack(), other)
    twice = [*devices(one)[:2], devices(one)[0]]
    with pytest.raises(ImageError, match="names a sector twice"):
        unpack_index(header, one.pack(), twice)
