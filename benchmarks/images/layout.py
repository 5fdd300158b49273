# SPDX-License-Identifier: Apache-2.0
"""Completes an OCI image layout whose layer blobs are already in place.

Owns config, manifest, index and ``oci-layout`` (OCI image specification 1.1). Invariant: written
last, so that a layout with an ``index.json`` is complete.
"""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from benchmarks.images.recipes import PATH, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.images.layer import LayerBlob

MEDIA = "application/vnd.oci.image"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_layout(
    layout: Path, recipe: Recipe, layers: Sequence[LayerBlob], history: Sequence[str]
) -> None:
    """Complete the layout at `layout`, whose ``blobs/sha256`` holds `layers`.

    Args:
        layout: its directory.
        recipe: says what the config contains.
        layers: lowest first.
        history: for each layer the command that made it.
    """
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = {
        "created": created,
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {
            "Env": [f"PATH={PATH}", *recipe.env],
            "Cmd": list(recipe.command),
            "WorkingDir": recipe.workdir,
            **({"User": recipe.user} if recipe.user else {}),
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": created, "created_by": line} for line in history],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": {"mediaType": f"{MEDIA}.config.v1+json", **_put(layout, config)},
        "layers": [
            {
                "mediaType": f"{MEDIA}.layer.v1.tar+gzip",
                "digest": layer.digest,
                "size": layer.size,
            }
            for layer in layers
        ],
    }
    index = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.index.v1+json",
        "manifests": [
            {
                "mediaType": f"{MEDIA}.manifest.v1+json",
                **_put(layout, manifest),
                "annotations": {"org.opencontainers.image.ref.name": "latest"},
            }
        ],
    }
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (layout / "index.json").write_text(json.dumps(index))


def _put(layout: Path, document: Mapping[str, object]) -> dict[str, str | int]:
    """Store `document` as a blob; return the digest and size of its descriptor."""
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}
