# SPDX-License-Identifier: Apache-2.0
"""Verification finds whatever is not as the digests, the index or the source say."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import stat
import time
from collections.abc import Callable
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.convert.blobcheck import BlobCheck, read_sectors
from firstread.convert.compare import differences, fingerprint_image, source_tree
from firstread.convert.fingerprint import Fingerprint
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import HOLE, Node, directory
from firstread.errors import DigestError, FirstreadError, ImageError, NotFoundError
from firstread.oci.model import Descriptor, Manifest
from firstread.sectors.content import ContentReader
from firstread.sectors.format import SKIPPABLE_RECORD, pack_skippable
from firstread.testing.images import (
    Char,
    Dir,
    Entry,
    File,
    Hardlink,
    Image,
    Layer,
    Sparse,
    Symlink,
    Whiteout,
    feature_image,
)
from firstread.testing.packed import SMALL, MemoryRepository, converted, opened, pack
from firstread.units import KiB, MiB, TiB

ITEMS: list[Entry] = [
    Dir("d/", mode=0o750, mtime=5),
    File("d/a", b"a" * 1000, mode=0o640, uid=1, gid=2, mtime=3, mtime_nsec=4),
    File("d/large", random.Random(1).randbytes(300_000), xattrs={"user.x": b"1"}),
    Sparse("d/sparse", size=1 << 24, data={5 << 20: b"data", 9 << 20: b"x" * 9000}),
    File("d/zeros", bytes(200_000)),
    Hardlink("d/hard", "d/a"),
    File("d/b", b"a" * 1000, mode=0o640, uid=1, gid=2, mtime=3, mtime_nsec=4),
    Symlink("d/soft", "a"),
]
IMAGE = Image([Layer(ITEMS), Layer([File("e", b"e" * 70_000), Whiteout("d/zeros")])])


def check(place: MemoryRepository, manifest: Manifest) -> Node:
    """Check an image as the verb does; return its tree, fingerprinted."""
    image = opened(place, manifest)
    root = read_tree(image.erofs)
    blobs = BlobCheck(place, image, root)
    for number, (blob, layer) in enumerate(zip(image.blobs, IMAGE.layers, strict=True)):
        blobs.blob(number, blob, pack(layer)[0].diff_id)
    fingerprint_image(root, blobs, ContentReader(place, image), SMALL.sector_size)
    return root


def tree_of(image: Image) -> Node:
    source = MemoryRepository()
    layers = source.add(image).manifest.layers
    pairs = [(layer, one.diff_id) for layer, one in zip(layers, image.layers, strict=True)]
    return source_tree(source, pairs, SMALL.sector_size)


def test_an_image_equals_its_source() -> None:
    place, manifest = converted(IMAGE)
    assert list(differences(tree_of(IMAGE), check(place, manifest))) == []


def test_the_image_with_every_feature_equals_its_source() -> None:
    image = feature_image()
    place, manifest = converted(image)
    block_image = opened(place, manifest)
    root = read_tree(block_image.erofs)
    blobs = BlobCheck(place, block_image, root)
    diff_ids = [pack(layer)[0].diff_id for layer in image.layers]
    for number, blob in enumerate(block_image.blobs):
        blobs.blob(number, blob, diff_ids[number])
    fingerprint_image(root, blobs, ContentReader(place, block_image), SMALL.sector_size)
    assert list(differences(tree_of(image), root)) == []
    assert blobs.checked.blobs == len(block_image.blobs)
    assert blobs.checked.bytes >= sum(sector.size for sector in block_image.index.sectors)


# -- damage -----------------------------------------------------------------------------------


def resealed(place: MemoryRepository, manifest: Manifest, number: int, blob: bytes) -> Manifest:
    """Put another blob there, under its own digest, as someone who can push would."""
    old = manifest.layers[number]
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    place.blobs[digest] = blob
    new = msgspec.structs.replace(old, digest=digest, size=len(blob))
    layers = [*manifest.layers[:number], new, *manifest.layers[number + 1 :]]
    return msgspec.structs.replace(manifest, layers=layers)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9, 1.0])
def test_a_flipped_byte(number: int, part: float) -> None:
    place, manifest = converted(IMAGE)
    digest = manifest.layers[number].digest
    data = bytearray(place.blobs[digest])
    data[int(part * (len(data) - 1))] ^= 1
    place.blobs[digest] = bytes(data)
    with pytest.raises(ImageError):
        check(place, manifest)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_blob(number: int) -> None:
    place, manifest = converted(IMAGE)
    del place.blobs[manifest.layers[number].digest]
    with pytest.raises(NotFoundError):
        check(place, manifest)


def test_every_flipped_byte_of_a_blob_that_was_pushed_anew() -> None:
    """Its digest fits then; the index does not name it any more."""
    place, manifest = converted(IMAGE)
    blob = bytearray(place.blobs[manifest.layers[1].digest])
    blob[100] ^= 1
    with pytest.raises(ImageError, match="different blobs"):
        check(place, resealed(place, manifest, 1, bytes(blob)))


def test_a_wrong_diff_id() -> None:
    place, manifest = converted(IMAGE)
    image = opened(place, manifest)
    blobs = BlobCheck(place, image, None)
    with pytest.raises(DigestError, match="diff_id") as caught:
        blobs.blob(0, image.blobs[0], "sha256:" + "0" * 64)
    assert caught.value.layer == image.blobs[0].digest


Change = Callable[[bytearray, int], bytes]
"""Of a blob; the number is where its record begins."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda blob, at: blob[:at] + pack_skippable(SKIPPABLE_RECORD, b"") + blob, "at the end"),
        (lambda blob, at: blob + blob, "at the end"),
        (lambda blob, at: blob[:at] + b"\0" * 8, "no frame table"),
        (lambda blob, at: blob[:at] + b"\x50\x2a\x4d\x18\xff\xff\xff\x7f", "no sector"),
        (lambda blob, at: blob[: at - 1], "cut off"),
        (lambda blob, at: blob[:20], "cut off"),
        (lambda blob, at: blob[:7], "cut off"),
    ],
)
def test_a_file_that_is_no_blob(change: Change, message: str) -> None:
    packed, blob = pack(IMAGE.layers[0])
    damaged = bytes(change(bytearray(blob), packed.record_offset))
    with pytest.raises(ImageError, match=message):
        list(read_sectors([damaged], SMALL.geometry))


