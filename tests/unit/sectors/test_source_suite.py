# SPDX-License-Identifier: Apache-2.0
"""Every kind of repository, and the sectors in it: a shelf for each, and the one suite."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from firstread.oci.model import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    describe,
    encode,
)
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.repository import Destination, Repository
from firstread.registry.health import KnownEndpoints
from firstread.registry.hosts import Endpoint
from firstread.registry.open import open_destination, open_endpoints, open_source
from firstread.registry.options import AccessOptions
from firstread.testing.faultproxy import FaultProxy
from firstread.testing.faultsource import FaultSource
from firstread.testing.memorysource import MemorySource
from firstread.testing.registry import DockerRegistry
from firstread.testing.scripted import ScriptedRegistry
from firstread.testing.suites.source import RemoteShelf, RemoteSourceSuite, Shelf, SourceSuite

OPTIONS = AccessOptions(retries=3, retry_base=0.01)
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


def fill(place: Destination, data: bytes) -> Descriptor:
    """Put an image with the one layer `data`."""
    layer, config = describe(data, OCI_LAYER), describe(CONFIG, OCI_CONFIG)
    place.put_blob(layer, io.BytesIO(data))
    place.put_blob(config, io.BytesIO(CONFIG))
    place.put_manifest(encode(Manifest(config=config, layers=[layer])), OCI_MANIFEST, "latest")
    return layer


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Write a tar archive anew, with other contents."""
    contents: dict[str, bytes] = {}
    if path.exists():
        with tarfile.open(path) as old:
            for member in old.getmembers():
                file = old.extractfile(member)
                contents[member.name] = file.read() if file else b""
    change(contents)
    with tarfile.open(path, "w") as new:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))


class OnDisk(Shelf):
    """A layout, or an archive of one."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def keep(self, data: bytes) -> Descriptor:
        with open_destination(self.reference) as place:
            return fill(place, data)

    def replace(self, blob: Descriptor, data: bytes) -> None:
        path = Path(self.reference.path)
        name = "blobs/" + blob.digest.replace(":", "/")
        if path.is_dir():
            (path / name).write_bytes(data)
        else:
            rewrite(path, lambda contents: contents.update({name: data}))

    def open(self) -> Repository:
        return open_source(self.reference)


class InDockerArchive(Shelf):
    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, data: bytes) -> Descriptor:
        blob = describe(data, OCI_LAYER)
        self.replace(blob, data)
        return blob

    def replace(self, blob: Descriptor, data: bytes) -> None:
        layer = "blobs/" + blob.digest.replace(":", "/")
        config = {"rootfs": {"type": "layers", "diff_ids": [blob.digest]}}
        image = {"Config": "config.json", "RepoTags": [], "Layers": [layer]}
        rewrite(
            self.path,
            lambda contents: contents.update(
                {
                    layer: data,
                    "config.json": json.dumps(config | json.loads(CONFIG) | config).encode(),
                    "manifest.json": json.dumps([image]).encode(),
                }
            ),
        )

    def open(self) -> Repository:
        return open_source(parse_reference(f"docker-archive:{self.path}"))


class InMemory(Shelf):
    def __init__(self) -> None:
        self.place = MemorySource()

    def keep(self, data: bytes) -> Descriptor:
        blob = describe(data, OCI_LAYER)
        self.place.blobs[blob.digest] = data
        return blob

    def replace(self, blob: Descriptor, data: bytes) -> None:
        self.place.blobs[blob.digest] = data

    def open(self) -> Repository:
        return FaultSource(self.place)  # without a script every byte is the other's


class AtScripted(RemoteShelf):
    """Registries with the same blobs, and the same faults at `path`."""

    def __init__(self, *registries: ScriptedRegistry, path: str = "/blobs/") -> None:
        self.registries = registries
        self.path = path

    def keep(self, data: bytes) -> Descriptor:
        for registry in self.registries:
            registry.add_blob(data)
        return describe(data, OCI_LAYER)

    def replace(self, blob: Descriptor, data: bytes) -> None:
        for registry in self.registries:
            registry.blobs[blob.digest] = data

    def script(self, script: str) -> None:
        for registry in self.registries:
            registry.script(script.replace("/blobs/", self.path))

    def open(self) -> Repository:
        endpoints = [Endpoint("http", registry.host) for registry in self.registries]
        reference = parse_reference("docker://r.example/a/b")
        return open_endpoints(reference, endpoints, OPTIONS, KnownEndpoints())


class AtDockerRegistry(RemoteShelf):
    """Debian's registry, behind a proxy that fails."""

    def __init__(self, registry: DockerRegistry, proxy: FaultProxy, name: str) -> None:
        self.registry, self.proxy = registry, proxy
        self.reference = parse_reference(f"docker://{proxy.host}/suite/{name}")
        self.damaged: dict[str, bytes] = {}

    def _path(self, digest: str) -> Path:
        folder = self.registry.storage / "docker/registry/v2/blobs/sha256"
        return folder / digest[7:9] / digest[7:] / "data"

    def keep(self, data: bytes) -> Descriptor:
        with open_destination(self.reference, OPTIONS) as place:
            return fill(place, data)

    def replace(self, blob: Descriptor, data: bytes) -> None:
        path = self._path(blob.digest)
        self.damaged.setdefault(blob.digest, path.read_bytes())
        path.write_bytes(data)

    def repair(self) -> None:
        """All repositories of a registry share a blob."""
        for digest, data in self.damaged.items():
            self._path(digest).write_bytes(data)

    def script(self, script: str) -> None:
        self.proxy.script(script)

    def open(self) -> Repository:
        return open_source(self.reference, OPTIONS)


