# SPDX-License-Identifier: Apache-2.0
"""What a client says of the layer that it prepares: labels, as values. Pure.

Owns the names of labels. Clients that ask a snapshotter before they fetch give
``containerd.io/snapshot.ref``, the chain id under which the layer will be known. The image's name
and the manifest's digest come from containerd's handler of snapshot annotations. Annotations of a
layer whose name begins with ``containerd.io/snapshot/`` come along as labels as they are, and so
layers of converted images say themselves that they are ones (docs/format.md).
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
UNPACKING = "extract-"  # what a key ends with: "extract-UNIQUE CHAIN-ID"


@dataclass(frozen=True, slots=True)
class Asked:
    """A layer that a client is about to unpack.

    Args:
        target: chain id.
        image: name of the image; empty if the client does not say.
        manifest: digest of its manifest; empty likewise.
        layer: digest of the layer; empty likewise.
        converted: it is a layer of a converted image.
        last: it is the image's last layer.
    """

    target: str
    image: str
    manifest: str
    layer: str
    converted: bool
    last: bool


@dataclass(frozen=True, slots=True)
class Named:
    """The image of a layer, as it is found out when the client does not say.

    Args:
        image: registry and repository.
        manifest: digest.
        layer: digest.
        converted: the layer is one of a converted image.
        last: it is the image's last one.
        derived: the image was built FROM a converted one.
    """

    image: str
    manifest: str
    layer: str
    converted: bool
    last: bool
    derived: bool = False


def read_labels(labels: Mapping[str, str]) -> Asked | None:
    """Return what is asked for; None if it is not a layer of an image."""
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
    """Tell whether a key is one that clients choose for a layer that they unpack."""
    return key.rpartition("/")[2].startswith(UNPACKING)


def unpacked(key: str) -> tuple[str, str]:
    """Return namespace and chain id of such a key, as containerd hands it on: NAMESPACE/N/KEY."""
    return key.partition("/")[0], key.rpartition(" ")[2]


def root_owner(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """Return whom user 0 and group 0 of a container are outside of it; None if not mapped.

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
