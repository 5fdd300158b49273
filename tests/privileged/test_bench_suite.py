# SPDX-License-Identifier: Apache-2.0
"""The cold-start suite really starts containers, by every client that needs nothing but Debian."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.suite import __main__ as suite

pytestmark = [pytest.mark.privileged, pytest.mark.benchmarks]

MODES = ("overlayfs", "classic", "lazy", "local", "run-lazy", "run-local")


def test_an_image_starts_by_every_client_over_two_links(
    debian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    shutil.copytree(debian, images / "debian")
    shutil.copy(debian.with_name("debian.json"), images)
    monkeypatch.setenv("FIRSTREAD_IMAGES", str(images))
    options = {
        "--images": "debian",
        "--modes": ",".join((*MODES, "soci")),
        "--links": "none,200Mbit/2ms",
        "--runs": "1",
        "--csv": str(tmp_path / "runs.csv"),
        "--json": str(tmp_path / "results.json"),
    }
    words = [word for pair in options.items() for word in pair]
    monkeypatch.setattr("sys.argv", ["suite", *words])
    absent = replace(suite.MODES["soci"], daemon=("no-such-program",), convert=())
    monkeypatch.setitem(suite.MODES, "soci", absent)
    assert suite.main() == 0

    with (tmp_path / "runs.csv").open() as file:
        rows = {(row["link"], row["mode"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(link, mode) for link in ("none", "200Mbit/2ms") for mode in MODES}
    for (link, mode), row in rows.items():
        assert float(row["ready_s"]) > 0
        assert (int(row["wire_bytes"]) > 0) == (link != "none")
        fetched, whole = int(row["sent_bytes"]), 48_000_000
        assert (fetched > whole) == (mode in ("overlayfs", "classic"))
        assert (fetched < 1_000_000) == ("local" in mode)
    section = json.loads((tmp_path / "results.json").read_text())["suite"]
    assert section["setting"]["`soci`"] == "left out: no-such-program is not in PATH"
    assert any(line.startswith("| debian | lazy |") for line in section["table"])
    assert not list(tmp_path.glob("bench-*"))
