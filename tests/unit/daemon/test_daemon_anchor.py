# SPDX-License-Identifier: Apache-2.0
"""An anchor that cannot be made: whoever wants one does not wait for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from firstread.daemon import anchor
from firstread.device import syscalls


@pytest.mark.parametrize("missing", ["process", "directory"])
def test_an_anchor_that_cannot_be_made_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    here, fork = os.getpid(), syscalls.fork_sharing_files

    def once() -> int:
        if os.getpid() != here:
            raise BlockingIOError("no more processes")
        return fork()

    if missing == "process":
        monkeypatch.setattr(syscalls, "fork_sharing_files", once)
    began = time.monotonic()
    with pytest.raises(OSError, match="cannot be made now"):
        anchor.cast(str(tmp_path / "none"), 60.0)
    assert time.monotonic() - began < anchor.READY_S
    assert os.getpid() == here
