# SPDX-License-Identifier: Apache-2.0
"""Real containerd, real registry: pods of converted and of ordinary images."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from firstread.mounts.table import mounted_erofs
from firstread.testing import cri_pb2 as cri
from firstread.testing.containerd import Containerd
from firstread.testing.containerdconfig import containerd_version
from firstread.testing.containers import find_busybox
from firstread.testing.derived import put_derived
from firstread.testing.registry import DockerRegistry
from firstread.testing.runnable import DATA_FILES, data_file
from firstread.units import MiB

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(
        os.geteuid() != 0 or not find_busybox() or not shutil.which("containerd"),
        reason="needs root, busybox-static and containerd",
    ),
]


@pytest.fixture
def registry(app_registry: DockerRegistry) -> DockerRegistry:
    return app_registry


@pytest.fixture
def node(registry: DockerRegistry, scratch: Path) -> Iterator[Containerd]:
    with Containerd(scratch, f"{registry.host}/pause:1") as running:
        yield running


def digest_of(number: int) -> str:
    return hashlib.sha256(data_file(number)).hexdigest()


def read(number: int) -> tuple[str, str, str]:
    return "sh", "-c", f"sha256sum /data/{number}"


def blob_bytes(registry: DockerRegistry, name: str) -> int:
    return registry.counts.bytes_of(f"GET /v2/{name}/blobs/")


def test_a_pod_of_a_converted_image(registry: DockerRegistry, node: Containerd) -> None:
    image = f"{registry.host}/app:latest"
    registry.forget()
    node.pull(image)
    assert blob_bytes(registry, "app") < MiB / 4  # of 24 MiB of data: metadata
    assert node.run(image, *read(3)) == [f"{digest_of(3)}  /data/3"]
    assert 4 * MiB < blob_bytes(registry, "app") < 10 * MiB  # the file, and the shell's sector
    assert node.run(image, *read(3)) == [f"{digest_of(3)}  /data/3"]
    assert f"{image} is lazy" in node.log()


@pytest.mark.parametrize("device", ["flat", "fuse"])
def test_a_pod_by_another_device(registry: DockerRegistry, scratch: Path, device: str) -> None:
    image = f"{registry.host}/app:latest"
    with Containerd(scratch, f"{registry.host}/pause:1", device=device) as node:
        registry.forget()
        node.pull(image)
        assert blob_bytes(registry, "app") < MiB / 4
        container, _ = node.start_container(node.start_pod(), image, "sleep", "600")
        assert node.exec(container, *read(3)) == f"{digest_of(3)}  /data/3\n"
        assert 4 * MiB < blob_bytes(registry, "app") < 10 * MiB
        (mount,) = node.daemon.status()["mounts"]
        assert mount["device"] == device
        assert mount["present"] < mount["sectors"]
        os.kill(node.daemon.fetcher, signal.SIGKILL)
        assert node.exec(container, *read(4)) == f"{digest_of(4)}  /data/4\n"
        assert f"{image} is lazy" in node.log()


def test_a_pod_of_an_ordinary_image(registry: DockerRegistry, node: Containerd) -> None:
    image = f"{registry.host}/ordinary:latest"
    registry.forget()
    node.pull(image)
    assert blob_bytes(registry, "ordinary") > DATA_FILES * 4 * MiB
    assert node.run(image, *read(3)) == [f"{digest_of(3)}  /data/3"]
    assert f"{image} is not lazy: it is not converted" in node.log()
    assert not [place for place in mounted_erofs() if place.startswith(f"{node.scratch}/")]


def test_the_kubelet_has_statistics(registry: DockerRegistry, node: Containerd) -> None:
    """The numbers that make the kubelet evict pods and remove images."""
    image = f"{registry.host}/app:latest"
    node.pull(image)
    container = start_writer(node, image)
    node.wait(lambda: own_layer(node, container).used_bytes.value >= 20 * MiB)
    assert own_layer(node, container).used_bytes.value < 21 * MiB
    assert 0 < own_layer(node, container).inodes_used.value < 20
    node.wait(lambda: file_systems(node)[0].used_bytes.value >= 20 * MiB)
    (measured,) = file_systems(node)
    place = Path(measured.fs_id.mountpoint)
    assert place.resolve() == node.daemon.root / "snapshotter"
    assert os.stat(place).st_dev == os.stat(node.daemon.root).st_dev
    metadata = sum(path.stat().st_blocks * 512 for path in node.daemon.root.glob("images/*/*"))
    assert metadata + 20 * MiB <= measured.used_bytes.value < metadata + 30 * MiB
    assert 4 < measured.inodes_used.value < 1000


def start_writer(node: Containerd, image: str, handler: str = "") -> str:
    """Start a pod and a container that has written 20 MiB; return the container."""
    pod = node.start_pod(runtime_handler=handler)
    container, _ = node.start_container(pod, image, "sleep", "600")
    Path(f"/proc/{node.task_pid(container)}/root/written").write_bytes(b"x" * 20 * MiB)
    return container


def file_systems(node: Containerd) -> list[cri.FileSystemUsage]:
    """Return what containerd says of the file systems of images, that of its default first."""
    answer = node.call("ImageFsInfo", cri.Empty(), cri.ImageFsInfoResponse)
    return list(answer.image_filesystems)


def own_layer(node: Containerd, container: str) -> cri.FileSystemUsage:
    """Return what containerd says of the files that a container has written."""
    request = cri.ContainerId(id=container)
    answer = node.call("ContainerStats", request, cri.ContainerStatsResponse)
    return answer.stats.writable_layer


def test_containers_share_one_mount_until_the_last_is_gone(
    registry: DockerRegistry, node: Containerd
) -> None:
    image = f"{registry.host}/app:latest"
    node.pull(image)
    pods = [node.start_pod() for _ in range(3)]
    containers = [node.start_container(pod, image, "sleep", "600")[0] for pod in pods]
    for container in containers:
        assert node.exec(container, *read(1)).split()[0] == digest_of(1)
    (mount,) = node.daemon.status()["mounts"]
    assert len(mount["holders"]) == 3
    node.remove_image(image)
    for container in containers:
        assert node.exec(container, *read(2)).split()[0] == digest_of(2)
    for pod in pods:
        node.remove_pod(pod[0])
    node.wait_collected(lambda: node.daemon.status()["mounts"] == [])
    pause = f"{registry.host}/pause:1"
    node.remove_image(pause)
    node.wait_collected(lambda: node.snapshots() == [])
    left = node.daemon.root / "snapshotter/snapshots"
    node.wait_collected(lambda: os.listdir(left) == [])
    listing = json.loads(node.daemon.run("cache", "ls", "--json").stdout)
    assert (listing["images"], listing["store"]["sectors"]) == ([], 0)


def test_containers_do_not_notice_deaths(registry: DockerRegistry, node: Containerd) -> None:
    image = f"{registry.host}/app:latest"
    node.pull(image)
    pod = node.start_pod()
    container, _ = node.start_container(pod, image, "sleep", "600")
    for number, (kill, start) in enumerate(
        (
            ((node.kill_containerd,), (node.start_containerd,)),
            ((node.kill_snapshotter,), (node.start_snapshotter,)),
            (
                (node.kill_containerd, node.kill_snapshotter),
                (node.start_snapshotter, node.start_containerd),
            ),
        )
    ):
        for act in (*kill, *start):
            act()
        assert node.exec(container, *read(number)).split()[0] == digest_of(number)
    another, log = node.start_container(pod, image, *read(4))
    node.wait(lambda: node.state(another) == 2)
    node.wait(lambda: digest_of(4) in log.read_text())
    node.remove_pod(pod[0])
    node.wait_collected(lambda: node.daemon.status()["mounts"] == [])


def test_a_registry_that_is_down(registry: DockerRegistry, node: Containerd) -> None:
    image = f"{registry.host}/app:latest"
    registry.stop()
    try:
        with pytest.raises(grpc.RpcError, match="connection refused"):
            node.pull(image)
        assert node.snapshots() == []
    finally:
        registry.restart()
    node.pull(image)
    assert len(node.snapshots()) == 2


def test_a_daemon_that_is_down(registry: DockerRegistry, scratch: Path) -> None:
    """The snapshotter runs as in its service: with few privileges, and starts no daemon."""
    capabilities, environment = unit_settings()
    bounding = ",".join(["-all", *(f"+{name.lower()[4:]}" for name in capabilities)])
    privileges = ("--no-new-privs", "--inh-caps=-all", f"--bounding-set={bounding}")
    command = ("env", environment, "setpriv", *privileges)
    lazy, ordinary = f"{registry.host}/app:latest", f"{registry.host}/ordinary:latest"
    with Containerd(scratch, f"{registry.host}/pause:1", command=command) as node:
        node.pull(lazy)
        assert node.run(lazy, *read(5)) == [f"{digest_of(5)}  /data/5"]
        node.remove_image(lazy)
        node.wait(lambda: len(node.snapshots()) == 1)
        node.daemon.end_all(signal.SIGKILL)
        with pytest.raises(grpc.RpcError, match=r"no daemon answers at .*control\.sock"):
            node.pull(lazy)
        assert len(node.snapshots()) == 1  # of pause
        node.pull(ordinary)
        assert node.run(ordinary, *read(3)) == [f"{digest_of(3)}  /data/3"]
        assert "no daemon answers" in node.log()
        node.daemon.start()
        node.pull(lazy)
        assert node.run(lazy, *read(2)) == [f"{digest_of(2)}  /data/2"]


def unit_settings() -> tuple[list[str], str]:
    """Return the capabilities and the environment of the snapshotter's service."""
    unit = Path(__file__).parents[2] / "packaging/firstread-snapshotter.service"
    lines = [line.partition("=") for line in unit.read_text().splitlines()]
    (capabilities,) = (value for key, _, value in lines if key == "CapabilityBoundingSet")
    (environment,) = (value for key, _, value in lines if key == "Environment")
    return capabilities.split(), environment


