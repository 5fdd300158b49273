# SPDX-License-Identifier: Apache-2.0
"""The directories of a node, for root and for an ordinary user."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstread import userdirs
from firstread.errors import UsageError

NOBODY_AT_ALL = 2**31 - 7  # no user of this machine


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(userdirs, "owner", lambda: NOBODY_AT_ALL)
    for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    return NOBODY_AT_ALL


def test_root_has_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userdirs, "owner", lambda: 0)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "/elsewhere")
    assert str(userdirs.store_directory()) == "/var/lib/firstread"
    assert str(userdirs.runtime_directory()) == "/run/firstread"
    assert str(userdirs.configuration()) == "/etc/firstread/config.toml"


@pytest.mark.usefixtures("user")
def test_a_user_has_those_of_its_home() -> None:
    assert str(userdirs.store_directory()) == "/home/somebody/.local/share/firstread"
    assert str(userdirs.runtime_directory()) == "/home/somebody/.local/share/firstread/run"
    assert str(userdirs.configuration()) == "/home/somebody/.config/firstread/config.toml"


@pytest.mark.usefixtures("user")
def test_variables_move_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    assert userdirs.store_directory() == userdirs.runtime_directory() == tmp_path / "firstread"
    assert userdirs.configuration() == tmp_path / "firstread/config.toml"


@pytest.mark.usefixtures("user")
def test_a_relative_path_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "relative")
    assert str(userdirs.store_directory()) == "/home/somebody/.local/share/firstread"
    assert str(userdirs.runtime_directory()) == "/home/somebody/.local/share/firstread/run"


def test_a_user_without_a_home_is_asked_for_places(
    user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    with pytest.raises(UsageError, match=f"user {user} has no home directory"):
        userdirs.store_directory()
