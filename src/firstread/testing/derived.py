# SPDX-License-Identifier: Apache-2.0
"""An image built FROM a converted one: its layers, and an ordinary one on top."""

from __future__ import annotations

import io
import json

from msgspec.structs import replace

from firstread.oci.model import OCI_CONFIG, OCI_MANIFEST, describe, encode
from firstread.oci.reference import parse_reference
from firstread.oci.resolve import resolve
from firstread.registry.open import open_destination, open_source
from firstread.registry.options import AccessOptions
from firstread.testing.images import File, Layer

OPTIONS = AccessOptions()


def put_derived(base: str, to: str, *, annotations: bool = True) -> str:
    """Put an image that was built FROM the converted image `base` at `to`; return its digest.

    Args:
        base: reference.
        to: reference, with a tag.
        annotations: the builder keeps those of manifest and layers.
    """
    layer = Layer([File("on-top", b"of the base\n")])
    reference = parse_reference(to)
    with (
        open_source(parse_reference(base), OPTIONS) as source,
        open_destination(reference, OPTIONS) as place,
    ):
        manifest = resolve(source).manifest
        for blob in (manifest.config, *manifest.layers):
            place.put_blob(blob, io.BytesIO(source.read_blob(blob, blob.size)))
        config = json.loads(source.read_blob(manifest.config, manifest.config.size))
        config["rootfs"]["diff_ids"].append(layer.diff_id)
        config.pop("history", None)
        made = [(encode(config), OCI_CONFIG), (layer.blob, layer.media_type())]
        config_blob, top = (describe(*each) for each in made)
        for blob, (content, _) in zip((config_blob, top), made, strict=True):
            place.put_blob(blob, io.BytesIO(content))
        below = manifest.layers
        if not annotations:
            below = [replace(one, annotations=None) for one in below]
            manifest = replace(manifest, annotations=None)
        derived = replace(manifest, config=config_blob, layers=[*below, top])
        return place.put_manifest(encode(derived), OCI_MANIFEST, reference.tag).digest
