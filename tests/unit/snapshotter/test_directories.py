# SPDX-License-Identifier: Apache-2.0
"""The directories of snapshots, with trees in them that containers make to do harm."""

from __future__ import annotations

import os
from pathlib import Path

from firstread.snapshotter.directories import Directories, usage
from firstread.testing.deeptree import make_deep

LEVELS = 3000  # deeper than Python calls itself, and than a path is long


def test_a_deep_tree_is_measured_and_removed(tmp_path: Path) -> None:
    directories = Directories(tmp_path / "s")
    for number in (1, 2):
        directories.make(number, writable=True)
        make_deep(directories.upper(number) / "d", LEVELS)
    assert usage(directories.upper(1))[1] == LEVELS + 2
    directories.remove(1)
    assert os.listdir(tmp_path / "s") == ["2"]
    directories.sweep([])
    assert os.listdir(tmp_path / "s") == []


def test_a_tree_is_measured(tmp_path: Path) -> None:
    top = tmp_path / "t"
    for name in ("a/b", "a/c", "d"):
        (top / name).mkdir(parents=True)
    (top / "a/b/file").write_bytes(bytes(100_000))
    os.link(top / "a/b/file", top / "d/again")
    (top / "a/c/link").symlink_to("/")
    (top / "d/to-a").symlink_to("../a")
    places = [top, *top.rglob("*")]
    inodes = {place.lstat().st_ino: place.lstat().st_blocks * 512 for place in places}
    assert usage(top) == (sum(inodes.values()), 8) == (sum(inodes.values()), len(inodes))
    assert usage(tmp_path / "missing") == (0, 0)
