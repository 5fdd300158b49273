# SPDX-License-Identifier: Apache-2.0
"""Images that a node pulls, and what it loads before the first."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from firstread.cache.nodeimage import NodeImage
from firstread.erofs import validation
from firstread.errors import ImageError
from firstread.mounts.puller import prepare
from firstread.mounts.table import Mount
from firstread.oci.reference import parse_reference
from firstread.registry import trust
from firstread.registry.access import Access
from firstread.testing.plainimage import put_plain_image
from firstread.testing.quietnode import quiet_node
from firstread.testing.shortage import few_descriptors
from firstread.units import KiB


def test_a_fetcher_survives_what_it_cannot_load_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the thread would end it."""
    system = trust.SystemTrust()
    monkeypatch.setattr(trust, "_system", system)
    validation.load.cache_clear()
    with monkeypatch.context() as short:
        short.setitem(sys.modules, "firstread.erofs.columns", None)
        with few_descriptors(os.getpid()):
            prepare()
    prepare()
    assert validation.load.cache_info().currsize == 1


def test_an_image_that_was_pruned_before_its_mount_is_kept_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, pulled = f"oci:{tmp_path}/layout:latest", list[str]()
    put_plain_image(name, count=1, sector_bytes=64 * KiB)
    with quiet_node(tmp_path / "root", tmp_path / "run") as node:
        pull = node._puller.pull_sound

        def pull_and_prune(*arguments: Any) -> NodeImage:
            image = pull(*arguments)
            pulled.append(image.digest)
            node._images.remove(image.digest)
            return image

        def mount(image: NodeImage, *_: Any) -> Mount:
            assert image.metadata.exists()
            return Mount(str(tmp_path), name, image.digest)

        monkeypatch.setattr(node._puller, "pull_sound", pull_and_prune)
        monkeypatch.setattr(node, "_mount_now", mount)
        assert node.mount(name, str(tmp_path), Access()).digest == pulled[0]
        assert len(pulled) == 2
        assert node._images.remove(pulled[0]), "it is kept for the mount only"


def test_files_that_stay_damaged_are_not_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"oci:{tmp_path}/layout:latest"
    put_plain_image(name, count=1, sector_bytes=64 * KiB)
    with quiet_node(tmp_path / "root", tmp_path / "run") as node:
        monkeypatch.setattr(node._puller, "_verify", "first-use")
        digest = node.pull(parse_reference(name), Access()).digest
        with node._images.metadata_path(digest).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"?")
        with node._images.keeping(digest), pytest.raises(ImageError, match=r"damaged, and others"):
            node.mount(name, str(tmp_path), Access())
