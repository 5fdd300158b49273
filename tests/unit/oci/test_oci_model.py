# SPDX-License-Identifier: Apache-2.0
"""Documents: what is read, what is refused, and that encoding is the same everywhere."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from firstread.errors import ImageError, LimitError, NotFoundError, UnsupportedError
from firstread.oci.layertypes import layer_compression
from firstread.oci.model import (
    DOCKER_FOREIGN_LAYER,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    diff_ids,
    encode,
    manifest_media_type,
    missing_blob,
    parse_config,
    parse_index,
    parse_manifest,
    sha256_digest,
)
from firstread.oci.platform import Platform

SHA = "sha256:" + "ab" * 32
CONFIG: dict[str, Any] = {"mediaType": OCI_CONFIG, "digest": SHA, "size": 2}
LAYER: dict[str, Any] = {"mediaType": OCI_LAYER + "+gzip", "digest": SHA, "size": 3}
IMAGE: dict[str, Any] = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}
ENTRY: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": SHA, "size": 4}
INDEX: dict[str, Any] = {"schemaVersion": 2, "manifests": [ENTRY]}


def dump(document: object) -> bytes:
    return json.dumps(document).encode()


def without(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in document.items() if k != key}


def test_a_manifest() -> None:
    data = dump(IMAGE | {"mediaType": OCI_MANIFEST, "annotations": {"a": "b"}, "unknown": [1]})
    manifest = parse_manifest(data, OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    assert manifest.config.digest == SHA
    assert [layer.size for layer in manifest.layers] == [3]
    assert manifest.annotations == {"a": "b"}


@pytest.mark.parametrize("stated", [{}, {"schemaVersion": None}, {"schemaVersion": 0}])
def test_a_document_that_states_no_version(stated: dict[str, Any]) -> None:
    """Neither containerd nor skopeo looks at it."""
    for document, kind in ((IMAGE, Manifest), (INDEX, Index)):
        found = parse_manifest(dump(without(document, "schemaVersion") | stated))
        assert isinstance(found, kind)
        assert found.schema_version == 2


def test_an_index() -> None:
    platform = {"os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "1"}
    index = parse_index(dump(INDEX | {"manifests": [ENTRY | {"platform": platform}]}))
    assert isinstance(index, Index)
    assert index.manifests[0].platform == Platform(
        os="linux", architecture="arm64", variant="v8", os_version="1"
    )
    with pytest.raises(ImageError):
        parse_index(dump(IMAGE), OCI_MANIFEST)


@pytest.mark.parametrize(
    "digest", ["blake3:" + "a" * 64, "sha256+b64u:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564"]
)
def test_an_entry_with_a_digest_that_nobody_knows_costs_nothing_else(digest: str) -> None:
    artifact = {"mediaType": "application/x.signature", "digest": digest, "size": 3}
    index = parse_index(dump(INDEX | {"manifests": [artifact, ENTRY], "annotations": {"a": "b"}}))
    assert [entry.digest for entry in index.manifests] == [SHA]
    assert type(index.manifests[0]) is Descriptor
    assert index.annotations == {"a": "b"}
    for wrong in ("sha256:abcd", SHA.upper(), "blake3", ":a", digest + "\n"):
        with pytest.raises(ImageError, match=re.escape("manifests[0].digest")):
            parse_index(dump(INDEX | {"manifests": [ENTRY | {"digest": wrong}]}))


BAD_ENTRIES: dict[str, Any] = {
    "null": None,
    "number": 5,
    "nothing": {},
    "no-media-type": without(ENTRY, "mediaType"),
    "empty-media-type": ENTRY | {"mediaType": ""},
    "null-media-type": ENTRY | {"mediaType": None},
    "digest-short": ENTRY | {"digest": "sha256:abcd"},
    "digest-null": ENTRY | {"digest": None},
    "size-text": ENTRY | {"size": "4"},
    "platform-text": ENTRY | {"platform": "linux/amd64"},
    "platform-of-numbers": ENTRY | {"platform": {"os": 1, "architecture": 2}},
    "annotations-list": ENTRY | {"annotations": ["a"]},
}


@pytest.mark.parametrize("bad", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_a_damaged_entry_hides_no_other(bad: Any) -> None:
    index = parse_index(dump(INDEX | {"manifests": [bad, ENTRY, bad]}))
    assert [entry.digest for entry in index.manifests] == [SHA]
    with pytest.raises(ImageError, match=re.escape("manifests[0]")):
        parse_index(dump(INDEX | {"manifests": [bad, bad]}))


@pytest.mark.parametrize(
    "platform", [None, {}, {"os": None, "architecture": None}, {"OS": "", "variant": "v8"}]
)
def test_a_platform_of_nothing_is_none(platform: Any) -> None:
    (entry,) = parse_index(dump(INDEX | {"manifests": [ENTRY | {"platform": platform}]})).manifests
    assert entry.platform is None


def test_an_index_of_too_many_entries() -> None:
    with pytest.raises(LimitError, match="40001 entries, more than 40000"):
        parse_index(dump(INDEX | {"manifests": [None] * 40_001}))


def test_documents_as_go_reads_them() -> None:
    image = {"SchemaVersion": 2, "Config": CONFIG, "LAYERS": [LAYER], "annotations": {"a": None}}
    manifest = parse_manifest(dump(image))
    assert isinstance(manifest, Manifest)
    assert (len(manifest.layers), manifest.annotations) == (1, {"a": ""})
    renamed = {"MediaType": OCI_MANIFEST, "DIGEST": SHA, "size": 4, "Platform": {"OS": "linux"}}
    (entry,) = parse_index(dump({"schemaVersion": 2, "Manifests": [renamed]})).manifests
    assert entry.platform == Platform(os="linux")
    empty = parse_manifest(dump(IMAGE | {"layers": None}))
    assert isinstance(empty, Manifest)
    assert empty.layers == []


@pytest.mark.parametrize("key", ["Manifests", "MANIFESTS", "manife\u017ftS"])
@pytest.mark.parametrize("value", [[ENTRY], [], None])
def test_ambiguity_in_other_letters(key: str, value: Any) -> None:
    with pytest.raises(ImageError, match="ambiguous"):
        parse_manifest(dump(IMAGE | {key: value}))


def test_an_index_of_nothing_as_go_writes_it() -> None:
    assert parse_index(dump(INDEX | {"manifests": None})).manifests == []


@pytest.mark.parametrize(
    ("document", "offered", "media_type"),
    [
        pytest.param(IMAGE, OCI_MANIFEST, OCI_MANIFEST, id="offered"),
        pytest.param(IMAGE, DOCKER_MANIFEST, DOCKER_MANIFEST, id="docker"),
        pytest.param(INDEX, DOCKER_INDEX, DOCKER_INDEX, id="docker-list"),
        pytest.param(IMAGE | {"mediaType": DOCKER_MANIFEST}, None, DOCKER_MANIFEST, id="inside"),
        pytest.param(
            IMAGE | {"mediaType": DOCKER_MANIFEST}, "text/plain", DOCKER_MANIFEST, id="general"
        ),
        pytest.param(IMAGE, "application/json", OCI_MANIFEST, id="by-its-fields"),
        pytest.param(INDEX, None, OCI_INDEX, id="index-by-its-fields"),
    ],
)
def test_media_types(document: object, offered: str | None, media_type: str) -> None:
    assert manifest_media_type(dump(document), offered) == media_type
    assert parse_manifest(dump(document), offered).media_type == media_type


BAD_LAYERS: dict[str, dict[str, Any]] = {
    "negative-size": {"size": -1},
    "size-beyond-63-bits": {"size": 2**63},
    "size-beyond-64-bits": {"size": 2**70},
    "size-fraction": {"size": 1.5},
    "size-text": {"size": "3"},
    "digest-short": {"digest": "sha256:abcd"},
    "digest-upper": {"digest": SHA.upper()},
    "digest-newline": {"digest": SHA + "\n"},
    "digest-path": {"digest": "sha256:../../../etc/passwd"},
    "digest-md5": {"digest": "md5:" + "0" * 32},
    "media-type-header": {"mediaType": "a/b\r\nX: y"},
    "media-type-empty": {"mediaType": ""},
    "no-digest": {"digest": None},
}


@pytest.mark.parametrize(
    ("data", "offered", "said"),
    [
        pytest.param(b"", OCI_MANIFEST, "not valid", id="empty"),
        pytest.param(b"[1]", OCI_MANIFEST, "not valid", id="no-object"),
        pytest.param(b'{"mediaType":\xff}', OCI_MANIFEST, "not valid", id="no-utf8"),
        pytest.param(b"[" * 100_000, OCI_MANIFEST, "not valid", id="deep"),
        pytest.param(b'{"x":' * 100_000, OCI_MANIFEST, "not valid", id="deep-unknown-field"),
        pytest.param(dump(IMAGE)[:-1], OCI_MANIFEST, "not valid", id="cut-off"),
        pytest.param(dump({}), OCI_MANIFEST, "schemaVersion", id="nothing"),
        pytest.param(dump(IMAGE | {"schemaVersion": 3}), None, "schemaVersion", id="version-3"),
        pytest.param(dump(IMAGE | INDEX), None, "ambiguous", id="image-and-index"),
        pytest.param(dump(IMAGE), OCI_INDEX, "not the", id="image-offered-as-index"),
        pytest.param(dump(INDEX), OCI_MANIFEST, "not the", id="index-offered-as-image"),
        pytest.param(
            dump(IMAGE | {"mediaType": OCI_MANIFEST}), DOCKER_MANIFEST, "offered as", id="disagree"
        ),
        pytest.param(dump(without(IMAGE, "config")), None, "config", id="no-config"),
        pytest.param(dump(without(IMAGE, "layers")), None, "layers", id="no-layers-field"),
        *(
            pytest.param(dump(IMAGE | {"layers": [LAYER | change]}), None, "layers[0]", id=name)
            for name, change in BAD_LAYERS.items()
        ),
    ],
)
def test_invalid_documents(data: bytes, offered: str | None, said: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse_manifest(data, offered)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "more", [b'"\x80":1', b'"x":"\\ud800"', b'"mediaType":""', b'"subject":null']
)
@pytest.mark.parametrize("document", [IMAGE, INDEX])
def test_what_go_reads_is_valid(document: dict[str, Any], more: bytes) -> None:
    plain = parse_manifest(dump(document))
    assert parse_manifest(dump(document)[:-1] + b"," + more + b"}") == plain


def test_too_long() -> None:
    with pytest.raises(LimitError):
        parse_manifest(dump(IMAGE) + b" " * (4 << 20))
    with pytest.raises(LimitError):
        parse_config(b"{}" + b" " * (8 << 20))


@pytest.mark.parametrize(
    ("document", "offered"),
    [
        ({"schemaVersion": 1}, OCI_MANIFEST),
        ({"schemaVersion": 2}, DOCKER_SCHEMA1),
        ({}, DOCKER_SCHEMA1_SIGNED),
        ({"schemaVersion": 2, "mediaType": DOCKER_SCHEMA1_SIGNED}, None),
    ],
)
def test_schema_1(document: object, offered: str | None) -> None:
    with pytest.raises(UnsupportedError, match="schema 1") as caught:
        parse_manifest(dump(document), offered)
    assert "skopeo" in (caught.value.hint or "")


def test_unknown_media_type() -> None:
    with pytest.raises(UnsupportedError, match="unknown media type"):
        parse_manifest(dump(IMAGE | {"mediaType": "application/x-other"}))


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (OCI_LAYER, "none"),
        (OCI_LAYER + "+gzip", "gzip"),
        (OCI_LAYER + "+zstd", "zstd"),
        (DOCKER_LAYER, "none"),
        (DOCKER_LAYER + ".gzip", "gzip"),
        (DOCKER_FOREIGN_LAYER + ".gzip", "gzip"),
        (OCI_LAYER.upper() + "+GZIP", "gzip"),
        ("application/octet-stream", "none"),
        ("application/vnd.docker.container.image.rootfs.diff+x-gtar", "gzip"),
    ],
)
def test_compression(media_type: str, compression: str) -> None:
    assert layer_compression(Descriptor(media_type=media_type, digest=SHA, size=1)) == compression


@pytest.mark.parametrize(
    ("media_type", "said"),
    [
        (OCI_LAYER + "+gzip+encrypted", "encrypted"),
        ("application/x-other", "unknown media type"),
        ("application/vnd.in-toto+json", "unknown media type"),
        (OCI_LAYER + "+lzma", "unknown media type"),
    ],
)
def test_layers_that_are_not_handled(media_type: str, said: str) -> None:
    layer = Descriptor(media_type=media_type, digest=SHA, size=1)
    with pytest.raises(UnsupportedError, match=said) as caught:
        layer_compression(layer)
    assert caught.value.layer == SHA


def test_missing_blobs() -> None:
    plain = Descriptor(media_type=OCI_LAYER, digest=SHA, size=1)
    foreign = Descriptor(media_type=DOCKER_FOREIGN_LAYER + ".gzip", digest=SHA, size=1)
    assert isinstance(missing_blob(plain), NotFoundError)
    assert isinstance(missing_blob(foreign), UnsupportedError)


def test_configs_keep_what_nobody_knows() -> None:
    config = {"rootfs": {"type": "layers", "diff_ids": [SHA]}, "x": {"y": [1, None, "ü"]}}
    assert parse_config(dump(config)) == config
    assert diff_ids(config) == [SHA]


@pytest.mark.parametrize(
    "config",
    [
        {"rootfs": "x"},
        {"rootfs": {"type": "other", "diff_ids": []}},
        {"rootfs": {"type": "layers", "diff_ids": ["sha256:12"]}},
        {"rootfs": {"type": "layers", "diff_ids": SHA}},
    ],
)
def test_configs_without_diff_ids(config: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="rootfs"):
        diff_ids(config)
    with pytest.raises(ImageError, match="not valid"):
        parse_config(b"[]")


def test_encoding_is_canonical() -> None:
    manifest = Manifest(
        config=describe(b"{}", OCI_CONFIG),
        layers=[describe(b"", OCI_LAYER)],
        annotations={"b": "ü", "a": "1"},
    )
    data = encode(manifest)
    assert data == encode(json.loads(data))
    assert data.startswith(b'{"annotations":{"a":"1","b":"\xc3\xbc"},"config":{"digest":"sha256:')
    assert parse_manifest(data) == manifest
    # Changing this changes the digest of every image that is converted again.
    assert (
        sha256_digest(data)
        == "sha256:555ac03b3f78d073d4828d800592b37d8d8f03bb2579c1487eb3adfe8b8f7604"
    )


def test_optional_fields_are_left_out() -> None:
    assert json.loads(encode(describe(b"", OCI_LAYER))) == {
        "mediaType": OCI_LAYER,
        "digest": sha256_digest(b""),
        "size": 0,
    }
    empty = json.loads(encode(Index(manifests=[])))
    assert empty == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


@pytest.mark.parametrize(
    "rootfs", [None, {}, {"type": "layers"}, {"Diff_Ids": None}, {"type": None, "diff_ids": []}]
)
def test_configs_of_images_without_layers(rootfs: dict[str, Any] | None) -> None:
    assert diff_ids(parse_config(dump({"RootFS": rootfs}))) == []


def test_a_config_without_rootfs_has_no_layers() -> None:
    assert diff_ids(parse_config(b"{}")) == []
