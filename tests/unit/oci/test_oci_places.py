# SPDX-License-Identifier: Apache-2.0
"""One suite for the `Repository` interface; every kind of place is a constructor and this suite."""

from __future__ import annotations

import io
import pickle
import random
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from firstread.errors import DigestError, LimitError, NotFoundError, UnsupportedError, UsageError
from firstread.oci.model import (
    DOCKER_FOREIGN_LAYER,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    describe,
    encode,
    parse_manifest,
)
from firstread.oci.open import AccessOptions, open_destination, open_source
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.repository import BlobStream, Repository
from firstread.testing.registry import DockerRegistry, ScriptedRegistry

OPTIONS = AccessOptions(retries=1, retry_base=0.01)
DATA = random.Random(1).randbytes(1_300_000)  # more than two chunks
BLOB = describe(DATA, OCI_LAYER)
CONFIG = encode({"architecture": "amd64", "os": "linux"})


@dataclass
class Place:
    """A kind of place under test: how to name it, and how to damage a blob in it."""

    name: str
    damage: Callable[[str, bytes], None]

    def reference(self, tag: str = "latest") -> Reference:
        return parse_reference(f"{self.name}:{tag}")

    def source(self, tag: str = "latest") -> Repository:
        return open_source(self.reference(tag), OPTIONS)

    def destination(self, tag: str = "latest") -> Repository:
        return open_destination(self.reference(tag), OPTIONS)

    def fill(self, tag: str = "latest", data: bytes = DATA) -> Descriptor:
        """Put an image with the one layer `data`; return the descriptor of its manifest."""
        with self.destination(tag) as place:
            return put_image(place, tag, data)


def put_image(place: Repository, tag: str | None, data: bytes = DATA) -> Descriptor:
    layer, config = describe(data, OCI_LAYER), describe(CONFIG, OCI_CONFIG)
    place.put_blob(layer, io.BytesIO(data))
    place.put_blob(config, io.BytesIO(CONFIG))
    return place.put_manifest(encode(Manifest(config=config, layers=[layer])), OCI_MANIFEST, tag)


@pytest.fixture(scope="module")
def docker_registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as registry:
        yield registry


