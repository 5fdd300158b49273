# SPDX-License-Identifier: Apache-2.0
"""The labels of containerd's contents: what keeps them, and where they came from. Pure.

Follows containerd's own clients (core/images/handlers.go, core/remotes/docker/handler.go), which
read what we write and write what we read.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from firstread.oci.model import Manifest
from firstread.oci.reference import Reference

CONFIG = "containerd.io/gc.ref.content.config"
LAYER = "containerd.io/gc.ref.content.l."
SOURCE = "containerd.io/distribution.source."
MAX_LABEL = 4096  # characters of a name and its value (containerd, pkg/labels/validate.go)


def references(manifest: Manifest) -> dict[str, str]:
    """Return the labels with which a manifest keeps its config and its layers."""
    layers = {f"{LAYER}{number}": layer.digest for number, layer in enumerate(manifest.layers)}
    return {CONFIG: manifest.config.digest, **layers}


def source(reference: Reference, known: Mapping[str, str]) -> dict[str, str]:
    """Return the label that names the repositories of a registry which have a content.

    Clients have the registry mount a content from there when they push it elsewhere.

    Args:
        reference: an image that has the content.
        known: labels that the content has already.
    """
    name = f"{SOURCE}{urlsplit(f'//{reference.host}').hostname}"  # without the port
    repositories = {*known.get(name, "").split(","), reference.repository} - {""}
    value = ",".join(sorted(repositories))
    return {name: value} if len(name) + len(value) <= MAX_LABEL else {}
