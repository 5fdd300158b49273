# SPDX-License-Identifier: Apache-2.0
"""Conversion from and to a real registry, and other tools on the result."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstread.testing.command import firstread
from firstread.testing.registry import PASSWORD, USERNAME, DockerRegistry

pytestmark = pytest.mark.privileged  # by place: they need programs, not rights

LAYOUT_TO_REGISTRY = ("--dest-tls-verify=false", "--preserve-digests")
REGISTRY_TO_LAYOUT = ("--src-tls-verify=false", "--preserve-digests")


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as running:
        yield running


@dataclass(frozen=True)
class Case:
    """An image, pushed to the registry, and converted from layout to layout.

    Args:
        layout: of the image.
        pushed: its name in the registry, without a tag; it has the tag 12.
        converted: the conversion.
        digest: of the conversion.
    """

    layout: Path
    pushed: str
    converted: str
    digest: str

    @property
    def original(self) -> str:
        return f"oci:{self.layout}:latest"


@pytest.fixture(scope="module")
def debian_case(
    registry: DockerRegistry, debian: Path, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    return made(debian, f"{registry.host}/library/debian", tmp_path_factory.mktemp("debian"))


@pytest.fixture(scope="module")
def features_case(
    registry: DockerRegistry, features: Path, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    return made(features, f"{registry.host}/library/features", tmp_path_factory.mktemp("features"))


def made(layout: Path, name: str, folder: Path) -> Case:
    skopeo("copy", *LAYOUT_TO_REGISTRY, f"oci:{layout}:latest", f"docker://{name}:12")
    out = f"oci:{folder}/out:latest"
    return Case(layout, name, out, convert(f"oci:{layout}:latest", out)["digest"])


def skopeo(*arguments: str) -> str:
    return subprocess.run(["skopeo", *arguments], check=True, capture_output=True, text=True).stdout


def digest_of(layout: Path) -> str:
    digest: str = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
    return digest


def convert(*arguments: str) -> dict[str, Any]:
    ran = firstread("convert", *arguments, "--json")
    assert (ran.code, ran.stderr) == (0, ""), ran
    result: dict[str, Any] = ran.json
    return result


def check(reference: str, source: str, digest: str) -> None:
    """Check that `reference` is the converted image and complete."""
    verified = firstread("verify", reference, "--source", source, "--json")
    assert (verified.code, verified.stderr) == (0, ""), verified
    assert (verified.json["digest"], verified.json["source"]) == (digest, source)
    inspected = firstread("inspect", reference, "--json")
    assert inspected.json["digest"] == digest
    assert verified.json["sectors"] == len(inspected.json["sectors"])


@pytest.mark.parametrize(("image", "way"), [("debian", "tag"), ("features", "digest")])
def test_registry_to_registry(
    registry: DockerRegistry, request: pytest.FixtureRequest, image: str, way: str
) -> None:
    """It gives the same bytes as from layout to layout."""
    case: Case = request.getfixturevalue(f"{image}_case")
    original = digest_of(case.layout)
    name = f"docker://{case.pushed}"
    source = f"{name}:12" if way == "tag" else f"{name}@{original}"
    destination = f"{registry.host}/lazy/{way}:latest"
    result = convert(source, destination, "--no-cache")
    assert (result["digest"], result["source_digest"]) == (case.digest, original)
    if way == "digest":
        destination = f"{registry.host}/lazy/{way}@{case.digest}"
    check(destination, source, case.digest)


def test_layout_to_registry_and_back_to_a_layout(
    registry: DockerRegistry, features_case: Case, tmp_path: Path
) -> None:
    case = features_case
    up = convert(case.original, f"docker://{registry.host}/up", "--no-cache")
    down = convert(f"docker://{case.pushed}:12", f"oci:{tmp_path}/down:a", "--no-cache")
    assert up["digest"] == down["digest"] == case.digest


def test_converting_again_moves_no_blob(registry: DockerRegistry, features_case: Case) -> None:
    source = f"docker://{features_case.pushed}:12"
    first = convert(source, f"{registry.host}/twice:1", "--no-hot")
    registry.forget()
    again = convert(source, f"{registry.host}/twice:1", "--no-hot")
    assert again["unchanged"]
    assert again["uploaded_blobs"] == 0
    assert {layer["how"] for layer in again["layers"]} == {"known"}
    config_bytes = 10_000  # two configs are read; no layer is
    counts = registry.counts
    assert counts.bytes_of("/blobs/") < config_bytes
    assert not [key for key in counts.requests if not key.startswith(("GET", "HEAD"))]
    assert again["digest"] == first["digest"]


def test_converting_again_reads_only_the_start_set(
    registry: DockerRegistry, debian_case: Case
) -> None:
    source = f"docker://{debian_case.pushed}:12"
    first = convert(source, f"{registry.host}/static:1")
    registry.forget()
    again = convert(source, f"{registry.host}/static:1")
    assert (again["unchanged"], again["uploaded_blobs"]) == (True, 0)
    layer = again["layers"][0]
    assert (layer["how"], registry.counts.bytes_of(layer["digest"])) == ("known", 0)
    read = registry.counts.bytes_of(layer["blob"])
    assert first["hot"]["blob_size"] / 2 < read < layer["blob_size"] / 4


def test_the_record_in_the_destination_replaces_the_cache(
    registry: DockerRegistry,
    debian_case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = f"docker://{debian_case.pushed}:12"
    convert(source, f"{registry.host}/recorded:1", "--no-hot")
    monkeypatch.setenv("FIRSTREAD_CACHE", str(tmp_path / "another machine"))
    registry.forget()
    again = convert(source, f"{registry.host}/recorded:1", "--no-hot")
    assert (again["unchanged"], again["uploaded_blobs"]) == (True, 0)
    layer = again["layers"][0]
    assert (layer["how"], registry.counts.bytes_of(layer["digest"])) == ("known", 0)
    assert 0 < registry.counts.bytes_of(layer["blob"]) < layer["blob_size"] / 20


def test_skopeo_copies_it_through_registry_and_archive(
    registry: DockerRegistry, features_case: Case, tmp_path: Path
) -> None:
    case, there = features_case, f"docker://{registry.host}/copied:1"
    archive, layout = f"oci-archive:{tmp_path}/image.tar", f"oci:{tmp_path}/layout:latest"
    skopeo("copy", *LAYOUT_TO_REGISTRY, case.converted, there)
    skopeo("copy", *REGISTRY_TO_LAYOUT, there, archive)
    skopeo("copy", *REGISTRY_TO_LAYOUT, archive, layout)
    for copy in (there, archive, layout):
        check(copy, case.original, case.digest)


def test_skopeo_syncs_an_image_with_its_conversion(
    registry: DockerRegistry, debian_case: Case
) -> None:
    convert("--attach", f"{debian_case.pushed}:12")
    with DockerRegistry() as other:
        tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
        ways = ("--src=docker", "--dest=docker", "--all")
        skopeo("sync", *tls, *ways, debian_case.pushed, f"{other.host}/library")
        copy = f"{other.host}/library/debian:12"
        ran = firstread("inspect", "--json", copy)
        assert ran.code == 0, ran
        assert ran.json["digest"] != digest_of(debian_case.layout)


def test_skopeo_inspects_it(debian_case: Case) -> None:
    case = debian_case
    said = json.loads(skopeo("inspect", case.converted))
    assert said["Digest"] == case.digest
    inspected = firstread("inspect", case.converted, "--json").json
    layers = [inspected["metadata"]["digest"], *(blob["digest"] for blob in inspected["blobs"])]
    assert said["Layers"] == layers
    ours, original = (
        json.loads(skopeo("inspect", "--config", reference))
        for reference in (case.converted, case.original)
    )
    for field in original.keys() - {"rootfs", "history"}:
        assert ours[field] == original[field]
    assert len(ours["rootfs"]["diff_ids"]) == len(layers)
    added = {"metadata", "hot sectors"}
    steps = [step for step in ours["history"] if step.get("comment") not in added]
    assert steps == original["history"]


def test_a_registry_with_a_login(features_case: Case, tmp_path: Path) -> None:
    login = tmp_path / "auth.json"
    with DockerRegistry(login=True) as registry:
        there = f"{registry.host}/lazy:1"
        refused = firstread("convert", features_case.original, there)
        assert (refused.code, refused.stdout) == (4, "")
        assert "401 Unauthorized" in refused.stderr
        skopeo(
            *("login", "--tls-verify=false", "--authfile", str(login), "--username", USERNAME),
            *("--password", PASSWORD, registry.host),
        )
        result = convert(features_case.original, there, "--authfile", str(login))
        assert result["digest"] == features_case.digest


def test_a_read_only_registry(features: Path) -> None:
    with DockerRegistry(readonly=True) as registry:
        ran = firstread("convert", f"oci:{features}:latest", f"{registry.host}/lazy:1")
        assert (ran.code, ran.stdout) == (4, "")
        assert "answers 405 Method Not Allowed" in ran.stderr
        assert ran.stderr.endswith("\n  the registry does not take this: it may be read-only\n")
        with pytest.raises(subprocess.CalledProcessError):
            skopeo("inspect", "--tls-verify=false", f"docker://{registry.host}/lazy:1")
