# SPDX-License-Identifier: Apache-2.0
"""The wait of a snapshotter for containerd, and what ``doctor`` says of both."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from firstread.doctor.containerd import check_snapshotter
from firstread.snapshotter.sockets import PATIENCE_S, Awaited, listens


def listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)
    return server


def test_whether_somebody_listens(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    assert not listens(path)
    with listening(path):
        assert all(listens(path) for _ in range(5))  # more than it takes
    assert path.is_socket()
    assert not listens(path)
    assert not listens(tmp_path / ("long" * 40))


def test_containerd_is_missed_once_and_welcomed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "c.sock"
    awaited = Awaited(path, 0.0)
    awaited.look(PATIENCE_S - 1)
    assert caplog.messages == []
    for moment in range(3):
        awaited.look(PATIENCE_S + moment)
    (missed,) = caplog.messages
    assert missed.startswith(f"nobody listens at {path}: ")
    with listening(path):
        awaited.look(PATIENCE_S + 3)
    awaited.look(PATIENCE_S + 4)  # a restart of containerd is no news
    assert caplog.messages[1:] == [f"containerd listens at {path} now"]


def test_containerd_that_comes_in_time_is_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    awaited = Awaited(tmp_path / "c.sock", 0.0)
    with listening(tmp_path / "c.sock"):
        awaited.look(1.0)
    awaited.look(PATIENCE_S + 1)
    assert caplog.messages == []


def test_doctor_says_who_of_the_two_is_missing(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "snapshotter.sock", tmp_path / "c.sock"

    def found() -> dict[str, str]:
        return {each.name: each.status for each in check_snapshotter(tmp_path, theirs)}

    assert found() == {}  # nobody needs containerd here
    with listening(ours):
        assert found() == {"snapshotter": "ok", "containerd": "warn"}
        with listening(theirs):
            assert found() == {"snapshotter": "ok", "containerd": "ok"}
    theirs.unlink()
    with listening(theirs):
        assert found() == {"snapshotter": "warn", "containerd": "ok"}
