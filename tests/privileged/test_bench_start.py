# SPDX-License-Identifier: Apache-2.0
"""The two ways to start an image that the benchmarks compare."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from benchmarks.classic import unpack_layer
from benchmarks.host import Host
from benchmarks.images.ready import Prints
from benchmarks.places import LAZY, ORIGINAL, push, reference
from benchmarks.scratch import scratch_directory
from benchmarks.start import start_classic, start_lazy

from firstread.oci.reference import parse_reference
from firstread.oci.resolve import resolve
from firstread.registry.open import open_source
from firstread.testing.command import firstread
from firstread.testing.entries import Item
from firstread.testing.images import Dir, File, Image, Layer, Opaque, Whiteout, write_layout
from firstread.testing.registry import DockerRegistry

pytestmark = [pytest.mark.privileged, pytest.mark.benchmarks]


def test_both_ways_start_a_ready_container(debian: Path) -> None:
    ready = Prints("ready")
    with scratch_directory() as scratch, DockerRegistry() as registry:
        push(registry, "debian", debian)
        original, lazy = (reference(registry, "debian", tag) for tag in (ORIGINAL, LAZY))
        assert firstread("convert", original, lazy).code == 0
        with Host(scratch / "node") as host:
            first, again = (start_lazy(host, lazy, ready) for _ in range(2))
        classic = start_classic(scratch / "classic", original, ready)
    present, total = first.sectors
    assert 0 < present < total
    assert 0 < first.downloaded < classic.downloaded / 2
    assert again.downloaded == first.downloaded or again.sectors >= first.sectors
    assert {"metadata", "mount", "start", "first output"} <= first.steps.keys()
    # Another thread forwards the output, and may be faster than the one that starts.
    assert list(classic.steps)[:2] == ["resolve", "pull, unpack"]
    assert set(list(classic.steps)[2:]) == {"start", "first output"}
    assert not scratch.exists()


def test_whiteouts_become_those_of_overlayfs(tmp_path: Path) -> None:
    items: list[Item] = [Dir("d"), Whiteout("d/gone"), Dir("o"), Opaque("o"), File("o/new", b"new")]
    write_layout(Image([Layer(items)]), tmp_path / "layout")
    with open_source(parse_reference(f"oci:{tmp_path}/layout:latest")) as repository:
        (layer,) = resolve(repository).manifest.layers
        unpack_layer(repository, layer, tmp_path / "layer")
    gone = (tmp_path / "layer/d/gone").lstat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    assert os.getxattr(tmp_path / "layer/o", "trusted.overlay.opaque") == b"y"
    assert sorted(os.listdir(tmp_path / "layer/o")) == ["new"]
