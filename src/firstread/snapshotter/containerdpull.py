# SPDX-License-Identifier: Apache-2.0
"""Pulls a lazy image into containerd, in place of clients that only pull whole images.

Follows containerd's own clients in order and labels, but asks the snapshotter before it fetches
anything of a layer. Invariant: an image gets a name in containerd only when all its layers are
snapshots; the lease of a failed pull takes away what the pull left.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from firstread.errors import UnsupportedError
from firstread.oci.model import diff_ids
from firstread.oci.reference import Reference
from firstread.oci.resolve import ResolvedImage, resolve
from firstread.registry.open import open_source
from firstread.sectors.image import check_underived
from firstread.snapshotter.asked import IMAGE, LAYERS, MANIFEST, TARGET
from firstread.snapshotter.contentapi import ContainerdClient
from firstread.snapshotter.contentlabels import references, source
from firstread.snapshotter.imagelookup import chain_ids

INHERITED = "containerd.io/snapshot/"


def pull(
    reference: Reference,
    address: Path,
    namespace: str,
    snapshotter: str,
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> str:
    """Pull an image from a registry; return its name in containerd.

    Args:
        reference: of the image.
        address: socket of containerd.
        namespace: of containerd.
        snapshotter: its name in containerd.
        on_step: called with a description of each step.

    Raises:
        FirstreadError: the image cannot be had, containerd or the snapshotter refuses it, or it is
            not lazy.
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
        client.name(name, image.descriptor)
    return name


def _prepare(
    client: ContainerdClient,
    image: ResolvedImage,
    name: str,
    snapshotter: str,
    on_step: Callable[[str], None],
) -> str:
    """Make a snapshot of each layer; return the name of the last."""
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
    """Write config and manifest; their labels keep what they name."""
    kept = {f"containerd.io/{label}": top}
    for digest, data, labels in (
        (image.manifest.config.digest, image.config_bytes, kept),
        (image.descriptor.digest, image.manifest_bytes, references(image.manifest)),
    ):
        client.write(digest, data, source(reference, client.labels(digest)) | labels)
