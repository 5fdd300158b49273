# SPDX-License-Identifier: Apache-2.0
"""Container images for tests, built in Python from layers described as data.

Owns manifests, configs and the places where they are written: OCI layouts, indexes, docker
archives. The entries of layers are in `entries`, the image with every feature in `features`; both
are offered here as well. Invariant: the same description gives the same digests, on any day.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from firstread.testing.entries import (
    Block,
    Char,
    Dir,
    Entry,
    Fifo,
    File,
    Format,
    Global,
    Hardlink,
    Item,
    Opaque,
    Raw,
    Sparse,
    Symlink,
    Whiteout,
    to_tar,
)
from firstread.testing.features import (
    BASE,
    GNU,
    SECOND,
    USTAR,
    Expected,
    feature_layers,
    feature_tree,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "Block",
    "Char",
    "Dir",
    "Entry",
    "Expected",
    "Fifo",
    "File",
    "Global",
    "Hardlink",
    "Image",
    "Layer",
    "Opaque",
    "Raw",
    "Sparse",
    "Symlink",
    "Whiteout",
    "feature_image",
    "feature_tree",
    "write_docker_archive",
    "write_index",
    "write_layout",
]

Compression: TypeAlias = Literal["gzip", "zstd", "none"]
Json: TypeAlias = dict[str, Any]

_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_SUFFIXES = {
    _OCI_LAYER: {"gzip": "+gzip", "zstd": "+zstd", "none": ""},
    _DOCKER_LAYER: {"gzip": ".gzip", "zstd": ".zstd", "none": ""},
}
_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_TAG = "org.opencontainers.image.ref.name"
_CREATED = "2024-01-01T00:00:00Z"


@dataclass(frozen=True)
class Layer:
    """One layer.

    Args:
        items: its entries in order, or a finished tar archive.
        compression: of the blob.
        format: how the archive writes long names and large numbers.
        zero_blocks: at the end of the archive.
    """

    items: Iterable[Item] | bytes
    compression: Compression = "gzip"
    format: Format = "pax"
    zero_blocks: int = 2

    @functools.cached_property
    def tar(self) -> bytes:
        """The uncompressed layer."""
        if isinstance(self.items, bytes):
            return self.items
        return to_tar(self.items, self.format, zero_blocks=self.zero_blocks)

    @functools.cached_property
    def blob(self) -> bytes:
        """The layer as a registry holds it."""
        if self.compression == "gzip":
            return gzip.compress(self.tar, 1, mtime=0)
        return zstd.compress(self.tar, 1) if self.compression == "zstd" else self.tar

    @property
    def diff_id(self) -> str:
        """Digest of the uncompressed layer."""
        return digest_of(self.tar)

    def media_type(self, *, docker: bool = False) -> str:
        """Return how a manifest names the kind of the blob."""
        base = _DOCKER_LAYER if docker else _OCI_LAYER
        return base + _SUFFIXES[base][self.compression]


@dataclass(frozen=True)
class Image:
    """One image.

    Args:
        layers: from the lowest up.
        config: its ``config`` section: ``Env``, ``Entrypoint``, ``User`` …
        platform: ``os/architecture`` or ``os/architecture/variant``.
    """

    layers: Sequence[Layer]
    config: Mapping[str, Any] = field(default_factory=dict)
    platform: str = "linux/amd64"

    @property
    def config_blob(self) -> bytes:
        """The image's config document."""
        diff_ids = [layer.diff_id for layer in self.layers]
        document: Json = {
            "created": _CREATED,
            "config": dict(self.config),
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created": _CREATED, "created_by": "firstread.testing"}] * len(diff_ids),
        }
        return _dump(document | platform_of(self.platform))

    def manifest(self, *, docker: bool = False) -> bytes:
        """Return the manifest; with `docker`, of Docker's version 2, schema 2."""
        config_type = _DOCKER_CONFIG if docker else _OCI_CONFIG
        document: Json = {
            "schemaVersion": 2,
            "mediaType": manifest_type(docker=docker),
            "config": descriptor(config_type, self.config_blob),
            "layers": [
                descriptor(layer.media_type(docker=docker), layer.blob) for layer in self.layers
            ],
        }
        return _dump(document)

    def blobs(self) -> list[bytes]:
        """Return all that the manifest names."""
        return [self.config_blob, *(layer.blob for layer in self.layers)]


