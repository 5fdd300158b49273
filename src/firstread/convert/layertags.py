# SPDX-License-Identifier: Apache-2.0
"""The tag of a packed layer: how workers that share nothing but a registry find each other's work.

Owns the small manifest that names the sector blob of one layer, under a tag made of the layer's
diff_id and the parameters. It keeps a registry from collecting the blob before an image names it.
Invariant: whatever goes wrong here, a layer is packed again, to the same bytes.
"""

from __future__ import annotations

import io
import logging
from contextlib import suppress
from typing import Final

from firstread.convert.record import Parameters, layer_key
from firstread.errors import FirstreadError
from firstread.oci.model import (
    EMPTY,
    EMPTY_TYPE,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    describe,
    encode,
    parse_manifest,
)
from firstread.oci.reference import is_digest
from firstread.oci.repository import Destination, Repository
from firstread.sectors.format import SECTORS_MEDIA_TYPE
from firstread.sectors.image import DIFF_ID, PARAMETERS, RECORD, SOURCE_DIFF_ID

log = logging.getLogger("convert")

LAYER_TYPE: Final = "application/vnd.firstread.layer.v1"
PREFIX: Final = "firstread-layer-"


def layer_tag(diff_id: str, parameters: Parameters) -> str:
    """Return the tag of a packed layer."""
    return PREFIX + layer_key(diff_id, parameters)


def find_layer(repository: Repository, diff_id: str, parameters: Parameters) -> Descriptor | None:
    """Return the sector blob of a layer, if the repository has it and says so by its tag."""
    with suppress(FirstreadError):
        descriptor, data = repository.get_manifest(layer_tag(diff_id, parameters))
        manifest = parse_manifest(data, descriptor.media_type)
        if isinstance(manifest, Manifest) and _is_ours(manifest):
            blob = manifest.layers[0]
            stated = (manifest.annotations or {}).get(PARAMETERS)
            if stated == parameters.key and is_packed(blob, diff_id):
                return blob if repository.has_blob(blob) else None
    return None


def _is_ours(manifest: Manifest) -> bool:
    return manifest.artifact_type == LAYER_TYPE and len(manifest.layers) == 1


def is_packed(blob: Descriptor, diff_id: str) -> bool:
    """Return whether a descriptor is of the sector blob of a layer, and says all of it."""
    known = blob.annotations or {}
    return (
        blob.media_type == SECTORS_MEDIA_TYPE
        and known.get(SOURCE_DIFF_ID) == diff_id
        and is_digest(known.get(DIFF_ID, ""))
        and RECORD in known
    )


def tag_layer(
    repository: Destination, blob: Descriptor, diff_id: str, parameters: Parameters
) -> None:
    """Give a packed layer its tag; a registry that refuses it only costs work that is done again.

    Args:
        repository: has the blob.
        blob: as `firstread.convert.recorded.described` gives it.
        diff_id: of the source layer.
        parameters: of its packing.
    """
    config = describe(EMPTY, EMPTY_TYPE)
    manifest = Manifest(
        artifact_type=LAYER_TYPE,
        config=config,
        layers=[blob],
        annotations={PARAMETERS: parameters.key},
    )
    try:
        repository.put_blob(config, io.BytesIO(EMPTY))
        repository.put_manifest(encode(manifest), OCI_MANIFEST, layer_tag(diff_id, parameters))
    except FirstreadError as exc:
        log.warning("the packed layer %s gets no tag: %s", diff_id, exc)
