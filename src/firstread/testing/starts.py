# SPDX-License-Identifier: Apache-2.0
"""Traces of starts that never happened, written as data.

Invariant: a trace reads in the order in which it is written, one read each millisecond.
"""

from __future__ import annotations

import os
from pathlib import Path

from firstread.sectors.format import BLOCK_SIZE
from firstread.traces.tracefile import VERSION, Trace, TracedRead, TraceHeader, write_trace


def trace_of(*reads: tuple[str, int, int]) -> Trace:
    """Return a trace.

    Args:
        reads: path, first block, and number of blocks of each.
    """
    return Trace(
        TraceHeader(version=VERSION),
        [
            TracedRead(1000 * number, first * BLOCK_SIZE, blocks * BLOCK_SIZE, os.fsencode(path))
            for number, (path, first, blocks) in enumerate(reads)
        ],
    )


def put_trace(path: Path, trace: Trace) -> Path:
    """Write a trace to a file; return its path."""
    with path.open("wb") as out:
        write_trace(trace, out)
    return path
