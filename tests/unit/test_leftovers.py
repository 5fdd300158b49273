# SPDX-License-Identifier: Apache-2.0
"""A test that fails is one failure: what it leaves open is not charged to a test after it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from firstread.testing.patience import PATIENCE_S

SUITE = """
import gc, subprocess

def test_fails():
    reader = subprocess.Popen(["true"], stdout=subprocess.PIPE)
    reader.wait()
    assert not reader.stdout, "the frame keeps it open"

def test_next(): pass

def test_in_which_it_is_collected(): gc.collect()

def test_last(): pass
"""


def test_what_a_failed_test_leaves_open(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "1 failed, 3 passed" in done.stdout, done.stdout
