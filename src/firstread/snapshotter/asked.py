# SPDX-License-Identifier: Apache-2.0
"""The labels by which a client describes the layer that it prepares, as values. Pure.

Owns the names of labels. Clients that ask a snapshotter before they fetch give
``containerd.io/snapshot.ref``, the chain id of the future snapshot. containerd's handler of
snapshot annotations adds the image's name and the manifest's digest. containerd also passes on
annotations of a layer that begin with ``containerd.io/snapshot/``; by one of these, layers of
converted images identify themselves (docs/format.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from firstread.sectors.format import LAYER_LABEL

TARGET = "containerd.io/snapshot.ref"
IMAGE = "containerd.io/snapshot/cri.image-ref"
MANIFEST = "containerd.io/snapshot/cri.manifest-digest"
LAYERS = "containerd.io/snapshot/cri.image-layers"
UID_MAPPING = "containerd.io/snapshot/uidmapping"
GID_MAPPING = "containerd.io/snapshot/gidmapping"
UNPACKING = "extract-"  # of a key's last part: "extract-UNIQUE CHAIN-ID"


@dataclass(frozen=True, slots=True)
class Asked:
    """A layer that a client is about to unpack.

    Args:
        target: chain id.
        image: name of the image; empty if the client does not say.
        manifest: digest of its manifest, or empty.
        layer: digest of the layer, or empty.
        converted: the image is converted.
        last: the layer is the image's last.
    """

    target: str
    image: str
    manifest: str
    layer: str
    converted: bool
    last: bool


@dataclass(frozen=True, slots=True)
class Named:
    """The image of a layer, as the image lookup found it.

    Args:
        image: registry and repository.
        manifest: digest.
        layer: digest.
        converted: the image of the layer is converted.
        last: the layer is the image's last.
        derived: the image was built FROM a converted one.
    """

    image: str
    manifest: str
    layer: str
    converted: bool
    last: bool
    derived: bool = False


def read_labels(labels: Mapping[str, str]) -> Asked | None:
    """Return the layer that labels describe; None if they describe none."""
    target = labels.get(TARGET)
    if not target:
        return None
    return Asked(
        target=target,
        image=labels.get(IMAGE, ""),
        manifest=labels.get(MANIFEST, ""),
        layer=labels.get(LAYERS, "").partition(",")[0],
        converted=LAYER_LABEL in labels,
        last=LAYERS in labels and "," not in labels[LAYERS],
    )


def is_unpacking(key: str) -> bool:
    """Return whether a client chose this key for a layer that it unpacks."""
    return key.rpartition("/")[2].startswith(UNPACKING)


def unpacked(key: str) -> tuple[str, str]:
    """Return namespace and chain id of such a key, which containerd extends: NAMESPACE/N/KEY."""
    return key.partition("/")[0], key.rpartition(" ")[2]


def root_owner(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the user and group that 0 of a container maps to outside; None if not mapped.

    Raises:
        ValueError: a mapping is not ``INSIDE:OUTSIDE:COUNT``, with commas between several.
    """
    if UID_MAPPING not in labels and GID_MAPPING not in labels:
        return None
    return _outside(labels.get(UID_MAPPING, "")), _outside(labels.get(GID_MAPPING, ""))


def _outside(mapping: str) -> int:
    for entry in mapping.split(","):
        inside, outside, count = (int(number) for number in entry.split(":"))
        if inside == 0 and count > 0 and outside >= 0:
            return outside
    raise ValueError(f"{mapping!r} does not map 0")
