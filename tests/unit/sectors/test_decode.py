# SPDX-License-Identifier: Apache-2.0
"""Decoding a sector while it arrives: only verified frames leave, whatever comes."""

from __future__ import annotations

import hashlib
import random
import resource
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from firstread.convert.blobwriter import compress_sector
from firstread.errors import ImageError
from firstread.sectors.decode import SectorDecoder, decode_frame, frame_decompressor
from firstread.sectors.format import FrameTable, Geometry, SectorEntry
from firstread.testing.mutate import mutate
from firstread.units import KiB, MiB

GEOMETRY = Geometry(64 * KiB, 16 * KiB)
CONTENT = random.Random(1).randbytes(20 * KiB) + bytes(12 * KiB) + b"text " * 3277 + b"\0" * 3
CONTENT = CONTENT[: 44 * KiB]


def stored(content: bytes = CONTENT, geometry: Geometry = GEOMETRY) -> tuple[SectorEntry, bytes]:
    identity, data = compress_sector(memoryview(content), geometry, 3)
    return SectorEntry(identity, len(content), 0, 0, len(data)), data


ENTRY, STORED = stored()


def decode(data: bytes, steps: list[int]) -> bytes:
    """Feed `data` up to each of `steps`, then whole; return all that leaves."""
    decoder = SectorDecoder(ENTRY, GEOMETRY)
    content = b""
    for step in [*sorted(steps), len(data)]:
        decoder.buffer[:step] = data[:step]
        for frame in decoder.advance(step):
            content += frame
            assert decoder.verified == len(content)
            assert CONTENT.startswith(content)
    assert decoder.done
    return content


@given(st.lists(st.integers(0, len(STORED)), max_size=12))
def test_any_steps(steps: list[int]) -> None:
    assert decode(STORED, steps) == CONTENT


def test_a_frame_leaves_as_soon_as_it_is_whole() -> None:
    decoder = SectorDecoder(ENTRY, GEOMETRY)
    left: list[tuple[int, int]] = []
    for filled in range(len(STORED) + 1):
        decoder.buffer[:filled] = STORED[:filled]
        left.extend((filled, len(frame)) for frame in decoder.advance(filled))
    table = FrameTable.unpack(STORED[: GEOMETRY.table_size(ENTRY.size)], GEOMETRY)
    ends = [GEOMETRY.table_size(ENTRY.size) + sum(table.lengths[: n + 1]) for n in range(3)]
    assert left == list(zip(ends, [16 * KiB, 16 * KiB, 12 * KiB], strict=True))


def test_as_many_frames_leave_at_once_as_the_frame_buffer_takes() -> None:
    decoder = SectorDecoder(ENTRY, GEOMETRY, frame_buffer=bytearray(2 * GEOMETRY.frame_size))
    decoder.buffer[:] = STORED
    left = [(decoder.number, bytes(frames)) for frames in decoder.advance(len(STORED))]
    assert left == [(2, CONTENT[: 32 * KiB]), (3, CONTENT[32 * KiB :])]


def test_a_step_ends_with_a_frame() -> None:
    decoder = SectorDecoder(ENTRY, GEOMETRY)
    assert decoder.step(len(STORED)) == decoder.needed
    decoder.buffer[:] = STORED
    assert list(decoder.advance(decoder.needed)) == []
    first = decoder.needed
    one, two, _ = FrameTable.unpack(STORED[: GEOMETRY.table_size(ENTRY.size)], GEOMETRY).lengths
    steps = {0: first, one + two - 1: first, one + two: first + two, len(STORED): len(STORED)}
    assert {most: decoder.step(most) for most in steps} == steps


def test_frames_before_a_wrong_one_leave_and_the_wrong_one_is_suspect() -> None:
    start = GEOMETRY.table_size(ENTRY.size)
    lengths = FrameTable.unpack(STORED[:start], GEOMETRY).lengths
    third = start + lengths[0] + lengths[1]
    decoder = SectorDecoder(ENTRY, GEOMETRY, frame_buffer=bytearray(ENTRY.size + 1))
    decoder.buffer[:] = STORED[:-1] + bytes([STORED[-1] ^ 1])
    frames = decoder.advance(len(STORED))
    assert next(frames) == CONTENT[: 32 * KiB]
    with pytest.raises(ImageError, match="frame 2"):
        next(frames)
    assert decoder.suspect == (third, bytes(decoder.buffer[third:]))