def test_a_blob_may_come_in_any_pieces() -> None:
    blob = pack(IMAGE.layers[0])[1]
    whole = [(at, bytes(data)) for at, _, data in read_sectors([blob], SMALL.geometry)]
    pieces = [blob[at : at + 997] for at in range(0, len(blob), 997)]
    assert [(at, bytes(d)) for at, _, d in read_sectors(pieces, SMALL.geometry)] == whole


def test_blobs_in_the_wrong_order() -> None:
    place, manifest = converted(IMAGE)
    image = opened(place, manifest)
    blobs = BlobCheck(place, image, None)
    with pytest.raises(ImageError) as caught:
        blobs.blob(0, image.blobs[1], pack(IMAGE.layers[1])[0].diff_id)
    assert caught.value.layer == image.blobs[1].digest


# -- comparison -------------------------------------------------------------------------------


def changed(number: int, **fields: object) -> Entry:
    return dataclasses.replace(ITEMS[number], **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "other", "lines"),
    [
        (4, None, ["/d/zeros: missing in the converted image"]),
        (1, changed(1, content=b"b" * 1000), ["/d/a: content "]),
        (1, changed(1, content=b"a" * 999), ["/d/a: size 999, in the source size 1000"]),
        (1, changed(1, mode=0o641), ["/d/a: mode 100641, in the source mode 100640"]),
        (1, changed(1, mode=0o4640), ["/d/a: mode 104640"]),
        (1, changed(1, uid=9), ["/d/a: uid 9, in the source uid 1"]),
        (1, changed(1, gid=9), ["/d/a: gid 9"]),
        (1, changed(1, mtime=9), ["/d/a: mtime 9"]),
        (1, changed(1, mtime_nsec=9), ["/d/a: mtime_nsec 9"]),
        (2, changed(2, xattrs={}), ["/d/large: xattrs {}"]),
        (2, changed(2, xattrs={"user.x": b"2"}), ["/d/large: xattrs {b'user.x': b'2'}"]),
        (2, changed(2, content=random.Random(2).randbytes(300_000)), ["/d/large: content "]),
        (3, changed(3, data={5 << 20: b"data"}), ["/d/sparse: content "]),
        (3, changed(3, data={5 << 20: b"data", (9 << 20) + 1: b"x" * 9000}), ["/d/sparse: cont"]),
        (5, Symlink("d/hard", "a"), ["/d/hard: not the hard link", "/d/hard: mode"]),
        (6, Hardlink("d/b", "d/a"), ["/d/b: a hard link that it is not"]),
        (7, changed(7, target="b"), ["/d/soft: target b'b', in the source target b'a'"]),
        (7, Char("d/soft", 1, 3), ["/d/soft: mode", "/d/soft: rdev (1, 3)"]),
        (7, Dir("d/soft"), ["/d/soft: mode"]),
    ],
)
def test_each_kind_of_difference(number: int, other: Entry | None, lines: list[str]) -> None:
    items: list[Entry] = [*ITEMS]
    items[number : number + 1] = [other] if other else []
    lower = Image([Layer(ITEMS)])
    found = list(differences(tree_of(lower), tree_of(Image([Layer(items)]))))
    for part in lines:
        assert any(line.startswith(part) for line in found), found


