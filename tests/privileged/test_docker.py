# SPDX-License-Identifier: Apache-2.0
"""Docker on lazy images: run, commit, build, push, save, restart. `make test-docker` runs them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstread.testing import dockerd
from firstread.testing.command import Ran, firstread
from firstread.testing.containerd import Containerd
from firstread.testing.dockerd import NAMESPACE, Dockerd
from firstread.testing.registry import DockerRegistry
from firstread.testing.runnable import data_file
from firstread.units import MiB

pytestmark = pytest.mark.docker

CONVERTED, ATTACHED = "app", "attached"
BOTH = [CONVERTED, ATTACHED]


def sum_of(number: int) -> str:
    """Return what sha256sum prints of ``/data/NUMBER``."""
    return f"{hashlib.sha256(data_file(number)).hexdigest()}  /data/{number}"


@pytest.fixture(scope="module")
def registry(app_registry: DockerRegistry) -> DockerRegistry:
    """A registry with ``app``, converted, and ``attached``, the same with a conversion attached."""
    host = app_registry.host
    options = ("-q", "--src-tls-verify=false", "--dest-tls-verify=false")
    places = (f"docker://{host}/ordinary:latest", f"docker://{host}/{ATTACHED}:latest")
    subprocess.run(("skopeo", "copy", *options, *places), check=True)
    converted = firstread("convert", "--attach", "--no-hot", f"{host}/{ATTACHED}:latest")
    assert converted.code == 0, converted
    return app_registry


@pytest.fixture(scope="module")
def node(registry: DockerRegistry) -> Iterator[Containerd]:
    if reason := dockerd.missing():
        pytest.skip(reason)
    scratch = Path(tempfile.mkdtemp(prefix="frd-"))
    with Containerd(scratch, f"{registry.host}/pause:1") as running:
        yield running
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def docker(node: Containerd) -> Iterator[Dockerd]:
    with Dockerd(node) as running:
        yield running


@pytest.fixture(params=BOTH)
def image(
    request: pytest.FixtureRequest, registry: DockerRegistry, node: Containerd, docker: Dockerd
) -> Iterator[str]:
    """An image that is pulled, and gone again after the test with all that was made of it."""
    name = f"{registry.host}/{request.param}:latest"
    registry.forget()
    docker.did("pull", "--quiet", name)
    yield name
    if containers := docker.did("ps", "--all", "--quiet").split():
        docker.did("rm", "--force", *containers)
    docker.docker("builder", "prune", "--all", "--force")
    if images := docker.did("images", "--quiet", "--no-trunc").split():
        docker.did("rmi", "--force", *dict.fromkeys(images))
    node.wait(lambda: not node.daemon.status()["mounts"])
    assert node.daemon.run("cache", "prune").code == 0


def fetched(registry: DockerRegistry) -> int:
    """Return the bytes of blobs that came from the registry."""
    return registry.counts.bytes_of("/blobs/")


def pulled(node: Containerd, image: str, *options: str) -> Ran:
    """Run ``firstread pull`` for docker, as docs/docker.md says."""
    return node.firstread_pull(image, *options, namespace=NAMESPACE)


def config_of(image: str) -> dict[str, Any]:
    """Return the config of an image in its registry."""
    run = ("skopeo", "inspect", "--config", "--tls-verify=false", f"docker://{image}")
    config: dict[str, Any] = json.loads(subprocess.check_output(run))
    return config


def test_a_container_fetches_what_it_reads(
    registry: DockerRegistry, docker: Dockerd, image: str
) -> None:
    assert fetched(registry) < MiB / 4
    assert docker.run(image, "sha256sum /data/1; pwd", "--rm").splitlines() == [
        sum_of(1),
        "/srv/empty",
    ]
    assert 4 * MiB < fetched(registry) < 10 * MiB


def test_an_image_has_its_age_and_what_it_takes(
    node: Containerd, docker: Dockerd, image: str
) -> None:
    shown = docker.inspected(image)
    assert shown["Created"] == config_of(image)["created"]
    assert "years ago" in docker.image(image)["CreatedSince"]
    (metadata,) = (node.daemon.root / "images").glob("*/metadata*")
    taken = shown["Size"]
    assert metadata.stat().st_size < taken < metadata.stat().st_size + MiB / 16
    (listed,) = [row for row in disk_usage(docker) if row["Type"] == "Images"]
    assert listed["TotalCount"] == "1"
    assert in_kb(listed["Size"]) == pytest.approx(in_kb(docker.image(image)["Size"]), rel=0.01)


def in_kb(size: str) -> float:
    return float(size.removesuffix("kB"))


def disk_usage(docker: Dockerd) -> list[dict[str, str]]:
    """Return the rows of ``docker system df``."""
    lines = docker.did("system", "df", "--format={{json .}}").splitlines()
    return [json.loads(line) for line in lines]


def test_a_container_is_committed(registry: DockerRegistry, docker: Dockerd, image: str) -> None:
    docker.run(image, "echo new > /new", "--name=work")
    docker.did("commit", "work", "made:1")
    assert docker.run("made:1", "cat /new; sha256sum /data/2", "--rm").splitlines() == [
        "new",
        sum_of(2),
    ]
    assert "second" in docker.image("made:1")["CreatedSince"]
    assert fetched(registry) < 10 * MiB


@pytest.mark.parametrize("with_buildkit", [True, False], ids=["buildkit", "classic"])
def test_an_image_is_built_from_it(docker: Dockerd, image: str, with_buildkit: bool) -> None:
    if with_buildkit and not docker.has_buildx:
        pytest.skip("there is no docker-buildx in PATH")
    lines = (f"FROM {image}", "USER 0", "RUN sha256sum /data/4 > /sum", "COPY Dockerfile /copied")
    docker.build("built:1", *lines, with_buildkit=with_buildkit)
    ran = docker.run("built:1", "cat /sum; sha256sum /data/5; wc -l < /copied", "--rm")
    assert ran.splitlines() == [sum_of(4), sum_of(5), "3"]


def test_it_is_pushed_to_another_repository(
    registry: DockerRegistry, docker: Dockerd, image: str
) -> None:
    copy = f"{registry.host}/copies/{image.rpartition('/')[2]}"
    docker.did("tag", image, copy)
    docker.did("push", copy)
    assert fetched(registry) < MiB / 4  # the registry mounts the layers
    assert config_of(copy) == config_of(image)
    docker.did("rmi", image, copy)
    docker.did("pull", "--quiet", copy)
    assert docker.run(copy, "sha256sum /data/3", "--rm") == sum_of(3)


def test_it_is_pushed_to_another_registry_once_the_layers_are_copied(
    node: Containerd, docker: Dockerd, image: str
) -> None:
    with DockerRegistry() as other:
        copy = f"{other.host}/{image.rpartition('/')[2]}"
        docker.did("tag", image, copy)
        assert docker.docker("push", copy).code != 0
        assert pulled(node, image, "--layers").code == 0
        docker.did("push", copy)
        assert config_of(copy) == config_of(image)


def test_one_made_of_it_is_pushed_once_the_layers_are_copied(
    registry: DockerRegistry, node: Containerd, docker: Dockerd, image: str
) -> None:
    made = f"{registry.host}/made:{image.rpartition('/')[2].partition(':')[0]}"
    docker.run(image, "echo new > /new", "--name=work")
    docker.did("commit", "work", made)
    refused = docker.docker("push", made)
    assert refused.code != 0
    assert "not found" in refused.stderr
    copied = pulled(node, image, "--layers")
    assert copied.code == 0, copied
    assert copied.stderr == ""
    docker.did("push", made)
    docker.did("rm", "--force", "work")
    docker.did("rmi", made)
    docker.did("pull", "--quiet", made)
    assert docker.run(made, "cat /new; sha256sum /data/0", "--rm").splitlines() == [
        "new",
        sum_of(0),
    ]


def test_it_is_saved_and_loaded_once_the_layers_are_copied(
    node: Containerd, docker: Dockerd, image: str, tmp_path: Path
) -> None:
    archive = str(tmp_path / "saved.tar")
    copied = pulled(node, image, "--layers")
    assert copied.code == 0, copied
    assert pulled(node, image, "--layers").stdout.startswith("copied 0 layers of ")
    docker.did("save", "--output", archive, image)
    run = ("skopeo", "inspect", "--config", f"docker-archive:{archive}")
    assert json.loads(subprocess.check_output(run)) == config_of(image)
    docker.did("rmi", image)
    docker.did("load", "--input", archive)
    if CONVERTED in image:  # nobody can unpack its layers, so it needs its registry
        refused = docker.docker("run", "--rm", image)
        assert "firstread pull" in refused.stderr
        assert pulled(node, image).code == 0
    assert docker.run(image, "sha256sum /data/3", "--rm") == sum_of(3)


def test_layers_of_an_image_that_containerd_does_not_have(
    registry: DockerRegistry, node: Containerd, docker: Dockerd
) -> None:
    ran = pulled(node, f"{registry.host}/ordinary:latest", "--layers")
    assert ran.code == 2
    assert "does not have the image" in ran.stderr


def test_containers_outlive_a_restart_of_dockerd(docker: Dockerd, image: str) -> None:
    docker.run(image, "sha256sum /data/1; exec sleep 1000", "--detach", "--name=long")
    docker.stop()
    docker.start()
    assert docker.image(image)["Tag"] == "latest"
    docker.did("restart", "--time=0", "long")
    assert docker.did("exec", "long", "sha256sum", "/data/2") == sum_of(2)
    docker.did("rm", "--force", "long")


def test_nothing_stays_of_an_image_that_is_removed(
    node: Containerd, docker: Dockerd, image: str
) -> None:
    docker.run(image, "sha256sum /data/1", "--name=gone")
    docker.did("rm", "gone")
    docker.did("rmi", image)
    node.wait(lambda: not node.daemon.status()["mounts"])
    node.wait_collected(lambda: len(node.snapshots(NAMESPACE)) <= 1)  # and its header
