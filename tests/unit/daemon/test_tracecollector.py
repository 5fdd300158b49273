# SPDX-License-Identifier: Apache-2.0
"""Which starts a node keeps, and how many."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from firstread.daemon import tracecollector
from firstread.daemon.tracecollector import QUIET_S, is_due, main, prune
from firstread.fetch.tracelog import MOST_S, TraceLog


def record(*, cold: bool = True, read: bool = True) -> TraceLog:
    log = TraceLog(0.0)
    log.begin(0.0, cold=cold)
    if read:
        log.note(5.0, 1, 0, 4096)
    return log


def test_a_start_is_over_when_it_is_quiet() -> None:
    assert not is_due(record(), 5.0 + QUIET_S - 0.1, ended=False)
    assert is_due(record(), 5.0 + QUIET_S, ended=False)


def test_a_start_is_over_with_its_record_or_its_image() -> None:
    busy = record()
    busy.note(MOST_S - 1, 1, 0, 4096)
    assert not is_due(busy, MOST_S - 1, ended=False)
    assert is_due(busy, MOST_S, ended=False)
    assert is_due(record(), 5.0, ended=True)


def test_only_cold_starts_are_kept_and_once() -> None:
    assert not is_due(record(cold=False), 1e6, ended=True)
    assert not is_due(record(read=False), 1e6, ended=True)
    unseen = TraceLog(0.0)  # a later fetcher has taken the mount over
    unseen.note(5.0, 1, 0, 4096)
    assert not is_due(unseen, 1e6, ended=True)
    kept = record()
    kept.collected = True
    assert not is_due(kept, 1e6, ended=True)


def test_the_oldest_traces_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        path = tmp_path / f"sha256-{number}.jsonl"
        path.write_bytes(bytes(100))
        os.utime(path, ns=(0, number))
    (tmp_path / "mine.jsonl").write_bytes(bytes(1000))
    for name, age_s in ((".sha256-7.jsonl.torn", 3600), (".sha256-8.jsonl.new", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    monkeypatch.setattr(tracecollector, "MOST_FILES", 4)
    prune(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("sha256*")) == [
        f"sha256-{number}.jsonl" for number in range(2, 6)
    ]
    assert [path.name for path in tmp_path.glob(".sha256-*")] == [".sha256-8.jsonl.new"]
    monkeypatch.setattr(tracecollector, "MOST_BYTES", 250)
    prune(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [
        "mine.jsonl",
        "sha256-4.jsonl",
        "sha256-5.jsonl",
    ]


def test_an_image_that_is_gone_has_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    from firstread.documents import encode

    document = encode(record().document("sha256:" + "0" * 64, 0))
    monkeypatch.setattr("sys.stdin", io.StringIO(document))
    monkeypatch.setattr(os, "nice", lambda _: 0)
    assert main(str(tmp_path / "root"), str(tmp_path / "traces")) == 1
    assert "is not on this node" in capsys.readouterr().err
    assert not (tmp_path / "traces").exists()
