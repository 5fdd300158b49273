# SPDX-License-Identifier: Apache-2.0
"""Layer records in the sector blobs of an image, found by the annotations of its manifest.

Owns these annotations, in both directions. Invariant: a record counts only if it has the digest
that its annotation states, and is of the layer and parameters that are asked for.
"""

from __future__ import annotations

import hashlib

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.record import MAX_RECORD_SIZE, LayerRecord, Parameters
from firstread.errors import DigestError, FirstreadError, ImageError, LimitError
from firstread.oci.model import Descriptor, Manifest
from firstread.oci.repository import Repository
from firstread.sectors.format import SECTORS_MEDIA_TYPE, SKIPPABLE_RECORD, unpack_skippable
from firstread.sectors.image import DIFF_ID, PARAMETERS, RECORD, SOURCE_DIFF_ID


def record_annotations(packed: PackedLayer, diff_id: str) -> dict[str, str]:
    """Return the annotations of a sector blob that let a later conversion reuse it."""
    digest = hashlib.sha256(packed.record).hexdigest()
    return {
        SOURCE_DIFF_ID: diff_id,
        RECORD: f"{packed.record_offset} {packed.size - packed.record_offset} sha256:{digest}",
    }


def described(packed: PackedLayer, diff_id: str) -> Descriptor:
    """Return the descriptor of a sector blob, with all that `read_described` needs.

    Args:
        packed: the layer.
        diff_id: of the source layer.
    """
    return Descriptor(
        media_type=SECTORS_MEDIA_TYPE,
        digest=packed.digest,
        size=packed.size,
        annotations={**record_annotations(packed, diff_id), DIFF_ID: packed.diff_id},
    )


def read_described(repository: Repository, blob: Descriptor, parameters: Parameters) -> PackedLayer:
    """Return the packed layer of a descriptor of `described`, its record read from its blob.

    Raises:
        ImageError, SourceError: as `read_layer`.
    """
    known = blob.annotations or {}
    return read_layer(repository, blob, known[DIFF_ID], known[SOURCE_DIFF_ID], parameters.key)


class RecordedLayers:
    """Packed layers of an image in the destination.

    Args:
        repository: where the image is.
        manifest: of a firstread image.
        diff_ids: of the image's config.
    """

    def __init__(self, repository: Repository, manifest: Manifest, diff_ids: list[str]) -> None:
        self._repository = repository
        self._parameters = (manifest.annotations or {}).get(PARAMETERS)
        self._blobs = {
            (blob.annotations or {}).get(SOURCE_DIFF_ID): (blob, diff_id)
            for blob, diff_id in zip(manifest.layers, diff_ids, strict=False)
            if blob.media_type == SECTORS_MEDIA_TYPE
        }

    def get(self, diff_id: str, parameters: Parameters) -> PackedLayer | None:
        """Return the packed layer, its record read from the end of its blob; None if unknown."""
        if self._parameters != parameters.key or diff_id not in self._blobs:
            return None
        try:
            return self.read(diff_id)
        except FirstreadError:
            return None  # the layer is packed again

    def read(self, diff_id: str) -> PackedLayer:
        """As `get`, for a layer that the image has.

        Raises:
            ImageError: the record is not the one that the annotation states, or of another layer.
            SourceError: the repository does not give it.
        """
        blob, blob_diff_id = self._blobs[diff_id]
        return read_layer(self._repository, blob, blob_diff_id, diff_id, str(self._parameters))


def read_layer(
    repository: Repository, blob: Descriptor, blob_diff_id: str, diff_id: str, parameters: str
) -> PackedLayer:
    """Return a packed layer, its record read from the end of its sector blob.

    Args:
        repository: has the blob.
        blob: with the annotations of `record_annotations`.
        blob_diff_id: of the uncompressed blob.
        diff_id: of the source layer.
        parameters: `Parameters.key` of its packing.

    Raises:
        ImageError: the record is not the one that the annotation states, or of another layer.
        SourceError: the repository does not give it.
    """
    offset, length, digest = _parse_record((blob.annotations or {}).get(RECORD, ""), blob)
    with repository.open_blob(blob, offset=offset, length=length) as stream:
        data = b"".join(stream)
    record = unpack_skippable(SKIPPABLE_RECORD, data)
    if "sha256:" + hashlib.sha256(record).hexdigest() != digest:
        raise DigestError(f"the layer record of {blob.digest} has another digest than stated")
    found = LayerRecord.decode(record)
    if (found.diff_id, found.parameters) != (diff_id, parameters):
        raise ImageError(f"the layer record of {blob.digest} is of another layer")
    return PackedLayer(record, offset, blob.digest, blob.size, blob_diff_id)


def _parse_record(text: str, blob: Descriptor) -> tuple[int, int, str]:
    try:
        offset, length, digest = text.split(" ")
        start, count = int(offset), int(length)
    except ValueError as exc:
        raise ImageError(f"the annotation {RECORD} is malformed") from exc
    if start < 0 or count <= 0 or start + count != blob.size:
        raise ImageError(f"the annotation {RECORD} points outside its blob")
    if count > MAX_RECORD_SIZE:
        raise LimitError(f"the annotation {RECORD} states a record of {count} bytes")
    return start, count, digest
