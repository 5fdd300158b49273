# SPDX-License-Identifier: Apache-2.0
"""Traces that are attached to an image, and what else is attached to it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from firstread.errors import ImageError, NotFoundError
from firstread.oci.model import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    encode,
    parse_index,
)
from firstread.oci.reference import parse_reference
from firstread.oci.referrers import referrers_tag
from firstread.oci.repository import Destination
from firstread.registry.open import open_destination
from firstread.testing.registry import ScriptedRegistry
from firstread.traces import attachedtraces
from firstread.traces.attachedtraces import (
    TRACE_LAYER,
    TRACE_TYPE,
    attach_trace,
    traces_attached,
    unpack_trace,
)
from firstread.traces.tracefile import VERSION, Trace, TracedRead, TraceHeader
from firstread.units import MiB

ORIGINAL = encode(Manifest(config=describe(b"{}", OCI_CONFIG), layers=[]))
SUBJECT = describe(ORIGINAL, OCI_MANIFEST)
ABSENT = "sha256:" + "0" * 64


def trace(time_us: int) -> Trace:
    header = TraceHeader(version=VERSION, image=SUBJECT.digest)
    return Trace(header, [TracedRead(time_us, 0, 4096, b"bin/sh")])


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Destination]:
    with open_destination(parse_reference(f"oci:{tmp_path / 'layout'}")) as opened:
        put(opened, b"{}", OCI_CONFIG)
        opened.put_manifest(ORIGINAL, OCI_MANIFEST, "latest")
        yield opened


def put(repository: Destination, data: bytes, media_type: str) -> Descriptor:
    blob = describe(data, media_type)
    repository.put_blob(blob, io.BytesIO(data))
    return blob


def put_artifact(repository: Destination, blob: bytes, **changes: Any) -> None:
    layer = put(repository, blob, TRACE_LAYER)
    good = Manifest(
        artifact_type=TRACE_TYPE,
        config=put(repository, b"{}", "application/vnd.oci.empty.v1+json"),
        layers=[layer],
        subject=SUBJECT,
    )
    repository.put_referrer(encode(msgspec.structs.replace(good, **changes)), OCI_MANIFEST)


def test_traces_come_back_in_a_fixed_order(repository: Destination) -> None:
    made = {}
    for time_us in (1, 2, 3, 2):
        subject, artifact = attach_trace(repository, [ABSENT, SUBJECT.digest], trace(time_us))
        assert subject.digest == SUBJECT.digest
        made[artifact.digest] = trace(time_us)
    assert len(made) == 3
    assert traces_attached(repository, SUBJECT) == [made[digest] for digest in sorted(made)]


def test_a_list_without_types() -> None:
    """skopeo 1.9 drops them when it copies a list."""
    with (
        ScriptedRegistry() as registry,
        open_destination(parse_reference(f"{registry.host}/app:1")) as there,
    ):
        put(there, b"{}", OCI_CONFIG)
        there.put_manifest(ORIGINAL, OCI_MANIFEST, "1")
        attach_trace(there, [SUBJECT.digest], trace(1))
        conversion = Manifest(
            config=describe(b"{}", OCI_CONFIG), layers=[], subject=SUBJECT, annotations={"a": "b"}
        )
        there.put_referrer(encode(conversion), OCI_MANIFEST)
        tag = referrers_tag(SUBJECT.digest)
        media_type, data = registry.manifests[tag]
        entries = [
            msgspec.structs.replace(entry, artifact_type=None, data=None)
            for entry in parse_index(data).manifests
        ]
        registry.manifests[tag] = (media_type, encode(Index(manifests=entries)))
        registry.seen.clear()
        assert traces_attached(there, SUBJECT) == [trace(1)]
        assert len(registry.asked("/manifests/sha256:")) == 1


def test_an_image_that_is_gone_gets_none(repository: Destination) -> None:
    with pytest.raises(NotFoundError, match="no longer has the image"):
        attach_trace(repository, [ABSENT], trace(1))
    assert traces_attached(repository, SUBJECT) == []


@pytest.mark.parametrize(
    ("blob", "changes"),
    [
        (b"no zstd", {}),
        (zstandard.compress(b"no trace"), {}),
        (zstandard.compress(b'{"firstread_trace":2}\n'), {}),
        (zstandard.compress(b"x"), {"layers": []}),
        (zstandard.compress(b"x"), {"layers": [describe(b"{}", OCI_CONFIG)]}),
        (b"x", {"layers": [Descriptor(media_type=TRACE_LAYER, digest=ABSENT, size=2**40)]}),
    ],
    ids=["damaged", "no trace", "another version", "no layer", "another layer", "too large"],
)
def test_other_artifacts_are_left_out(
    repository: Destination,
    blob: bytes,
    changes: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    attach_trace(repository, [SUBJECT.digest], trace(1))
    put_artifact(repository, blob, **changes)
    with caplog.at_level(logging.WARNING):
        assert traces_attached(repository, SUBJECT) == [trace(1)]
    assert "is not used" in caplog.text


def test_the_number_of_traces_is_bounded(
    repository: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    for time_us in range(3):
        attach_trace(repository, [SUBJECT.digest], trace(time_us))
    monkeypatch.setattr(attachedtraces, "MAX_ATTACHED", 2)
    assert len(traces_attached(repository, SUBJECT)) == 2


def test_attached_traces_have_so_many_reads_together(
    repository: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    for time_us in range(3):
        attach_trace(repository, [SUBJECT.digest], trace(time_us))
    reads = sum(len(each.reads) for each in traces_attached(repository, SUBJECT))
    monkeypatch.setattr(attachedtraces, "MAX_READS", reads - 1)
    assert len(traces_attached(repository, SUBJECT)) == 2


def test_a_bomb_is_refused_in_bounded_memory() -> None:
    bomb = zstandard.compress(bytes(512 * MiB))
    assert len(bomb) < MiB
    with pytest.raises(ImageError, match="this is not a trace"):
        unpack_trace(bomb)