def test_ordinary_images_are_refused_if_lazy_ones_are_required(
    registry: DockerRegistry, scratch: Path
) -> None:
    pause = f"{registry.host}/pause:1"
    with Containerd(scratch, pause, "--require-lazy", "--except", "*/pause:*") as node:
        with pytest.raises(grpc.RpcError) as raised:
            node.pull(f"{registry.host}/ordinary:latest")
        assert "ordinary:latest is not lazy: it is not converted" in str(raised.value)
        assert "require_lazy" in str(raised.value)
        image = f"{registry.host}/app:latest"
        node.pull(image)
        assert node.run(image, *read(0)) == [f"{digest_of(0)}  /data/0"]


def test_ctr(registry: DockerRegistry, node: Containerd) -> None:
    lazy, ordinary = f"{registry.host}/app:latest", f"{registry.host}/ordinary:latest"
    options = ("--snapshotter", "firstread")
    pulled = node.ctr("images", "pull", "--plain-http", *options, ordinary, namespace="default")
    assert pulled.code == 0, pulled
    registry.forget()
    ran = node.firstread_pull(lazy)
    assert ran.code == 0, ran
    assert ran.stdout == f"{lazy} is in containerd's namespace default\n"
    assert blob_bytes(registry, "app") < MiB / 4
    for number, image in enumerate((ordinary, lazy)):
        command = ("run", "--rm", *options, image, f"c{number}", *read(number))
        started = node.ctr(*command, namespace="default")
        assert started.stdout == f"{digest_of(number)}  /data/{number}\n", started
    assert blob_bytes(registry, "app") < 10 * MiB
    assert node.firstread_pull(lazy).code == 0  # again
    removed = node.ctr("images", "rm", "--sync", lazy, ordinary, namespace="default")
    assert removed.code == 0, removed
    node.wait(lambda: node.snapshots("default") == [])
    assert "no containerd" in node.firstread_pull(lazy, address=node.scratch / "none").stderr
    not_lazy = node.firstread_pull(ordinary)
    assert (not_lazy.code, node.snapshots("default")) == (3, []), not_lazy
    assert "ordinary:latest is not lazy" in not_lazy.stderr


