# SPDX-License-Identifier: Apache-2.0
"""Turns reads of sectors into a trace of files. Pure.

Owns the way from what a device sees to a `Trace`. Invariant: a trace lists a block of a file once,
at its first read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from firstread.erofs.reader import read_tree
from firstread.sectors.image import SOURCE_DIGEST, BlockImage
from firstread.traces.filemap import FileMap
from firstread.traces.firstreads import only_first
from firstread.traces.tracefile import MAX_READS, Trace, TracedRead, TraceHeader, header_of

_ROW = struct.Struct("<5I")  # of a record: time_us, slot, offset, length, waited_us
_MOST = (1 << 32) - 1
ROW_BYTES = _ROW.size


class SectorRead(NamedTuple):
    """A read of a sector file.

    Args:
        time_us: microseconds since the start.
        slot: device slot of the sector.
        offset: first byte in the sector.
        length: bytes.
    """

    time_us: int
    slot: int
    offset: int
    length: int


def pack_read(read: SectorRead, waited_us: int = 0) -> bytes:
    """Return a read as a row of a record; its time ends 71 minutes after the start.

    Args:
        read: of a sector.
        waited_us: microseconds from its event to its answer.
    """
    return _ROW.pack(*read, min(waited_us, _MOST))


def unpack_reads(rows: bytes) -> list[SectorRead]:
    """Return the reads in the rows of a record."""
    return [read for read, _ in unpack_waits(rows)]


def unpack_waits(rows: bytes) -> list[tuple[SectorRead, int]]:
    """Return the reads in the rows of a record, and how many microseconds each waited."""
    whole = len(rows) - len(rows) % ROW_BYTES
    return [(SectorRead(*row[:4]), row[4]) for row in _ROW.iter_unpack(rows[:whole])]


def trace_of(
    image: BlockImage,
    reads: Iterable[SectorRead],
    command: Iterable[str] = (),
    read_ahead_kib: int = 0,
    ready_us: int | None = None,
) -> Trace:
    """Return the trace of a start of an image.

    Args:
        image: that was read.
        reads: of its sectors, in any order.
        command: that ran; its longest words are cut.
        read_ahead_kib: of the mount.
        ready_us: when the workload was ready, or None.

    Raises:
        ImageError: the image's tree is damaged.
    """
    words = (os.fsencode(word).decode(errors="replace") for word in command)
    source = (image.manifest.annotations or {}).get(SOURCE_DIGEST, "")
    header = header_of(source, words, read_ahead_kib=read_ahead_kib, ready_us=ready_us)
    return to_trace(reads, FileMap(read_tree(image.erofs)), header)


def to_trace(reads: Iterable[SectorRead], files: FileMap, header: TraceHeader) -> Trace:
    """Return the trace of a start; reads beyond `MAX_READS` are left out.

    Args:
        reads: in any order.
        files: of the image.
        header: of the trace.
    """
    return Trace(header, list(islice(only_first(_located(reads, files)), MAX_READS)))


def _located(reads: Iterable[SectorRead], files: FileMap) -> Iterator[TracedRead]:
    for time_us, slot, offset, length in reads:
        for path, start, size in files.locate(slot, offset, length):
            yield TracedRead(time_us, start, size, path)
