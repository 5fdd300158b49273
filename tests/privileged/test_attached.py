# SPDX-License-Identifier: Apache-2.0
"""One tag for both worlds, end to end: a real registry, other people's tools, lazy containers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstread.errors import NotFoundError
from firstread.snapshotter.attachedimages import AttachedImages
from firstread.snapshotter.lazyimages import DaemonImages
from firstread.testing.command import firstread
from firstread.testing.containers import find_busybox
from firstread.testing.daemon import Daemon
from firstread.testing.images import write_layout
from firstread.testing.machine import Machine
from firstread.testing.registry import DockerRegistry
from firstread.testing.runnable import DATA_FILES, data_file, runnable_image

pytestmark = pytest.mark.privileged

TIMEOUT_S = 120


def skopeo(*arguments: str) -> str:
    command = ["skopeo", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    return done.stdout


def inspected(name: str) -> tuple[str, Any]:
    """Return the manifest's bytes, and the output of ``skopeo inspect`` without the tags."""
    place = ("--tls-verify=false", f"docker://{name}")
    said = json.loads(skopeo("inspect", *place))
    said.pop("RepoTags")
    return skopeo("inspect", "--raw", *place), said


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as running:
        yield running


@pytest.fixture(scope="module")
def original(registry: DockerRegistry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An ordinary image in the registry, with a conversion attached to it."""
    busybox = find_busybox()
    if os.geteuid() or not busybox:
        pytest.skip("needs root and busybox-static")
    scratch = tmp_path_factory.mktemp("image")
    (scratch / "rootfs").mkdir()
    write_layout(runnable_image(scratch / "rootfs", busybox), scratch / "in")
    name = f"{registry.host}/team/app:1.2"
    skopeo("copy", "-q", "--dest-tls-verify=false", f"oci:{scratch}/in:latest", f"docker://{name}")
    before = inspected(name)
    ran = firstread("convert", "--attach", name, "--json")
    assert (ran.code, ran.stderr) == (0, ""), ran
    assert inspected(name) == before
    return name


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as running:
        yield running
        running.remove_all()


def test_the_original_tag_runs_lazily(
    registry: DockerRegistry, original: str, machine: Machine
) -> None:
    registry.forget()
    script = "sha256sum /data/3 | cut -c1-64"
    expected = hashlib.sha256(data_file(3)).hexdigest()
    assert machine.output("run", "--rm", original, script) == f"{expected}\n"
    counts = registry.counts
    whole = sum(len(data_file(number)) for number in range(DATA_FILES))
    assert len(data_file(3)) <= counts.bytes_of("GET") < whole / 2
    # Manifest, list (not found), the tag instead, metadata; then only sectors.
    ranges = counts.requests_of("/blobs/") - 1
    assert counts.requests_of("GET") - ranges == 4
    assert counts.requests_of("/referrers/") == 1


def test_the_node_remembers_the_image_of_a_name(
    registry: DockerRegistry, original: str, machine: Machine
) -> None:
    digest = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{original}"))["Digest"]
    by_digest = f"{original.rpartition(':')[0]}@{digest}"
    for name in (original, by_digest):
        assert machine.output("run", "--rm", name) == "from the image\n"
        registry.forget()
        assert machine.output("run", "--rm", name) == "from the image\n"
        assert registry.counts.requests_of("/manifests/") == 0
        assert registry.counts.requests_of("/referrers/") == 0


def test_a_mount_of_the_original_tag(original: str, machine: Machine, tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    machine.output("mount", original, str(place))
    try:
        read = subprocess.run(
            ["cat", place / "data/1"], capture_output=True, check=True, timeout=TIMEOUT_S
        )
        assert read.stdout == data_file(1)
        machine.output("fetch", "--all", str(place))
        (mount,) = [m for m in machine.status()["mounts"] if m["mountpoint"] == str(place)]
        assert mount["self_sufficient"]
        assert mount["digest"] == firstread("inspect", original, "--json").json["digest"]
    finally:
        machine.output("umount", str(place))


def test_nodes_without_firstread_pull_the_original(
    original: str, registry: DockerRegistry, tmp_path: Path
) -> None:
    registry.forget()
    skopeo("copy", "-q", "--src-tls-verify=false", f"docker://{original}", f"oci:{tmp_path}/out:1")
    assert registry.counts.requests_of("/referrers/") == 0
    ran = firstread("inspect", f"oci:{tmp_path}/out:1")
    assert ran.code == 3
    assert "this is an ordinary image" in ran.stderr


def test_an_attached_conversion_can_be_deleted(registry: DockerRegistry, original: str) -> None:
    """Its tag is an ordinary one; the original then runs as an ordinary image."""
    ran = firstread("inspect", original, "--json")
    source = ran.json["source_digest"].replace(":", "-")
    tag = f"{original.rpartition(':')[0]}:{source}"
    before = inspected(original)
    skopeo("delete", "--tls-verify=false", f"docker://{tag}")
    assert firstread("inspect", original).code == 3
    assert inspected(original) == before
    assert firstread("convert", "--attach", original).code == 0
    assert firstread("inspect", original, "--json").json["digest"] == ran.json["digest"]


def test_the_snapshotter_finds_it_through_the_daemon(
    original: str, registry: DockerRegistry, daemon: Daemon
) -> None:
    """containerd asks by name, and by digest of the manifest."""
    digest = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{original}"))["Digest"]
    images = AttachedImages(DaemonImages(daemon.root, daemon.run_dir).pull)
    converted = firstread("inspect", original, "--json").json["digest"]
    place = original.rpartition(":")[0]
    registry.forget()
    assert images(original, digest) == f"docker://{place}@{converted}"
    assert images(original, digest) == f"docker://{place}@{converted}"
    assert registry.counts.requests_of("/referrers/") == 1
    plain = f"{registry.host}/plain:1"
    skopeo("copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false",
           f"docker://{original}", f"docker://{plain}")  # fmt: skip
    assert images(plain, digest) is None
    with pytest.raises(NotFoundError):
        images(original, "sha256:" + "0" * 64)
