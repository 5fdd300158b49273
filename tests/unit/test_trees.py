# SPDX-License-Identifier: Apache-2.0
"""The removal of trees, however deep."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from firstread.errors import NodeError
from firstread.testing.deeptree import make_deep
from firstread.trees import remove_tree


def test_a_tree_deeper_than_python_and_a_path_can_be(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", max(3000, 2 * sys.getrecursionlimit()))
    remove_tree(tmp_path / "deep")
    assert list(tmp_path.iterdir()) == []


def test_files_links_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "-rf").mkdir()
    (tmp_path / "-rf/link").symlink_to("../kept")
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "file").touch()
    remove_tree(*(tmp_path / name for name in ("-rf", "link", "file", "missing")))
    remove_tree()
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]


def test_more_paths_than_a_command_can_have(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    missing = [f"{tmp_path}/{number:0200}" for number in range(20_000)]
    with pytest.raises(NodeError, match=r"cannot remove '/proc/self"):
        remove_tree("/proc/self/comm", *missing, tmp_path / "last")
    assert not (tmp_path / "last").exists()


def test_what_stays_is_named() -> None:
    with pytest.raises(NodeError, match=r"cannot remove '/proc/self"):
        remove_tree("/proc/self/comm")
