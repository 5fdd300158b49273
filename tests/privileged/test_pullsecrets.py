# SPDX-License-Identifier: Apache-2.0
"""Pods of a private registry: the daemon reads with what the pulls of the kubelet have shown."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.privileged.test_containerd import blob_bytes, digest_of, pytestmark, read
from tests.privileged.test_node_logins import found_in

from firstread.testing.containerd import Containerd
from firstread.testing.registry import NEW_PASSWORD, PASSWORD, USERNAME, DockerRegistry
from firstread.units import MiB

__all__ = ["pytestmark"]

REFUSED = r"401|403|authorization failed"


@pytest.fixture
def private(app_registry: DockerRegistry) -> Iterator[DockerRegistry]:
    """The same images, for those who have a password."""
    with DockerRegistry(login=True, readonly=True, storage=app_registry.storage) as registry:
        yield registry


@pytest.fixture
def node(
    private: DockerRegistry, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Containerd]:
    monkeypatch.setenv("DOCKER_CONFIG", str(scratch))  # where there is nothing
    with Containerd(scratch, f"{private.host}/pause:1", image_service=True) as running:
        running.pull(f"{private.host}/pause:1", login=(USERNAME, PASSWORD))
        yield running


def test_reads_of_a_pod_use_what_its_pulls_have_shown(
    private: DockerRegistry, node: Containerd
) -> None:
    image = f"{private.host}/app:latest"
    private.forget()
    for login in (None, (USERNAME, NEW_PASSWORD)):
        with pytest.raises(grpc.RpcError, match=REFUSED):
            node.pull(image, login=login)
    node.pull(image, login=(USERNAME, PASSWORD))
    assert blob_bytes(private, "app") < MiB / 4
    container, _ = node.start_container(node.start_pod(), image, "sleep", "600")
    assert node.exec(container, *read(1)) == f"{digest_of(1)}  /data/1\n"
    os.kill(node.daemon.fetcher, signal.SIGKILL)
    assert node.exec(container, *read(2)) == f"{digest_of(2)}  /data/2\n"
    assert blob_bytes(private, "app") < 16 * MiB

    private.change_password()
    place = Path(f"/proc/{node.task_pid(container)}/root/data/5")
    with node.daemon.reading(place) as waiting:
        node.wait(lambda: "401" in (node.daemon.status()["mounts"][0]["last_error"] or ""))
        with pytest.raises(grpc.RpcError, match=REFUSED):
            node.pull(image, login=(USERNAME, PASSWORD))
        assert waiting.poll() is None
        node.pull(image, login=(USERNAME, NEW_PASSWORD))  # nothing to fetch, and still heard of
        assert waiting.wait() == 0
    assert node.exec(container, *read(5)) == f"{digest_of(5)}  /data/5\n"
    (mount,) = node.daemon.status()["mounts"]
    assert mount["failed_reads"] == 0

    written = [path for path in node.scratch.rglob("*.log") if path.is_file()]
    written += [path for path in node.daemon.root.rglob("*") if path.is_file()]
    assert written
    for path in written:
        assert found_in(path.read_bytes()) == [], path
