# SPDX-License-Identifier: Apache-2.0
"""Pods of a real kubelet: what they read, and what of it the registry had to send."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kubelet.kubelet import Kubelet
from tests.privileged.test_containerd import blob_bytes, digest_of, read

from firstread.testing.command import firstread
from firstread.testing.containerd import Containerd
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry
from firstread.units import MiB

pytestmark = pytest.mark.kubelet

WAIT = ("sleep", "600")
FILE = 4 * MiB  # each of six
START = 2 * MiB  # metadata, and the sector of busybox; the manifest holds the config


@pytest.fixture(scope="module")
def registry(app_registry: DockerRegistry) -> DockerRegistry:
    """``attached`` beside the other images: an ordinary one with a conversion attached."""
    copy = ("skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false")
    names = (f"docker://{app_registry.host}/{name}:latest" for name in ("ordinary", "attached"))
    subprocess.run([*copy, *names], check=True, timeout=PATIENCE_S)
    ran = firstread("convert", "--no-hot", "--attach", f"{app_registry.host}/attached")
    assert ran.code == 0, ran
    return app_registry


@pytest.fixture
def kubelet(registry: DockerRegistry, scratch: Path) -> Iterator[Kubelet]:
    pause = f"{registry.host}/pause:1"
    with (
        Containerd(scratch, pause, image_service=True) as node,
        Kubelet(node, scratch / "k") as running,
    ):
        yield running


@pytest.mark.parametrize("device", ["fanotify", "flat", "fuse"])
def test_a_converted_image(registry: DockerRegistry, scratch: Path, device: str) -> None:
    pause = f"{registry.host}/pause:1"
    with (
        Containerd(scratch, pause, device=device, image_service=True) as node,
        Kubelet(node, scratch / "k") as kubelet,
    ):
        reads_lazily(kubelet, registry, "app")
        (mount,) = node.daemon.status()["mounts"]
        assert mount["device"] == device
        print(f"on {device}")


def test_an_attached_conversion(registry: DockerRegistry, kubelet: Kubelet) -> None:
    reads_lazily(kubelet, registry, "attached")


def reads_lazily(kubelet: Kubelet, registry: DockerRegistry, name: str) -> None:
    """Run a pod that reads one file."""
    registry.forget()
    kubelet.run("lazy", f"{registry.host}/{name}:latest", *WAIT)
    kubelet.wait_running("lazy")
    begun = blob_bytes(registry, name)
    assert kubelet.exec("lazy", *read(3)) == f"{digest_of(3)}  /data/3\n"
    fetched = blob_bytes(registry, name)
    print(f"{name}: {begun:,} bytes until it runs, {fetched:,} with a file of {FILE:,}")
    assert begun < START
    assert begun + FILE < fetched < begun + 2 * FILE + START
    (mount,) = kubelet.node.daemon.status()["mounts"]
    assert mount["present"] < mount["sectors"]


def test_an_ordinary_image(registry: DockerRegistry, kubelet: Kubelet) -> None:
    registry.forget()
    kubelet.run("ordinary", f"{registry.host}/ordinary:latest", *WAIT)
    kubelet.wait_running("ordinary")
    assert blob_bytes(registry, "ordinary") > 6 * FILE
    assert kubelet.exec("ordinary", *read(3)) == f"{digest_of(3)}  /data/3\n"
    assert kubelet.node.daemon.status()["mounts"] == []


@pytest.mark.parametrize("name", ["app", "attached", "ordinary"])
def test_an_image_as_a_volume(registry: DockerRegistry, kubelet: Kubelet, name: str) -> None:
    """KEP-4639: whole, and a part of it (subPath)."""
    registry.forget()
    image = {"reference": f"{registry.host}/{name}:latest", "pullPolicy": "IfNotPresent"}
    kubelet.run(
        "volumes",
        f"{registry.host}/pause:1",
        volumes=[{"name": "model", "image": image}],
        volumeMounts=[
            {"name": "model", "mountPath": "/all"},
            {"name": "model", "mountPath": "/part", "subPath": "data"},
        ],
    )
    kubelet.wait_running("volumes")
    begun = blob_bytes(registry, name)
    assert kubelet.exec("volumes", "sha256sum", "/all/data/1").split()[0] == digest_of(1)
    assert kubelet.exec("volumes", "sha256sum", "/part/2").split()[0] == digest_of(2)
    fetched = blob_bytes(registry, name)
    print(
        f"volume of {name}: {begun:,} bytes until it runs, {fetched:,} with two files of {FILE:,}"
    )
    refused = kubelet.exec("volumes", "sh", "-c", "touch /part/x 2>&1 || true")
    assert "Read-only file system" in refused
    lazy = name != "ordinary"
    assert (begun < START) is lazy
    assert fetched < begun + 3 * FILE
    assert len(kubelet.node.daemon.status()["mounts"]) == lazy
    kubelet.stop("volumes")
    kubelet.node.wait_collected(lambda: kubelet.node.daemon.status()["mounts"] == [])


def test_a_volume_of_what_the_image_does_not_have(
    registry: DockerRegistry, kubelet: Kubelet
) -> None:
    image = {"reference": f"{registry.host}/app:latest"}
    kubelet.run(
        "wrong",
        f"{registry.host}/pause:1",
        volumes=[{"name": "model", "image": image}],
        volumeMounts=[{"name": "model", "mountPath": "/part", "subPath": "none"}],
    )
    kubelet.node.wait(lambda: "none" in kubelet.reason("wrong"))
    kubelet.stop("wrong")
    kubelet.node.wait_collected(lambda: kubelet.node.daemon.status()["mounts"] == [])
