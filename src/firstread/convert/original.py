# SPDX-License-Identifier: Apache-2.0
"""What an ordinary image gives to a conversion: its layers, each with its diff_id. Pure."""

from __future__ import annotations

from typing import NamedTuple

from firstread.errors import ImageError, UnsupportedError
from firstread.oci.layertypes import layer_compression
from firstread.oci.model import Descriptor, diff_ids
from firstread.oci.resolve import ResolvedImage
from firstread.sectors.image import check_underived, is_block_layer


class SourceLayer(NamedTuple):
    """A layer in the source, and the digest of its uncompressed content."""

    descriptor: Descriptor
    diff_id: str


def source_layers(image: ResolvedImage) -> list[SourceLayer]:
    """Return the layers of an ordinary image, lowest first.

    Raises:
        UnsupportedError: the image is not ordinary (DerivedImageError: it was built FROM a
            converted one), or a layer is encrypted or of an unknown kind.
        ImageError: manifest and config contradict each other.
    """
    check_underived(image.manifest)
    if any(map(is_block_layer, image.manifest.layers)):
        raise UnsupportedError(
            "this image is converted already", hint="name the original image as the source"
        )
    ids = diff_ids(image.config)
    if len(ids) != len(image.manifest.layers):
        raise ImageError(
            f"the manifest has {len(image.manifest.layers)} layers, the config names {len(ids)}"
        )
    for layer in image.manifest.layers:
        layer_compression(layer)
    return list(map(SourceLayer, image.manifest.layers, ids))
