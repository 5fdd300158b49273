# SPDX-License-Identifier: Apache-2.0
"""Packed layers and converted images in memory, for tests of whatever makes or reads them.

Owns a repository in memory that counts what it is asked for. Packing and publishing are the real
ones. Invariant: nothing here touches a disk or a network, but for temporary files without a name.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from typing import BinaryIO

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.hotblob import Start
from firstread.convert.job import blob_descriptor
from firstread.convert.pack import pack_layer
from firstread.convert.publish import ReadyLayer, publish
from firstread.convert.record import Parameters
from firstread.errors import NotFoundError
from firstread.layouts.ingest import copy_blob
from firstread.oci.blobstream import BlobStream, clamp
from firstread.oci.model import OCI_MANIFEST, Descriptor, Manifest, describe, parse_manifest
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Destination, Progress
from firstread.oci.resolve import ResolvedImage, resolve
from firstread.sectors.image import BlockImage, fetch_image
from firstread.testing.images import Image, Layer
from firstread.units import KiB

SMALL = Parameters(sector_size=64 * KiB, frame_size=16 * KiB)
"""Small sectors, so that small layers have many."""


class MemoryRepository(Destination):
    """A place whose blobs are a dict, open to damage.

    Args:
        blobs: by digest.
        tag: digest of the manifest that the place's reference names.
    """

    def __init__(self) -> None:
        super().__init__(parse_reference("registry.example/memory:latest"))
        self.blobs: dict[str, bytes] = {}
        self.tag: str | None = None
        self.reads: Counter[str] = Counter()  # digest -> times opened
        self.writes: Counter[str] = Counter()  # digest -> times stored

    def add(self, image: Image) -> ResolvedImage:
        """Put an ordinary image there and return it."""
        for blob in image.blobs():
            self.blobs[describe(blob, OCI_MANIFEST).digest] = blob
        self.put_manifest(image.manifest(), OCI_MANIFEST, "latest")
        return resolve(self)

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        digest = self.tag if reference is None or ":" not in reference else reference
        if digest not in self.blobs:
            raise NotFoundError(f"there is no manifest {digest}")
        return describe(self.blobs[digest], OCI_MANIFEST), self.blobs[digest]

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        count = clamp(blob, offset, length)
        if blob.digest not in self.blobs:
            raise NotFoundError(f"blob {blob.digest} is missing")
        self.reads[blob.digest] += 1
        whole = count == blob.size
        end = None if whole else offset + count
        data = io.BytesIO(self.blobs[blob.digest][offset:end])
        return BlobStream(blob, data, length=count, verify=whole, image=str(self.reference))

    def has_blob(self, blob: Descriptor) -> bool:
        return blob.digest in self.blobs

    def put_blob(
        self,
        blob: Descriptor,
        file: BinaryIO,
        *,
        on_progress: Progress | None = None,
        verified: bool = False,
    ) -> bool:
        if self.has_blob(blob):
            return False
        target = io.BytesIO()
        copy_blob(blob, file, target, on_progress)
        self.blobs[blob.digest] = target.getvalue()
        self.writes[blob.digest] += 1
        return True

    def put_manifest(self, data: bytes, media_type: str, tag: str | None) -> Descriptor:
        manifest = describe(data, media_type)
        self.blobs[manifest.digest] = data
        self.tag = manifest.digest
        return manifest

    def close(self) -> None:
        pass


def pack(layer: Layer, parameters: Parameters = SMALL, jobs: int = 1) -> tuple[PackedLayer, bytes]:
    """Return what packing `layer` gives, and its sector blob."""
    blob = io.BytesIO()
    packed = pack_layer(
        [layer.blob], layer.media_type(), layer.diff_id, parameters, blob, jobs=jobs
    )
    return packed, blob.getvalue()


def converted(
    image: Image, parameters: Parameters = SMALL, start: Start | None = None
) -> tuple[MemoryRepository, Manifest]:
    """Return a place that has `image`, converted, and its manifest.

    Args:
        image: an ordinary one.
        parameters: of packing.
        start: says what its hot sectors hold.
    """
    source, place = MemoryRepository(), MemoryRepository()
    resolved = source.add(image)
    layers = []
    for layer, descriptor in zip(image.layers, resolved.manifest.layers, strict=True):
        packed, blob = pack(layer, parameters)
        place.put_blob(blob_descriptor(packed), io.BytesIO(blob))
        layers.append(ReadyLayer(descriptor, layer.diff_id, packed))
    publish(place, resolved, layers, parameters, None, start=start)
    manifest = parse_manifest(place.get_manifest()[1])
    assert isinstance(manifest, Manifest)
    return place, manifest


def opened(place: MemoryRepository, manifest: Manifest) -> BlockImage:
    """Return a converted image, its metadata fetched and checked."""
    with tempfile.TemporaryFile() as file:
        return fetch_image(place, manifest, file)