def test_it_says_how_much_it_needs() -> None:
    decoder = SectorDecoder(ENTRY, GEOMETRY)
    frames = 0
    while not decoder.done:
        needed = decoder.needed
        decoder.buffer[:needed] = STORED[:needed]
        assert len(list(decoder.advance(needed - 1))) == 0
        frames += len(list(decoder.advance(needed)))
    assert (frames, decoder.needed) == (3, len(STORED))


@pytest.mark.parametrize(
    "geometry", [Geometry(4 * KiB, 4 * KiB), Geometry(64 * KiB, 64 * KiB), Geometry()]
)
@pytest.mark.parametrize("blocks", [1, 2, 16])
def test_geometries(geometry: Geometry, blocks: int) -> None:
    content = random.Random(blocks).randbytes(min(blocks * 4 * KiB, geometry.sector_size))
    entry, data = stored(content, geometry)
    decoder = SectorDecoder(entry, geometry)
    decoder.buffer[:] = data
    assert b"".join(map(bytes, decoder.advance(len(data)))) == content


def test_buffers_can_be_given() -> None:
    buffer, frame = memoryview(bytearray(len(STORED) + 50)), bytearray(GEOMETRY.frame_size)
    for _ in range(2):
        decoder = SectorDecoder(ENTRY, GEOMETRY, buffer, frame)
        decoder.buffer[:] = STORED
        assert b"".join(map(bytes, decoder.advance(len(STORED)))) == CONTENT


# -- bytes of others --------------------------------------------------------------------------


def test_every_flipped_byte_is_found() -> None:
    for at in range(0, len(STORED), 13):
        data = STORED[:at] + bytes([STORED[at] ^ 0x10]) + STORED[at + 1 :]
        with pytest.raises(ImageError):
            decode(data, [])


def test_damage_never_leaves() -> None:
    rng = random.Random(2)
    for _ in range(500):
        data = mutate(STORED, range(len(STORED)), rng)[: len(STORED)].ljust(len(STORED), b"\0")
        decoder = SectorDecoder(ENTRY, GEOMETRY)
        decoder.buffer[:] = data
        content = b""
        try:
            for frame in decoder.advance(len(data)):
                content += frame
        except ImageError:
            pass
        assert CONTENT.startswith(content)
        assert (content == CONTENT) == decoder.done


def test_another_sector_of_the_same_size() -> None:
    other = stored(CONTENT[::-1])[1].ljust(len(STORED), b"\0")[: len(STORED)]
    with pytest.raises(ImageError, match=r"sector id|frame table"):
        decode(other, [])


def frame_of(content: bytes, **options: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(**options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(content)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not match"),
        (b"\0" * 20, "cannot be decompressed"),
        (frame_of(b"x" * 4095), "does not match"),
        (frame_of(b"x" * 4097), "does not match"),
        (frame_of(b"y" * 4096), "does not match"),
        (frame_of(b"x" * 4096)[:-1], "does not match"),
        (frame_of(b"x" * 4096) + b"\0\0\0\0", "cannot be decompressed"),
        (frame_of(b"x" * 4096) * 2, "does not match"),
        (frame_of(b"x" * 4096) + frame_of(b"x"), "does not match"),
    ],
)
def test_a_frame_that_is_something_else(data: bytes, message: str) -> None:
    digest = hashlib.sha256(b"x" * 4096).digest()
    target = memoryview(bytearray(4096))
    decode_frame(frame_decompressor(GEOMETRY), frame_of(b"x" * 4096), target, digest)
    assert bytes(target) == b"x" * 4096
    with pytest.raises(ImageError, match=message):
        decode_frame(frame_decompressor(GEOMETRY), data, target, digest)


def test_a_frame_cannot_ask_for_memory() -> None:
    """A window of 128 MiB is refused before it is made."""
    # Frame header without content size: window descriptor of 2**27 (RFC 8878, 3.1.1.1.2).
    frame = struct.pack("<IBB", 0xFD2FB528, 0, (27 - 10) << 3) + b"\x01\0\0"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10):
        with pytest.raises(ImageError, match="cannot be decompressed"):
            decode_frame(frame_decompressor(GEOMETRY), frame, memoryview(bytearray(10)), b"")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * MiB // KiB


def test_a_frame_of_the_largest_window_that_is_allowed() -> None:
    content = random.Random(3).randbytes(16 * KiB)
    digest = hashlib.sha256(content).digest()
    target = memoryview(bytearray(16 * KiB))
    stream = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=14)
    ).compressobj()
    frame = stream.compress(content) + stream.flush()
    decode_frame(frame_decompressor(GEOMETRY), frame, target, digest)
    assert bytes(target) == content
