# SPDX-License-Identifier: Apache-2.0
"""Chain ids, and a containerd that is not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from firstread.snapshotter.imagelookup import ImageLookup, chain_ids


def test_chain_ids() -> None:
    layers = ["sha256:a", "sha256:b", "sha256:c"]
    second = "sha256:" + hashlib.sha256(b"sha256:a sha256:b").hexdigest()
    third = "sha256:" + hashlib.sha256(f"{second} sha256:c".encode()).hexdigest()
    assert chain_ids(layers) == ["sha256:a", second, third]
    assert chain_ids([]) == []


def test_without_containerd_no_image_is_known(tmp_path: Path) -> None:
    assert ImageLookup(tmp_path / "none")("default", "sha256:a") is None
