# SPDX-License-Identifier: Apache-2.0
"""Brings the layers of a lazy image into containerd, for clients that read them as bytes.

A lazy pull leaves layers in their registry. Clients that save an image, push what was built from it
to another place, or export it look for them in containerd's content store. Invariant: an image's
name and its snapshots stay as they are, so its containers stay lazy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from firstread.errors import UsageError
from firstread.oci.reference import Reference
from firstread.oci.resolve import resolve
from firstread.registry.open import open_source
from firstread.snapshotter.contentapi import ContainerdClient
from firstread.snapshotter.contentlabels import references, source


def copy_layers(
    reference: Reference,
    address: Path,
    namespace: str,
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> tuple[int, int]:
    """Copy the layers that containerd lacks of an image that it has.

    Args:
        reference: of the image.
        address: socket of containerd.
        namespace: of containerd.
        on_step: called with a description of each step.

    Returns:
        Layers that were copied, and their bytes.

    Raises:
        UsageError: containerd does not have the image, as its name is now in the registry.
        FirstreadError: the registry or containerd refuses.
    """
    on_step("asking the registry")
    with open_source(reference) as repository, ContainerdClient(address, namespace) as client:
        image = resolve(repository)
        here = {content.digest for content in client.contents()}
        if image.descriptor.digest not in here:
            raise UsageError(
                f"containerd's namespace {namespace} does not have the image"
                f" {image.descriptor.digest}",
                hint="pull it first, with the client that is to use it; docker's namespace is moby",
                image=str(reference),
            )
        missing = {layer.digest: layer for layer in image.manifest.layers}  # each once
        missing = {digest: layer for digest, layer in missing.items() if digest not in here}
        with client.leased():  # after that the manifest's labels keep them
            for number, layer in enumerate(missing.values(), start=1):
                on_step(f"copying layer {number} of {len(missing)}")
                with repository.open_blob(layer) as blob:
                    client.copy(layer.digest, layer.size, blob, source(reference, {}))
            # containerd that discards unpacked layers leaves the labels out, or removes them.
            client.label(image.descriptor.digest, references(image.manifest))
    return len(missing), sum(layer.size for layer in missing.values())
