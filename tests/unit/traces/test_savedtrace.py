# SPDX-License-Identifier: Apache-2.0
"""Trace files on the disk: whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstread.errors import ImageError, LimitError, NodeError
from firstread.testing.command import firstread
from firstread.traces import savedtrace
from firstread.traces.savedtrace import load_trace, save_trace
from firstread.traces.tracefile import VERSION, Trace, TracedRead, TraceHeader, read_trace

TRACE = Trace(
    TraceHeader(version=VERSION, image="sha256:" + "0" * 64, ready_us=1_500_000),
    [TracedRead(5, 0, 4096, b"bin/sh"), TracedRead(9, 4096, 8192, b"bin/sh")],
)


def test_a_trace_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    save_trace(path, TRACE)
    assert load_trace(path) == TRACE
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_trace_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace"
    path.write_text("old")
    monkeypatch.setattr(savedtrace, "MAX_TRACE_SIZE", 10)
    with pytest.raises(LimitError, match="the trace is larger than 10"):
        save_trace(path, TRACE)
    assert path.read_text() == "old"
    assert not list(tmp_path.glob(".trace*"))


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    save_trace(path, TRACE)
    with open(reader, "rb") as file:
        assert read_trace(file) == TRACE
    assert path.is_fifo()


def test_a_damaged_trace_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("{}\n")
    with pytest.raises(ImageError, match=f"^{path}: this is not a trace") as caught:
        load_trace(path)
    assert caught.value.hint == "trace the image again: firstread trace"
    with pytest.raises(NodeError, match="No such file"):
        load_trace(tmp_path / "other")


def test_merge_writes_one_trace(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_trace(tmp_path / name, TRACE)
    out = tmp_path / "c"
    ran = firstread("trace", "merge", tmp_path / "a", tmp_path / "b", "-o", out)
    assert (ran.code, ran.stdout) == (0, "")
    assert ran.stderr == f"{out}: 2 reads of 1 file, 12.0 KiB, ready after 1.50 s\n"
    merged = load_trace(out)
    assert merged.header.starts == 2
    assert merged.reads == TRACE.reads
    ran = firstread("trace", "merge", tmp_path / "nosuch", "-o", out)
    assert ran.code == 5
    assert "cannot read the trace" in ran.stderr
