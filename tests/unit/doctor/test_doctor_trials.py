# SPDX-License-Identifier: Apache-2.0
"""The verdict on devices, of which some work: no kernel is asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from firstread.daemon import choice
from firstread.daemon.choice import Kind, Unheld
from firstread.doctor import trials
from firstread.doctor.running import check_daemon, wanted_device
from firstread.doctor.trials import check_devices
from firstread.errors import NodeError
from firstread.mounts.table import Mount, MountTable


def kind(name: str, problem: str = "", unheld: Unheld = Unheld.LOST) -> Kind:
    def prove(scratch: Path) -> str:
        (scratch / "left").write_text("over")
        if problem:
            raise NodeError(problem, hint=f"mend {name}")
        return "as it should"

    def make(*_: object) -> Any:
        raise AssertionError(name)

    return Kind(name, prove, make, unheld=unheld)


@pytest.mark.parametrize(
    ("wanted", "works", "said"),
    [
        (
            "auto",
            "b",
            ["warn: no a; so a daemon has b", "ok: works: as it should", "ok: not needed; no c"],
        ),
        ("b", "b", ["ok: not needed; no a", "ok: works: as it should", "ok: not needed; no c"]),
        ("c", None, ["ok: not needed; no a", "ok: works: as it should", "fail: no c"]),
    ],
)
def test_a_device_is_judged_by_the_need_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, works: str, said: list[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(trials, "DEVICES", (kind("a", "no a"), kind("b"), kind("c", "no c")))
    found = check_devices(tmp_path / "root", wanted)
    assert found.works == works
    assert [f"{each.status}: {each.detail}" for each in found.findings] == said
    assert [each.name for each in found.findings] == ["device a", "device b", "device c"]
    assert not list(tmp_path.iterdir())


def test_all_fail_if_none_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(trials, "DEVICES", (kind("a", "no a"), kind("b", "no b")))
    found = check_devices(tmp_path)
    assert found.works is None
    assert [(each.status, each.fix) for each in found.findings] == [
        ("fail", "mend a"),
        ("fail", "mend b"),
    ]


@pytest.mark.parametrize(
    ("problem", "unheld", "works"),
    [
        ("", Unheld.LOST, "a"),
        ("", Unheld.WAITING, "b"),
        ("no b", Unheld.WAITING, "a"),
        ("no b", Unheld.READABLE, None),
    ],
)
def test_a_standing_mount_keeps_its_device(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    problem: str,
    unheld: Unheld,
    works: str | None,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for module in (choice, trials):
        monkeypatch.setattr(module, "DEVICES", (kind("a"), kind("b", problem, unheld)))
    MountTable(tmp_path).save(Mount("/", "oci:/x:1", "sha256:0", device="b"))
    assert check_devices(tmp_path).works == works
    assert check_devices(tmp_path, "a").works == "a"


def test_the_configuration_says_which_device_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[node]\ndevice = "fuse"\n')
    running = {"device": {"name": "fanotify", "passed_over": [], "wanted": "fanotify"}}
    assert wanted_device(path, running) == "fuse"
    assert wanted_device(None, running) == "fanotify"
    path.write_text('[node]\ndevice = "floppy"\n')
    assert wanted_device(path, None) == "auto"  # another check says what is wrong with it


@pytest.mark.parametrize(
    ("device", "status", "detail"),
    [
        (
            {"passed_over": [], "wanted": "fanotify"},
            "warn",
            "fuse, though the configuration asks for fanotify by now",
        ),
        (
            {"passed_over": [{"device": "fanotify", "reason": "zeros"}], "wanted": "auto"},
            "ok",
            "fuse; not fanotify: zeros",
        ),
    ],
)
def test_the_device_of_a_daemon_is_shown(
    tmp_path: Path, device: dict[str, Any], status: str, detail: str
) -> None:
    daemon = {
        "device": {"name": "fuse", **device},
        "supervisor": {"pid": 1},
        "fetcher": {"pid": 1, "restarts": 0, "healthy": True},
        "mounts": [],
    }
    checks = {each.name: each for each in check_daemon(tmp_path, tmp_path, daemon)}
    found = checks["daemon's device"]
    assert (found.status, found.detail) == (status, detail)
