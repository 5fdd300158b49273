# SPDX-License-Identifier: Apache-2.0
"""Pulls a lazy image into containerd, for clients that can only pull all of it.

Does what containerd's own clients do, in their order and with their labels, but asks the
snapshotter before anything of a layer is fetched. Invariant: an image has a name in containerd only
when all of its layers are snapshots; what a pull that failed has left goes with its lease.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from firstread.errors import UnsupportedError
from firstread.oci.model import diff_ids
from firstread.oci.open import open_source
from firstread.oci.reference import Reference
from firstread.oci.resolve import ResolvedImage, resolve
from firstread.sectors.image import check_underived
from firstread.snapshotter.asked import IMAGE, LAYERS, MANIFEST, TARGET
from firstread.snapshotter.contentapi import ContainerdClient, Target
from firstread.snapshotter.named import CONFIG, SOURCE, chain_ids

INHERITED = "containerd.io/snapshot/"


def pull(
    reference: Reference,
    address: Path,
    namespace: str,
    snapshotter: str,
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> str:
    """Pull an image of a registry; return what it is called in containerd.

    Args:
        reference: of the image.
        address: socket of containerd.
        namespace: of containerd.
        snapshotter: its name in containerd.
        on_step: is told what is done next.

    Raises:
        FirstreadError: it cannot be had, containerd or the snapshotter refuses it, or it is not
            lazy.
    """
    on_step("asking the registry")
    with open_source(reference) as repository:
        image = resolve(repository)
        check_underived(image.manifest)
        reference = repository.reference
    name = str(reference).removeprefix("docker://")
    with ContainerdClient(address, namespace) as client, client.leased():
        top = _prepare(client, image, name, snapshotter, on_step)
        on_step("giving it a name in containerd")
        _write(client, image, reference, f"gc.ref.snapshot.{snapshotter}", top)
        descriptor = image.descriptor
        client.name(name, Target(descriptor.media_type, descriptor.digest, descriptor.size))
    return name


def _prepare(
    client: ContainerdClient,
    image: ResolvedImage,
    name: str,
    snapshotter: str,
    on_step: Callable[[str], None],
) -> str:
    """Have a snapshot of each layer; return the name of the last."""
    layers = image.manifest.layers
    parent = ""
    for number, chain in enumerate(chain_ids(diff_ids(image.config))):
        on_step(f"asking the snapshotter for layer {number + 1} of {len(layers)}")
        annotations = layers[number].annotations or {}
        labels = {k: v for k, v in annotations.items() if k.startswith(INHERITED)} | {
            TARGET: chain,
            IMAGE: name,
            MANIFEST: image.descriptor.digest,
            LAYERS: ",".join(layer.digest for layer in layers[number:][:20]),
        }
        key = f"extract-{uuid.uuid4()} {chain}"
        if client.prepare(snapshotter, key, parent, labels):
            client.remove(snapshotter, key)
            raise UnsupportedError(
                f"{name} is not lazy: it is not converted, and no conversion is attached to it",
                hint=f"pull it with ctr images pull --snapshotter {snapshotter}",
            )
        parent = chain
    return parent


def _write(
    client: ContainerdClient, image: ResolvedImage, reference: Reference, label: str, top: str
) -> None:
    """Keep config and manifest; their labels keep what they name."""
    source = {f"{SOURCE}{reference.host}": reference.repository}
    config = image.manifest.config.digest
    client.write(config, image.config_bytes, source | {f"containerd.io/{label}": top})
    contents = {CONFIG: config}
    for number, layer in enumerate(image.manifest.layers):
        contents[f"containerd.io/gc.ref.content.l.{number}"] = layer.digest
    client.write(image.descriptor.digest, image.manifest_bytes, source | contents)
