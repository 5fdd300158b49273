# SPDX-License-Identifier: Apache-2.0
"""Makes an image of packed layers, and publishes it beside their blobs.

Owns the last steps of a conversion: merge the layers, write the metadata, config and manifest.
Invariant: the manifest comes last, when the destination has all that it names.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.hotblob import NOT_HOT, Hot, Start, make_hot
from firstread.convert.hotplan import HotPlan
from firstread.convert.manifest import (
    converted_config,
    converted_manifest,
    metadata_descriptor,
    of_generation,
)
from firstread.convert.metadata import (
    LayerFacts,
    MergedLayers,
    WrittenMetadata,
    index_blob,
    merge,
    write_metadata_layer,
)
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
from firstread.oci.repository import Destination
from firstread.oci.resolve import ResolvedImage
from firstread.sectors.attached import Attached, generation
from firstread.units import MiB


class ReadyLayer(NamedTuple):
    """A source layer, its diff_id, and its packed form, whose blob the destination has."""

    descriptor: Descriptor
    diff_id: str
    packed: PackedLayer


@dataclass(frozen=True)
class Published:
    """A converted image at its destination.

    Args:
        manifest: its manifest.
        digest: of the manifest.
        unchanged: the destination had this image before.
        uploaded: blobs that the destination did not have.
        metadata: facts of the metadata layer.
        layers: facts of each source layer.
        hot: what became of its start.
    """

    manifest: Manifest
    digest: str
    unchanged: bool
    uploaded: int
    metadata: WrittenMetadata
    layers: list[LayerFacts]
    hot: Hot


def publish(
    repository: Destination,
    image: ResolvedImage,
    layers: Sequence[ReadyLayer],
    parameters: Parameters,
    previous: str | None,
    *,
    attach: bool = False,
    part: bool = False,
    above: Attached | None = None,
    start: Start | None = None,
    static: bool = False,
    jobs: int = 1,
    merged: MergedLayers | None = None,
    plan: HotPlan | None = None,
) -> Published:
    """Publish the image of `layers`, whose blobs are in `repository`, under its tag.

    Args:
        repository: the destination.
        image: the source.
        layers: lowest first.
        parameters: that they were packed with.
        previous: digest of the manifest that is published there now.
        attach: make the image a referrer of the source's manifest; it needs no tag then.
        part: publish all but the manifest, which an index will name.
        above: the attached image that nodes take now, and shall leave for this one.
        start: says what hot sectors will hold; None for none.
        static: no run has shown that.
        jobs: hot sectors compressed at a time.
        merged: what `merge_layers` gives for `layers`, if the caller has it; consumed.
        plan: of the start in `merged`, if the caller has it.

    Raises:
        FirstreadError: the layers do not fit together, or the destination does not take the image.
    """
    merged = merged or merge_layers(layers)
    facts, packed = merged.layers, [layer.packed for layer in layers]
    hot = NOT_HOT
    if start is not None:
        arguments = (repository, merged, packed, parameters, image.config, start)
        hot = make_hot(*arguments, static=static, jobs=jobs, plan=plan)
    packed += [hot.blob.packed] if hot.blob else []
    with tempfile.TemporaryFile(prefix="firstread-") as file:
        blobs = [index_blob(blob) for blob in packed]
        written = write_metadata_layer(file, merged, blobs, parameters.geometry)
        metadata = metadata_descriptor(written.digest, file.tell())
        file.seek(0)
        uploaded = repository.put_blob(metadata, file) + bool(hot.blob and hot.blob.uploaded)
    subject = image.descriptor if attach else None
    config, manifest = _documents(image, layers, parameters, metadata, written, subject, hot)
    if above is not None and hot.note is not None:
        manifest = _above(manifest, above)
    data = _encoded(manifest)
    digest = sha256_digest(data)
    if digest != previous:
        with tempfile.SpooledTemporaryFile(max_size=MiB) as spool:
            spool.write(config)
            spool.seek(0)
            uploaded += repository.put_blob(manifest.config, spool)  # type: ignore[arg-type]
        if not part:
            put = repository.put_referrer if attach else repository.put_manifest
            put(data, OCI_MANIFEST, repository.reference.tag)
    return Published(manifest, digest, digest == previous, uploaded, written, facts, hot)


def merge_layers(layers: Sequence[ReadyLayer]) -> MergedLayers:
    """Return the merged tree of `layers`, lowest first.

    Raises:
        ImageError: they do not fit together; names the layer.
    """
    try:
        return merge(LayerRecord.decode(layer.packed.record) for layer in layers)
    except ImageError as exc:  # it names a diff_id, which users never see
        exc.layer = {layer.diff_id: layer.descriptor.digest for layer in layers}.get(
            exc.layer or ""
        )
        raise


def _above(manifest: Manifest, other: Attached) -> Manifest:
    """Return the manifest in the generation behind another image's, unless it is that image's."""
    now = generation(other.manifest.annotations)
    same = of_generation(manifest, now)
    is_same = sha256_digest(encode(same)) == other.descriptor.digest
    return same if is_same else of_generation(manifest, now + 1)


def _encoded(manifest: Manifest) -> bytes:
    data = encode(manifest)
    if len(data) > MAX_MANIFEST_SIZE:
        raise LimitError(
            f"the manifest of the converted image has {len(data)} bytes, {MAX_MANIFEST_SIZE} is the"
            " limit",
            hint="the image has too many layers, or its manifest has too many annotations",
        )
    return data


def _documents(
    image: ResolvedImage,
    layers: Sequence[ReadyLayer],
    parameters: Parameters,
    metadata: Descriptor,
    written: WrittenMetadata,
    subject: Descriptor | None,
    hot: Hot,
) -> tuple[bytes, Manifest]:
    """Return config and manifest; a layer that occurs twice in the source has one blob."""
    unique: dict[str, PackedLayer] = {}
    is_first = []
    for _, source_diff_id, packed in layers:
        is_first.append(source_diff_id not in unique)
        unique[source_diff_id] = packed
    diff_ids = [written.diff_id, *(packed.diff_id for packed in unique.values())]
    diff_ids += [hot.blob.packed.diff_id] if hot.blob else []
    config = converted_config(image.config, diff_ids, is_first, hot=hot.blob is not None)
    return config, converted_manifest(
        image.descriptor.digest,
        parameters,
        config,
        metadata,
        list(unique.items()),
        subject,
        image.manifest.annotations,
        hot.blob.packed if hot.blob else None,
        hot.text(written.ids),
    )
