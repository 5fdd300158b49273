# SPDX-License-Identifier: Apache-2.0
"""One suite for a `Destination`: every kind is a constructor and this suite.

Reading has a suite of its own, which `tests/unit/sectors/test_source_suite.py` runs.
"""

from __future__ import annotations

import io
import pickle
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from firstread.errors import DigestError, NotFoundError, UsageError
from firstread.oci.model import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    describe,
    encode,
    parse_manifest,
)
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.repository import Destination, Repository
from firstread.registry.open import open_destination, open_source
from firstread.registry.options import AccessOptions
from firstread.testing.registry import DockerRegistry, ScriptedRegistry

OPTIONS = AccessOptions(retries=1, retry_base=0.01)
DATA = random.Random(1).randbytes(1_300_000)  # more than two chunks
BLOB = describe(DATA, OCI_LAYER)
CONFIG = encode({"architecture": "amd64", "os": "linux"})


@dataclass
class Place:
    """A kind of place under test: how to name it."""

    name: str

    def reference(self, tag: str = "latest") -> Reference:
        return parse_reference(f"{self.name}:{tag}")

    def source(self, tag: str = "latest") -> Repository:
        return open_source(self.reference(tag), OPTIONS)

    def destination(self, tag: str = "latest") -> Destination:
        return open_destination(self.reference(tag), OPTIONS)

    def fill(self, tag: str = "latest", data: bytes = DATA) -> Descriptor:
        """Put an image with the one layer `data`; return the descriptor of its manifest."""
        with self.destination(tag) as place:
            return put_image(place, tag, data)


def put_image(place: Destination, tag: str | None, data: bytes = DATA) -> Descriptor:
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
        yield Place(f"oci:{tmp_path}/x")
    elif request.param == "oci-archive":
        yield Place(f"oci-archive:{tmp_path}/x.tar")
    elif request.param == "docker-registry":
        registry: DockerRegistry = request.getfixturevalue("docker_registry")
        name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-")
        yield Place(f"docker://{registry.host}/suite/{name}".replace("--", "-"))
    else:
        with ScriptedRegistry() as scripted:
            yield Place(f"docker://{scripted.host}/suite/x")


def test_blobs_survive_a_round_trip(place: Place) -> None:
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


def test_a_manifest_that_is_not_there(place: Place) -> None:
    place.fill()
    with place.source() as source, pytest.raises(NotFoundError) as caught:
        source.get_manifest("other")
    assert caught.value.image == str(place.reference())


def test_another_process_can_open_it_again(place: Place) -> None:
    place.fill()
    again = pickle.loads(pickle.dumps((place.reference(), OPTIONS)))
    with open_source(*again) as source:
        assert source.read_blob(BLOB, len(DATA)) == DATA


def test_closing_twice(place: Place) -> None:
    place.fill()
    destination = place.destination()
    destination.close()
    destination.close()


def test_a_digest_is_no_name_for_a_destination(place: Place) -> None:
    reference = replace(place.reference(), tag=None, digest=BLOB.digest)
    with pytest.raises(UsageError, match="digest"):
        open_destination(reference, OPTIONS)
