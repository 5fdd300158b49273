# SPDX-License-Identifier: Apache-2.0
"""A RuntimeClass with its own snapshotter, in a real containerd 2 whose default is overlayfs.

Debian's containerd 1.6 does not support that. With another one first in PATH:
pytest -m containerd2 tests/privileged/test_containerd2.py
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.privileged.test_containerd import (
    blob_bytes,
    digest_of,
    file_systems,
    own_layer,
    read,
    start_writer,
)

from firstread.testing.command import ran
from firstread.testing.containerd import Containerd
from firstread.testing.containerdconfig import containerd_version
from firstread.testing.registry import DockerRegistry
from firstread.units import MiB

pytestmark = pytest.mark.containerd2

HANDLER = "firstread"
ANNOTATION = {"io.containerd.cri.runtime-handler": HANDLER}


@pytest.fixture
def registry(app_registry: DockerRegistry) -> DockerRegistry:
    return app_registry


@pytest.fixture
def node(registry: DockerRegistry, scratch: Path) -> Iterator[Containerd]:
    pause = f"{registry.host}/pause:1"
    with Containerd(scratch, pause, snapshotter="overlayfs", handler=HANDLER) as running:
        yield running


@pytest.mark.parametrize("said", ["by the kubelet", "by an annotation"])
def test_a_pod_of_the_class_is_lazy(registry: DockerRegistry, node: Containerd, said: str) -> None:
    image = f"{registry.host}/app:latest"
    annotated = said == "by an annotation"
    config = node.pod_config(ANNOTATION if annotated else None)
    registry.forget()
    node.pull(image, pod=config, runtime_handler="" if annotated else HANDLER)
    assert blob_bytes(registry, "app") < MiB / 4
    pod = node.start_pod(config, HANDLER)
    container, log = node.start_container(pod, image, *read(1))
    node.wait(lambda: node.state(container) == 2)
    node.wait(lambda: digest_of(1) in log.read_text())
    assert blob_bytes(registry, "app") < 10 * MiB
    assert len(node.daemon.status()["mounts"]) == 1


def test_containerd_measures_its_default_snapshotter_alone(
    registry: DockerRegistry, node: Containerd
) -> None:
    """A limit in docs/kubernetes.md: if this fails, containerd has mended it."""
    image, ordinary = f"{registry.host}/app:latest", f"{registry.host}/ordinary:latest"
    node.pull(image, pod=node.pod_config(), runtime_handler=HANDLER)
    node.pull(ordinary)
    container = start_writer(node, image, HANDLER)
    start_writer(node, ordinary)
    node.wait(lambda: file_systems(node)[0].used_bytes.value >= 20 * MiB)
    assert len(file_systems(node)) == 1
    assert own_layer(node, container).used_bytes.value == 0


@pytest.mark.skipif(not shutil.which("nerdctl"), reason="needs nerdctl")
def test_nerdctl(registry: DockerRegistry, node: Containerd) -> None:
    image, archive = f"{registry.host}/app:latest", node.scratch / "saved.tar"
    places = ("--data-root", node.scratch / "nerdctl", "--cni-netconfpath", node.scratch / "cni")
    options = ("--address", node.socket, *places, "--snapshotter=firstread", "--insecure-registry")

    def nerdctl(*arguments: str) -> str:
        done = ran(["nerdctl", *options, *arguments])
        assert done.code == 0, done
        return done.stdout

    registry.forget()
    nerdctl("pull", "--quiet", image)
    assert blob_bytes(registry, "app") < MiB / 4
    printed = nerdctl("run", "--rm", "--net=none", image, "sha256sum /data/1")
    assert printed == f"{digest_of(1)}  /data/1\n"
    assert 4 * MiB < blob_bytes(registry, "app") < 10 * MiB
    nerdctl("save", "--output", str(archive), image)  # it fetches the layers that it lacks
    assert archive.stat().st_size > 24 * MiB
    nerdctl("rmi", image)
    node.wait_collected(lambda: node.snapshots("default") == [])


def test_the_start_of_a_pod_is_below_the_spans_of_containerd(
    registry: DockerRegistry, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.proto")
    if containerd_version() < (2, 3):
        pytest.skip("containerd before 2.3 tells proxy plugins of no span")
    from firstread.testing.otlpreceiver import OtlpReceiver

    with OtlpReceiver() as receiver:
        endpoint = f"http://127.0.0.1:{receiver.http_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        image = f"{registry.host}/app:latest"
        with Containerd(scratch, f"{registry.host}/pause:1") as node:
            node.pull(image)
            assert node.run(image, *read(1)) == [f"{digest_of(1)}  /data/1"]
            node.wait(lambda: {"firstread.start", "pull"} <= above(receiver.spans).keys())
    found = above(receiver.spans)
    assert found["firstread.start"].endswith("Snapshots/Prepare")
    assert found["pull"].endswith("Snapshots/Prepare")
    assert (found["metadata"], found["first read"]) == ("pull", "first reads")
    assert {found[name] for name in ("mount", "first reads", "ready")} == {"firstread.start"}


def above(spans: list[Any]) -> dict[str, str]:
    """Return the name of the span above each that has come with the one above it."""
    names = {span.span_id: span.name for span in spans}
    return {s.name: names[s.parent_span_id] for s in spans if s.parent_span_id in names}


def test_other_pods_do_not_use_firstread(registry: DockerRegistry, node: Containerd) -> None:
    node.kill_snapshotter()
    image = f"{registry.host}/ordinary:latest"
    node.pull(image)
    container, log = node.start_container(node.start_pod(), image, *read(2))
    node.wait(lambda: node.state(container) == 2)
    node.wait(lambda: digest_of(2) in log.read_text())


def test_a_pull_without_the_class(registry: DockerRegistry, node: Containerd) -> None:
    with pytest.raises(grpc.RpcError, match="failed to extract layer"):
        node.pull(f"{registry.host}/app:latest", pod=node.pod_config())
