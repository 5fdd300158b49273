# SPDX-License-Identifier: Apache-2.0
"""``firstread enter`` of root, whose mounts are seen everywhere."""

from __future__ import annotations

import os
import subprocess

import pytest

from firstread.testing.command import program
from firstread.testing.patience import PATIENCE_S

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="is for root")


@pytest.mark.parametrize(
    ("words", "code", "out", "error"),
    [
        (["sh", "-c", "readlink /proc/self/ns/user; exit 3"], 3, "OURS\n", ""),
        (["echo", "-n", "--help"], 0, "--help", ""),
        (["/no/such"], 127, "", "firstread: /no/such: not found\n"),
        (["/etc/passwd"], 126, "", "firstread: cannot run /etc/passwd: Permission denied\n"),
    ],
)
def test_a_command_runs_as_it_is(words: list[str], code: int, out: str, error: str) -> None:
    done = subprocess.run(
        program("enter", *words), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    out = out.replace("OURS", os.readlink("/proc/self/ns/user"))
    assert (done.returncode, done.stdout, done.stderr) == (code, out, error)
