# SPDX-License-Identifier: Apache-2.0
"""Wrong bytes that are kept aside."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from firstread.cache import quarantine
from firstread.cache.quarantine import Quarantine


def entries(root: Path) -> list[Path]:
    return sorted((root / "quarantine").glob("*.json"))


def test_an_entry_says_where_its_bytes_came_from(tmp_path: Path) -> None:
    kept = Quarantine(tmp_path)
    for _ in range(2):
        kept.put(b"wrong", sector="ab" * 32, source="docker://host.test/x", offset=17, error="e")
    (path,) = entries(tmp_path)
    stated = json.loads(path.read_text())
    assert stated.pop("time") > 1e9
    assert stated == {
        "sha256": hashlib.sha256(b"wrong").hexdigest(),
        "bytes": 5,
        "sector": "ab" * 32,
        "source": "docker://host.test/x",
        "offset": 17,
        "error": "e",
    }
    assert path.with_suffix(".bin").read_bytes() == b"wrong"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.with_suffix(".bin").stat().st_mode & 0o777 == 0o600
    assert len(os.listdir(path.parent)) == 2


def test_the_oldest_goes_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MAX_ENTRIES", 3)
    kept = Quarantine(tmp_path)
    for number in range(5):
        kept.put(b"%d" % number, sector=f"{number:064x}")
    contents = {path.with_suffix(".bin").read_bytes() for path in entries(tmp_path)}
    assert contents == {b"2", b"3", b"4"}


def test_there_are_never_more_bytes_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MAX_BYTES", 100)
    kept = Quarantine(tmp_path)
    for number in range(5):
        kept.put(bytes([number]) * 40)
    kept.put(b"x" * 1000)
    assert [path.with_suffix(".bin").stat().st_size for path in entries(tmp_path)] == [100]


def test_a_failed_quarantine_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "quarantine").write_text("in the way")
    Quarantine(tmp_path).put(b"wrong")
    assert "cannot keep wrong bytes" in caplog.text
