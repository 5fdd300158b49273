# SPDX-License-Identifier: Apache-2.0
"""Platforms and the walk from a name to one image."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firstread.errors import (
    ImageError,
    LimitError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from firstread.layouts.layoutreader import LayoutDirectory
from firstread.layouts.layoutwriter import LayoutDestination
from firstread.oci.model import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    encode,
)
from firstread.oci.platform import Platform, host_platform, parse_platform
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Destination
from firstread.oci.resolve import choose, resolve, resolve_all


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("linux/amd64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("windows/amd64", "windows/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm/V6", "linux/arm/v6"),
        ("linux/amd64/v3", "linux/amd64/v3"),
    ],
)
def test_names_of_platforms(text: str, name: str) -> None:
    assert str(parse_platform(text)) == name
    assert parse_platform(name) == parse_platform(text)


@pytest.mark.parametrize("text", ["", "/", "linux/", "linux/a/b/c", "linux amd64", "a/ü"])
def test_invalid_platforms(text: str) -> None:
    with pytest.raises(UsageError):
        parse_platform(text)


def test_this_machine() -> None:
    assert host_platform().os == "linux"


def entry(platform: str | None, **fields: Any) -> Descriptor:
    """Return an entry of an index; its platform is kept as it is written."""
    parts = (platform or "").split("/")
    return Descriptor(
        media_type=fields.pop("media_type", OCI_MANIFEST),
        digest=describe(str(platform).encode(), "a/b").digest,
        size=1,
        platform=Platform(
            os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) > 2 else None
        )
        if platform
        else None,
        **fields,
    )


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64/v8", "linux/amd64"], "linux/amd64"),
        ("linux/arm64", ["linux/amd64", "linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64/v8", ["linux/arm64"], "linux/arm64"),
        ("linux/arm64/v9", ["linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64", ["linux/arm64/v9"], None),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], "linux/arm/v6"),
        ("linux/arm/v7", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/amd64", ["linux/amd64/v3"], None),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64/v1"], "linux/amd64/v1"),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2"], "linux/amd64/v2"),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/amd64", ["linux/amd64/"], "linux/amd64/"),  # "variant": ""
        ("linux/arm/v7", ["linux/arm/v6", "linux/arm/7"], "linux/arm/7"),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], "linux/amd64"),
        ("linux/s390x", ["linux/s390x"], "linux/s390x"),
        ("linux/amd64", ["linux/arm64", "/amd64"], "/amd64"),
        ("linux/amd64", ["linux/386", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["linux/arm64", "linux/386"], "linux/386"),
        ("linux/386", ["linux/amd64"], None),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm", ["linux/arm64"], None),
    ],
)
def test_the_best_of_an_index(wanted: str, offered: list[str], chosen: str | None) -> None:
    index = Index(manifests=[entry(platform) for platform in offered])
    if chosen is None:
        with pytest.raises(UnsupportedError) as caught:
            choose(index, parse_platform(wanted))
        assert wanted in str(caught.value)
        assert all(platform in (caught.value.hint or "") for platform in offered)
    else:
        assert choose(index, parse_platform(wanted)) == entry(chosen)


def test_other_artifacts_are_not_chosen() -> None:
    wanted = parse_platform("linux/amd64")
    attestation = entry(
        "unknown/unknown", annotations={"vnd.docker.reference.type": "attestation-manifest"}
    )
    signature = entry("linux/amd64", media_type="application/vnd.dev.cosign.simplesigning.v1+json")
    image = entry("linux/amd64")
    assert choose(Index(manifests=[attestation, signature, image]), wanted) == image
    with pytest.raises(UnsupportedError):
        choose(Index(manifests=[attestation, signature]), wanted)
    with pytest.raises(UnsupportedError):
        choose(Index(manifests=[]), wanted)


def test_artifacts_are_chosen_only_where_there_is_nothing_else() -> None:
    """An index of attached images, which are artifacts, has some all the same."""
    wanted = parse_platform("linux/amd64")
    image, nameless = entry("linux/amd64"), entry(None)
    artifact = entry(None, artifact_type="application/vnd.example.sbom")
    attached = entry("linux/amd64", artifact_type="application/vnd.example.image")
    assert choose(Index(manifests=[attached, artifact, image]), wanted) == image
    assert choose(Index(manifests=[artifact, nameless]), wanted) == nameless
    assert choose(Index(manifests=[attached, artifact]), wanted) == attached
    with pytest.raises(UnsupportedError) as caught:
        choose(Index(manifests=[artifact, entry("linux/arm64")]), wanted)
    assert caught.value.hint == "choose one with --platform: linux/arm64"


def test_an_empty_type_makes_no_artifact() -> None:
    """As Go leaves it out, so does it read it."""
    mine = entry("linux/amd64", artifact_type="")
    other = entry("linux/arm64")
    assert choose(Index(manifests=[other, mine]), parse_platform("amd64")) == mine


def test_the_type_of_a_config_makes_no_artifact() -> None:
    """As tools write it that follow descriptor.md, "artifactType"."""
    mine = entry("linux/amd64", artifact_type=OCI_CONFIG)
    other = entry("linux/arm64")
    assert choose(Index(manifests=[other, mine]), parse_platform("amd64")) == mine


def test_an_image_without_a_platform() -> None:
    image, attestation = entry(None), entry("unknown/unknown")
    assert choose(Index(manifests=[image, attestation]), parse_platform("arm64")) == image


Put = Callable[[Destination], Descriptor]


def image(
    architecture: str,
    layers: int = 1,
    config_type: str = OCI_CONFIG,
    media_type: str = OCI_MANIFEST,
) -> Put:
    """Return what puts an image and returns its descriptor."""

    def put(place: Destination) -> Descriptor:
        config = encode({"architecture": architecture, "os": "linux", "x-unknown": [1]})
        place.put_blob(describe(config, config_type), io.BytesIO(config))
        blobs = [f"{architecture} {number}".encode() for number in range(layers)]
        document = Manifest(
            media_type=media_type,
            config=describe(config, config_type),
            layers=[describe(blob, OCI_LAYER) for blob in blobs],
        )
        return place.put_manifest(encode(document), media_type, None)

    return put


def index(*children: tuple[str | None, Put]) -> Put:
    def put(place: Destination) -> Descriptor:
        entries = []
        for platform, child in children:
            found = child(place)
            wanted = parse_platform(platform) if platform else None
            entries.append(
                Descriptor(
                    media_type=found.media_type,
                    digest=found.digest,
                    size=found.size,
                    platform=wanted,
                )
            )
        return place.put_manifest(encode(Index(manifests=entries)), OCI_INDEX, None)

    return put


@pytest.fixture
def layout(tmp_path: Path) -> LayoutDestination:
    return LayoutDestination(parse_reference(f"oci:{tmp_path}/x"))


def test_one_image(layout: LayoutDestination) -> None:
    image("amd64")(layout)
    found = resolve(layout)
    assert found.config["x-unknown"] == [1]
    assert found.descriptor == describe(found.manifest_bytes, OCI_MANIFEST)
    assert found.manifest.config == describe(found.config_bytes, OCI_CONFIG)


def test_nested_indexes(layout: LayoutDestination) -> None:
    inner = index(("linux/amd64", image("amd64")), ("linux/arm64", image("arm64")))
    index((None, index((None, inner))))(layout)
    for name in ("amd64", "arm64"):
        assert resolve(layout, parse_platform(name)).config["architecture"] == name
    with pytest.raises(UnsupportedError) as caught:
        resolve(layout, parse_platform("s390x"))
    assert "linux/amd64, linux/arm64" in (caught.value.hint or "")
    assert caught.value.image == str(layout.reference)


def test_indexes_side_by_side(layout: LayoutDestination) -> None:
    inner = [(None, index((f"linux/{name}", image(name)))) for name in ("arm64", "amd64", "386")]
    index(*inner)(layout)
    for name in ("amd64", "arm64", "386"):
        assert resolve(layout, parse_platform(name)).config["architecture"] == name
    with pytest.raises(UnsupportedError) as caught:
        resolve(layout, parse_platform("s390x"))
    assert "linux/386, linux/amd64, linux/arm64" in (caught.value.hint or "")


def test_images_side_by_side_without_platforms(layout: LayoutDestination) -> None:
    """As containerd does: what each is for, its config says."""
    helm = image("any", config_type="application/vnd.cncf.helm.config.v1+json")
    nested = index(("linux/386", image("386")))
    index((None, helm), (None, nested), *((None, image(name)) for name in ("arm64", "amd64")))(
        layout
    )
    for name in ("amd64", "arm64", "386"):
        assert resolve(layout, parse_platform(name)).config["architecture"] == name
    with pytest.raises(UnsupportedError) as caught:
        resolve(layout, parse_platform("s390x"))
    assert "linux/386, linux/amd64, linux/arm64" in (caught.value.hint or "")


def test_too_many_indexes_side_by_side(layout: LayoutDestination) -> None:
    index(*[(None, index((f"linux/a{number}", image("amd64")))) for number in range(33)])(layout)
    with pytest.raises(LimitError):
        resolve(layout)


def test_too_many_nested_indexes(layout: LayoutDestination) -> None:
    nested = image("amd64")
    for _ in range(5):
        nested = index((None, nested))
    nested(layout)
    with pytest.raises(LimitError):
        resolve(layout)


def test_a_single_image_of_another_platform(layout: LayoutDestination) -> None:
    image("s390x")(layout)
    assert resolve(layout).config["architecture"] == "s390x"
    with pytest.raises(UnsupportedError) as caught:
        resolve(layout, parse_platform("amd64"))
    assert "linux/s390x" in (caught.value.hint or "")


def test_other_artifacts(layout: LayoutDestination) -> None:
    image("amd64", config_type="application/vnd.cncf.helm.config.v1+json")(layout)
    with pytest.raises(UnsupportedError, match="not a container image"):
        resolve(layout)


def test_all_images_of_an_index_without_its_artifacts(layout: LayoutDestination) -> None:
    helm = image("any", config_type="application/vnd.cncf.helm.config.v1+json")
    names = ("amd64", "arm64")
    index(("unknown/unknown", helm), *((f"linux/{n}", image(n)) for n in names), (None, helm))(
        layout
    )
    found, images = resolve_all(layout)
    assert [image.config["architecture"] for image in images] == list(names)
    reasons = [(str(entry.platform), reason) for entry, reason in found.left_out]
    assert reasons == [
        ("unknown/unknown", "its platform is unknown"),
        ("None", "it is an artifact"),
    ]


@pytest.mark.parametrize("config_type", ["application/octet-stream", "application/json"])
def test_configs_of_old_images(layout: LayoutDestination, config_type: str) -> None:
    image("amd64", config_type=config_type, media_type=DOCKER_MANIFEST)(layout)
    assert resolve(layout).config["architecture"] == "amd64"


def test_an_image_without_layers(layout: LayoutDestination) -> None:
    image("amd64", layers=0)(layout)
    assert resolve(layout).manifest.layers == []


def test_a_config_that_is_none(layout: LayoutDestination) -> None:
    layout.put_blob(describe(b"[]", OCI_CONFIG), io.BytesIO(b"[]"))
    document = Manifest(config=describe(b"[]", OCI_CONFIG), layers=[describe(b"", OCI_LAYER)])
    layout.put_manifest(encode(document), OCI_MANIFEST, None)
    with pytest.raises(ImageError):
        resolve(layout)


def test_a_damaged_nested_index_hides_no_other(layout: LayoutDestination) -> None:
    index((None, index(("linux/amd64", image("amd64")))))(layout)
    nested = next(iter(layout.manifests()))
    missing = Descriptor(media_type=OCI_INDEX, digest=describe(b"?", OCI_INDEX).digest, size=1)
    both = encode(Index(manifests=[missing, nested]))
    descriptor = layout.put_manifest(both, OCI_INDEX, "both")
    with LayoutDirectory(parse_reference(f"{layout.reference}@{descriptor.digest}")) as place:
        assert resolve(place, parse_platform("amd64")).config["architecture"] == "amd64"
    gone = layout.put_manifest(encode(Index(manifests=[missing, missing])), OCI_INDEX, "gone")
    with (
        LayoutDirectory(parse_reference(f"{layout.reference}@{gone.digest}")) as place,
        pytest.raises(NotFoundError),
    ):
        resolve(place)
