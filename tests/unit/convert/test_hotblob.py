# SPDX-License-Identifier: Apache-2.0
"""Hot sectors hold what a trace reads, in order, and leave the layers alone."""

from __future__ import annotations

import errno
import random
import threading
from typing import Any

import pytest

from firstread.convert import hotcopies, hotplan
from firstread.convert.blobcheck import BlobCheck
from firstread.convert.blobwriter import BlobWriter
from firstread.convert.compare import differences, fingerprint_image, source_tree
from firstread.convert.hotblob import Read, make_hot, recorded_start
from firstread.convert.metadata import merge
from firstread.convert.record import ENCODER, LayerRecord
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, Node, chunk_address, split_address, walk
from firstread.erofs.validation import validate
from firstread.errors import ImageError
from firstread.oci.model import Manifest, diff_ids
from firstread.oci.resolve import resolve
from firstread.sectors.content import ContentReader
from firstread.sectors.format import BLOCK_SIZE
from firstread.sectors.image import HOT, BlockImage
from firstread.testing.images import File, Hardlink, Image, Layer, Sparse, feature_image
from firstread.testing.packed import SMALL, MemoryRepository, converted, opened, pack
from firstread.testing.starts import trace_of
from firstread.traces.tracefile import Trace

LARGE = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(150_000)
SPARSE = Sparse("sparse", size=1 << 20, data={5 << 17: b"data" * 2000})
IMAGE = Image(
    [
        Layer([File("large", LARGE), File("small", b"small" * 500), SPARSE]),
        Layer([File("other", OTHER), File("zeros", bytes(200_000)), Hardlink("hard", "other")]),
    ]
)
TRACE = trace_of(
    ("other", 10, 2), ("large", 70, 4), ("small", 0, 1), ("large", 3, 1), ("zeros", 0, 4),
    ("sparse", 160, 2), ("hard", 10, 3), ("large", 70, 1), ("gone", 0, 1),
)  # fmt: skip


def hot(image: Image = IMAGE, trace: Trace = TRACE) -> tuple[MemoryRepository, Manifest]:
    return converted(image, SMALL, recorded_start(trace))


def checked(place: MemoryRepository, manifest: Manifest, image: Image) -> None:
    """Check a converted image as ``verify --source`` does."""
    found = opened(place, manifest)
    validate(found.erofs)
    root = read_tree(found.erofs)
    check = BlobCheck(place, found, root)
    ids = diff_ids(resolve(place).config)
    for number, (blob, diff_id) in enumerate(zip(found.blobs, ids[1:], strict=True)):
        check.blob(number, blob, diff_id)
    fingerprint_image(root, check, ContentReader.of(place, found), SMALL.sector_size)
    source = MemoryRepository()
    layers = source.add(image).manifest.layers
    pairs = [(layer, one.diff_id) for layer, one in zip(layers, image.layers, strict=True)]
    assert list(differences(source_tree(source, pairs, SMALL.sector_size), root)) == []


