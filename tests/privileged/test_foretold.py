# SPDX-License-Identifier: Apache-2.0
"""A pull by way of the image service: the daemon asks the registry beside containerd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.privileged.test_containerd import digest_of, pytestmark, read

from firstread.oci.model import Manifest, parse_manifest
from firstread.testing.containerd import Containerd
from firstread.testing.registry import DockerRegistry

__all__ = ["pytestmark"]


@pytest.fixture
def node(app_registry: DockerRegistry, scratch: Path) -> Iterator[Containerd]:
    with Containerd(scratch, f"{app_registry.host}/pause:1", image_service=True) as running:
        running.pull(f"{app_registry.host}/pause:1")
        yield running


def test_the_daemon_asks_by_name_and_fetches_once(
    app_registry: DockerRegistry, node: Containerd
) -> None:
    image = f"{app_registry.host}/app:latest"
    app_registry.forget()
    node.pull(image)
    asked = app_registry.counts.requests
    assert asked["GET /v2/app/manifests/latest"] == 1, "containerd asks for the tag by HEAD"
    (stored,) = node.daemon.root.glob("images/*/manifest.json")
    manifest = parse_manifest(stored.read_bytes())
    assert isinstance(manifest, Manifest)
    assert asked[f"GET /v2/app/blobs/{manifest.layers[0].digest}"] == 1
    assert node.run(image, *read(3)) == [f"{digest_of(3)}  /data/3"]


def test_an_ordinary_image_is_pulled_as_ever(
    app_registry: DockerRegistry, node: Containerd
) -> None:
    image = f"{app_registry.host}/ordinary:latest"
    node.pull(image)
    assert node.run(image, *read(3)) == [f"{digest_of(3)}  /data/3"]
    assert not list(node.daemon.root.glob("images/*/manifest.json"))
