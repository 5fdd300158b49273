# SPDX-License-Identifier: Apache-2.0
"""What the snapshotter finds out of lazy images without the daemon."""

from __future__ import annotations

from pathlib import Path

from firstread.cache.imagestore import image_directory
from firstread.snapshotter.lazyimages import DaemonImages

DIGEST = "sha256:" + "0" * 64


def test_the_usage_of_an_image_takes_a_look_at_that_image_alone(tmp_path: Path) -> None:
    """containerd asks for each snapshot every ten seconds."""
    root, reference = tmp_path / "root", f"docker://r.example/app@{DIGEST}"
    images = DaemonImages(root, tmp_path / "run")
    assert images.usage(reference) == (0, 0)
    assert not root.exists()  # no store of images was opened
    directory = image_directory(root, DIGEST)
    directory.mkdir(parents=True)
    (directory / "metadata").write_bytes(bytes(4096))
    assert images.usage(reference)[1] == 2
