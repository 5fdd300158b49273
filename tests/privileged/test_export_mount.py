# SPDX-License-Identifier: Apache-2.0
"""The raw file of an image, mounted: the kernel shows the image's tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstread.device.erofsmount import mount_erofs, unmount
from firstread.export.rawfile import write_raw
from firstread.testing.features import feature_tree
from firstread.testing.images import feature_image
from firstread.testing.observe import differences, observe
from firstread.testing.packed import converted, opened

pytestmark = pytest.mark.privileged


def test_the_image_with_every_feature(tmp_path: Path) -> None:
    place, manifest = converted(feature_image())
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    write_raw(place, opened(place, manifest), tmp_path / "raw")
    mount_erofs(tmp_path / "raw", [], mountpoint)
    try:
        assert differences(feature_tree(), observe(mountpoint)) == []
    finally:
        unmount(mountpoint)
