# SPDX-License-Identifier: Apache-2.0
"""Files that are read or written whole, and each failure says which file."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from firstread.errors import NodeError, UsageError
from firstread.wholefile import read_limited, replace_file


def test_a_file_of_just_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert read_limited(tmp_path / "f", 5) == b"12345"


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^/dev/zero is larger than 1\.0 KiB$"):
        read_limited(Path("/dev/zero"), 1024)


def test_errors_name_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=f"^cannot read the list '{tmp_path}': Is a directory"):
        read_limited(tmp_path, 1, "the list", missing=b"")


def test_a_missing_file_may_stand_for_something(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for path in (tmp_path / "none", tmp_path / "f/none"):
        assert read_limited(path, 1, missing=b"default") == b"default"
        with pytest.raises(NodeError, match="cannot read"):
            read_limited(path, 1)


def test_a_file_that_cannot_be_replaced_stays_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "f"
    replace_file(path, b"before", sync=True)
    assert path.stat().st_mode & 0o777 == 0o600
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # as a disk that gets full
    try:
        replace_file(path, b"after that")
        with pytest.raises(OSError, match="File too large"):
            replace_file(path, b"and some more")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"after that"
    assert os.listdir(tmp_path) == ["f"]
