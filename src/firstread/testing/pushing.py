# SPDX-License-Identifier: Apache-2.0
"""Puts images of `firstread.testing.images` into registries, without another tool."""

from __future__ import annotations

import io
import json
from typing import Any

from firstread.oci.model import OCI_INDEX, describe
from firstread.oci.reference import parse_reference
from firstread.registry.open import open_destination
from firstread.testing.images import Image, descriptor, digest_of, manifest_type, platform_of


def push(name: str, image: Image) -> str:
    """Push an image; return the digest of its manifest."""
    reference = parse_reference(name)
    with open_destination(reference) as place:
        for blob in image.blobs():
            place.put_blob(describe(blob, "a/b"), io.BytesIO(blob))
        return place.put_manifest(image.manifest(), manifest_type(), reference.tag).digest


def push_index(name: str, *images: Image, **fields: Any) -> str:
    """Push an index of images, as BuildKit does, with an attestation; return its digest.

    Args:
        name: of the index.
        images: one for each platform.
        fields: of the index, more.
    """
    place = name.rpartition(":")[0]
    entries = []
    for image in images:
        manifest = image.manifest()
        push(f"{place}:{digest_of(manifest)[7:20]}", image)
        entry = descriptor(manifest_type(), manifest)
        entries.append(entry | {"platform": platform_of(image.platform)})
    attestation = entries[0] | {
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries, attestation]}
    reference = parse_reference(name)
    with open_destination(reference) as repository:
        data = json.dumps(document | fields).encode()
        return repository.put_manifest(data, OCI_INDEX, reference.tag).digest
