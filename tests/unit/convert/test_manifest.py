# SPDX-License-Identifier: Apache-2.0
"""Config and manifest of a converted image, as other tools read them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.manifest import converted_config, converted_manifest, metadata_descriptor
from firstread.oci.model import OCI_CONFIG, OCI_MANIFEST, encode, parse_manifest
from firstread.sectors.format import METADATA_MEDIA_TYPE, SECTORS_MEDIA_TYPE
from firstread.sectors.image import PARAMETERS, SOURCE_DIFF_ID, SOURCE_DIGEST
from firstread.testing.packed import SMALL

STEP = {"created_by": "RUN something", "created": "2024-01-01T00:00:00Z"}


def config(source: dict[str, Any], has_blob: list[bool]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(converted_config(source, ["sha256:m", "sha256:b"], has_blob))
    return made


def test_every_field_survives() -> None:
    source = {
        "architecture": "arm64",
        "os": "linux",
        "variant": "v8",
        "config": {"Env": ["A=ü", "B=\u2028"], "Labels": {"": "x"}, "Unknown": [1.5, None, True]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:old"]},
        "created": "2024-01-01T00:00:00Z",
        "moby.buildkit.buildinfo.v1": "e30=",
    }
    made = config(source, [True])
    assert made.pop("rootfs") == {"type": "layers", "diff_ids": ["sha256:m", "sha256:b"]}
    del source["rootfs"]
    assert made == source


def test_bytes_depend_on_nothing_else() -> None:
    fields = [("os", "linux"), ("architecture", "amd64"), ("rootfs", {}), ("é", "ü")]
    one = converted_config(dict(fields), ["sha256:m"], [])
    assert one == converted_config(dict(reversed(fields)), ["sha256:m"], [])
    assert b" " not in one
    assert "ü".encode() in one


@pytest.mark.parametrize(
    ("empty", "has_blob", "expected"),
    [
        ([], [], []),  # stays away if it was not there
        ([False], [True], [False, False]),
        ([False, False], [True, False], [False, False, True]),
        ([True, False, True, False], [False, True], [False, True, True, True, False]),
        ([False], [], [False, True]),  # more steps than layers
        ([True], [True, False, True], [False, True, False, False]),  # more layers than steps
    ],
)
def test_steps_without_data_are_marked(
    empty: list[bool], has_blob: list[bool], expected: list[bool]
) -> None:
    history = [STEP | ({"empty_layer": True} if mark else {}) for mark in empty]
    made = config({"history": history}, has_blob)["history"]
    assert [bool(step.get("empty_layer")) for step in made] == expected
    if expected:
        ours = {"created_by": "firstread convert", "comment": "metadata"}
        assert made[0] == ours | {"created": STEP["created"]}
        assert sum(not mark for mark in expected) == 1 + sum(has_blob)


@pytest.mark.parametrize("history", [None, 5, "text", {"a": 1}, [1, "x", None], [[]]])
def test_a_history_that_is_none(history: object) -> None:
    made = config({"history": history}, [True])
    if isinstance(history, list):
        assert [step["comment"] for step in made["history"]] == ["metadata", "layer"]
    else:
        assert made["history"] == history


def test_manifest() -> None:
    packed = PackedLayer(b"record", 90, "sha256:" + "b" * 64, 100, "sha256:" + "c" * 64)
    metadata = metadata_descriptor("sha256:" + "a" * 64, 50)
    document = b'{"os":"linux"}'
    made = converted_manifest(
        "sha256:" + "5" * 64, SMALL, document, metadata, [("sha256:" + "d" * 64, packed)]
    )
    assert parse_manifest(encode(made), OCI_MANIFEST) == made
    assert made.config.media_type == OCI_CONFIG
    assert made.config.digest == "sha256:" + hashlib.sha256(document).hexdigest()
    assert [layer.media_type for layer in made.layers] == [METADATA_MEDIA_TYPE, SECTORS_MEDIA_TYPE]
    assert [(layer.digest[7:9], layer.size) for layer in made.layers] == [("aa", 50), ("bb", 100)]
    assert made.annotations == {SOURCE_DIGEST: "sha256:" + "5" * 64, PARAMETERS: SMALL.key}
    assert (made.layers[1].annotations or {})[SOURCE_DIFF_ID] == "sha256:" + "d" * 64


@pytest.mark.parametrize(
    ("created", "image", "expected"),
    [
        ([None, "2", None], "9", ["2", "2", "2", "2"]),
        (["1", None, "3"], "9", ["1", "1", "1", "3"]),
        ([None], "9", ["9", "9"]),
        ([""], None, ["1970-01-01T00:00:00Z"] * 2),
    ],
)
def test_each_step_has_a_time(
    created: list[str | None], image: str | None, expected: list[str]
) -> None:
    history = [{"created_by": "RUN x"} | ({"created": time} if time else {}) for time in created]
    source = {"history": history} | ({"created": image} if image else {})
    made = config(source, [True] * len(created))["history"]
    assert [step["created"] for step in made] == expected


def test_annotations_of_the_source_are_kept() -> None:
    metadata = metadata_descriptor("sha256:" + "a" * 64, 50)
    theirs = {"org.opencontainers.image.source": "https://example", SOURCE_DIGEST: "another's"}
    made = converted_manifest("sha256:" + "5" * 64, SMALL, b"{}", metadata, [], None, theirs)
    assert made.annotations == {
        "org.opencontainers.image.source": "https://example",
        SOURCE_DIGEST: "sha256:" + "5" * 64,
        PARAMETERS: SMALL.key,
    }
