# SPDX-License-Identifier: Apache-2.0
"""The images of a node on disk, from a layout with a real converted image."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.cache.imagefiles import METADATA
from firstread.cache.imagenames import ImageNames
from firstread.cache.imagestore import ImageStore
from firstread.cache.nodeimage import NodeImage, SectorMap
from firstread.cache.room import Room
from firstread.convert.conversion import ConvertOptions, convert
from firstread.device.base import INDEX_RUNS, NO_XATTRS
from firstread.erofs.validation import validate
from firstread.errors import FirstreadError, ImageError, NodeError, NotFoundError, UnsupportedError
from firstread.layouts.layoutreader import LayoutDirectory
from firstread.oci.blobstream import BlobStream
from firstread.oci.model import Descriptor, Manifest
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.resolve import resolve
from firstread.testing.entries import File
from firstread.testing.images import Image, Layer, write_layout
from firstread.testing.plainimage import put_plain_image
from firstread.testing.shortage import few_descriptors, no_threads, unreadable


class Counted(LayoutDirectory):
    """A layout that counts what it is asked for."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self.asked: Counter[str] = Counter()

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        self.asked["manifest"] += 1
        return super().get_manifest(reference)

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        self.asked["blob"] += 1
        return super().open_blob(blob, offset=offset, length=length)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    name = f"oci:{tmp_path_factory.mktemp('image')}/layout:latest"
    put_plain_image(name, count=3)
    return parse_reference(name)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


def test_an_image_is_fetched_with_two_questions_and_then_known(
    store: ImageStore, reference: Reference, tmp_path: Path
) -> None:
    assert store.known(reference) is None
    resolved = []
    with Counted(reference) as repository:
        image = store.fetch(reference, repository, lambda *digests: resolved.append(digests))
        assert repository.asked == {"manifest": 1, "blob": 1}
        store.fetch(reference, repository)
        assert repository.asked == {"manifest": 2, "blob": 1}  # its metadata is here
    assert resolved == [(image.digest, image.digest)]
    again = ImageStore(tmp_path)
    assert again.known(reference) == image.digest
    by_digest = parse_reference(f"{reference}@{image.digest}")
    assert again.known(by_digest) == image.digest
    loaded = again.load(image.digest)
    assert loaded.ids() == image.ids()
    assert loaded.config == image.config
    assert loaded.metadata.stat().st_size == len(loaded.block_image.metadata)


@pytest.mark.parametrize("xattrs", [{}, {"user.name": b"value"}])
def test_what_the_check_has_seen_of_an_image_is_kept(
    store: ImageStore, tmp_path: Path, xattrs: dict[str, bytes]
) -> None:
    layout, name = tmp_path / "source", f"oci:{tmp_path}/converted:latest"
    write_layout(Image([Layer([File("file", b"content", xattrs=xattrs)])]), layout)
    reference = parse_reference(name)
    convert(parse_reference(f"oci:{layout}:latest"), reference, ConvertOptions())
    with LayoutDirectory(reference) as repository:
        image = store.fetch(reference, repository)
    assert image.metadata.with_name(NO_XATTRS).exists() is not bool(xattrs)
    runs = validate(image.block_image.erofs).runs
    assert image.metadata.with_name(INDEX_RUNS).read_bytes() == runs.to_bytes()


def test_an_image_is_kept_though_no_thread_can_be_had(
    store: ImageStore, reference: Reference
) -> None:
    with no_threads(), LayoutDirectory(reference) as repository:
        image = store.fetch(reference, repository)
    assert store.damage(image.digest) is None


def test_more_of_an_image_can_be_asked_for_beside_its_metadata(
    store: ImageStore, reference: Reference, tmp_path: Path
) -> None:
    told = []
    with Counted(reference) as repository:

        @contextlib.contextmanager
        def coming(manifest: Manifest) -> Iterator[None]:
            told.append((manifest, repository.asked["blob"], metadata_bytes()))
            yield
            told.append((manifest, repository.asked["blob"], metadata_bytes()))

        def metadata_bytes() -> int:
            return sum(path.stat().st_size for path in tmp_path.rglob(METADATA))

        fetched = [store.fetch(reference, repository, coming=coming) for _ in range(2)]
        assert [image.is_fresh for image in fetched] == [True, False]
        (begun, blobs, nothing), (_, later, some) = told  # once: then it is here
        assert later == blobs + 1  # the metadata
        assert (nothing, bool(some)) == (0, True)
        assert begun == resolve(repository).manifest


