# SPDX-License-Identifier: Apache-2.0
"""Places of their own for tests of ``sync``, and a real registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.testing.registry import DockerRegistry


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTREAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("firstread.cli.progressdisplay.INTERVAL_S", 3600.0)
    monkeypatch.setattr("firstread.registry.referrerlists.SETTLE_S", 0.01)


@pytest.fixture
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as running:
        yield running
