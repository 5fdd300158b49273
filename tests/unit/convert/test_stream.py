# SPDX-License-Identifier: Apache-2.0
"""Decompression and reading by length."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
import sys
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.convert.stream import CHUNK, MAX_GZIP_HEADER, Feed, decompress
from firstread.errors import ImageError, UnsupportedError
from firstread.units import MiB

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
TEXT = b"a layer " * 100 + random.Random(1).randbytes(500)
SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 5) + b"notes"


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def plain(data: bytes, size: int = 1000) -> bytes:
    return b"".join(decompress(pieces(data, size), GZIP))


def member(data: bytes, flags: int = 0, name: bytes = b"name") -> bytes:
    """A gzip member with the optional header fields that `flags` asks for."""
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(5) + b"\xff"
    header += struct.pack("<H", 8) + b"SG\4\0abcd" if flags & 4 else b""
    header += name + b"\0" if flags & 8 else b""
    header += b"comment\0" if flags & 16 else b""
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF) if flags & 2 else b""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = deflate.compress(data) + deflate.flush()
    return header + body + struct.pack("<II", zlib.crc32(data), len(data))


FORMS = {
    "plain": TEXT,
    "gzip": gzip.compress(TEXT),
    "gzip members": gzip.compress(TEXT[:300]) + gzip.compress(b"") + gzip.compress(TEXT[300:]),
    "gzip padding": gzip.compress(TEXT) + bytes(3000),
    "zstd": zstd.compress(TEXT),
    "zstd frames": zstd.compress(TEXT[:1]) + SKIPPABLE + zstd.compress(TEXT[1:]) + SKIPPABLE,
    "zstd skippable first": SKIPPABLE + zstd.compress(TEXT),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 64, 1000, 100_000])
def test_every_form_cut_anywhere(form: str, size: int) -> None:
    assert plain(FORMS[form], size) == TEXT


@pytest.mark.parametrize("flags", range(0, 32, 2))
def test_gzip_header_fields_cut_anywhere(flags: int) -> None:
    data = member(b"one", flags) + member(b"", flags) + member(b"two" * 99, flags)
    for size in (*range(1, 50), 1000):
        assert plain(data, size) == b"one" + b"two" * 99


def test_memoryviews_and_empty_chunks_are_chunks() -> None:
    view = memoryview(FORMS["gzip"])
    chunks: list[bytes | memoryview] = [b"", view[:7], b"", view[7:], b""]
    assert b"".join(decompress(chunks, GZIP)) == TEXT
    assert list(decompress([memoryview(b"plain")], "")) == [b"plain"]


@pytest.mark.parametrize("chunks", [[], [b""]])
def test_an_empty_blob_is_an_empty_layer(chunks: list[bytes]) -> None:
    assert b"".join(decompress(chunks, GZIP)) == b""


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_every_truncation_is_an_error(form: str) -> None:
    for length in range(4, len(FORMS[form])):
        with pytest.raises(ImageError, match=f"{form} data is cut off at byte {length}"):
            plain(FORMS[form][:length], 100)


@pytest.mark.parametrize("form", ["gzip", "zstd checksum"])
def test_every_damaged_byte_is_an_error_or_harmless(form: str) -> None:
    checksum: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
    good = FORMS["gzip"] if form == "gzip" else zstd.compress(TEXT, options=checksum)
    harmless = 0
    for position in range(4, len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x41
        try:
            harmless += plain(bytes(bad)) == TEXT
        except ImageError:
            continue
    assert harmless <= 6  # time, flags and system in a gzip header


@pytest.mark.parametrize("rest", [b"garbage after it", b"\0\0\0x", b"\x1f\x8b\x08"])
def test_garbage_after_gzip_is_an_error(rest: bytes) -> None:
    with pytest.raises(ImageError):
        plain(FORMS["gzip"] + rest)


@pytest.mark.parametrize("rest", [b"\0", b"garbage"])
def test_garbage_after_zstd_is_an_error(rest: bytes) -> None:
    with pytest.raises(ImageError):
        plain(FORMS["zstd"] + rest)


def test_a_gzip_header_without_end_is_an_error() -> None:
    with pytest.raises(ImageError, match="header is longer"):
        plain(member(b"x", 8, name=b"n" * MAX_GZIP_HEADER), 10_000)


def test_a_zstd_window_beyond_the_limit_is_an_error() -> None:
    window_of_256_mib = b"\x28\xb5\x2f\xfd\x00\x90" + b"\x01\x00\x00"
    with pytest.raises(UnsupportedError, match="window of more than 128"):
        plain(window_of_256_mib)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("xz", lzma.compress(TEXT)),
        ("bzip2", bz2.compress(TEXT)),
        ("bzip2", bz2.compress(b"")),
        ("lz4", b"\x04\x22\x4d\x18" + bytes(20)),
        ("compress", b"\x1f\x9d\x90" + bytes(20)),
    ],
)
def test_other_compressions_are_refused_by_name(name: str, data: bytes) -> None:
    with pytest.raises(UnsupportedError, match=f"compressed with {name}"):
        plain(data)


def test_encrypted_layers_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="encrypted"):
        list(decompress([b"anything"], GZIP + "+encrypted"))


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_bomb_comes_in_bounded_chunks_and_memory(form: str) -> None:
    zeros = bytes(64 * MiB)
    bomb = gzip.compress(zeros, 9) if form == "gzip" else zstd.compress(zeros)
    del zeros
    assert len(bomb) < 70_000
    tracemalloc.start()
    try:
        sizes = [len(chunk) for chunk in decompress([bomb], GZIP)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) == 64 * MiB
    assert max(sizes) <= CHUNK
    assert peak < 16 * MiB


def test_a_million_tiny_members_take_linear_time() -> None:
    assert plain(gzip.compress(b"") * 100_000, MiB) == b""


def test_errors_of_the_chunks_pass_through() -> None:
    class BrokenError(Exception):
        pass

    def chunks() -> object:
        yield FORMS["gzip"][:50]
        raise BrokenError

    with pytest.raises(BrokenError):
        list(decompress(chunks(), GZIP))  # type: ignore[arg-type]


# --- Feed


@given(
    st.lists(st.binary(max_size=40), max_size=20),
    st.lists(st.tuples(st.sampled_from(["exact", "pieces", "skip"]), st.integers(0, 60))),
)
def test_feed_reads_what_slicing_would(chunks: list[bytes], steps: list[tuple[str, int]]) -> None:
    whole = b"".join(chunks)
    feed = Feed(chunks)
    position = 0
    for step, length in steps:
        expected = whole[position : position + length]
        try:
            if step == "exact":
                got = feed.exact(length)
            elif step == "pieces":
                got = b"".join(feed.pieces(length))
            else:
                feed.skip(length)
                got = expected
        except ImageError as exc:
            cut_off = exc.message
            assert len(expected) < length
            assert cut_off == f"the layer is cut off at byte {len(whole)}"
            break
        assert got == expected
        position += length
        assert feed.position == position
        assert feed.at_end() == (position == len(whole))
    feed.drain()
    assert feed.position == len(whole)


def test_pieces_are_not_copied() -> None:
    chunk = b"x" * 1000
    feed = Feed([chunk])
    feed.skip(10)
    (piece,) = feed.pieces(500)
    assert piece.obj is chunk
    assert len(piece) == 500


def test_a_skip_beyond_everything_is_cut_off() -> None:
    feed = Feed([b"abc", b"de"])
    with pytest.raises(ImageError, match="cut off at byte 5"):
        feed.skip(1 << 63)
