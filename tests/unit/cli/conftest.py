# SPDX-License-Identifier: Apache-2.0
"""Every test of the command runs in its own directory and must leave it tidy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty directory, without cache or credentials, and leave nothing in TMPDIR."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("FIRSTREAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("HOME", str(tmp_path))
    # A busy machine makes a short conversion long.
    monkeypatch.setattr("firstread.cli.progressdisplay.INTERVAL_S", 3600.0)
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "FIRSTREAD_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    yield work
    assert not list(temporary.iterdir()), "temporary files are left"
    assert not list(work.rglob(".firstread-*")), "unfinished files are left at the destination"