def test_layers_are_copied_for_clients_that_read_them(
    registry: DockerRegistry, node: Containerd
) -> None:
    image = f"{registry.host}/app:latest"
    absent = node.firstread_pull(image, "--layers")
    assert (absent.code, absent.stdout) == (2, "")
    assert "does not have the image" in absent.stderr
    assert node.firstread_pull(image).code == 0
    if containerd_version()[0] >= 2:  # has the registry mount what is in another repository
        copy = (f"{registry.host}/copies/app:1", image)
        pushed = node.ctr("images", "push", "--plain-http", *copy, namespace="default")
        assert pushed.code == 0, pushed
    pruned = node.ctr("content", "prune", "references", namespace="default")
    assert pruned.code == 0, pruned
    before = node.ctr("images", "ls", "--quiet", namespace="default").stdout
    copied = node.firstread_pull(image, "--layers")
    assert copied.code == 0, copied
    assert copied.stdout.startswith("copied 2 layers of "), copied
    lease = node.ctr("leases", "create", namespace="default").stdout.strip()
    assert node.ctr("leases", "rm", "--sync", lease, namespace="default").code == 0
    assert node.firstread_pull(image, "--layers").stdout.startswith("copied 0 layers of ")
    assert node.ctr("images", "ls", "--quiet", namespace="default").stdout == before
    archive = node.scratch / "exported.tar"
    exported = node.ctr("images", "export", str(archive), image, namespace="default")
    assert exported.code == 0, exported
    assert archive.stat().st_size > 24 * MiB
    if containerd_version()[0] >= 2:
        imported = node.ctr("images", "import", "--snapshotter=firstread", str(archive))
        assert imported.code != 0
        assert "pull the image from its registry instead" in imported.stderr
        assert node.snapshots() == []


