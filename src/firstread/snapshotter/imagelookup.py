# SPDX-License-Identifier: Apache-2.0
"""Image lookup: finds the image of a layer in containerd's store, when the client does not name it.

Clients that pull without snapshot annotations, such as nerdctl, give at most the chain id. By then
containerd's store has the manifest, with labels that name its config and its repository. Invariant:
the chain id of the layer in the image that is found is the one that was asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firstread.errors import FirstreadError
from firstread.oci.model import Manifest, diff_ids, parse_config, parse_manifest
from firstread.oci.reference import parse_reference
from firstread.sectors.image import is_block_layer
from firstread.snapshotter.asked import Named
from firstread.snapshotter.containerd_pb2 import Content
from firstread.snapshotter.contentapi import ContainerdClient
from firstread.snapshotter.contentlabels import CONFIG, SOURCE

log = logging.getLogger("snapshotter")

MAX_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class _Layers:
    """The layers of an image: chain ids, digests, and whether each is one of a converted image."""

    chains: Sequence[str] = ()
    digests: Sequence[str] = ()
    converted: Sequence[bool] = ()


class ImageLookup:
    """Asks the containerd at a socket; called with a namespace and a chain id."""

    def __init__(self, address: Path) -> None:
        self._address = address
        self._known: dict[str, _Layers] = {}  # by the manifest's digest
        self._lock = threading.Lock()

    def __call__(self, namespace: str, chain: str) -> Named | None:
        """Return the image that has a layer with this chain id; None if unknown."""
        if not self._address.exists():
            return None
        try:
            with ContainerdClient(self._address, namespace) as client:
                return self._find(client, chain)
        except FirstreadError as exc:
            log.warning("cannot look for the image of %s: %s", chain, exc)
            return None

    def _find(self, client: ContainerdClient, chain: str) -> Named | None:
        for info in client.contents(f'labels."{CONFIG}"'):
            layers = self._layers(client, info.digest, info.labels[CONFIG])
            if chain not in layers.chains or not (image := _repository(client, info)):
                continue
            position = layers.chains.index(chain)
            return Named(
                image,
                info.digest,
                layers.digests[position],
                converted=layers.converted[position],
                last=position == len(layers.chains) - 1,
                derived=len(set(layers.converted)) > 1,
            )
        return None

    def _layers(self, client: ContainerdClient, manifest: str, config: str) -> _Layers:
        with self._lock:
            known = self._known.get(manifest)
        if known is not None:
            return known
        try:
            document = parse_manifest(client.read(manifest))
            chains = chain_ids(diff_ids(parse_config(client.read(config))))
        except FirstreadError:  # not an image, or not complete yet
            return _Layers()
        if not isinstance(document, Manifest) or len(document.layers) != len(chains):
            return _Layers()
        digests = [layer.digest for layer in document.layers]
        known = _Layers(chains, digests, [is_block_layer(layer) for layer in document.layers])
        with self._lock:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[manifest] = known
        return known


def _repository(client: ContainerdClient, manifest: Content) -> str:
    """Return registry and repository of a manifest; empty if unknown.

    A name includes the registry's port, the label of the source does not.
    """
    for name in client.names(manifest.digest):
        with contextlib.suppress(FirstreadError):
            reference = parse_reference(name)
            return f"{reference.host}/{reference.repository}"
    for label, repositories in manifest.labels.items():
        if label.startswith(SOURCE):
            return f"{label.removeprefix(SOURCE)}/{repositories.partition(',')[0]}"
    return ""


def chain_ids(layers: Sequence[str]) -> list[str]:
    """Return the chain id of each layer, from the diff_ids of all (OCI image-spec, "ChainID")."""
    chains: list[str] = []
    for layer in layers:
        below = f"{chains[-1]} {layer}".encode() if chains else b""
        chains.append(f"sha256:{hashlib.sha256(below).hexdigest()}" if below else layer)
    return chains
