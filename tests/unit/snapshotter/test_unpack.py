# SPDX-License-Identifier: Apache-2.0
"""Layers that are to be unpacked for another image, of records that say too little."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstread.errors import UnsupportedError
from firstread.snapshotter.asked import IMAGE, LAYERS, MANIFEST, TARGET
from firstread.snapshotter.unpack import Unpacker

LABELS = {
    TARGET: "sha256:1",
    IMAGE: "example.com/app",
    MANIFEST: "sha256:2",
    LAYERS: "sha256:3,sha256:4",
}


@pytest.mark.parametrize("label", LABELS)
def test_a_layer_without_a_label(label: str, tmp_path: Path) -> None:
    labels = {name: value for name, value in LABELS.items() if name != label}
    with pytest.raises(UnsupportedError, match=f"has no label {label}"):
        Unpacker(tmp_path / "none")("k8s.io", labels, "", [])
