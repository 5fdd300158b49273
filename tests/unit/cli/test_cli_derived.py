# SPDX-License-Identifier: Apache-2.0
"""Images built FROM a converted one: each command says so, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstread.testing.command import firstread
from firstread.testing.derived import put_derived
from firstread.testing.images import File, Image, Layer, write_layout

WHAT = (
    "it was built FROM a converted image: 1 ordinary layer on top of layers that only firstread"
    " can read"
)


@pytest.fixture(params=[True, False], ids=["annotated", "bare"])
def hint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put such an image at ``oci:derived:latest``; return the remedy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRSTREAD_CACHE", str(tmp_path / "cache"))
    original = write_layout(Image([Layer([File("a", b"a" * 5000)])]), "in")
    assert firstread("convert", "oci:in:latest", "oci:out:latest").code == 0
    put_derived("oci:out:latest", "oci:derived:latest", annotations=request.param)
    known = f", {original}" if request.param else ""
    return f"build it FROM the original image of its base{known}, then convert the result"


@pytest.mark.parametrize(
    "command",
    [
        ("convert", "oci:derived:latest", "oci:again:latest"),
        ("convert", "--attach", "oci:derived:latest"),
        ("inspect", "oci:derived:latest"),
        ("verify", "oci:derived:latest"),
        ("verify", "oci:out:latest", "--source", "oci:derived:latest"),
        ("extract", "oci:derived:latest", "tree"),
    ],
    ids=" ".join,
)
def test_a_command_names_a_derived_image(hint: str, command: tuple[str, ...]) -> None:
    ran = firstread(*command)
    assert ran.stderr == f"firstread: oci:derived:latest: {WHAT}\n  {hint}\n"
    assert (ran.code, ran.stdout) == (3, "")
    assert not Path("again/index.json").exists()
    assert not Path("tree").exists()


def test_json(hint: str) -> None:
    ran = firstread("inspect", "--json", "oci:derived:latest")
    assert ran.json == {
        "error": "DerivedImageError",
        "message": WHAT,
        "hint": hint,
        "image": "oci:derived:latest",
        "layer": None,
        "exit_code": 3,
        "retryable": False,
    }


def test_doctor(hint: str) -> None:
    ran = firstread("doctor", "--json", "oci:derived:latest")
    (check,) = [check for check in ran.json["checks"] if check["name"] == "image"]
    assert not check["ok"]
    assert WHAT in check["detail"]
    assert hint in json.dumps(check)
