# SPDX-License-Identifier: Apache-2.0
"""Makes an image of layers that are packed, and puts it where their blobs are.

Owns the last steps of a conversion: merge the layers, write the metadata, config and manifest.
Invariant: the manifest comes last, when all that it names is there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from firstread.convert.manifest import converted_config, converted_manifest, metadata_descriptor
from firstread.convert.metadata import LayerFacts, merge, write_metadata_layer
from firstread.convert.pack import PackedLayer
from firstread.convert.record import LayerRecord, Parameters
from firstread.errors import ImageError, LimitError
from firstread.oci.model import (
    MAX_MANIFEST_SIZE,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    encode,
    sha256_digest,
)
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage
from firstread.sectors.format import Blob
from firstread.units import MiB

Layer = tuple[Descriptor, str, PackedLayer]
"""A layer in the source, its diff_id, and what packing it gave."""


@dataclass(frozen=True)
class Published:
    """What was made.

    Args:
        digest: of the manifest.
        unchanged: it was there before.
        uploaded: blobs that were not.
        metadata_uncompressed_size: bytes.
        sectors: of the image, each counted once.
        inodes: of the image.
        layers: facts of each source layer.
    """

    manifest: Manifest
    digest: str
    unchanged: bool
    uploaded: int
    metadata_uncompressed_size: int
    sectors: int
    inodes: int
    layers: list[LayerFacts]


def publish(
    repository: Repository,
    image: ResolvedImage,
    layers: Sequence[Layer],
    parameters: Parameters,
    previous: str | None,
    *,
    attach: bool = False,
) -> Published:
    """Publish the image of `layers`, whose blobs are in `repository`, under its tag.

    Args:
        repository: the destination.
        image: the source.
        layers: the lowest first.
        parameters: they were packed with.
        previous: digest of the manifest that is published there now.
        attach: make it a referrer of the source's manifest; the tag may be None then.

    Raises:
        FirstreadError: the layers do not fit together, or the destination does not take the image.
    """
    try:
        merged = merge(LayerRecord.decode(packed.record) for _, _, packed in layers)
    except ImageError as exc:  # names a diff_id, which nobody sees elsewhere
        exc.layer = {diff_id: layer.digest for layer, diff_id, _ in layers}.get(exc.layer or "")
        raise
    facts = merged.layers
    with tempfile.TemporaryFile(prefix="firstread-") as file:
        blobs = [_index_blob(packed) for _, _, packed in layers]
        written = write_metadata_layer(file, merged, blobs, parameters.geometry)
        metadata = metadata_descriptor(written.digest, file.tell())
        file.seek(0)
        uploaded = int(repository.put_blob(metadata, file))
    subject = image.descriptor if attach else None
    config, manifest = _documents(image, layers, parameters, metadata, written.diff_id, subject)
    data = encode(manifest)
    if len(data) > MAX_MANIFEST_SIZE:
        raise LimitError(
            f"the manifest of the converted image has {len(data)} bytes, {MAX_MANIFEST_SIZE} is the"
            " limit",
            hint="the image has too many layers, or too much in annotations of its manifest",
        )
    digest = sha256_digest(data)
    if digest != previous:
        with tempfile.SpooledTemporaryFile(max_size=MiB) as spool:
            spool.write(config)
            spool.seek(0)
            uploaded += repository.put_blob(manifest.config, spool)  # type: ignore[arg-type]
        put = repository.put_referrer if attach else repository.put_manifest
        put(data, OCI_MANIFEST, repository.reference.tag)
    return Published(
        manifest,
        digest,
        digest == previous,
        uploaded,
        written.size,
        written.sectors,
        written.inodes,
        facts,
    )


def _documents(
    image: ResolvedImage,
    layers: Sequence[Layer],
    parameters: Parameters,
    metadata: Descriptor,
    diff_id: str,
    subject: Descriptor | None,
) -> tuple[bytes, Manifest]:
    """Return config and manifest; a layer that the source has twice has one blob."""
    unique: dict[str, PackedLayer] = {}
    is_first = []
    for _, source_diff_id, packed in layers:
        is_first.append(source_diff_id not in unique)
        unique[source_diff_id] = packed
    diff_ids = [diff_id, *(packed.diff_id for packed in unique.values())]
    config = converted_config(image.config, diff_ids, is_first)
    return config, converted_manifest(
        image.descriptor.digest,
        parameters,
        config,
        metadata,
        list(unique.items()),
        subject,
        image.manifest.annotations,
    )


def _index_blob(packed: PackedLayer) -> Blob:
    return Blob(bytes.fromhex(packed.digest.removeprefix("sha256:")), packed.size)