@pytest.fixture(params=["oci", "oci-archive", "docker-registry", "scripted"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "oci":

        def damage_file(digest: str, data: bytes) -> None:
            (tmp_path / "x/blobs" / digest.replace(":", "/")).write_bytes(data)

        yield Place(f"oci:{tmp_path}/x", damage_file)
    elif request.param == "oci-archive":

        def damage_archive(digest: str, data: bytes) -> None:
            archive = tmp_path / "x.tar"
            with tarfile.open(archive) as old:
                members = {m.name: (m, old.extractfile(m)) for m in old.getmembers()}
                contents = {name: file.read() for name, (_, file) in members.items() if file}
            contents[f"blobs/{digest.replace(':', '/')}"] = data
            with tarfile.open(archive, "w") as new:
                for name, (member, _) in members.items():
                    content = contents.get(name, b"")
                    member.size = len(content)
                    new.addfile(member, io.BytesIO(content))

        yield Place(f"oci-archive:{tmp_path}/x.tar", damage_archive)
    elif request.param == "docker-registry":
        registry: DockerRegistry = request.getfixturevalue("docker_registry")

        def damage_storage(digest: str, data: bytes) -> None:
            folder = registry.storage / "docker/registry/v2/blobs/sha256"
            (folder / digest[7:9] / digest[7:] / "data").write_bytes(data)

        name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-")
        yield Place(f"docker://{registry.host}/suite/{name}".replace("--", "-"), damage_storage)
        damage_storage(BLOB.digest, DATA)  # all repositories of a registry share it
    else:
        with ScriptedRegistry() as scripted:
            damage = scripted.blobs.__setitem__
            yield Place(f"docker://{scripted.host}/suite/x", damage)


def test_what_was_put_can_be_read(place: Place) -> None:
    manifest = place.fill()
    with place.source() as source:
        found, data = source.get_manifest()
        assert (found, source.get_manifest("latest"), source.get_manifest(found.digest)) == (
            manifest,
            (found, data),
            (found, data),
        )
        document = parse_manifest(data, found.media_type)
        assert isinstance(document, Manifest)
        assert document.layers == [BLOB]
        assert source.has_blob(BLOB)
        with source.open_blob(BLOB) as stream:
            assert b"".join(stream) == DATA
        assert source.read_blob(document.config, 1000) == CONFIG


RANGES = [
    pytest.param(0, None, id="whole"),
    pytest.param(0, len(DATA), id="whole-by-length"),
    pytest.param(0, 10, id="start"),
    pytest.param(7, 100_000, id="middle-unaligned"),
    pytest.param(524_288, 524_288, id="middle-aligned"),
    pytest.param(1_000_000, None, id="to-the-end"),
    pytest.param(len(DATA) - 1, 1, id="last-byte"),
    pytest.param(len(DATA) - 10, 4096, id="cut-at-the-end"),
    pytest.param(0, 1 << 40, id="much-too-long"),
    pytest.param(5, 0, id="empty"),
    pytest.param(len(DATA), None, id="empty-at-the-end"),
]


@pytest.mark.parametrize(("offset", "length"), RANGES)
def test_ranges(place: Place, offset: int, length: int | None) -> None:
    place.fill()
    wanted = DATA[offset:] if length is None else DATA[offset : offset + length]
    with place.source() as source, source.open_blob(BLOB, offset=offset, length=length) as stream:
        assert stream.length == len(wanted)
        assert stream.readall() == wanted
        assert stream.read(1) == b""


def test_a_range_outside_of_the_blob(place: Place) -> None:
    place.fill()
    with place.source() as source:
        for offset, length in ((len(DATA) + 1, None), (-1, None), (0, -1)):
            with pytest.raises(UsageError):
                source.open_blob(BLOB, offset=offset, length=length)


def test_reading_into_the_callers_memory(place: Place) -> None:
    place.fill()
    buffer = bytearray(300_000)
    with place.source() as source, source.open_blob(BLOB) as stream:
        got = [stream.readinto(memoryview(buffer)) for _ in range(6)]
    assert got == [300_000] * 4 + [100_000, 0]
    assert buffer[:100_000] == DATA[-100_000:]
    with place.source() as source, io.BufferedReader(source.open_blob(BLOB)) as file:
        assert file.read(10) + file.read() == DATA


def test_an_empty_blob(place: Place) -> None:
    place.fill(data=b"")
    with place.source() as source, source.open_blob(describe(b"", OCI_LAYER)) as stream:
        assert list(stream) == []
        assert stream.readall() == b""


def test_many_threads_share_a_place(place: Place) -> None:
    place.fill()
    with place.source() as source, ThreadPoolExecutor(8) as threads:

        def read(number: int) -> bool:
            start = number * 6007
            with source.open_blob(BLOB, offset=start, length=5000) as stream:
                return stream.readall() == DATA[start : start + 5000]

        assert all(threads.map(read, range(200)))


def test_putting_twice_sends_once(place: Place) -> None:
    sent: list[int] = []
    with place.destination() as destination:
        assert destination.put_blob(BLOB, io.BytesIO(DATA), on_progress=sent.append)
        assert sent[-1] == len(DATA)
        assert sent == sorted(sent)
        sent.clear()
        assert not destination.put_blob(BLOB, io.BytesIO(DATA), on_progress=sent.append)
        assert sent == []
        assert destination.has_blob(BLOB)


def test_a_file_is_read_from_where_it_is(place: Place) -> None:
    file = io.BytesIO(b"before" + DATA)
    file.seek(6)
    with place.destination() as destination:
        assert destination.put_blob(BLOB, file)
        with destination.open_blob(BLOB) as stream:
            assert stream.readall() == DATA


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "file"])
def test_bytes_that_were_digested_before_are_only_counted(place: Place, memory: bool) -> None:
    sent: list[int] = []
    with tempfile.TemporaryFile() as real, place.destination() as destination:
        file = cast("BinaryIO", io.BytesIO() if memory else real)
        file.write(b"before" + DATA[:-1])
        file.seek(6)
        with pytest.raises(DigestError):
            destination.put_blob(BLOB, file, verified=True)
        assert not destination.has_blob(BLOB)
        file.write(DATA[-1:])
        file.seek(6)
        assert destination.put_blob(BLOB, file, verified=True, on_progress=sent.append)
        assert sent[-1] == len(DATA)
        with destination.open_blob(BLOB) as stream:
            assert stream.readall() == DATA
        put_image(destination, "latest")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(DATA[:-1] + b"?", id="other-bytes"),
        pytest.param(DATA[:-1], id="too-short"),
        pytest.param(b"", id="empty"),
    ],
)
def test_putting_other_bytes_than_the_digest_says(place: Place, data: bytes) -> None:
    with place.destination() as destination:
        with pytest.raises(DigestError) as caught:
            destination.put_blob(BLOB, io.BytesIO(data))
        assert caught.value.image == str(place.reference())
        assert not destination.has_blob(BLOB)
        assert destination.put_blob(BLOB, io.BytesIO(DATA))
        put_image(destination, "latest")
    with place.source() as source:
        assert source.read_blob(BLOB, len(DATA)) == DATA


