# SPDX-License-Identifier: Apache-2.0
"""The comparison of a start set with a trace."""

from __future__ import annotations

from benchmarks.startset import Compared, blocks_of, compare

from firstread.erofs.tree import HOLE, Node, chunk_address
from firstread.testing.starts import trace_of

BLOCK = 4096
# Two blocks in sector 0, a hole, and one block in sector 2.
FILE = Node(0o100644, size=4 * 2 * BLOCK, chunk_size=2 * BLOCK)
FILE.chunks = [chunk_address(0, 0), HOLE, chunk_address(2, 0), chunk_address(2, 2)]
SIZES = {0: 100, 2: 1000}


def test_bytes_are_counted_in_blocks_and_misses_in_sectors() -> None:
    files = {b"file": FILE}
    trace = blocks_of(trace_of(("file", 0, 5), ("gone", 0, 1)), files)
    static = blocks_of(trace_of(("file", 0, 1), ("file", 4, 9)), files)
    assert (trace[FILE], static[FILE]) == ({0, 1, 4}, {0, 4, 5, 6, 7})
    assert compare(trace, static, SIZES.__getitem__) == Compared(
        trace=3 * BLOCK, static=5 * BLOCK, both=2 * BLOCK, plain=1100, misses=100
    )


def test_without_a_set_all_sectors_are_missed() -> None:
    trace = blocks_of(trace_of(("file", 4, 1)), {b"file": FILE})
    assert compare(trace, {}, SIZES.__getitem__) == Compared(BLOCK, 0, 0, 1000, 1000)
