# SPDX-License-Identifier: Apache-2.0
"""Layer records: what goes in comes out, and bytes of others are refused or understood."""

from __future__ import annotations

from itertools import count

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from firstread.convert.record import (
    BATCH,
    BATCH_SIZE,
    ENCODER,
    Entry,
    LayerRecord,
    PackedSector,
    Parameters,
    encode_entries,
)
from firstread.errors import ImageError, LimitError, UsageError
from firstread.units import KiB, MiB

SECTORS = [PackedSector(bytes(32), 4096, 0, 100), PackedSector(b"", 4 * MiB, 0, 0)]

entries = st.builds(
    Entry,
    st.binary(max_size=300),
    st.integers(0, 0xFFFF),
    uid=st.integers(0, 0xFFFFFFFE),
    mtime=st.integers(-(1 << 63), (1 << 63) - 1),
    mtime_nsec=st.integers(0, 999_999_999),
    size=st.integers(0, (1 << 63) - 1),
    link=st.binary(max_size=50),
    xattrs=st.none() | st.dictionaries(st.binary(), st.binary(), min_size=1, max_size=3),
    chunks=st.binary(max_size=64),
)


def record(batches: list[bytes]) -> LayerRecord:
    return LayerRecord("sha256:" + "0" * 64, Parameters().key, SECTORS, batches, 5, [b"system.x"])


@given(st.lists(entries, max_size=20))
def test_round_trip(some: list[Entry]) -> None:
    decoded = LayerRecord.decode(record(encode_entries(some)).encode())
    assert list(decoded.entries()) == some
    assert decoded == record(encode_entries(some))


@pytest.mark.parametrize("number", [0, 1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH])
def test_batches(number: int) -> None:
    some = [Entry(b"%d" % n, 0o100644) for n in range(number)]
    batches = encode_entries(iter(some))
    assert len(batches) == -(-number // BATCH)
    assert list(record(batches).entries()) == some


def test_entries_are_decoded_only_when_they_are_needed() -> None:
    batches = [*encode_entries([Entry(b"first", 0o100644)]), b"damaged"]
    found = record(batches).entries()
    assert next(found).path == b"first"
    with pytest.raises(ImageError, match="layer record is corrupt"):
        next(found)


def test_a_batch_ends_before_it_is_large() -> None:
    value = {b"user.x": bytes(64 * KiB)}
    batches = encode_entries(Entry(b"x", 0o100644, xattrs=value) for _ in range(100))
    assert max(map(len, batches)) < BATCH_SIZE + 65 * KiB
    assert len(list(record(batches).entries())) == 100


def test_a_layer_of_too_many_bytes_is_refused_while_it_is_read() -> None:
    numbers = count()
    endless = (Entry(b"x" * 1000, 0o100644) for _ in numbers)
    with pytest.raises(LimitError, match=r"larger than 10\.0 MiB"):
        encode_entries(endless, 10 * MiB)
    assert next(numbers) < 11_000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x28\xb5\x2f\xfd",
        zstandard.compress(b""),
        zstandard.compress(b"\xc1"),
        zstandard.compress(msgspec.msgpack.encode({"diff_id": 1})),
        zstandard.compress(msgspec.msgpack.encode([1, 2])),
        zstandard.compress(msgspec.msgpack.encode(record([])).replace(b"sha256:", b"\xffha256:")),
        zstandard.compress(b"\x81\xa1x" + b"\x91" * 100_000),
        record([]).encode()[:-3],
        zstandard.ZstdCompressor().compressobj().compress(b"x" * 100),  # does not say its size
    ],
)
def test_damaged_records(data: bytes) -> None:
    with pytest.raises(ImageError, match="layer record"):
        LayerRecord.decode(data)


def test_a_record_that_claims_a_terabyte_is_refused_before_memory_is_taken() -> None:
    # A frame header alone: single segment, 8 bytes of content size (RFC 8878, 3.1.1.1).
    header = b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + (1 << 40).to_bytes(8, "little")
    with pytest.raises(ImageError, match="impossible size"):
        LayerRecord.decode(header + bytes(100))


@pytest.mark.parametrize(
    "fields",
    [
        (b"x", 1 << 16),
        (b"x", -1),
        (b"x", 0, 1 << 32),
        (b"x", 0, (1 << 32) - 1),
        (b"x", 0, 0, 0, 1 << 63),
        (b"x", 0, 0, 0, 0, 1_000_000_000),
        (b"x", 0, 0, 0, 0, 0, -1),
        (b"x", 0, 0, 0, 0, 0, 0, b"", (1, 2, 3)),
        ("text", 0),
    ],
)
def test_entries_that_no_inode_can_be(fields: tuple[object, ...]) -> None:
    with pytest.raises(ImageError, match="layer record is corrupt"):
        list(record([msgspec.msgpack.encode([fields])]).entries())


def test_parameters() -> None:
    assert Parameters(4 * MiB).key == (f"v1 sector=4194304 frame=262144 level=3 {ENCODER}")
    assert Parameters(64 * KiB, 16 * KiB).geometry.frame_size == 16 * KiB
    with pytest.raises(UsageError):
        _ = Parameters(4 * KiB, 8 * KiB).geometry