@functools.cache
def feature_image() -> Image:
    """Return the image with every feature; `feature_tree` is what a container of it must see.

    Its layers differ in compression, in tar format and in how their archive ends.
    """
    items = feature_layers()
    layers = [
        Layer(items[BASE], "gzip", "pax"),
        Layer(items[SECOND], "zstd", "pax", zero_blocks=1),
        Layer(items[GNU], "none", "gnu", zero_blocks=20),
        Layer(items[USTAR], "gzip", "ustar", zero_blocks=0),
        Layer(b"", "gzip"),
    ]
    config = {"Env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"], "Cmd": ["/bin/sh"], "User": "7:50"}
    return Image(layers, config)


def digest_of(data: bytes) -> str:
    """Return the digest of `data` as OCI documents write it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(media_type: str, data: bytes) -> Json:
    """Return the OCI descriptor of `data`."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def manifest_type(*, docker: bool = False) -> str:
    """Return the media type of a manifest."""
    return _DOCKER_MANIFEST if docker else _OCI_MANIFEST


def platform_of(platform: str) -> dict[str, str]:
    """Return ``os/architecture[/variant]`` as the fields of a config or descriptor."""
    return dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))


def write_layout(
    image: Image, directory: str | os.PathLike[str], tag: str = "latest", *, docker: bool = False
) -> str:
    """Put `image` into the OCI layout `directory`, which is made if it is not there.

    Returns:
        The digest of the manifest.
    """
    manifest = image.manifest(docker=docker)
    _put_blobs(directory, [*image.blobs(), manifest])
    return _put_tag(directory, tag, descriptor(manifest_type(docker=docker), manifest))


def write_index(
    images: Mapping[str, Image],
    directory: str | os.PathLike[str],
    tag: str = "latest",
) -> str:
    """Put an index of `images`, by platform, into the OCI layout `directory`.

    Returns:
        The digest of the index.
    """
    manifests = []
    for platform, image in images.items():
        manifest = image.manifest()
        _put_blobs(directory, [*image.blobs(), manifest])
        entry = descriptor(manifest_type(), manifest)
        manifests.append(entry | {"platform": platform_of(platform)})
    index = _dump({"schemaVersion": 2, "mediaType": _OCI_INDEX, "manifests": manifests})
    _put_blobs(directory, [index])
    return _put_tag(directory, tag, descriptor(_OCI_INDEX, index))


def write_docker_archive(
    image: Image, path: str | os.PathLike[str], name: str = "test/image:latest"
) -> None:
    """Write `image` as ``docker save`` does: layers uncompressed, named by their diff_id."""
    config = image.config_blob
    config_name = digest_of(config).removeprefix("sha256:") + ".json"
    files = {config_name: config}
    names = []
    for layer in image.layers:
        names.append(layer.diff_id.removeprefix("sha256:") + "/layer.tar")
        files[names[-1]] = layer.tar
    files["manifest.json"] = _dump([{"Config": config_name, "RepoTags": [name], "Layers": names}])
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for file_name, data in files.items():
            info = tarfile.TarInfo(file_name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _put_blobs(directory: str | os.PathLike[str], blobs: Iterable[bytes]) -> None:
    folder = os.path.join(directory, "blobs", "sha256")
    os.makedirs(folder, exist_ok=True)
    for blob in blobs:
        _write(os.path.join(folder, digest_of(blob).removeprefix("sha256:")), blob)


def _put_tag(directory: str | os.PathLike[str], tag: str, entry: Json) -> str:
    """Let `tag` in the layout's index.json mean `entry`; return its digest."""
    path = os.path.join(directory, "index.json")
    manifests: list[Json] = []
    if os.path.exists(path):
        with open(path, "rb") as file:
            stated = json.load(file)["manifests"]
        manifests = [other for other in stated if other["annotations"][_TAG] != tag]
    manifests.append(entry | {"annotations": {_TAG: tag}})
    _write(os.path.join(directory, "oci-layout"), _dump({"imageLayoutVersion": "1.0.0"}))
    index = {"schemaVersion": 2, "mediaType": _OCI_INDEX, "manifests": manifests}
    _write(path, _dump(index))
    digest: str = entry["digest"]
    return digest


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
