# SPDX-License-Identifier: Apache-2.0
"""The media types of layers, and the compression that each names. Pure.

Case does not matter (RFC 6838, 4.2). Old tools named layers by the type of any archive; the first
bytes decide anyway (`firstread.convert.stream`), and the diff_id says whether it is the layer.
"""

from __future__ import annotations

from typing import Final, Literal

from firstread.errors import UnsupportedError
from firstread.oci.model import (
    DOCKER_FOREIGN_LAYER,
    DOCKER_LAYER,
    OCI_FOREIGN_LAYER,
    OCI_LAYER,
    Descriptor,
)

Compression = Literal["none", "gzip", "zstd"]
_SUFFIXES: Final[dict[str, Compression]] = {
    "": "none",
    "+gzip": "gzip",
    ".gzip": "gzip",
    "+zstd": "zstd",
    ".zstd": "zstd",
}
_LAYERS: Final = (OCI_LAYER, OCI_FOREIGN_LAYER, DOCKER_LAYER, DOCKER_FOREIGN_LAYER)
_COMPRESSIONS: Final[dict[str, Compression]] = {
    base + suffix: compression for base in _LAYERS for suffix, compression in _SUFFIXES.items()
} | {
    "application/octet-stream": "none",
    "application/x-tar": "none",
    "application/gzip": "gzip",
    "application/x-gzip": "gzip",
    "application/zstd": "zstd",
    "application/vnd.docker.container.image.rootfs.diff+x-gtar": "gzip",
}


def layer_compression(layer: Descriptor) -> Compression:
    """Return how the tar archive of `layer` is compressed.

    Raises:
        UnsupportedError: the layer is encrypted, or not a tar archive.
    """
    media_type = layer.media_type.lower()
    if "+encrypted" in media_type:
        raise UnsupportedError(
            "it is encrypted",
            layer=layer.digest,
            hint="decrypt the image first, with skopeo copy --decryption-key",
        )
    compression = _COMPRESSIONS.get(media_type)
    if compression is None:
        raise UnsupportedError(
            f"it has the unknown media type {layer.media_type!r}", layer=layer.digest
        )
    return compression