def test_ctr_pulls_lazily_or_is_refused(registry: DockerRegistry, node: Containerd) -> None:
    """containerd 2's ctr asks first; that of 1.x fetches everything, and can then only unpack."""
    image = f"{registry.host}/app:latest"
    registry.forget()
    pulled = node.ctr("images", "pull", "--plain-http", "--snapshotter", "firstread", image)
    if containerd_version()[0] >= 2:
        assert pulled.code == 0, pulled
        assert blob_bytes(registry, "app") < MiB / 4
    else:
        assert pulled.code != 0
        assert "app is converted, and this client can only unpack images" in pulled.stderr
        assert "firstread pull" in pulled.stderr
        assert node.snapshots() == []
        ran = node.firstread_pull(image, namespace="k8s.io")
        assert ran.code == 0, ran
    assert node.run(image, *read(1)) == [f"{digest_of(1)}  /data/1"]


@pytest.mark.parametrize("annotations", [True, False])
def test_an_image_built_from_a_converted_one(
    registry: DockerRegistry, node: Containerd, annotations: bool
) -> None:
    image = f"{registry.host}/derived:{annotations}".lower()
    put_derived(f"docker://{registry.host}/app", f"docker://{image}", annotations=annotations)
    said = "it was built FROM a converted image.*build it FROM the original image"
    with pytest.raises(grpc.RpcError, match=said):
        node.pull(image)
    assert node.snapshots() == []
    pulled = node.ctr("images", "pull", "--plain-http", "--snapshotter", "firstread", image)
    assert pulled.code != 0
    assert re.search(said, pulled.stderr), pulled.stderr
    ran = node.firstread_pull(image)
    assert (ran.code, re.sub("\\s+", " ", ran.stderr).count("built FROM a converted")) == (3, 1)
    assert "build it FROM the original image" in ran.stderr
    node.pull(f"{registry.host}/app:latest")  # it runs where its base is present
    node.pull(image)
    assert node.run(image, "cat", "/on-top") == ["of the base"]


def test_a_client_that_does_not_name_the_image(registry: DockerRegistry, node: Containerd) -> None:
    """nerdctl gives chain ids and annotations of layers, and leaves the manifest in the store."""
    image = f"{registry.host}/app:latest"
    fetched = node.ctr("content", "fetch", "--metadata-only", "--plain-http", image)
    assert fetched.code == 0, fetched
    registry.forget()
    chains = node.prepare_without_names(image)
    assert node.snapshots() == sorted(chains)
    assert blob_bytes(registry, "app") < MiB / 4
    ran = node.ctr("run", "--rm", "--snapshotter", "firstread", image, "c", *read(4))
    assert ran.stdout == f"{digest_of(4)}  /data/4\n", ran