def test_an_image_is_not_pruned_during_its_fetch(
    store: ImageStore, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember = ImageNames.remember

    def prune(names: ImageNames, name: Reference, digest: str) -> None:
        remember(names, name, digest)
        assert not store.remove(digest)

    monkeypatch.setattr(ImageNames, "remember", prune)
    with LayoutDirectory(reference) as repository:
        image = store.fetch(reference, repository)
    assert store.known(reference) == image.digest
    assert store.remove(image.digest)


def test_sectors_are_found_by_id_and_by_place(store: ImageStore, reference: Reference) -> None:
    with LayoutDirectory(reference) as repository:
        image = store.fetch(reference, repository)
    sectors = SectorMap(image)
    assert list(sectors) == image.ids()
    first = sectors.find(image.ids()[0])
    assert first == image.wanted(0)
    second = sectors.behind(image.wanted(0))
    assert second == image.wanted(1)
    assert sectors.behind(image.wanted(2)) is None
    assert sectors.find(b"\0" * 32) is None


def test_many_who_fetch_the_same_image_all_get_it(
    store: ImageStore, reference: Reference, tmp_path: Path
) -> None:
    errors = []
    asked = []
    start = threading.Barrier(8)

    def fetch() -> None:
        try:
            with Counted(reference) as repository:
                start.wait()
                store.fetch(reference, repository)
                asked.append(repository.asked["blob"])
        except FirstreadError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(asked) == 1, "the others wait for the first"
    assert len(list((tmp_path / "images").iterdir())) == 1
    assert len(list((tmp_path / "references").iterdir())) == 1


def test_an_ordinary_image_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    write_layout(Image([Layer([File("a", b"x")])]), tmp_path / "ordinary")
    ordinary = parse_reference(f"oci:{tmp_path}/ordinary:latest")
    with LayoutDirectory(ordinary) as repository, pytest.raises(UnsupportedError) as caught:
        store.fetch(ordinary, repository)
    assert str(ordinary) in str(caught.value)
    assert "convert" in str(caught.value.hint)
    assert not list((tmp_path / "images").iterdir())
    assert store.known(ordinary) is None


def test_missing_and_damaged_images(
    store: ImageStore, reference: Reference, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="is not on this node"):
        store.load("sha256:" + "0" * 64)
    with LayoutDirectory(reference) as repository:
        image = store.fetch(reference, repository)
    for name, data in [("config.json", b"{"), ("manifest.json", b"[]"), ("metadata", b"")]:
        path = image.directory / name
        kept = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(ImageError) as caught:
            store.load(image.digest)
        assert caught.value.hint
        path.write_bytes(kept)
    (image.directory / "config.json").unlink()
    with pytest.raises(ImageError, match=r"config\.json .* is missing"):
        store.load(image.digest)


def fetched(store: ImageStore, reference: Reference) -> NodeImage:
    with LayoutDirectory(reference) as repository:
        return store.fetch(reference, repository)


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "metadata"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "changed"])
def test_damaged_files_are_fetched_again(
    store: ImageStore, reference: Reference, name: str, damage: str
) -> None:
    image = fetched(store, reference)
    path = image.directory / name
    if damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] if damage == "cut off" else b"?" + data[1:])
    problem = store.damage(image.digest)
    assert problem == f"its file {name} is {'missing' if damage == 'missing' else 'damaged'}"
    assert store.drop_damaged(image.digest)
    assert store.damage(fetched(store, reference).digest) is None


def test_a_fetch_replaces_files_that_cannot_be_opened(
    store: ImageStore, reference: Reference
) -> None:
    (fetched(store, reference).directory / "config.json").unlink()
    assert store.damage(fetched(store, reference).digest) is None


def test_a_process_short_of_descriptors_finds_no_damage(
    store: ImageStore, reference: Reference
) -> None:
    image = fetched(store, reference)
    for spare in range(3):
        with few_descriptors(os.getpid(), spare):
            for ask in (store.load, store.damage, store.drop_damaged):
                with contextlib.suppress(NodeError):
                    assert not isinstance(ask(image.digest), str)
    with few_descriptors(os.getpid()):
        for ask in (store.load, store.damage, store.drop_damaged):
            with pytest.raises(NodeError, match="Too many open files") as caught:
                ask(image.digest)
            assert caught.value.retryable
        with pytest.raises(NodeError, match="Too many open files"):
            store.known(reference)
    assert store.known(reference) == store.load(image.digest).digest == image.digest


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "metadata"])
def test_a_disk_in_trouble_is_no_damage(store: ImageStore, reference: Reference, name: str) -> None:
    image = fetched(store, reference)
    with unreadable(image.directory / name):
        for ask in (store.damage, store.drop_damaged):
            with pytest.raises(NodeError, match="Input/output error"):
                ask(image.digest)
        with pytest.raises(FirstreadError):
            store.load(image.digest)
        assert store.digests() == [image.digest]
    assert store.damage(image.digest) is None


def test_used_images_are_never_removed(tmp_path: Path, reference: Reference) -> None:
    used: set[str] = set()
    store = ImageStore(tmp_path, is_used=used.__contains__)
    image = fetched(store, reference)
    used.add(image.digest)
    (image.directory / "config.json").write_text("{")
    assert not store.remove(image.digest)
    assert not store.drop_damaged(image.digest)
    used.clear()
    with store.keeping(image.digest) as here:
        assert here
        assert not store.remove(image.digest)
    assert store.known(reference) == image.digest
    assert store.remove(image.digest)
    with store.keeping(image.digest) as here:
        assert not here


def test_room_is_counted_and_names_go_with_their_image(
    store: ImageStore, reference: Reference, tmp_path: Path
) -> None:
    image = fetched(store, reference)
    size = sum(path.stat().st_size for path in image.directory.iterdir())
    assert store.room == Room(size, 6 + 1)  # a directory, five files and a name
    (tmp_path / "references/stray").write_text(f"sha256:{'0' * 64}\nx")
    again = ImageStore(tmp_path)
    assert again.room == store.room
    assert len(list((tmp_path / "references").iterdir())) == 1
    assert again.remove(image.digest) == Room(size, 7)
    assert again.room == Room()
    assert not list((tmp_path / "references").iterdir())


def test_what_a_crash_left_is_cleared_away(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "images/tmpabc").mkdir()
    (tmp_path / "images/tmpabc/metadata").write_bytes(b"half")
    ImageStore(tmp_path)
    assert not list((tmp_path / "images").iterdir())


def test_a_disk_that_refuses_is_named(
    store: ImageStore, reference: Reference, tmp_path: Path
) -> None:
    (tmp_path / "images").rmdir()
    with LayoutDirectory(reference) as repository, pytest.raises(NodeError) as caught:
        store.fetch(reference, repository)
    assert "cannot store the image" in str(caught.value)
