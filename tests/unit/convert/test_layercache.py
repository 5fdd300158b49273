# SPDX-License-Identifier: Apache-2.0
"""Packed layers that are known: from the local cache, and from an image at the destination."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import msgspec
import pytest

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.layercache import LayerCache, default_cache_dir
from firstread.convert.record import MAX_RECORD_SIZE, Parameters
from firstread.convert.recorded import RecordedLayers, record_annotations
from firstread.errors import UsageError
from firstread.oci.model import Manifest
from firstread.sectors.image import PARAMETERS, RECORD, SOURCE_DIFF_ID
from firstread.testing.images import File, Image, Layer
from firstread.testing.mutate import mutate
from firstread.testing.packed import SMALL, MemoryRepository, converted, pack

LAYER = Layer([File("a", b"a" * 10_000), File("b", b"b" * 100_000)])
OTHER = Layer([File("c", b"c" * 20_000)])


@pytest.fixture
def packed() -> PackedLayer:
    return pack(LAYER)[0]


# -- the local cache --------------------------------------------------------------------------


def test_remembers(tmp_path: Path, packed: PackedLayer) -> None:
    cache = LayerCache(tmp_path / "not" / "there")
    assert cache.get(LAYER.diff_id, SMALL) is None
    cache.put(packed, LAYER.diff_id, SMALL)
    assert cache.get(LAYER.diff_id, SMALL) == packed
    assert LayerCache(tmp_path / "not" / "there").get(LAYER.diff_id, SMALL) == packed
    assert cache.get(OTHER.diff_id, SMALL) is None
    assert cache.get(LAYER.diff_id, msgspec.structs.replace(SMALL, level=4)) is None


def test_another_encoder_is_another_layer(tmp_path: Path, packed: PackedLayer) -> None:
    """A record that says that it was made with other parameters is not taken."""
    cache = LayerCache(tmp_path)
    cache.put(packed, LAYER.diff_id, Parameters())
    assert cache.get(LAYER.diff_id, Parameters()) is None


def _entry(directory: Path) -> Path:
    (path,) = (directory / "layers").iterdir()
    return path


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "directory"])
def test_an_unreadable_entry_is_a_miss(tmp_path: Path, packed: PackedLayer, change: str) -> None:
    cache = LayerCache(tmp_path)
    cache.put(packed, LAYER.diff_id, SMALL)
    path = _entry(tmp_path)
    data = path.read_bytes()
    if change == "flip":
        for at in range(0, len(data), 7):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert cache.get(LAYER.diff_id, SMALL) is None
    elif change == "cut":
        path.write_bytes(data[:-1])
    elif change == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        path.mkdir()
    assert cache.get(LAYER.diff_id, SMALL) is None


@pytest.mark.parametrize("place", ["a file", "in a file"])
def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, packed: PackedLayer, place: str
) -> None:
    (tmp_path / "a file").write_text("")
    cache = LayerCache(tmp_path / ("a file" if place == "a file" else "a file/in it"))
    cache.put(packed, LAYER.diff_id, SMALL)
    assert cache.get(LAYER.diff_id, SMALL) is None


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, packed: PackedLayer) -> None:
    cache = LayerCache(tmp_path)
    cache.put(packed, LAYER.diff_id, SMALL)
    path = _entry(tmp_path)
    path.unlink()
    path.mkdir()
    (path / "in the way").write_text("")  # os.replace() fails
    cache.put(packed, LAYER.diff_id, SMALL)
    assert os.listdir(tmp_path / "layers") == [path.name]


def test_only_its_owner_can_read_it(tmp_path: Path, packed: PackedLayer) -> None:
    LayerCache(tmp_path / "cache").put(packed, LAYER.diff_id, SMALL)
    assert (tmp_path / "cache" / "layers").stat().st_mode & 0o777 == 0o700
    assert _entry(tmp_path / "cache").stat().st_mode & 0o777 == 0o600


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path)
    layers = [Layer([File("f", bytes([n]) * 50_000)]) for n in range(4)]
    for number, layer in enumerate(layers):
        cache.put(pack(layer)[0], layer.diff_id, SMALL)
        newest = max((tmp_path / "layers").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1000 + number, 1000 + number))
    assert cache.get(layers[0].diff_id, SMALL)  # used: now the newest
    total = sum(path.stat().st_size for path in (tmp_path / "layers").iterdir())
    LayerCache(tmp_path, max_size=total).put(pack(OTHER)[0], OTHER.diff_id, SMALL)
    known = [bool(cache.get(layer.diff_id, SMALL)) for layer in [*layers, OTHER]]
    assert known == [True, False, True, True, True]


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("FIRSTREAD_CACHE", raising=False)
    assert default_cache_dir() == Path("/home/someone/.cache/firstread")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_dir() == Path("/xdg/firstread")
    monkeypatch.setenv("FIRSTREAD_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "FIRSTREAD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)  # as in a container started with -u
    with pytest.raises(UsageError) as caught:
        default_cache_dir()
    assert "--no-cache" in (caught.value.hint or "")


# -- the destination --------------------------------------------------------------------------


def recorded(place: MemoryRepository, manifest: Manifest) -> RecordedLayers:
    diff_ids = ["sha256:" + "0" * 64]
    diff_ids += [pack(layer)[0].diff_id for layer in (LAYER, OTHER)]
    return RecordedLayers(place, manifest, diff_ids)


@pytest.fixture
def image() -> tuple[MemoryRepository, Manifest]:
    return converted(Image([LAYER, OTHER]))


def test_finds_the_layers_of_the_image_there(image: tuple[MemoryRepository, Manifest]) -> None:
    known = recorded(*image)
    for layer in (LAYER, OTHER):
        assert known.get(layer.diff_id, SMALL) == pack(layer)[0]
    assert known.get(Layer([]).diff_id, SMALL) is None
    assert known.get(LAYER.diff_id, Parameters()) is None


def test_reads_the_record_only(image: tuple[MemoryRepository, Manifest]) -> None:
    place, manifest = image
    recorded(place, manifest).get(LAYER.diff_id, SMALL)
    assert list(place.reads.elements()) == [manifest.layers[1].digest]


def with_annotations(manifest: Manifest, change: dict[str, str]) -> Manifest:
    metadata, blob, *rest = manifest.layers
    annotations = (blob.annotations or {}) | change
    return msgspec.structs.replace(
        manifest, layers=[metadata, msgspec.structs.replace(blob, annotations=annotations), *rest]
    )


@pytest.mark.parametrize(
    "text",
    ["", "1 2", "a b c", "-1 5 sha256:x", "0 0 sha256:x", "0 10 sha256:x", "9" * 5000 + " 1 x"],
)
def test_an_annotation_that_makes_no_sense(
    image: tuple[MemoryRepository, Manifest], text: str
) -> None:
    place, manifest = image
    known = recorded(place, with_annotations(manifest, {RECORD: text}))
    assert known.get(LAYER.diff_id, SMALL) is None
    assert known.get(OTHER.diff_id, SMALL) is not None


def test_a_record_of_an_impossible_size_is_not_read(
    image: tuple[MemoryRepository, Manifest],
) -> None:
    place, manifest = image
    size = MAX_RECORD_SIZE + 1
    metadata, blob, *rest = with_annotations(manifest, {RECORD: f"0 {size} sha256:x"}).layers
    layers = [metadata, msgspec.structs.replace(blob, size=size), *rest]
    known = recorded(place, msgspec.structs.replace(manifest, layers=layers))
    assert known.get(LAYER.diff_id, SMALL) is None
    assert not place.reads


def test_a_record_of_another_layer(image: tuple[MemoryRepository, Manifest]) -> None:
    place, manifest = image
    known = recorded(place, with_annotations(manifest, {SOURCE_DIFF_ID: "sha256:" + "1" * 64}))
    assert known.get("sha256:" + "1" * 64, SMALL) is None


def test_a_record_made_with_other_parameters(image: tuple[MemoryRepository, Manifest]) -> None:
    place, manifest = image
    claimed = dict(manifest.annotations or {}) | {PARAMETERS: Parameters().key}
    known = recorded(place, msgspec.structs.replace(manifest, annotations=claimed))
    assert known.get(LAYER.diff_id, Parameters()) is None


def test_documents_that_do_not_fit_together(image: tuple[MemoryRepository, Manifest]) -> None:
    place, manifest = image
    assert RecordedLayers(place, manifest, []).get(LAYER.diff_id, SMALL) is None
    bare = msgspec.structs.replace(manifest, annotations=None)
    assert RecordedLayers(place, bare, ["sha256:a"] * 3).get(LAYER.diff_id, SMALL) is None


def test_damage_is_never_taken_for_a_record(image: tuple[MemoryRepository, Manifest]) -> None:
    place, manifest = image
    blob = manifest.layers[1]
    offset = int((blob.annotations or {})[RECORD].split()[0])
    whole = place.blobs[blob.digest]
    good = pack(LAYER)[0]
    rng = random.Random(1)
    for _ in range(200):
        damaged = mutate(whole[offset:], range(len(whole) - offset), rng)
        place.blobs[blob.digest] = whole[:offset] + damaged
        found = recorded(place, manifest).get(LAYER.diff_id, SMALL)
        assert found is None or found == good


def test_a_blob_that_is_gone(image: tuple[MemoryRepository, Manifest]) -> None:
    place, manifest = image
    place.blobs.clear()
    assert recorded(place, manifest).get(LAYER.diff_id, SMALL) is None


def test_annotations(packed: PackedLayer) -> None:
    digest = hashlib.sha256(packed.record).hexdigest()
    assert record_annotations(packed, "sha256:source") == {
        SOURCE_DIFF_ID: "sha256:source",
        RECORD: f"{packed.record_offset} {packed.size - packed.record_offset} sha256:{digest}",
    }