def test_paths_missing_in_the_source() -> None:
    image = Image([*IMAGE.layers, Layer([File("new\n\x1b[2J", b"")])])
    assert list(differences(tree_of(IMAGE), tree_of(image))) == [
        r"/new\n\x1b[2J: not in the source"
    ]


def test_the_source_is_read_to_its_end() -> None:
    """Bytes behind the end of the archive are verified as well."""
    source = MemoryRepository()
    layer = Layer(Layer([File("a", b"a")]).tar + bytes(100_000), "none")
    resolved = source.add(Image([layer]))
    digest = resolved.manifest.layers[0].digest
    source.blobs[digest] = source.blobs[digest][:-1] + b"\x01"
    with pytest.raises(DigestError):
        source_tree(source, [(resolved.manifest.layers[0], layer.diff_id)], 4096)


def test_errors_of_the_source_name_the_layer() -> None:
    source = MemoryRepository()
    source.add(IMAGE)
    missing = Descriptor(
        media_type="application/vnd.oci.image.layer.v1.tar", digest="sha256:" + "0" * 64, size=1
    )
    with pytest.raises(FirstreadError) as caught:
        source_tree(source, [(missing, missing.digest)], 4096)
    assert caught.value.layer == missing.digest


# -- fingerprints -----------------------------------------------------------------------------


def fingerprint(content: bytes, piece_size: int, cuts: list[int], *, holes: bool) -> bytes:
    seal = Fingerprint(len(content), piece_size)
    edges = sorted({0, len(content), *(min(cut, len(content)) for cut in cuts)})
    for start, end in pairwise(edges):
        if not holes or any(content[start:end]):
            seal.data(start, memoryview(content)[start:end])
    return seal.digest()


@given(
    st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 40)), max_size=8),
    st.sampled_from([1, 8, 64]),
    st.lists(st.integers(0, 300), max_size=8),
    st.lists(st.integers(0, 300), max_size=8),
)
def test_a_fingerprint_depends_on_the_content_only(
    runs: list[tuple[int, int]], piece_size: int, cuts: list[int], others: list[int]
) -> None:
    content = b"".join(bytes([byte]) * count for byte, count in runs)
    one = fingerprint(content, piece_size, cuts, holes=True)
    assert fingerprint(content, piece_size, others, holes=False) == one
    expected = hashlib.sha256()
    for at in range(0, len(content), piece_size):
        piece = content[at : at + piece_size]
        if any(piece):
            number = (at // piece_size).to_bytes(8, "little")
            expected.update(number + hashlib.sha256(piece).digest())
    assert one == expected.digest()


@given(st.binary(min_size=1, max_size=100), st.data())
def test_another_content_has_another_fingerprint(content: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(content) - 1))
    other = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    assert fingerprint(content, 8, [], holes=False) != fingerprint(other, 8, [], holes=False)


def test_a_file_of_holes_costs_nothing() -> None:
    started = time.process_time()
    seal = Fingerprint(1024 * TiB, 64 * KiB)
    seal.data(500 * TiB + 5, memoryview(b"data"))
    assert seal.digest() != Fingerprint(1024 * TiB, 64 * KiB).digest()
    huge = Node(stat.S_IFREG, size=1024 * TiB, chunk_size=8 * TiB, chunks=(HOLE,) * 128)
    root = directory()
    root.children = {b"huge": huge}
    place, manifest = converted(Image([Layer([])]))
    image = opened(place, manifest)
    fingerprint_image(root, BlobCheck(place, image, root), ContentReader(place, image), 4 * MiB)
    assert huge.target == Fingerprint(5, 5).digest()
    assert time.process_time() - started < 5
