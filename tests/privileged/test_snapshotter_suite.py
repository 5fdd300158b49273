# SPDX-License-Identifier: Apache-2.0
"""The snapshotter with ordinary images: containerd's cases, over gRPC, with real mounts."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.testing.command import program
from firstread.testing.patience import PATIENCE_S
from firstread.testing.snapshots import SnapshotsClient
from firstread.testing.suites.snapshotter import SnapshotterSuite, refused

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
]


@contextlib.contextmanager
def serving(tmp_path: Path) -> Iterator[SnapshotsClient]:
    address = tmp_path / "s.sock"
    places = ("--root", str(tmp_path / "root"), "--run-dir", str(tmp_path / "run"))
    command = program("snapshotter", *places, "--address", str(address))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        with SnapshotsClient(address) as client:
            yield client
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 0, (tmp_path / "log").read_text()


@pytest.fixture
def snapshots(tmp_path: Path) -> Iterator[SnapshotsClient]:
    with serving(tmp_path) as client:
        yield client


class TestSnapshotter(SnapshotterSuite):
    """All cases, each with its own process and socket."""

    def test_no_directory_is_left(self, snapshots: SnapshotsClient, tmp_path: Path) -> None:
        snapshots.prepare("a")
        with refused("ALREADY_EXISTS"):
            snapshots.prepare("a")
        snapshots.remove("a")
        assert os.listdir(tmp_path / "root/snapshotter/snapshots") == []

    def test_cleanup_removes_leftovers_of_a_crash(
        self, snapshots: SnapshotsClient, tmp_path: Path
    ) -> None:
        below = tmp_path / "root/snapshotter/snapshots"
        (below / "new-xyz/fs").mkdir(parents=True)
        (below / "77/fs").mkdir(parents=True)
        snapshots.prepare("a")
        snapshots.cleanup()
        assert os.listdir(below) == ["1"]


def test_it_starts_with_a_damaged_record(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.prepare("a")
        client.prepare("b")
    db = sqlite3.connect(tmp_path / "root/snapshotter/records.db")
    with contextlib.closing(db), db:
        db.execute("UPDATE snapshots SET labels = '{' WHERE name = 'a'")
    with serving(tmp_path) as client:
        assert client.mounts("b")
        assert client.prepare("c")
    assert "cannot remove what the last run left" in (tmp_path / "log").read_text()
