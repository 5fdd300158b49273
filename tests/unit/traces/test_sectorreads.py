# SPDX-License-Identifier: Apache-2.0
"""From reads of sectors to a trace of files."""

from __future__ import annotations

import stat

import pytest

from firstread.erofs.tree import Node, chunk_address, directory
from firstread.traces import sectorreads
from firstread.traces.filemap import FileMap
from firstread.traces.sectorreads import SectorRead, to_trace
from firstread.traces.tracefile import VERSION, TracedRead, TraceHeader

B = 4096
HEADER = TraceHeader(version=VERSION)


def two_files() -> FileMap:
    root = directory()
    assert root.children is not None
    for number, name in enumerate((b"a", b"b")):
        address = chunk_address(0, 4 * number)
        root.children[name] = Node(
            stat.S_IFREG | 0o644, size=4 * B, chunk_size=4 * B, chunks=(address,)
        )
    return FileMap(root)


def test_a_trace_has_each_block_at_its_first_read() -> None:
    reads = [
        SectorRead(30, 0, 0, 2 * B),
        SectorRead(10, 0, 3 * B, 2 * B),  # of both files
        SectorRead(20, 0, 3 * B, B),
        SectorRead(25, 1, 0, B),  # of no file
        SectorRead(40, 0, 0, 4 * B),
    ]
    assert to_trace(reads, two_files(), HEADER).reads == [
        TracedRead(10, 3 * B, B, b"a"),
        TracedRead(10, 0, B, b"b"),
        TracedRead(30, 0, 2 * B, b"a"),
        TracedRead(40, 2 * B, B, b"a"),
    ]


def test_a_trace_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sectorreads, "MAX_READS", 1)
    reads = [SectorRead(1, 0, 0, B), SectorRead(2, 0, B, B)]
    assert len(to_trace(reads, two_files(), HEADER).reads) == 1
