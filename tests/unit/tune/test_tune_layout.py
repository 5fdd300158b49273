# SPDX-License-Identifier: Apache-2.0
"""Layouts are what the converter would make."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from firstread.convert.hotblob import recorded_start
from firstread.convert.record import Entry, LayerRecord, Parameters
from firstread.errors import ImageError, UnsupportedError
from firstread.oci.model import OCI_MANIFEST
from firstread.oci.resolve import resolve
from firstread.sectors.decode import SectorDecoder
from firstread.testing.packed import SMALL, converted, opened
from firstread.testing.tuning import IMAGE, LARGE, Converted, convert, trace
from firstread.tune.layercontent import Content, FileKey, read_content, read_frames
from firstread.tune.layout import FileLayout, HotLayout, Layout, Need, PlainLayout, frame_cost
from firstread.tune.workload import hot_content
from firstread.units import KiB, MiB

S, F = SMALL.sector_size, SMALL.frame_size
B = 4096


@pytest.fixture(scope="module")
def packed() -> Converted:
    found = convert()
    read_frames(found.place, found.content, keys(found.content))
    return found


def keys(content: Content) -> frozenset[FileKey]:
    """Return all files of an image."""
    return frozenset(
        FileKey(layer, number)
        for layer, its in enumerate(content.layers)
        for number in range(len(its.files))
    )


def key(content: Content, path: str) -> FileKey:
    found = content.find(path.encode())
    assert found is not None
    return found


def plain(content: Content, sector_size: int = S, frame_size: int = F) -> PlainLayout:
    return PlainLayout(content, sector_size, frame_size, keys(content))


def needs(layout: Layout, path: str, offset: int, length: int) -> list[Need]:
    return list(layout.needs(key(layout.content, path), offset, length))


def test_paths_lead_to_files(packed: Converted) -> None:
    content = packed.content
    assert content.file(key(content, "large")).size == LARGE
    assert key(content, "bin/8").layer == 1, "the upper layer replaces it"
    assert key(content, "bin/9").layer == 0
    for absent in ("bin/7", "bin", "none", "large/x", ""):
        assert content.find(absent.encode()) is None


def test_the_settings_of_the_image_give_the_sectors_of_the_image(packed: Converted) -> None:
    layout = plain(packed.content)
    sectors = [sector for layer in packed.content.layers for sector in layer.sectors]
    assert not all(sector.id for sector in sectors), "one of zeros"
    assert [unit.entry.size for unit in layout.units] == [sector.size for sector in sectors]
    stored = [sector.length if sector.id else 0 for sector in sectors]
    assert [unit.entry.length for unit in layout.units] == stored
    assert layout.size - layout.metadata == sum(blob.size for blob in packed.image.blobs)


def test_frames_end_where_those_of_the_image_do(packed: Converted) -> None:
    layout, seen = plain(packed.content), 0
    for number, row in enumerate(packed.image.index.sectors):
        blob = packed.image.blobs[row.blob]
        decoder = SectorDecoder(row, SMALL.geometry)
        with packed.place.open_blob(blob, offset=row.offset, length=row.length) as stream:
            decoder.buffer[:] = b"".join(map(bytes, stream))
        plain_ends = [(decoder.verified, decoder.offset) for _ in decoder.advance(row.length)]
        unit = next(n for n, u in enumerate(layout.units) if _same(packed, n, row.id))
        assert list(layout.frames(unit)) == plain_ends, f"sector {number}"
        seen += len(plain_ends)
    assert seen > 10


def _same(packed: Converted, unit: int, sector_id: bytes) -> bool:
    sectors = [sector for layer in packed.content.layers for sector in layer.sectors]
    return sectors[unit].id == sector_id


@pytest.mark.parametrize("sector_size", [16 * KiB, 32 * KiB, 256 * KiB, 1 * MiB])
def test_other_sectors_are_those_of_another_conversion(packed: Converted, sector_size: int) -> None:
    other = convert(Parameters(sector_size=sector_size, frame_size=16 * KiB)).content
    real = [sector.size for layer in other.layers for sector in layer.sectors]
    layout = plain(packed.content, sector_size, 16 * KiB)
    assert [unit.entry.size for unit in layout.units] == real
    stored = sum(sector.length for layer in other.layers for sector in layer.sectors)
    assert sum(unit.entry.length for unit in layout.units) == pytest.approx(stored, rel=0.03)


def test_units_of_a_layer_lie_behind_each_other(packed: Converted) -> None:
    layout = plain(packed.content)
    stored = [unit for unit in layout.units if unit.entry.length]
    for unit, following in pairwise(stored):
        same = unit.blob.digest == following.blob.digest
        assert layout.behind(unit) is (following if same else None)
    assert layout.behind(stored[-1]) is None


def test_a_read_needs_the_sectors_that_hold_it(packed: Converted) -> None:
    layout = plain(packed.content)
    first = needs(layout, "large", 0, B)[0].unit
    assert needs(layout, "large", 0, B) == [Need(first, 0, B)]
    assert needs(layout, "large", S - B, 2 * B) == [Need(first, S - B, S), Need(first + 1, 0, B)]
    tail = LARGE % S
    (end,) = needs(layout, "large", LARGE - tail, S)
    assert end.end <= layout.units[end.unit].entry.size
    assert needs(layout, "sparse", 0, B) == [], "a hole"
    assert needs(layout, "zeros", 0, 2 * S) == []
    assert len(needs(layout, "sparse", 64 * KiB, 200 * KiB)) == 1


def test_finer_frames_cost_bytes(packed: Converted) -> None:
    sizes = [plain(packed.content, S, frame).size for frame in (4 * KiB, 16 * KiB, 64 * KiB)]
    assert sizes == sorted(sizes, reverse=True)
    costs = [frame_cost(1 << bits) for bits in range(10, 25)]
    assert costs == sorted(costs, reverse=True)
    assert frame_cost(256 * KiB) == 1


def hot(content: Content, *reads: tuple[str, int, int], sector_size: int = S) -> HotLayout:
    found = hot_content(content, [trace(reads)], B)
    return HotLayout(plain(content, sector_size), sector_size, *found)


def test_hot_reads_need_hot_sectors(packed: Converted) -> None:
    reads = [("large", S, 2 * B), ("bin/9", 0, B), ("sparse", 64 * KiB, 2 * B)]
    layout = hot(packed.content, *reads)
    assert len(layout.stream) == 1
    (unit,) = layout.stream
    assert unit == len(plain(packed.content).units)
    ends = [need for read in reads for need in needs(layout, *read)]
    assert {need.unit for need in ends} == {unit}
    assert [need.end for need in ends] == sorted(need.end for need in ends)
    assert max(need.end for need in ends) == layout.units[unit].entry.size
    assert needs(layout, "bin/20", 0, B) == needs(plain(packed.content), "bin/20", 0, B)


def test_hot_zeros_need_no_sector(packed: Converted) -> None:
    layout = hot(packed.content, ("zeros", 0, 2 * S))
    assert layout.stream == []
    assert needs(layout, "zeros", 0, 2 * S) == []


def test_the_rest_of_a_hot_file_stays_where_it_is(packed: Converted) -> None:
    layout = hot(packed.content, ("large", S, B))
    cold, warm, rest = needs(layout, "large", S - B, 3 * B)
    assert warm == Need(layout.stream[0], 0, B)
    assert cold == needs(plain(packed.content), "large", S - B, B)[0]
    assert rest == needs(plain(packed.content), "large", S + B, B)[0]


def test_hot_content_fill_several_sectors(packed: Converted) -> None:
    layout = hot(packed.content, ("large", 0, LARGE), ("bin/9", 0, B))
    assert len(layout.stream) >= LARGE // S
    for number in layout.stream:
        assert layout.units[number].entry.size <= S
        assert layout.frames(number)[-1] == (
            layout.units[number].entry.size,
            layout.units[number].entry.length,
        )


def test_hot_sectors_can_be_smaller_than_chunks(packed: Converted) -> None:
    layout = hot(packed.content, ("large", 0, LARGE), sector_size=16 * KiB)
    assert all(layout.units[number].entry.size <= 16 * KiB for number in layout.stream)
    assert {need.unit for need in needs(layout, "large", 0, LARGE)} == set(layout.stream)


def test_whole_files_and_chunks_of_files(packed: Converted) -> None:
    content = packed.content
    whole, chunks = FileLayout(content, 0), FileLayout(content, 64 * KiB)
    assert len(whole.units) == len(keys(content))
    ((unit, _, end),) = needs(whole, "large", 0, B)
    assert end == whole.units[unit].entry.size
    assert whole.frames(unit) == [(end, whole.units[unit].entry.length)]
    assert [need.end for need in needs(chunks, "large", 64 * KiB - B, 2 * B)] == [64 * KiB] * 2
    assert chunks.behind(chunks.units[needs(chunks, "large", 0, B)[0].unit]) is not None
    assert whole.behind(whole.units[unit]) is None


def test_a_damaged_record_or_frame_table_is_an_error(packed: Converted) -> None:
    found = convert()
    blob = found.image.blobs[0].digest
    data = bytearray(found.place.blobs[blob])
    data[20] ^= 1
    found.place.blobs[blob] = bytes(data)
    with pytest.raises(ImageError):
        read_frames(found.place, found.content, keys(found.content))
    data[-1] ^= 1
    found.place.blobs[blob] = bytes(data)
    with pytest.raises(ImageError):
        read_content(found.place, resolve(found.place), found.image)


def test_hot_sectors_that_the_image_has_do_not_count() -> None:
    start = trace([("large", 0, LARGE), ("bin/9", 0, B)])
    place, manifest = converted(IMAGE, SMALL, recorded_start(start))
    image = opened(place, manifest)
    assert image.hot_sectors()
    content = read_content(place, resolve(place), image)
    usual = convert().content
    assert [layer.sectors for layer in content.layers] == [layer.sectors for layer in usual.layers]
    assert key(content, "large") == key(usual, "large")


def test_weights_are_streamed_from_where_they_are(
    packed: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstread.convert.hotplan.BULK_SIZE", 2 * S)
    layout = hot(packed.content, ("bin/9", 0, B), ("large", 0, LARGE))
    kept = [need.unit for need in needs(plain(packed.content), "large", 0, LARGE // S * S)]
    assert layout.stream[-len(kept) :] == kept
    assert needs(layout, "large", 0, B) == needs(plain(packed.content), "large", 0, B)
    assert layout.stream[0] >= len(plain(packed.content).units)
    copied = sum(layout.units[number].entry.size for number in set(layout.stream) - set(kept))
    assert copied < LARGE % S + 3 * B


def test_a_record_with_impossible_files_is_an_error(
    packed: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of a record size and index what is read, so all of them have bounds."""
    real = LayerRecord.entries
    far = (9999 << 32).to_bytes(8, "little")
    behind = (0xFFFF).to_bytes(8, "little")
    for wrong in (
        {"chunks": far},
        {"chunks": behind},
        {"chunks": b"\0" * 16},
        {"chunks": b"\0" * 9, "size": 2 * B},
        {"chunk_size": 0},
        {"chunk_size": 1},
        {"size": 1 << 62},
    ):
        entry = Entry(b"f", 0o100644, size=B, chunk_size=B, chunks=bytes(8))
        for name, value in wrong.items():
            setattr(entry, name, value)
        found = lambda record, entry=entry: iter([*real(record), entry])  # noqa: E731
        monkeypatch.setattr(LayerRecord, "entries", found)
        with pytest.raises(ImageError):
            read_content(packed.place, resolve(packed.place), packed.image)


def test_an_image_without_annotations_cannot_be_packed_anew() -> None:
    place, manifest = converted(IMAGE)
    layers = [msgspec.structs.replace(layer, annotations=None) for layer in manifest.layers]
    stripped = msgspec.structs.replace(manifest, layers=layers)
    place.put_manifest(msgspec.json.encode(stripped), OCI_MANIFEST, "latest")
    with pytest.raises(UnsupportedError, match="lost their annotations"):
        read_content(place, resolve(place), opened(place, stripped))
