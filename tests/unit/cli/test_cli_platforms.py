# SPDX-License-Identifier: Apache-2.0
"""``convert --platform all``: an index in, an index out, and what is left out of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstread.oci.model import OCI_INDEX
from firstread.oci.reference import parse_reference
from firstread.registry.open import open_source
from firstread.sectors.image import PARAMETERS, SOURCE_DIGEST
from firstread.testing.command import firstread
from firstread.testing.images import File, Image, Layer, digest_of, write_layout
from firstread.testing.pushing import push, push_index
from firstread.testing.registry import ScriptedRegistry

BASE = Layer([File("base", b"b" * 9000)])
AMD, ARM = (
    Image([BASE, Layer([File("a", name.encode())])], {}, f"linux/{name}")
    for name in ("amd64", "arm64")
)
WINDOWS = Image([BASE], {}, "windows/amd64")
DAMAGED = Image([BASE, Layer(b"\x1f\x8bdamaged", "none")], {}, "linux/s390x")
ALL = ("convert", "--platform", "all", "--sector-size=64KiB", "--frame-size=16KiB")


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as running:
        yield running


def convert(*arguments: str) -> dict[str, Any]:
    ran = firstread(*ALL, "--json", *arguments)
    assert (ran.code, ran.stderr) == (0, ""), ran
    result: dict[str, Any] = ran.json
    return result


def document(name: str) -> dict[str, Any]:
    with open_source(parse_reference(name)) as place:
        found: dict[str, Any] = json.loads(place.get_manifest()[1])
        return found


def test_an_index_becomes_an_index(registry: ScriptedRegistry) -> None:
    name = f"{registry.host}/app:1"
    digest = push_index(name, AMD, ARM, WINDOWS, annotations={"who": "me"})
    out = f"{registry.host}/app:lazy"
    done = convert(name, out)
    assert (done["source_digest"], done["unchanged"]) == (digest, False)
    assert [each["platform"] for each in done["images"]] == ["linux/amd64", "linux/arm64"]
    assert {(each["platform"], each["reason"]) for each in done["skipped"]} == {
        ("unknown/unknown", "it is an attestation"),
        ("windows/amd64", "it is for windows"),
    }
    index = document(out)
    assert index["mediaType"] == OCI_INDEX
    assert index["annotations"] == {"who": "me", SOURCE_DIGEST: digest}
    for entry, image, made in zip(index["manifests"], (AMD, ARM), done["images"], strict=True):
        assert entry["digest"] == made["digest"]
        assert "/".join(reversed(entry["platform"].values())) == image.platform
        assert entry["annotations"][SOURCE_DIGEST] == digest_of(image.manifest())
        assert "sector=65536" in entry["annotations"][PARAMETERS]
        verified = ("verify", "--platform", image.platform, "--source", name, out)
        assert firstread(*verified).code == 0


def test_converting_again_changes_nothing(registry: ScriptedRegistry) -> None:
    name, out = f"{registry.host}/app:1", f"{registry.host}/app:lazy"
    push_index(name, AMD, ARM)
    first = convert(name, out)
    registry.seen.clear()
    again = convert(name, out, "--no-cache")  # from the records in the index's images
    assert (again["digest"], again["unchanged"]) == (first["digest"], True)
    registry.seen.clear()
    assert convert(name, out)["unchanged"]
    assert not [seen for seen in registry.seen if seen.method in ("PUT", "POST", "PATCH")]
    assert {layer["how"] for each in again["images"] for layer in each["layers"]} <= {
        "known",
        "packed",
    }


def test_the_report_for_people(registry: ScriptedRegistry) -> None:
    name, out = f"{registry.host}/app:1", f"{registry.host}/app:lazy"
    push_index(name, AMD, ARM, WINDOWS)
    ran = firstread(*ALL, name, out)
    assert (ran.code, ran.stderr) == (0, "")
    heads = [line for line in ran.stdout.splitlines() if not line.startswith(" ")]
    digest = document_digest(out)
    assert heads == [
        f"docker://{out} for linux/amd64",
        f"docker://{out} for linux/arm64",
        f"docker://{out}: {digest}, an index of 2 images",
        "unknown/unknown: left alone, since it is an attestation",
        "windows/amd64: left alone, since it is for windows",
    ]
    ran = firstread("convert", "--attach", name)
    assert ran.stdout.splitlines()[-2:] == heads[-2:]


def document_digest(name: str) -> str:
    with open_source(parse_reference(name)) as place:
        return place.get_manifest()[0].digest


@pytest.mark.parametrize("place", ["oci:out", "oci-archive:out.tar"])
def test_an_index_on_a_disk(registry: ScriptedRegistry, place: str) -> None:
    name = f"{registry.host}/app:1"
    push_index(name, AMD, ARM)
    convert(name, f"{place}:1")
    assert document(place)["mediaType"] == OCI_INDEX  # the only image there
    for image in (AMD, ARM):
        assert firstread("verify", "--platform", image.platform, f"{place}:1").code == 0


def test_an_image_that_fails_leaves_no_part_of_an_index(registry: ScriptedRegistry) -> None:
    name = f"{registry.host}/app:1"
    push_index(name, AMD, DAMAGED)
    before = dict(registry.manifests)
    for out in (f"{registry.host}/app:lazy", "oci:out:1", "oci-archive:out.tar:1"):
        ran = firstread(*ALL, "--json", name, out)
        assert (ran.code, ran.json["error"]) == (3, "ImageError")
    assert registry.manifests == before
    assert not Path("out/index.json").exists()
    assert not Path("out.tar").exists()


def test_an_image_that_is_no_index_becomes_an_image(registry: ScriptedRegistry) -> None:
    push(f"{registry.host}/app:1", AMD)
    done = convert(f"{registry.host}/app:1", "oci:out:1")
    assert [each["digest"] for each in done["images"]] == [done["digest"]]
    assert "layers" in document("oci:out:1")
    write_layout(ARM, "in", "1")
    assert convert("oci:in:1", "oci:out:2")["images"][0]["platform"] == "linux/arm64"


def test_an_index_of_nothing_that_can_be_converted(registry: ScriptedRegistry) -> None:
    push_index(f"{registry.host}/app:1", WINDOWS, Image([], {}, "windows/arm64"))
    ran = firstread(*ALL, f"{registry.host}/app:1", "oci:out:1")
    assert ran.code == 3
    assert "no image that can be converted" in ran.stderr
    assert "windows/amd64: it is for windows" in ran.stderr
