# SPDX-License-Identifier: Apache-2.0
"""Commands of a user who may neither ask root's daemon nor read its directories."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from firstread.control.client import Client
from firstread.testing.command import Ran, program

STRANGER = 65534
POWERLESS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to be less"
)


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, ...]:
    """Directories of somebody else, which root cannot read without its capabilities."""
    for name in ("root", "run"):
        (tmp_path / name).mkdir(mode=0o700)
        os.chown(tmp_path / name, STRANGER, STRANGER)
    return ("--root", str(tmp_path / "root"), "--run-dir", str(tmp_path / "run"))


def as_another(*arguments: str) -> Ran:
    done = subprocess.run(
        [*POWERLESS, *program(*arguments)], capture_output=True, text=True, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def test_the_version_needs_no_rights(places: tuple[str, ...]) -> None:
    ran = as_another("version", *places)
    assert (ran.code, ran.stderr) == (0, "")
    assert f"daemon     unknown: this user may not ask in {places[3]}\n" in ran.stdout


@pytest.mark.parametrize("verb", ["status", "events", "mount oci:/x:y /y"])
def test_a_daemon_that_cannot_be_asked_may_well_run(places: tuple[str, ...], verb: str) -> None:
    ran = as_another(*verb.split(), *places)
    words = f"this user may not ask at {places[3]}/control.sock\n  run it as root"
    assert (ran.code, ran.stdout, ran.stderr) == (5, "", f"firstread: {words}\n")


@pytest.mark.parametrize("verb", ["umount /y", "fetch --all /y", "cache ls"])
def test_a_directory_of_roots_is_no_defect(places: tuple[str, ...], verb: str) -> None:
    ran = as_another(*verb.split(), *places)
    assert (ran.code, ran.stdout) == (5, "")
    assert "Permission denied\n  check the permissions of the path, or run as root" in ran.stderr


def test_containerd_is_configured_without_a_look_into_the_root(
    places: tuple[str, ...], tmp_path: Path
) -> None:
    config = tmp_path.parent / "nobodys.toml"
    ran = as_another("install", "containerd", "--config", str(config), "--dry-run", *places[:2])
    assert "Invalid value" not in ran.stderr


def test_checks_do_not_take_such_a_daemon_for_none(places: tuple[str, ...]) -> None:
    ran = as_another("doctor", "--json", *places)
    checks = {check["name"]: check for check in json.loads(ran.stdout)["checks"]}
    assert (checks["daemon"]["ok"], checks["daemon"]["fix"]) == (False, "run it as root")


def test_missing_directories_are_not_reported_as_closed(tmp_path: Path) -> None:
    assert not Client(tmp_path / "run").closed_to_us()
