# SPDX-License-Identifier: Apache-2.0
"""A monitor that cannot be made."""

from __future__ import annotations

import os

import pytest

from firstread.errors import NodeError
from firstread.run.monitor import run_detached


def test_a_child_that_cannot_fork_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the frames of the command, which would clean up twice."""
    here, fork = os.getpid(), os.fork

    def once() -> int:
        if os.getpid() != here:
            raise BlockingIOError("no more processes")
        return fork()

    monkeypatch.setattr(os, "fork", once)
    with pytest.raises(NodeError, match="died before it started"):
        run_detached(lambda _: None)
    assert os.getpid() == here
