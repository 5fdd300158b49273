# SPDX-License-Identifier: Apache-2.0
"""What a source plans, and that one of another format fits the same seam. No sockets."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from firstread.errors import ImageError, TransportError
from firstread.oci.model import OCI_LAYER, Descriptor, describe
from firstread.sectors.format import FrameTable, Geometry, SectorEntry
from firstread.sectors.native import NativeSource
from firstread.sectors.source import Frame, Incoming, Source, Span, Wanted, Window
from firstread.testing.memorysource import MemorySource, make_sectors
from firstread.units import KiB

FRAMES = 16
GEOMETRY = Geometry(64 * KiB, 4 * KiB)
SECTORS = make_sectors(2, geometry=GEOMETRY)
SECTOR = SECTORS.wanted[1]
ENTRY = SECTOR.entry
TABLE_SIZE = GEOMETRY.table_size(ENTRY.size)
TABLE = FrameTable.unpack(SECTORS.blob[ENTRY.offset : ENTRY.offset + TABLE_SIZE], GEOMETRY)


def span(first: int, last: int) -> Span:
    """Return where frames lie that are side by side."""
    start = ENTRY.offset + TABLE_SIZE + sum(TABLE.lengths[:first])
    return Span(SECTOR.blob, start, start + sum(TABLE.lengths[first : last + 1]))


def take(source: NativeSource, known: object, part: Span) -> list[int]:
    """Fetch a range; return the numbers of its frames."""
    with source.open(part, Window()) as incoming:
        return [frame.number for frame in source.decode(SECTOR, known, incoming)]  # type: ignore[arg-type]


def test_before_the_table_is_here_a_range_begins_with_it() -> None:
    source = NativeSource(MemorySource(SECTORS))
    for frames in ([0], [0, 1, 2], [9], range(FRAMES)):
        (planned,) = source.plan(SECTOR, frames, source.begin(SECTOR))
        assert planned.start == ENTRY.offset
        assert ENTRY.offset + TABLE_SIZE <= planned.stop <= ENTRY.offset + ENTRY.length
        assert planned.stop >= span(0, max(frames)).stop  # these compress evenly


def test_with_the_table_ranges_are_exact_and_neighbours_are_one() -> None:
    source = NativeSource(MemorySource(SECTORS))
    known = source.begin(SECTOR)
    assert take(source, known, Span(SECTOR.blob, ENTRY.offset, ENTRY.offset + TABLE_SIZE)) == []
    for _ in range(2):  # a plan changes nothing
        assert source.plan(SECTOR, [], known) == []
        assert source.plan(SECTOR, [5], known) == [span(5, 5)]
        assert source.plan(SECTOR, [2, 3, 4, 8, 15], known) == [
            span(2, 4),
            span(8, 8),
            span(15, 15),
        ]
        assert source.plan(SECTOR, range(FRAMES), known) == [span(0, 15)]
    assert take(source, known, span(8, 9)) == [8, 9]
    assert take(source, known, span(3, 3)) == [3]
    assert known.verified == 4 * GEOMETRY.frame_size


def test_a_plan_goes_on_where_decoding_rests() -> None:
    source = NativeSource(MemorySource(SECTORS))
    known = source.begin(SECTOR)
    middle = span(4, 4).start + 100
    assert take(source, known, Span(SECTOR.blob, ENTRY.offset, middle)) == [0, 1, 2, 3]
    assert source.plan(SECTOR, [4], known) == [Span(SECTOR.blob, middle, span(4, 4).stop)]
    assert take(source, known, span(9, 9)) == [9]  # it can go on elsewhere, too
    assert source.plan(SECTOR, [4], known) == [span(4, 4)]


def test_a_range_in_the_middle_of_nowhere_is_refused() -> None:
    source = NativeSource(MemorySource(SECTORS))
    known = source.begin(SECTOR)
    with pytest.raises(ImageError, match="no frame begins"):
        take(source, known, span(1, 1))
    take(source, known, Span(SECTOR.blob, ENTRY.offset, span(0, 0).stop))
    with pytest.raises(ImageError, match="no frame begins"):
        take(source, known, Span(SECTOR.blob, span(5, 5).start + 1, span(5, 5).stop))


def test_what_comes_is_measured_and_must_be_all() -> None:
    source, seen = NativeSource(MemorySource(SECTORS)), []
    whole = Span(SECTOR.blob, ENTRY.offset, ENTRY.offset + ENTRY.length)
    incoming = source.open(whole, Window(), lambda count, seconds: seen.append((count, seconds)))
    with incoming:
        for _ in source.decode(SECTOR, source.begin(SECTOR), incoming):
            assert incoming.left == whole.stop - incoming.position
    assert sum(count for count, _ in seen) == whole.length
    with pytest.raises(TransportError, match="ended before"):
        incoming.received(3, 4, 0.0)


def test_a_step_takes_several_frames_at_once() -> None:
    source, seen = NativeSource(MemorySource(SECTORS)), list[tuple[int, int, bytes]]()
    whole = Span(SECTOR.blob, ENTRY.offset, ENTRY.offset + ENTRY.length)
    with source.open(whole, Window()) as incoming:
        incoming.step = 4 * GEOMETRY.frame_size
        for number, offset, data in source.decode(SECTOR, source.begin(SECTOR), incoming):
            assert number * GEOMETRY.frame_size == offset
            seen.append((number, len(data), bytes(data)))
    assert b"".join(data for _, _, data in seen) == SECTORS.contents[1]
    assert len(seen) <= FRAMES / 2
    assert max(size for _, size, _ in seen) == incoming.step


# -- another format --------------------------------------------------------------------------------


@dataclass
class Scattered:
    """The progress of a sector with frames in two blobs, uncompressed, the last one first."""

    verified: int = 0
    suspect: tuple[int, bytes] = (0, b"")

    @property
    def done(self) -> bool:
        return self.verified == len(CONTENT)


CONTENT = random.Random(3).randbytes(5 * 700)
PARTS = [CONTENT[start : start + 700] for start in range(0, len(CONTENT), 700)]
BLOBS = [b"".join(reversed(PARTS[0::2])), b"".join(reversed(PARTS[1::2]))]


class ScatteredSource(Source[Scattered]):
    def begin(self, sector: Wanted) -> Scattered:
        return Scattered()

    def covering(self, sector: Wanted, start: int, stop: int) -> range:
        return range(start // 700, -(-stop // 700))

    def _place(self, number: int) -> Span:
        blob = BLOBS[number % 2]
        start = len(blob) - 700 * (number // 2 + 1)
        return Span(describe(blob, OCI_LAYER), start, start + 700)

    def plan(self, sector: Wanted, frames: Iterable[int], known: Scattered) -> list[Span]:
        return [self._place(number) for number in frames]

    def decode(self, sector: Wanted, known: Scattered, incoming: Incoming) -> Iterator[Frame]:
        for number, part in enumerate(PARTS):
            place = self._place(number)
            if incoming.left and place[:2] == (incoming.blob, incoming.position):
                data = memoryview(bytearray(700))
                incoming.received(incoming.stream.readinto(data), 700, 0.0)
                if hashlib.sha256(data).digest() != hashlib.sha256(part).digest():
                    raise ImageError("it is another frame")
                known.verified = (number + 1) * 700
                yield Frame(number, number * 700, data)


def test_frames_of_other_sizes_from_several_blobs() -> None:
    place = MemorySource()
    for blob in BLOBS:
        place.blobs[describe(blob, OCI_LAYER).digest] = blob
    nowhere = Descriptor(media_type=OCI_LAYER, digest="sha256:" + "0" * 64, size=0)
    sector = Wanted(SectorEntry(b"", len(CONTENT), 0, 0, 0), nowhere, GEOMETRY)
    source = ScatteredSource(place)
    found = {f.number: bytes(f.data) for f in source.frames(sector, [1, 4, 0])}
    assert found == {number: PARTS[number] for number in (0, 1, 4)}
    whole = source.frames(sector, source.covering(sector, 0, len(CONTENT)))
    assert b"".join(bytes(frame.data) for frame in whole) == CONTENT
