# SPDX-License-Identifier: Apache-2.0
"""Reduces reads to first reads. Pure.

Owns which blocks of which files were seen: a bit for each, in bitmaps of a bounded size, so memory
grows with the number of reads, whatever offsets they state. Invariant: no block is in two results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from firstread.sectors.format import BLOCK_SIZE
from firstread.traces.tracefile import MAX_READ_SIZE, MAX_READS, Trace, TracedRead, TraceHeader

REGION_BLOCKS = MAX_READ_SIZE // BLOCK_SIZE  # of a bitmap, so that a read touches two at most


class FirstReads:
    """Remembers the blocks that were read of each file."""

    def __init__(self) -> None:
        self._seen: dict[tuple[bytes, int], int] = {}  # (path, region) -> bits, one for each block

    def of(self, read: TracedRead) -> Iterator[TracedRead]:
        """Yield the parts of a read that no earlier one covers, in order of their offsets."""
        block = read.offset // BLOCK_SIZE
        end = -(-(read.offset + read.length) // BLOCK_SIZE)
        while block < end:
            region, first = divmod(block, REGION_BLOCKS)
            count = min(end - block, REGION_BLOCKS - first)
            for start, blocks in _runs(
                self._take((read.path, region), ((1 << count) - 1) << first)
            ):
                offset = (region * REGION_BLOCKS + start) * BLOCK_SIZE
                yield read._replace(offset=offset, length=blocks * BLOCK_SIZE)
            block += count

    def _take(self, key: tuple[bytes, int], wanted: int) -> int:
        """Note blocks as seen; return those that were not."""
        seen = self._seen.get(key, 0)
        fresh = wanted & ~seen
        if fresh:
            self._seen[key] = seen | wanted
        return fresh


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of each run of set bits."""
    at = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        count = (~bits & (bits + 1)).bit_length() - 1
        yield at + skip, count
        bits >>= count
        at += skip + count


def merge(traces: Sequence[Trace]) -> Trace:
    """Merge the traces of several starts.

    A block comes at the earliest time that any start has read it; blocks that come at the same time
    stay in the order of `traces`. The result is ready when the last of them was, and has the first
    `MAX_READS` reads.

    Args:
        traces: at least one.
    """
    headers = [trace.header for trace in traces]
    images = {header.image for header in headers}
    ready = [header.ready_us for header in headers]
    header = TraceHeader(
        version=headers[0].version,
        image=images.pop() if len(images) == 1 else "",
        command=headers[0].command,
        read_ahead_kib=max(header.read_ahead_kib for header in headers),
        ready_us=None if None in ready else max(time for time in ready if time is not None),
        starts=sum(header.starts for header in headers),
    )
    reads = only_first(read for trace in traces for read in trace.reads)
    return Trace(header, list(islice(reads, MAX_READS)))


def only_first(reads: Iterable[TracedRead]) -> Iterator[TracedRead]:
    """Yield the first reads among `reads`, in order of time."""
    first = FirstReads()
    for read in sorted(reads, key=lambda read: read.time_us):
        yield from first.of(read)
