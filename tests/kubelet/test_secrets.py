# SPDX-License-Identifier: Apache-2.0
"""Private images of a real kubelet: its plugins and pull secrets serve reads after the pull."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kubelet.apiserver import ApiServer
from tests.kubelet.kubelet import Kubelet, pod
from tests.privileged.test_containerd import digest_of, read
from tests.privileged.test_node_logins import found_in

from firstread.testing.containerd import Containerd
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import NEW_PASSWORD, PASSWORD, USERNAME, DockerRegistry

pytestmark = pytest.mark.kubelet

WAIT = ("sleep", "600")
PODS = "/api/v1/namespaces/default/pods"
SECRETS = "/api/v1/namespaces/default/secrets"

# The protocol of credentialprovider.kubelet.k8s.io/v1: JSON on stdin, JSON on stdout.
PLUGIN = """#!/bin/sh
cat >> {asked}
cat {answer}
"""


@pytest.fixture
def private(app_registry: DockerRegistry) -> Iterator[DockerRegistry]:
    with DockerRegistry(login=True, readonly=True, storage=app_registry.storage) as registry:
        yield registry


@pytest.fixture
def node(
    app_registry: DockerRegistry, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Containerd]:
    monkeypatch.setenv("DOCKER_CONFIG", str(scratch))  # where there is nothing
    monkeypatch.setenv("HOME", str(scratch))
    with Containerd(scratch, f"{app_registry.host}/pause:1", image_service=True) as running:
        yield running


class Plugin:
    """A credential provider that gives what it was told last."""

    def __init__(self, directory: Path, host: str) -> None:
        self._host = host
        self._answer = directory / "answer"
        self.asked = directory / "asked"
        binaries = directory / "bin"
        binaries.mkdir(parents=True)
        plugin = binaries / "provider"
        plugin.write_text(PLUGIN.format(asked=self.asked, answer=self._answer))
        plugin.chmod(0o700)
        provider = {
            "name": "provider",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "matchImages": [host],
            "defaultCacheDuration": "0s",
        }
        config = directory / "config.json"
        kind = {"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig"}
        config.write_text(json.dumps({**kind, "providers": [provider]}))
        self.places = config, binaries

    def tell(self, password: str) -> None:
        answer = {
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "kind": "CredentialProviderResponse",
            "cacheKeyType": "Image",
            "cacheDuration": "0s",
            "auth": {self._host: {"username": USERNAME, "password": password}},
        }
        self._answer.write_text(json.dumps(answer))


def last_error(node: Containerd) -> str:
    (mount,) = node.daemon.status()["mounts"]
    return str(mount["last_error"])


def waiting_read(node: Containerd, number: int) -> subprocess.Popen[str]:
    """Begin to read a file of the only mount; the read waits for the registry."""
    (mount,) = node.daemon.status()["mounts"]
    return node.daemon.reading(Path(mount["mountpoint"]) / f"data/{number}")


def test_a_credential_provider(private: DockerRegistry, node: Containerd, scratch: Path) -> None:
    plugin = Plugin(scratch / "provider", private.host)
    plugin.tell(PASSWORD)
    image = f"{private.host}/app:latest"
    with Kubelet(node, scratch / "k", providers=plugin.places) as kubelet:
        kubelet.run("first", image, *WAIT)
        kubelet.wait_running("first")
        assert digest_of(1) in kubelet.exec("first", *read(1))
        assert (
            json.loads(plugin.asked.read_text().splitlines()[0])["image"] == f"{private.host}/app"
        )

        private.change_password()  # the token ends
        plugin.tell(NEW_PASSWORD)
        with waiting_read(node, 5) as waiting:
            node.wait(lambda: "401" in last_error(node))
            assert waiting.poll() is None
            kubelet.run("second", image, *WAIT)
            kubelet.wait_running("second")
            assert waiting.wait(PATIENCE_S) == 0
        assert digest_of(5) in kubelet.exec("first", *read(5))

        node.daemon.end_all(signal.SIGKILL)  # as after a restart of the machine
        node.daemon.start()
        with waiting_read(node, 3) as waiting:
            node.wait(lambda: "401" in last_error(node))
            kubelet.run("third", image, *WAIT)
            kubelet.wait_running("third")
            assert waiting.wait(PATIENCE_S) == 0
        assert node.daemon.status()["mounts"][0]["failed_reads"] == 0
    assert_nothing_written(node)


def test_image_pull_secrets(private: DockerRegistry, node: Containerd, scratch: Path) -> None:
    image = f"{private.host}/app:latest"
    with ApiServer() as api, Kubelet(node, scratch / "k", api=api) as kubelet:
        api.create(SECRETS, secret("good", private.host, PASSWORD))
        api.create(SECRETS, secret("bad", private.host, NEW_PASSWORD))
        api.create(PODS, pod("none", image, *WAIT))
        api.create(PODS, pod("refused", image, *WAIT, pull_secrets=["bad"]))
        for name in ("none", "refused"):
            node.wait(lambda name=name: "ErrImagePull" in kubelet.reason(name))  # type: ignore[misc]
        assert node.daemon.status()["mounts"] == []
        api.create(PODS, pod("lazy", image, *WAIT, pull_secrets=["bad", "good"]))
        kubelet.wait_running("lazy")
        assert digest_of(1) in kubelet.exec("lazy", *read(1))
        private.change_password()
        api.create(SECRETS, secret("good", private.host, NEW_PASSWORD))
        with waiting_read(node, 5) as waiting:
            node.wait(lambda: "401" in last_error(node))
            api.create(
                PODS, pod("again", image, *WAIT, pull_secrets=["good"], imagePullPolicy="Always")
            )
            kubelet.wait_running("again")
            assert waiting.wait(PATIENCE_S) == 0
        assert node.daemon.status()["mounts"][0]["failed_reads"] == 0
    assert_nothing_written(node)


def secret(name: str, host: str, password: str) -> dict[str, Any]:
    entry = {"username": USERNAME, "password": password}
    config = json.dumps({"auths": {host: entry}}).encode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": name, "namespace": "default"},
        "data": {".dockerconfigjson": base64.b64encode(config).decode()},
    }


@pytest.mark.skipif(shutil.which("crictl") is None, reason="there is no crictl in PATH")
def test_crictl(private: DockerRegistry, node: Containerd) -> None:
    image = f"{private.host}/app:latest"

    def crictl(*arguments: str) -> subprocess.CompletedProcess[str]:
        endpoints = ("-r", f"unix://{node.socket}", "-i", f"unix://{node.images}")
        return subprocess.run(
            ["crictl", *endpoints, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    refused = crictl("pull", "--creds", f"{USERNAME}:{NEW_PASSWORD}", image)
    assert refused.returncode != 0
    ran = crictl("pull", "--creds", f"{USERNAME}:{PASSWORD}", image)
    assert ran.returncode == 0, ran
    assert f"{private.host}/app" in crictl("images").stdout
    assert crictl("imagefsinfo").returncode == 0
    assert node.run(image, *read(1)) == [f"{digest_of(1)}  /data/1"]
    assert_nothing_written(node)


def assert_nothing_written(node: Containerd) -> None:
    """Look for secrets in all that daemon, snapshotter and containerd have written."""
    paths = [node.scratch / f"{name}.log" for name in ("containerd", "snapshotter")]
    for directory, _, names in os.walk(node.daemon.root):
        paths += [Path(directory) / name for name in names]
    for path in paths:
        if path.is_file():
            assert found_in(path.read_bytes()) == [], path