def test_nothing_is_published_before_the_manifest(place: Place) -> None:
    with place.destination() as destination:
        destination.put_blob(BLOB, io.BytesIO(DATA))
    with pytest.raises(NotFoundError), place.source() as source:
        source.get_manifest()


def test_a_tag_is_replaced_and_others_stay(place: Place) -> None:
    old, other = place.fill("a"), place.fill("b", b"other")
    new = place.fill("a", b"new")
    if place.name.startswith("oci-archive"):
        return  # one file: it has what was put since it was opened for writing
    with place.source() as source:
        assert source.get_manifest("a")[0] == new
        assert source.get_manifest("b")[0] == other
        assert source.get_manifest(old.digest)[0] == old


def test_what_is_not_there(place: Place) -> None:
    place.fill()
    missing = describe(b"missing", OCI_LAYER)
    with place.source() as source:
        assert not source.has_blob(missing)
        with pytest.raises(NotFoundError) as caught:
            source.open_blob(missing)
        assert (missing.digest in str(caught.value), caught.value.image) == (
            True,
            str(place.reference()),
        )
        with pytest.raises(UnsupportedError, match="not distributable"):
            source.open_blob(describe(b"windows", DOCKER_FOREIGN_LAYER + ".gzip"))
        with pytest.raises(NotFoundError):
            source.get_manifest("other")
        with pytest.raises(NotFoundError):
            source.get_manifest(missing.digest)
        with pytest.raises(LimitError):
            source.read_blob(BLOB, 1000)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(DATA[:500_000] + b"?" + DATA[500_001:], id="a-byte"),
        pytest.param(DATA[:-5], id="too-short"),
        pytest.param(DATA + b"more", id="too-long"),
        pytest.param(b"", id="empty"),
    ],
)
def test_damaged_blobs(place: Place, data: bytes) -> None:
    place.fill()
    place.damage(BLOB.digest, data)
    with place.source() as source, pytest.raises(DigestError) as caught:
        source.read_blob(BLOB, len(DATA))
    assert caught.value.image == str(place.reference())
    assert BLOB.digest in caught.value.message


def test_a_descriptor_that_lies_about_the_size(place: Place) -> None:
    place.fill()
    for size in (len(DATA) - 1, len(DATA) + 1):
        with place.source() as source, pytest.raises(DigestError):
            source.read_blob(replace_size(BLOB, size), 1 << 30)


def replace_size(blob: Descriptor, size: int) -> Descriptor:
    return Descriptor(media_type=blob.media_type, digest=blob.digest, size=size)


def test_another_process_can_open_it_again(place: Place) -> None:
    place.fill()
    again = pickle.loads(pickle.dumps((place.reference(), OPTIONS)))
    with open_source(*again) as source:
        assert source.read_blob(BLOB, len(DATA)) == DATA


def test_closing_twice(place: Place) -> None:
    place.fill()
    for opened in (place.source(), place.destination()):
        opened.close()
        opened.close()


def test_a_digest_is_no_name_for_a_destination(place: Place) -> None:
    reference = replace(place.reference(), tag=None, digest=BLOB.digest)
    with pytest.raises(UsageError, match="digest"):
        open_destination(reference, OPTIONS)


def test_a_stream_says_what_it_is(place: Place) -> None:
    place.fill()
    with place.source() as source, source.open_blob(BLOB) as stream:
        assert isinstance(stream, BlobStream)
        assert stream.readable()
        assert not stream.seekable()
        assert stream.blob == BLOB
        assert repr(source).endswith(f"{place.reference()}>")
