# SPDX-License-Identifier: Apache-2.0
"""A daemon on a kernel that shows zeros for missing data; this kernel only simulates that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from firstread.mounts.kernelproof import RECORD
from firstread.mounts.table import mounted_erofs
from firstread.testing.daemon import Daemon
from firstread.testing.patience import PATIENCE_S

pytestmark = pytest.mark.privileged

# The test fills the file up with zeros, so its end reads as zeros.
ZERO_FILLING = """
import sys
from firstread.cli.main import main
from firstread.device import probe

write_bytes = probe.Path.write_bytes
probe.Path.write_bytes = lambda path, data: write_bytes(path, data + bytes(len(data)))
sys.argv[0] = "firstread"
main()
"""


def test_a_daemon_refuses_to_start_where_missing_data_reads_as_zeros(tmp_path: Path) -> None:
    options = ["daemon", "--root", str(tmp_path / "root"), "--run-dir", str(tmp_path / "run")]
    options += ["--device", "fanotify"]
    for _ in range(2):  # a refusal records no proof
        ran = subprocess.run(
            [sys.executable, "-c", ZERO_FILLING, *options],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert ran.returncode == 5, ran.stderr
        assert "the device fanotify does not work here: EROFS reads zeros" in ran.stderr
        assert "use Linux 7.0 or later" in ran.stderr
        assert "Traceback" not in ran.stderr
    assert not (tmp_path / "root" / RECORD).exists()
    assert not (tmp_path / "root" / "trial").exists()
    assert not [place for place in mounted_erofs() if place.startswith(str(tmp_path))]


def test_a_daemon_proves_the_kernel_before_its_first_mount(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        record = json.loads((daemon.root / RECORD).read_bytes())
        assert record["release"] == os.uname().release
        assert not (daemon.root / "trial").exists()
