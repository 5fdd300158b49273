# SPDX-License-Identifier: Apache-2.0
"""Unpacks a lazy layer that an ordinary image needs.

An ordinary image can share lower layers with one that is used through an attached conversion. The
snapshotter knows these layers, so no client fetches them again. This module fetches them, and
containerd unpacks them as it unpacks any other. Invariant: an unpacked layer has the diff_id that
its chain id asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from firstread.errors import ImageError, UnsupportedError
from firstread.oci.model import Manifest, parse_manifest
from firstread.oci.reference import parse_reference
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.snapshotter.asked import IMAGE, LAYERS, MANIFEST, TARGET
from firstread.snapshotter.contentapi import ContainerdClient
from firstread.snapshotter.imagelookup import chain_ids
from firstread.snapshotter.messages import Mount

log = logging.getLogger("snapshotter")


class Unpacker:
    """Makes the containerd at a socket unpack layers."""

    def __init__(self, address: Path) -> None:
        self._address = address

    def __call__(
        self, namespace: str, labels: Mapping[str, str], below: str, mounts: list[Mount]
    ) -> None:
        """Unpack a layer into `mounts`.

        Args:
            namespace: of containerd.
            labels: of the layer; they must name its image.
            below: chain id of the layer below it; empty if there is none.
            mounts: of a writable snapshot.

        Raises:
            FirstreadError: the registry or containerd refuses, or the layer is another one.
        """
        missing = [label for label in (IMAGE, MANIFEST, LAYERS, TARGET) if not labels.get(label)]
        if missing:
            raise UnsupportedError(
                f"a layer of a lazy image has no label {missing[0]}, so it cannot be unpacked",
                hint="remove the lazy image from this node, and pull both again",
            )
        digest = labels[LAYERS].partition(",")[0]
        reference = parse_reference(f"{labels[IMAGE].partition('@')[0]}@{labels[MANIFEST]}")
        with open_source(reference, AccessOptions(who="the snapshotter")) as repository:
            manifest = parse_manifest(repository.get_manifest(labels[MANIFEST])[1])
            layers = manifest.layers if isinstance(manifest, Manifest) else []
            layer = next((layer for layer in layers if layer.digest == digest), None)
            if layer is None:
                raise UnsupportedError(f"{reference} has no layer {digest}")
            log.info("layer %s of %s is unpacked for another image", digest, reference)
            with ContainerdClient(self._address, namespace) as client, client.leased():
                with repository.open_blob(layer) as blob:
                    client.copy(layer.digest, layer.size, blob)
                diff_id = client.apply(layer, mounts)
        if chain_ids([below, diff_id] if below else [diff_id])[-1] != labels[TARGET]:
            raise ImageError(f"layer {digest} of {reference} is not the one that its config names")
