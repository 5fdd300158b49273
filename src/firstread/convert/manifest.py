# SPDX-License-Identifier: Apache-2.0
"""The documents of a converted image: config and manifest. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import structs

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.record import Parameters
from firstread.convert.recorded import record_annotations
from firstread.oci.model import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    sha256_digest,
)
from firstread.sectors.format import (
    ARTIFACT_TYPE,
    LAYER_LABEL,
    METADATA_MEDIA_TYPE,
    SECTORS_MEDIA_TYPE,
)
from firstread.sectors.image import GENERATION, HOT, PARAMETERS, SOURCE_DIGEST
from firstread.units import KiB

MAX_GENERATION = 999_999
MAX_EMBEDDED_CONFIG = 32 * KiB  # bytes; most configs have less than 10
CREATED_BY = "firstread convert"
METADATA_STEP, HOT_STEP = "metadata", "hot sectors"
EPOCH = "1970-01-01T00:00:00Z"
OF_START = (HOT, GENERATION)  # annotations that no source hands down


def converted_config(
    config: dict[str, Any],
    diff_ids: Sequence[str],
    has_blob: Sequence[bool],
    *,
    hot: bool = False,
) -> bytes:
    """Return the config of a converted image: the source's with other layers.

    Args:
        config: the source's, with all its fields.
        diff_ids: of the new layers, metadata first.
        has_blob: for each source layer, whether it has its own sector blob.
        hot: the last of `diff_ids` is that of hot sectors.

    The history keeps every step. Its entries that are not marked as empty must correspond to the
    layers (image-spec, config.md): the metadata gets a new entry, and so does each layer without
    one; the step of a layer that occurs before is marked. Each entry has a time, or clients crash:
    the previous step's, if it states none.
    """
    changed = dict(config)
    changed["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    history = config.get("history")
    if isinstance(history, list) and history:
        blobs = iter(has_blob)
        steps: list[dict[str, Any]] = [_step(METADATA_STEP)]
        for step in filter(_is_object, history):
            empty = step.get("empty_layer", False) or not next(blobs, False)
            steps.append({**step, "empty_layer": True} if empty else step)
        steps += [_step("layer") for has_blob in blobs if has_blob]
        steps += [_step(HOT_STEP)] * hot
        changed["history"] = _timed(steps, config.get("created"))
    return json.dumps(changed, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def original_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return what `converted_config` makes the same config of again."""
    changed = dict(config)
    if isinstance(steps := config.get("history"), list):
        ours = (METADATA_STEP, HOT_STEP)
        changed["history"] = [
            step
            for step in filter(_is_object, steps)
            if step.get("created_by") != CREATED_BY or step.get("comment") not in ours
        ]
    return changed


def converted_manifest(
    source_digest: str,
    parameters: Parameters,
    config: bytes,
    metadata: Descriptor,
    layers: Sequence[tuple[str, PackedLayer]],
    subject: Descriptor | None = None,
    annotations: Mapping[str, str] | None = None,
    hot: PackedLayer | None = None,
    note: str | None = None,
) -> Manifest:
    """Return the manifest of a converted image.

    It contains a config of ordinary size (image-spec, descriptor.md: "data"), which saves a node
    and containerd a round trip each.

    Args:
        source_digest: of the source's manifest.
        parameters: of the conversion.
        config: from `converted_config`.
        metadata: descriptor of the metadata layer.
        layers: (diff_id of the source layer, packed layer), lowest first, each blob once.
        subject: the source's manifest, if the image is attached to it.
        annotations: of the source's manifest. They stay, unless ours override them.
        hot: the image's hot sectors.
        note: about what is hot; also in the manifest, which lists of referrers repeat.
    """
    noted = {} if note is None else {HOT: note}
    kept = {name: text for name, text in (annotations or {}).items() if name not in OF_START}
    return Manifest(
        media_type=OCI_MANIFEST,
        artifact_type=ARTIFACT_TYPE if subject else None,
        subject=subject,
        config=Descriptor(
            media_type=OCI_CONFIG,
            digest=sha256_digest(config),
            size=len(config),
            data=config if len(config) <= MAX_EMBEDDED_CONFIG else None,
        ),
        layers=[
            metadata,
            *(
                _sectors_descriptor(packed, record_annotations(packed, diff_id))
                for diff_id, packed in layers
            ),
            *([_sectors_descriptor(hot, noted)] if hot else []),
        ],
        annotations={
            **kept,
            SOURCE_DIGEST: source_digest,
            PARAMETERS: parameters.key,
            **noted,
        },
    )


def of_generation(manifest: Manifest, number: int) -> Manifest:
    """Return the manifest of an image that nodes prefer to those of lower numbers; 0 says none."""
    if not number:
        return manifest
    annotations = {**(manifest.annotations or {}), GENERATION: str(min(number, MAX_GENERATION))}
    return structs.replace(manifest, annotations=annotations)


def _sectors_descriptor(packed: PackedLayer, annotations: Mapping[str, str]) -> Descriptor:
    return Descriptor(
        media_type=SECTORS_MEDIA_TYPE,
        digest=packed.digest,
        size=packed.size,
        annotations={**annotations, LAYER_LABEL: "sectors"},
    )


def metadata_descriptor(digest: str, size: int) -> Descriptor:
    """Return the descriptor of a metadata layer."""
    return Descriptor(
        media_type=METADATA_MEDIA_TYPE,
        digest=digest,
        size=size,
        annotations={LAYER_LABEL: "metadata"},
    )


def _step(what: str) -> dict[str, Any]:
    return {"created_by": CREATED_BY, "comment": what}


def _timed(steps: Sequence[dict[str, Any]], created: object) -> list[dict[str, Any]]:
    """Return `steps`, each with a time; `created` is the image's."""
    stated = [step["created"] for step in steps if step.get("created")]
    time = next(iter(stated), created or EPOCH)
    timed = []
    for step in steps:
        time = step.get("created") or time
        timed.append({**step, "created": time})
    return timed


def _is_object(step: object) -> bool:
    return isinstance(step, dict)
