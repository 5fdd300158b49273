# SPDX-License-Identifier: Apache-2.0
"""Images on disk, as their digests and skopeo(1) see them."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from firstread.convert.stream import decompress
from firstread.testing.images import (
    Compression,
    File,
    Image,
    Layer,
    write_docker_archive,
    write_index,
    write_layout,
)

SMALL = Image(
    [
        Layer([File("a", b"1")]),
        Layer([File("b", b"2")], "zstd"),
        Layer([File("c", b"3")], "none", "gnu"),
        Layer(b"", "gzip"),
    ],
    {"Env": ["A=B"], "Cmd": ["/bin/true"]},
)
needs_skopeo = pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")


def load(layout: Path, digest: str) -> Any:
    return json.loads(read(layout, digest))


def read(layout: Path, digest: str) -> bytes:
    data = (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
    assert "sha256:" + hashlib.sha256(data).hexdigest() == digest
    return data


@pytest.mark.parametrize("docker", [False, True])
def test_everything_in_a_layout_is_what_its_digest_says(tmp_path: Path, docker: bool) -> None:
    digest = write_layout(SMALL, tmp_path, docker=docker)
    index = json.loads((tmp_path / "index.json").read_bytes())
    assert [entry["digest"] for entry in index["manifests"]] == [digest]
    assert json.loads((tmp_path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    manifest = load(tmp_path, digest)
    config = load(tmp_path, manifest["config"]["digest"])
    assert config["config"] == {"Env": ["A=B"], "Cmd": ["/bin/true"]}
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        blob = read(tmp_path, layer["digest"])
        assert len(blob) == layer["size"]
        content = b"".join(decompress([blob], layer["mediaType"]))
        assert "sha256:" + hashlib.sha256(content).hexdigest() == diff_id
    assert ("docker" in manifest["mediaType"]) == docker
    kinds = [layer["mediaType"].rpartition("tar")[2] for layer in manifest["layers"]]
    dot = "." if docker else "+"
    assert kinds == [f"{dot}gzip", f"{dot}zstd", "", f"{dot}gzip"]


def test_tags_share_a_layout_and_can_move(tmp_path: Path) -> None:
    first = write_layout(SMALL, tmp_path, "one")
    second = write_layout(Image(SMALL.layers[:1]), tmp_path, "two")
    moved = write_layout(Image(SMALL.layers[:2]), tmp_path, "one")
    index = json.loads((tmp_path / "index.json").read_bytes())
    assert [entry["digest"] for entry in index["manifests"]] == [second, moved]
    assert first not in (second, moved)


def test_an_index_has_a_manifest_per_platform(tmp_path: Path) -> None:
    arm = Image(SMALL.layers[:1], platform="linux/arm64/v8")
    index = load(tmp_path, write_index({"linux/amd64": SMALL, "linux/arm64/v8": arm}, tmp_path))
    platforms = [entry["platform"] for entry in index["manifests"]]
    assert platforms == [
        {"os": "linux", "architecture": "amd64"},
        {"os": "linux", "architecture": "arm64", "variant": "v8"},
    ]
    manifest = load(tmp_path, index["manifests"][1]["digest"])
    assert load(tmp_path, manifest["config"]["digest"])["variant"] == "v8"


def test_a_docker_archive_has_plain_layers(tmp_path: Path) -> None:
    write_docker_archive(SMALL, tmp_path / "a.tar", "name:tag")
    with tarfile.open(tmp_path / "a.tar") as archive:
        (entry,) = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert entry["RepoTags"] == ["name:tag"]
        for name, layer in zip(entry["Layers"], SMALL.layers, strict=True):
            assert archive.extractfile(name).read() == layer.tar  # type: ignore[union-attr]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_layer_is_the_same_every_time(compression: Compression) -> None:
    layers = [Layer([File("a", b"1" * 5000)], compression) for _ in range(2)]
    assert layers[0].blob == layers[1].blob
    if compression == "gzip":
        assert gzip.decompress(layers[0].blob) == layers[0].tar


@needs_skopeo
def test_skopeo_copies_and_inspects(tmp_path: Path) -> None:
    write_layout(SMALL, tmp_path / "layout", "tag")
    write_docker_archive(SMALL, tmp_path / "a.tar")
    for source in (f"oci:{tmp_path}/layout:tag", f"docker-archive:{tmp_path}/a.tar"):
        found = subprocess.run(
            ["skopeo", "inspect", "--config", source], check=True, capture_output=True
        )
        assert json.loads(found.stdout)["config"]["Env"] == ["A=B"]
        command = ["skopeo", "copy", "--insecure-policy", source, f"dir:{tmp_path}/dir"]
        subprocess.run(command, check=True, capture_output=True)