class TestLayout(SourceSuite):
    @pytest.fixture
    def shelf(self, tmp_path: Path) -> Shelf:
        return OnDisk(parse_reference(f"oci:{tmp_path}/x:latest"))


class TestArchive(SourceSuite):
    @pytest.fixture
    def shelf(self, tmp_path: Path) -> Shelf:
        return OnDisk(parse_reference(f"oci-archive:{tmp_path}/x.tar:latest"))


class TestDockerArchive(SourceSuite):
    @pytest.fixture
    def shelf(self, tmp_path: Path) -> Shelf:
        return InDockerArchive(tmp_path / "x.tar")


class TestMemory(SourceSuite):
    @pytest.fixture
    def shelf(self) -> Shelf:
        return InMemory()


class TestScriptedRegistry(RemoteSourceSuite):
    @pytest.fixture
    def shelf(self) -> Iterator[Shelf]:
        with ScriptedRegistry() as registry:
            yield AtScripted(registry)


class TestMirrors(RemoteSourceSuite):
    @pytest.fixture
    def shelf(self) -> Iterator[Shelf]:
        with ScriptedRegistry() as mirror, ScriptedRegistry() as server:
            yield AtScripted(mirror, server)


class TestStoreElsewhere(RemoteSourceSuite):
    """A registry that wants a token, and redirects to a store."""

    @pytest.fixture
    def shelf(self) -> Iterator[Shelf]:
        with ScriptedRegistry(auth="token", redirect=True) as registry:
            yield AtScripted(registry, path="/store/")


@pytest.fixture(scope="module")
def registry() -> Iterator[tuple[DockerRegistry, FaultProxy]]:
    with ExitStack() as stack:
        running = stack.enter_context(DockerRegistry())
        yield running, stack.enter_context(FaultProxy(f"http://{running.host}"))


class TestDockerRegistry(RemoteSourceSuite):
    @pytest.fixture
    def shelf(
        self, registry: tuple[DockerRegistry, FaultProxy], request: pytest.FixtureRequest
    ) -> Iterator[Shelf]:
        words = "".join(c if c.isalnum() else " " for c in request.node.name.lower()).split()
        shelf = AtDockerRegistry(*registry, "-".join(words))
        yield shelf
        shelf.script("")
        shelf.repair()
