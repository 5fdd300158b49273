# SPDX-License-Identifier: Apache-2.0
"""containerd itself reads what ``firstread install containerd`` writes."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from firstread.snapshotter import imagefs
from firstread.snapshotter.configfile import CRI, TRANSFER
from firstread.testing.command import firstread
from firstread.testing.patience import PATIENCE_S

pytestmark = [
    pytest.mark.privileged,  # marked for its place: it needs the real program, not rights
    pytest.mark.skipif(shutil.which("containerd") is None, reason="containerd is not installed"),
]


@pytest.fixture(autouse=True)
def _no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave this machine's containerd alone."""
    monkeypatch.setattr(imagefs, "ROOT", "/nonexistent")


def containerd(*arguments: str) -> str:
    done = subprocess.run(
        ["containerd", *arguments], capture_output=True, check=True, text=True, timeout=PATIENCE_S
    )
    return done.stdout


def dump(path: Path) -> dict[str, Any]:
    """Return the configuration as containerd understands it."""
    return tomllib.loads(containerd("--config", str(path), "config", "dump"))


TEXTS = {
    "nothing": None,
    "empty": "",
    "version 1": '[plugins.cri.containerd]\n  snapshotter = "native"\n',
    "version 2": "version = 2\n",
    "only a runtime": (
        "version = 2\n"
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\n'
        '  runtime_type = "io.containerd.runc.v2"\n'
    ),
    "version 2 with a section of 3": (
        "version = 2\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'native'\n"
    ),
    "all defaults": "default",
}


@pytest.mark.parametrize("name", TEXTS)
def test_containerd_understands_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    text = TEXTS[name]
    if text is not None:
        path.write_text(containerd("config", "default") if text == "default" else text)
    before = path.read_bytes() if path.exists() else None
    known = dump(path) if before is not None else None
    ran = firstread("install", "containerd", "--config", path, "--default", "--socket", "/s")
    assert (ran.code, ran.stderr) == (0, ""), ran
    said = dump(path)
    assert said["proxy_plugins"]["firstread"]["address"] == "/s"
    assert said["proxy_plugins"]["firstread"]["type"] == "snapshot"
    plugin: Any = said
    for key in CRI[said["version"]]:
        plugin = plugin[key]
    assert plugin["snapshotter"] == "firstread"
    assert plugin["disable_snapshot_annotations"] is False
    if said["version"] > 2:
        unpacked = said["plugins"][TRANSFER[1]]["unpack_config"]
        assert [entry["snapshotter"] for entry in unpacked] == ["overlayfs", "firstread"]
    ran = firstread("uninstall", "containerd", "--config", path)
    assert (ran.code, ran.stderr) == (0, ""), ran
    if before is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert path.read_bytes() == before
        assert dump(path) == known
        assert list(tmp_path.iterdir()) == [path]


def test_a_drop_in_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'version = 2\nimports = ["{tmp_path}/conf.d/*.toml"]\noom_score = 7\n')
    ran = firstread("install", "containerd", "--config", path, "--drop-in", "--socket", "/s")
    assert (ran.code, ran.stderr) == (0, ""), ran
    said = dump(path)
    assert said["proxy_plugins"]["firstread"]["address"] == "/s"
    assert said["oom_score"] == 7


def test_a_configuration_that_containerd_refuses_is_not_written(tmp_path: Path) -> None:
    """It is valid TOML, but means nothing to containerd."""
    path = tmp_path / "config.toml"
    text = 'version = 2\noom_score = "much"\n'
    path.write_text(text)
    ran = firstread("install", "containerd", "--config", path)
    assert ran.code == 5
    assert "containerd does not accept the configuration" in ran.stderr
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