def addresses(image: BlockImage, name: bytes) -> list[tuple[int, int] | None]:
    """Return (slot, block) of each block of a file; None for those of holes."""
    node: Node = dict(walk(read_tree(image.erofs)))[name]
    found: list[tuple[int, int] | None] = []
    for number, chunk in enumerate(node.chunks):
        size = min(node.chunk_size, node.size - number * node.chunk_size)
        for block in range(-(-size // BLOCK_SIZE)):
            slot, first = split_address(chunk)
            found.append(None if chunk == HOLE else (slot, first + block))
    return found


def test_hot_blocks_lie_in_the_order_of_the_trace() -> None:
    place, manifest = hot()
    image = opened(place, manifest)
    slots = image.hot_sectors()
    assert slots == [len(image.index.sectors) - 1]
    order = [
        addresses(image, name)[block]
        for name, block in [
            *((b"other", block) for block in (10, 11)),
            *((b"large", block) for block in (70, 71, 72, 73)),
            (b"small", 0),
            (b"large", 3),
            *((b"sparse", block) for block in (160, 161)),
            (b"other", 12),
        ]
    ]
    assert order == [(slots[0], block) for block in range(11)]
    assert addresses(image, b"zeros")[0] is None


def test_the_tree_stays_the_same() -> None:
    place, manifest = hot()
    checked(place, manifest, IMAGE)


def test_an_image_with_every_feature_read_as_a_whole() -> None:
    image = feature_image()
    plain, described = converted(image)
    paths = [p for p, node in walk(read_tree(opened(plain, described).erofs)) if node.chunks]
    assert len(paths) > 5
    trace = trace_of(*((path.decode(errors="surrogateescape"), 0, 1024) for path in paths))
    checked(*hot(image, trace), image)


def test_blobs_of_layers_stay_as_they_are() -> None:
    _, plain = converted(IMAGE)
    _, manifest = hot()
    assert manifest.layers[1:-1] == plain.layers[1:]
    blob = manifest.layers[-1]
    assert (blob.annotations or {})[HOT] == (manifest.annotations or {})[HOT]
    assert (blob.annotations or {})[HOT].startswith("v1 granule=4096 reads=6 trace=sha256:")


def test_only_frames_with_hot_data_are_fetched() -> None:
    content = random.Random(3).randbytes(64 * 1024)
    image = Image(
        [Layer([File(f"f{number}", content[number:] + b"x" * number) for number in range(8)])]
    )
    place, manifest = hot(image, trace_of(("f5", 8, 1)))
    fetched = place.reads[manifest.layers[1].digest]
    assert 0 < fetched <= 2


def test_sectors_side_by_side_that_are_needed_by_half_come_in_one_request() -> None:
    image = Image([Layer([File("large", LARGE)])])
    per_sector = SMALL.sector_size // BLOCK_SIZE
    parts = [("large", number * per_sector, per_sector * 3 // 4) for number in (3, 0, 2, 1)]
    place, manifest = hot(image, trace_of(*parts))
    assert place.reads[manifest.layers[1].digest] == 1
    checked(place, manifest, image)
    apart = [part for part in parts if part[1] != per_sector]
    place, manifest = hot(image, trace_of(*apart))
    assert place.reads[manifest.layers[1].digest] == 2


TWINS = Image(
    [
        Layer([File("a", LARGE), File("b", LARGE + b"more of b"), File("other", OTHER)]),
        Layer([File("c", LARGE), File("packed", b"small"), File("z", LARGE[: 5 << 16])]),
    ]
)


def test_a_file_of_the_same_content_has_the_same_hot_blocks() -> None:
    """A read of a sector cannot tell which of the files it was for."""
    reads = ("b", 3, 2), ("b", 70, 1), ("a", 3, 1), ("c", 20, 1)
    place, manifest = hot(TWINS, trace_of(*reads))
    image = opened(place, manifest)
    (slot,) = image.hot_sectors()
    assert image.index.sectors[slot].size == 4 * BLOCK_SIZE
    for name in (b"a", b"b", b"c", b"z"):
        found = addresses(image, name)
        assert [found[block] for block in (3, 4, 20)] == [(slot, 0), (slot, 1), (slot, 3)]
        assert [place for place in found if place and place[0] == slot] == [
            (slot, 0), (slot, 1), (slot, 3), *([(slot, 2)] if name == b"b" else []),
        ]  # fmt: skip
    checked(place, manifest, TWINS)


def test_a_hot_file_is_cut_as_finely_as_one_of_the_same_content() -> None:
    """As a program under two names: its common sectors are traced as the first, its tail is not."""
    tails = OTHER[:60_000], OTHER[60_000:120_000]
    files = [File(name, LARGE[: 1 << 18] + tail) for name, tail in zip("ab", tails, strict=True)]
    image = Image([Layer(files)])
    place, manifest = hot(image, trace_of(("a", 3, 1), ("a", 9, 2), ("b", 64, 9)))
    found = opened(place, manifest)
    (slot,) = found.hot_sectors()
    there = addresses(found, b"b")
    assert [there[block] for block in (3, 9, 10, 64, 72)] == [
        (slot, block) for block in (0, 1, 2, 3, 11)
    ]
    checked(place, manifest, image)


def test_so_many_files_of_the_same_content_are_cut_as_cost_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = -(-len(LARGE) // BLOCK_SIZE) - -(-len(LARGE) // SMALL.sector_size)
    monkeypatch.setattr(hotcopies, "MAX_TWIN_CHUNKS", more)
    place, manifest = hot(TWINS, trace_of(("b", 3, 1)))
    image = opened(place, manifest)
    (slot,) = image.hot_sectors()
    cut = [name for name in (b"a", b"b", b"c", b"z") if (slot, 0) in addresses(image, name)]
    assert cut == [b"a", b"b"]
    checked(place, manifest, TWINS)


def test_a_copy_that_ends_with_its_file_is_none_of_a_longer_one() -> None:
    """Two packed sectors have one content, but not the same files."""
    short, following = LARGE[:12_000], OTHER[:3000]
    long = short + bytes(288) + following
    layers = [Layer([File("short", short), File("following", following)]), Layer([File("z", long)])]
    place, manifest = hot(Image(layers), trace_of(("short", 0, 3)))
    image = opened(place, manifest)
    assert len(image.index.sectors) == 2
    assert addresses(image, b"short")[0] not in addresses(image, b"z")
    checked(place, manifest, Image(layers))


def test_sectors_that_are_read_as_a_whole_stay_and_are_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hotplan, "BULK_SIZE", 4 * SMALL.sector_size)
    place, manifest = hot(trace=trace_of(("large", 32, 48), ("small", 0, 1), ("large", 0, 32)))
    image = opened(place, manifest)
    assert (manifest.annotations or {})[HOT].endswith(" whole=2-3,0-1")
    slots = image.hot_sectors()
    assert slots == [len(image.index.sectors) - 1, 2, 3, 0, 1]
    assert image.index.sectors[slots[0]].size == (74 - 64 + 1) * BLOCK_SIZE
    checked(place, manifest, IMAGE)
    only = trace_of(*(("large", 16 * number, 16) for number in range(4)))
    _, manifest = hot(trace=only)
    assert (manifest.annotations or {})[HOT].endswith(" whole=0-3")
    assert manifest.layers == converted(IMAGE)[1].layers


def test_a_sector_that_a_copy_of_its_content_replaces_is_not_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hotplan, "BULK_SIZE", 4 * SMALL.sector_size)
    sector = SMALL.sector_size
    image = Image([Layer([File("a", LARGE), File("b", LARGE[: 2 * sector])])])
    blocks, all_blocks = sector // BLOCK_SIZE, -(-len(LARGE) // BLOCK_SIZE)
    trace = trace_of(("b", blocks + 4, 1), ("b", 0, blocks), ("a", 0, all_blocks))
    place, manifest = hot(image, trace)
    note = opened(place, manifest).hot_note
    assert note is not None
    assert len(note.whole) == len(LARGE) // sector - 1
    checked(place, manifest, image)


def test_a_sector_that_repeats_is_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplan, "BULK_SIZE", 4 * SMALL.sector_size)
    image = Image([Layer([File("same", b"\xff" * (8 * SMALL.sector_size))])])
    place, manifest = hot(image, trace_of(("same", 0, 8 * SMALL.sector_size // BLOCK_SIZE)))
    assert (manifest.annotations or {})[HOT].endswith(" whole=0")
    assert opened(place, manifest).hot_note is not None
    checked(place, manifest, image)


PINNED = {  # encoder -> digests of the blob and of the manifest
    "zstd-1.5.7": (
        "sha256:36899c1b786a1d69358085b04c8377c4e0f54244c37a9f0446c57ada24f6ceda",
        "sha256:cd909408cfa59f348ad8353a1f71573a3b4c505a4cab4358f9d3f50316c43039",
    ),
}


def test_pinned_bytes() -> None:
    assert ENCODER in PINNED, "another zstd library: pin its digests beside the others"
    plain = Image([Layer(layer.items, "none") for layer in IMAGE.layers])  # of no other library
    place, manifest = hot(plain)
    assert (manifest.layers[-1].digest, place.tag) == PINNED[ENCODER]
    assert hot(plain)[1] == manifest


@pytest.mark.parametrize(
    "trace", [trace_of(), trace_of(("gone", 0, 1)), trace_of(("zeros", 0, 9), ("small", 1, 1))]
)
def test_a_trace_that_does_not_fit_changes_nothing(trace: Trace) -> None:
    assert hot(trace=trace)[1] == converted(IMAGE)[1]


def test_a_hot_sector_that_equals_one_of_a_layer_counts_as_hot() -> None:
    image = Image([Layer([File("a", LARGE[:10_000]), File("b", LARGE[20_000:30_000])])])
    place, manifest = hot(image, trace_of(("a", 0, 3), ("b", 0, 3)))
    found = opened(place, manifest)
    assert found.hot_sectors() == [0]
    assert len(found.index.sectors) == 1
    checked(place, manifest, image)


def test_a_start_reads_the_merged_tree() -> None:
    asked: list[bytes] = []

    def start(root: Node, read: Read, config: dict[str, Any]) -> Trace | None:
        asked.extend([read(b"large", 290_000, 99_999), read(b"gone", 0, 1), read(b"zeros", 9, 3)])
        assert root.children is not None
        assert set(root.children) >= {b"large", b"other"}
        assert config["rootfs"]
        return None

    _, manifest = converted(IMAGE, SMALL, start)
    assert asked == [LARGE[290_000:], b"", bytes(3)]
    assert manifest == converted(IMAGE)[1]


def test_damage_of_a_layer_is_found_and_named() -> None:
    packed, blob = pack(IMAGE.layers[0])
    place = MemoryRepository()
    place.blobs[packed.digest] = blob[:200_000] + bytes(8) + blob[200_008:]
    merged = merge([LayerRecord.decode(packed.record)])
    start = recorded_start(trace_of(("large", 0, 80)))
    with pytest.raises(ImageError) as caught:
        make_hot(place, merged, [packed], SMALL, {}, start)
    assert caught.value.layer == packed.digest


def test_nothing_is_copied_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread would write to the file that has the number of the closed one by then."""

    def submit(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    packed, blob = pack(IMAGE.layers[0])
    place = MemoryRepository()
    place.blobs[packed.digest] = blob
    monkeypatch.setattr(BlobWriter, "submit", submit)
    merged = merge([LayerRecord.decode(packed.record)])
    start = recorded_start(trace_of(("large", 0, 80)))
    with pytest.raises(OSError, match="No space left") as caught:
        make_hot(place, merged, [packed], SMALL, {}, start)
    assert caught.tb is not None  # it holds all that the functions had
    assert [t.name for t in threading.enumerate() if t.name.startswith("hot")] == []


@pytest.mark.parametrize("block", [15, 16, 1000])
def test_a_record_that_points_outside_its_sector_is_refused(block: int) -> None:
    """A record can come from a registry; sectors have 16 blocks here."""
    packed, blob = pack(Layer([File("f", LARGE[:8192])]))
    place = MemoryRepository()
    place.blobs[packed.digest] = blob
    merged = merge([LayerRecord.decode(packed.record)])
    assert merged.root.children is not None
    merged.root.children[b"f"].chunks = (chunk_address(0, block),)
    with pytest.raises(ImageError, match="outside"):
        make_hot(place, merged, [packed], SMALL, {}, recorded_start(trace_of(("f", 0, 2))))
