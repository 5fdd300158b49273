# SPDX-License-Identifier: Apache-2.0
"""``docker-archive:``: what ``docker save`` and ``podman save`` write, to read only.

Owns the meaning of ``manifest.json``, old (``<id>/layer.tar``, often links to each other) and new
(paths into an OCI layout in the same archive). Such an archive has no image manifest to trust,
so this module makes one from the config. Invariant: the digest of every layer of this manifest is
the diff_id that the config names, or computed, if the layer is compressed or no tar archive at all
(its reader will say so). So reading a layer verifies it.

Source: docker's image specification v1.2, "Combined Image JSON + Filesystem Changeset Format".
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from firstread.errors import DigestError, ImageError, NotFoundError, UsageError
from firstread.layouts.archive import open_archive
from firstread.layouts.extent import Extent, ExtentReader
from firstread.layouts.tarindex import BLOCK, begins_tar
from firstread.oci.blobstream import CHUNK_SIZE, BlobStream, clamp
from firstread.oci.model import (
    MAX_CONFIG_SIZE,
    MAX_MANIFEST_SIZE,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    describe,
    diff_ids,
    encode,
    missing_blob,
    parse_config,
)
from firstread.oci.reference import Reference, is_digest, parse_reference
from firstread.oci.repository import Repository, naming
from firstread.oci.untrusted import decode, decode_each

_MAX_IMAGES: Final = 1000  # in one archive
_BLOB: Final = re.compile(r"blobs/(sha256)/([0-9a-f]{64})")
_SUFFIXES: Final = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}  # first bytes -> media type


class _Image(msgspec.Struct, frozen=True, rename="pascal"):
    """One entry of ``manifest.json``."""

    config: str
    layers: list[str] = []
    repo_tags: list[str] = []


class DockerArchive(Repository):
    """An archive with one or more images.

    Raises:
        NotFoundError: there is no such file, or no such image in it.
        UsageError: there are several images, and none is named.
        ImageError: the archive is damaged.
    """

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self._fd, self._index = open_archive(reference)
        self._open = True
        self._blobs: dict[str, Extent] = {}
        # A thousand images may share a config, a million layers may be links to one file.
        self._configs: dict[Extent, tuple[Descriptor, list[str]]] = {}
        self._digests: dict[Extent, str] = {}
        self._manifests: dict[str, tuple[Descriptor, bytes]] = {}
        try:
            with naming(reference):
                self._images = self._read_images()
                if reference.digest is None:
                    self._default = self._add(select_image(self._images, reference.tag))
                else:
                    list(self.manifests())
                    self._default = reference.digest
        except BaseException:
            self.close()
            raise

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        with naming(self.reference):
            if reference is None:
                reference = self._default
            elif not is_digest(reference):
                reference = self._add(select_image(self._images, reference))
            if reference not in self._manifests:
                list(self.manifests())
            if reference not in self._manifests:
                raise NotFoundError(f"manifest {reference} is not in the archive")
            return self._manifests[reference]

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        with naming(self.reference):
            count = clamp(blob, offset, length)
            extent = self._blobs.get(blob.digest)
            if extent is None:
                raise missing_blob(blob)
            if extent.size != blob.size:
                raise DigestError(f"blob {blob.digest} has {extent.size} bytes, not {blob.size}")
        return BlobStream(
            blob,
            ExtentReader(extent, offset, count),
            length=count,
            verify=count == blob.size,
            image=str(self.reference),
        )

    def has_blob(self, blob: Descriptor) -> bool:
        extent = self._blobs.get(blob.digest)
        return extent is not None and extent.size == blob.size

    def manifests(self) -> Iterator[Descriptor]:
        """Yield those of the images that are whole.

        Raises:
            ImageError: none is; says what is wrong with the last.
        """
        fault: ImageError | None = None
        with naming(self.reference):
            digests = []
            for image in self._images:
                try:
                    digests.append(self._add(image))
                except ImageError as exc:
                    fault = exc
            if fault is not None and not digests:
                raise fault
        yield from (self._manifests[digest][0] for digest in digests)

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._fd)

    def _read_images(self) -> list[_Image]:
        data = self._extent("manifest.json").read(MAX_MANIFEST_SIZE, "manifest.json")
        images = decode_each(decode(data, list[Any], "manifest.json"), _Image, "manifest.json")
        if not 0 < len(images) <= _MAX_IMAGES:
            raise ImageError(f"manifest.json names {len(images)} images")
        return images

    def _extent(self, name: str) -> Extent:
        member = self._index.find(name)
        if member is None:
            raise ImageError(f"{name} is missing in the archive")
        return Extent(self._fd, member.offset, member.size)

    def _add(self, image: _Image) -> str:
        """Make the manifest of `image` and note where its blobs are; return its digest."""
        config, ids = self._config(image.config)
        names = image.layers
        if len(ids) != len(names):
            raise ImageError(f"{image.config} names {len(ids)} layers, not {len(names)}")
        self._blobs[config.digest] = self._extent(image.config)
        layers = [self._layer(*pair) for pair in zip(names, ids, strict=True)]
        data = encode(Manifest(config=config, layers=layers))
        manifest = describe(data, OCI_MANIFEST)
        self._manifests[manifest.digest] = (manifest, data)
        return manifest.digest

    def _config(self, name: str) -> tuple[Descriptor, list[str]]:
        """Return the descriptor of a config, and the diff_ids that it has."""
        extent = self._extent(name)
        if extent not in self._configs:
            raw = extent.read(MAX_CONFIG_SIZE, name)
            self._configs[extent] = describe(raw, OCI_CONFIG), diff_ids(parse_config(raw))
        return self._configs[extent]

    def _layer(self, name: str, diff_id: str) -> Descriptor:
        """Return the descriptor of a layer, and note where it is."""
        extent = self._extent(name)
        head = os.pread(self._fd, min(BLOCK, extent.size), extent.offset)
        digest = diff_id if begins_tar(head) else self._digest(name, extent)
        self._blobs[digest] = extent
        media_type = OCI_LAYER + _SUFFIXES.get(head[:2], "")
        return Descriptor(media_type=media_type, digest=digest, size=extent.size)

    def _digest(self, name: str, extent: Extent) -> str:
        """Return the digest of the bytes of a layer, from its name where that says it."""
        if match := _BLOB.fullmatch(name):
            return f"{match[1]}:{match[2]}"
        if extent not in self._digests:
            self._digests[extent] = _digest_of(extent)
        return self._digests[extent]


def _digest_of(extent: Extent) -> str:
    state, reader = hashlib.sha256(), ExtentReader(extent)
    buffer = memoryview(bytearray(CHUNK_SIZE))
    while count := reader.readinto(buffer):
        state.update(buffer[:count])
    return f"sha256:{state.hexdigest()}"


def select_image(images: list[_Image], name: str | None) -> _Image:
    """Return the image called `name` (``busybox``, ``busybox:1``, or only the tag ``1``).

    Raises:
        NotFoundError: there is none.
        UsageError: there are several.
    """
    found = images if name is None else [i for i in images if _is_called(i, name)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted({tag for image in images for tag in image.repo_tags}))
    hint = f"there are: {known}" if known else "the images in it have no names"
    if not found:
        raise NotFoundError(f"there is no image {name!r} in the archive", hint=hint)
    raise UsageError("there are several images in the archive: name one", hint=hint)


def _is_called(image: _Image, name: str) -> bool:
    tags = image.repo_tags
    return _canonical(name) in map(_canonical, tags) or any(t.endswith(f":{name}") for t in tags)


def _canonical(name: str) -> str:
    try:
        return str(parse_reference(name))
    except UsageError:
        return name
