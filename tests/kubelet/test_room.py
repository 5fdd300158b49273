# SPDX-License-Identifier: Apache-2.0
"""What a real kubelet measures, and what it takes back: statistics, eviction, images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kubelet.apiserver import ApiServer
from tests.kubelet.kubelet import Kubelet, pod
from tests.privileged.test_containerd import digest_of, read

from firstread.testing.containerd import Containerd
from firstread.testing.registry import DockerRegistry
from firstread.units import MiB

pytestmark = pytest.mark.kubelet

WAIT = ("sleep", "600")
WRITTEN = 20 * MiB
PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture
def node(app_registry: DockerRegistry, scratch: Path) -> Iterator[Containerd]:
    with Containerd(scratch, f"{app_registry.host}/pause:1", image_service=True) as running:
        yield running


def usage(kubelet: Kubelet, name: str) -> dict[str, Any]:
    """Return the statistics of a pod's container; {} if there are none yet."""
    for each in kubelet.summary()["pods"]:
        if each["podRef"]["name"].startswith(name) and each.get("containers"):
            return dict(each["containers"][0])
    return {}


def test_statistics(app_registry: DockerRegistry, node: Containerd, scratch: Path) -> None:
    with Kubelet(node, scratch / "k") as kubelet:
        root = {"runAsUser": 0}
        kubelet.run("lazy", f"{app_registry.host}/app:latest", *WAIT, securityContext=root)
        kubelet.wait_running("lazy")
        kubelet.exec("lazy", *read(3))
        kubelet.exec("lazy", "dd", "if=/dev/zero", "of=/tmp/written", "bs=1M", "count=20")

        def rootfs() -> dict[str, Any]:
            return dict(usage(kubelet, "lazy").get("rootfs", {}))

        node.wait(lambda: rootfs().get("usedBytes", 0) >= WRITTEN)
        assert rootfs()["usedBytes"] < WRITTEN + MiB
        disk = os.statvfs(node.daemon.root)
        assert rootfs()["capacityBytes"] == disk.f_blocks * disk.f_frsize

        def images() -> dict[str, Any]:
            return dict(kubelet.summary()["node"]["runtime"]["imageFs"])

        node.wait(lambda: images()["usedBytes"] >= WRITTEN)
        metadata = sum(path.stat().st_blocks * 512 for path in node.daemon.root.glob("images/*/*"))
        assert metadata + WRITTEN <= images()["usedBytes"] < metadata + WRITTEN + 10 * MiB
        assert images()["capacityBytes"] == disk.f_blocks * disk.f_frsize
        print(f"container {rootfs()['usedBytes']:,} bytes, images {images()['usedBytes']:,}")


def test_a_pod_that_writes_too_much_is_evicted(
    app_registry: DockerRegistry, node: Containerd, scratch: Path
) -> None:
    with ApiServer() as api, Kubelet(node, scratch / "k", api=api):
        root = {"runAsUser": 0}
        limits = {"limits": {"ephemeral-storage": "10Mi"}}
        image = f"{app_registry.host}/app:latest"
        script = "dd if=/dev/zero of=/tmp/written bs=1M count=20; sleep 600"
        api.create(
            PODS, pod("greedy", image, "sh", "-c", script, resources=limits, securityContext=root)
        )
        api.create(PODS, pod("modest", image, *WAIT, resources=limits))

        def status(name: str) -> dict[str, Any]:
            return dict((api.object(f"{PODS}/{name}") or {}).get("status", {}))

        node.wait(lambda: status("greedy").get("reason") == "Evicted")
        print(status("greedy")["message"])
        assert "ephemeral" in status("greedy")["message"]
        node.wait(lambda: status("modest").get("phase") == "Running")
        node.wait(lambda: len(node.daemon.status()["mounts"][0]["holders"]) == 1)


def test_an_image_that_the_kubelet_removes_gives_its_sectors_back(
    app_registry: DockerRegistry, node: Containerd, scratch: Path
) -> None:
    def cache() -> dict[str, Any]:
        return dict(json.loads(node.daemon.run("cache", "ls", "--json").stdout))

    with Kubelet(node, scratch / "k") as kubelet:
        kubelet.run("lazy", f"{app_registry.host}/app:latest", *WAIT)
        kubelet.wait_running("lazy")
        assert digest_of(3) in kubelet.exec("lazy", *read(3))
        kubelet.stop("lazy")
        before = cache()["store"]["bytes"]
        assert before > 4 * MiB
    full = {"nodefs.available": "99%", "imagefs.available": "99%"}  # it looks every ten seconds
    settings = {"evictionHard": full, "imageMinimumGCAge": "1s"}
    with Kubelet(node, scratch / "k", settings=settings):
        node.wait_collected(lambda: cache()["images"] == [])
    assert (cache()["store"]["bytes"], cache()["store"]["sectors"]) == (0, 0)
    print(f"{before:,} bytes of sectors before the kubelet removed the image, 0 after that")
