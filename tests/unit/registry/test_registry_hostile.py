# SPDX-License-Identifier: Apache-2.0
"""Answers that nobody asked for: other names and forms of a document, and places to go to."""

from __future__ import annotations

import gc
import gzip
import json
import tracemalloc

import pytest
from urllib3 import HTTPConnectionPool

from firstread.errors import (
    ImageError,
    LimitError,
    NotFoundError,
    SourceError,
    TransportError,
)
from firstread.oci.model import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    describe,
    sha256_digest,
)
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Repository
from firstread.registry.answer import MAX_ANSWER
from firstread.registry.encoding import decoded
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.registry.remote import RemoteRepository
from firstread.testing.registry import ScriptedRegistry
from firstread.units import MiB

OPTIONS = AccessOptions(retries=0, read_timeout=20, connect_timeout=2)
DATA = bytes(range(256)) * 40
BLOB = describe(DATA, OCI_LAYER)
MANIFEST = b'{"schemaVersion":2,"config":{},"layers":[]}'


def source(registry: ScriptedRegistry) -> Repository:
    registry.add_blob(DATA)
    return open_source(parse_reference(f"docker://{registry.host}/a/b"), OPTIONS)


@pytest.mark.parametrize(
    ("own", "offered", "expected"),
    [
        (None, DOCKER_MANIFEST, DOCKER_MANIFEST),
        (OCI_MANIFEST, DOCKER_MANIFEST, OCI_MANIFEST),
        (DOCKER_MANIFEST, OCI_MANIFEST, DOCKER_MANIFEST),
        (DOCKER_MANIFEST, "application/json", DOCKER_MANIFEST),
        (OCI_MANIFEST, OCI_INDEX, None),
        (DOCKER_INDEX, OCI_MANIFEST, None),
    ],
)
def test_a_document_that_is_offered_by_another_name(
    own: str | None, offered: str, expected: str | None
) -> None:
    document = json.loads(MANIFEST) | ({"mediaType": own} if own else {})
    if own is None:
        document.pop("mediaType", None)
    data = json.dumps(document).encode()
    with ScriptedRegistry() as registry, source(registry) as place:
        registry.manifests["1"] = (offered, data)
        if expected is None:
            with pytest.raises(ImageError):
                place.get_manifest("1")
        else:
            assert place.get_manifest("1")[0].media_type == expected


def test_a_manifest_that_is_compressed_unasked() -> None:
    with ScriptedRegistry("GET /manifests/ gzip x9") as registry, source(registry) as place:
        digest = sha256_digest(MANIFEST)
        registry.manifests |= dict.fromkeys(("1", digest), (OCI_MANIFEST, MANIFEST))
        for wanted in ("1", digest):
            assert place.get_manifest(wanted) == (describe(MANIFEST, OCI_MANIFEST), MANIFEST)


def test_a_token_and_an_error_that_are_compressed_unasked() -> None:
    script = "GET /token gzip\nGET /manifests/ gzip x9"
    with (
        ScriptedRegistry(script, auth="token") as registry,
        source(registry) as place,
        pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN: manifest unknown"),
    ):
        place.get_manifest("1")


def test_a_compressed_answer_is_bounded_and_whole() -> None:
    packed = gzip.compress(b"x" * 1000)
    assert decoded(packed, "GZIP", 1000) == b"x" * 1000
    for encoding in ("", "identity", "aws-chunked", "gzip, gzip"):
        assert decoded(packed, encoding, 1) == packed
    assert decoded(b"{}", "gzip", 9) == b"{}"  # it only says so
    with pytest.raises(LimitError, match="more than 999 bytes"):
        decoded(packed, "gzip", 999)
    bomb = gzip.compress(bytes(64 * MiB))
    tracemalloc.start()
    try:
        with pytest.raises(LimitError):
            decoded(bomb, "gzip", MAX_ANSWER)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_ANSWER
    finally:
        tracemalloc.stop()
    for damaged in (packed[:-1], packed[:-5] + b"12345", packed[:5] + b"\xff" * 9):
        with pytest.raises(TransportError, match="gzip encoding"):
            decoded(damaged, "gzip", 1000)


def test_what_another_host_says_is_in_no_message() -> None:
    """A registry can send us to whatever talks to this machine alone."""
    secret = "of an inner service"
    with ScriptedRegistry("GET / status 403 x9", says=secret) as inner:
        target = f"http://{inner.host}/metadata"
        for script in (
            f"GET /v2/ status 307 Location={target} x9",
            f"GET /v2/ status 401 'WWW-Authenticate=Bearer realm=\"{target}\"' x9",
        ):
            with ScriptedRegistry(script) as registry, source(registry) as place:
                for ask in (place.get_manifest, lambda: place.read_blob(BLOB, 99999999)):
                    with pytest.raises(SourceError) as caught:
                        ask()
                    assert secret not in str(caught.value)
        assert inner.seen
    with (
        ScriptedRegistry("GET / status 403 x9", says="of its own") as registry,
        source(registry) as place,
        pytest.raises(SourceError, match="of its own"),
    ):
        place.get_manifest()


@pytest.mark.parametrize(
    "host", ["a" * 254, ".".join(["a" * 60] * 5), "u" * 2000 + "@a", "a" * 20_000]
)
def test_a_redirect_to_a_name_that_nobody_can_have(host: str) -> None:
    with (
        ScriptedRegistry(f"GET /v2/ status 307 Location=http://{host}/x") as registry,
        source(registry) as place,
        pytest.raises(SourceError, match="more than") as caught,
    ):
        place.get_manifest()
    assert len(str(caught.value)) < 300


def test_redirects_to_ever_new_hosts_leave_nothing() -> None:
    def pools() -> int:
        gc.collect()
        return sum(isinstance(item, HTTPConnectionPool) for item in gc.get_objects())

    before = pools()
    with ScriptedRegistry() as registry, source(registry) as place:
        for number in range(40):
            target = f"http://127.0.{number}.1:1/{'d' * 9000}"
            registry.script(f"GET /v2/ status 307 Location={target}")
            with pytest.raises(TransportError, match="cannot be reached") as caught:
                place.read_blob(BLOB, 99999999)
            assert "ddd" not in str(caught.value)
        del caught
        assert pools() - before <= 8
    assert pools() <= before


def test_remembered_redirects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.registry.api.MAX_MOVED", 3)
    with ScriptedRegistry(redirect=True) as registry:
        reference = parse_reference(f"{registry.host}/a/b")
        with open_source(reference, OPTIONS) as place:
            assert isinstance(place, RemoteRepository)
            for number in range(9):
                blob = describe(str(number).encode(), OCI_LAYER)
                registry.add_blob(str(number).encode())
                assert place.read_blob(blob, 9) == str(number).encode()
            assert len(place.endpoints()[0][1]._moved) == 3
