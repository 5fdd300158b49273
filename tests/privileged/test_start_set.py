# SPDX-License-Identifier: Apache-2.0
"""A shell starts from its start set alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from firstread.testing.command import firstread
from firstread.testing.daemon import Daemon
from firstread.testing.patience import PATIENCE_S

pytestmark = pytest.mark.privileged


def test_a_shell_reads_its_start_set(daemon: Daemon, debian: Path, tmp_path: Path) -> None:
    image = f"oci:{tmp_path}/lazy:latest"
    made = firstread("convert", f"oci:{debian}:latest", image, "--json")
    assert made.code == 0, made
    place = daemon.mount(image)
    command = ["chroot", str(place), "/bin/sh", "-c", "echo ready"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert said.stdout == "ready\n"
    status, hot = daemon.mounted(place), made.json["hot"]
    assert status["present"] == hot["sectors"]
    assert 0 < status["bytes_fetched"] <= hot["blob_size"]
