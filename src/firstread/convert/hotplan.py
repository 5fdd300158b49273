# SPDX-License-Identifier: Apache-2.0
"""Plans hot sectors: which chunks of which files a start reads, in order. Pure.

A file has one chunk size, and every chunk costs an index in the metadata, so a fine cut of a large
file costs more than the bytes that it saves. The planner weighs both for each file. Invariants: a
chunk is in the plan once, at its first read; a chunk is at most a sector; holes are not planned.

Weights and archives that a start reads from end to end gain nothing from a copy, which would double
their room in the registry: where a file has many sectors that are read as a whole, they stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from firstread.convert.plan import MAX_CHUNKS_PER_FILE, Span, covered
from firstread.erofs.chunks import chunk_format, count_chunks
from firstread.erofs.tree import HOLE, Node
from firstread.sectors.format import BLOCK_SIZE
from firstread.traces.firstreads import FirstReads, only_first
from firstread.traces.tracefile import MAX_READ_SIZE, Trace, TracedRead
from firstread.units import KiB, MiB, round_up

DEFAULT_GRANULE = 4 * KiB  # docs/adr/0094-finer-chunks-for-hot-files.md has the table
MAX_CHUNK_SIZE = MAX_READ_SIZE  # of a file with hot chunks: 4 MiB
BULK_SIZE = 64 * MiB  # of a file: whole sectors of it that a start reads stay where they are
PADDING_COST = 0.4  # compressed bytes for each byte of padding, as in most files
MAX_HOT_CHUNKS = 1 << 22  # more than files have without hot ones, in all: 32 MiB of indexes
INDEX_COST = 2.0  # compressed bytes of metadata for each chunk of a file: 0.7 to 1.6 measured


class HotRun(NamedTuple):
    """Chunks of a file that are read one after the other.

    Args:
        node: the file.
        chunk_size: bytes of its chunks from now on.
        first: number of the first chunk.
        chunks: how many.
    """

    node: Node
    chunk_size: int
    first: int
    chunks: int


@dataclass
class LeftOut:
    """The parts of a trace that do not fit the image.

    Args:
        files: paths that are no regular file of the image.
        reads: of these paths, or behind the end of a file.
        holes: reads of holes, which need no data.
    """

    files: int = 0
    reads: int = 0
    holes: int = 0


@dataclass
class HotPlan:
    """The hot chunks of an image.

    Args:
        runs: in the order of the trace.
        whole: addresses of chunks that fill a sector and stay there, in the order of the trace.
        files: that have hot chunks, or whole sectors.
        reads: of the trace that the plan serves.
        left_out: the others.
    """

    runs: list[HotRun] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    files: int = 0
    reads: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)


class _File(NamedTuple):
    """A file that a trace reads: all its reads have one path, whichever name they came by."""

    node: Node
    path: bytes


def plan_hot(root: Node, trace: Trace, sector_size: int, granule: int = DEFAULT_GRANULE) -> HotPlan:
    """Return the hot chunks of the tree below `root`.

    Args:
        root: of the image; not changed.
        trace: of a start, of this image or of another one.
        sector_size: of the image, bytes.
        granule: bytes of the smallest chunk, a power of two of at least `BLOCK_SIZE`.

    Raises:
        ImageError: a file has chunks that EROFS does not know.
    """
    plan = HotPlan()
    reads = list(_fitting(root, trace.reads, plan))
    spans: dict[_File, list[Span]] = {}
    for file, offset, end in reads:
        spans.setdefault(file, []).append((offset // BLOCK_SIZE, -(-end // BLOCK_SIZE)))
    cuts, room = dict[_File, _Cut](), MAX_HOT_CHUNKS
    for file, blocks in spans.items():
        cut = _cut(file.node, blocks, sector_size, granule)
        more = count_chunks(file.node.size, cut.chunk_size) - len(file.node.chunks)
        cuts[file] = cut if more <= room else cut._replace(chunk_size=file.node.chunk_size)
        room -= more if more <= room else 0
    seen = FirstReads()
    whole: dict[int, None] = {}
    for file, offset, end in reads:
        cut = cuts[file]
        for run in _runs(file, offset, end, cut.chunk_size, seen):
            above = run.first * run.chunk_size // file.node.chunk_size
            if above in cut.whole:
                whole[file.node.chunks[above]] = None
            else:
                plan.runs.append(run)
    plan.whole += whole
    plan.files, plan.reads = len(spans), len(reads)
    return plan


def _fitting(
    root: Node, reads: Iterable[TracedRead], plan: HotPlan
) -> Iterator[tuple[_File, int, int]]:
    """Yield (file, first byte, end) of each read that the image has data for; count the others."""
    files: dict[bytes, _File | None] = {}
    paths: dict[int, bytes] = {}  # id() of a node -> the path that stands for all its names
    for read in only_first(reads):
        if read.path not in files:
            node = find_file(root, read.path)
            if node and node.chunks:
                chunk_format(node.chunk_size)  # a record can come from a registry
            files[read.path] = _File(node, paths.setdefault(id(node), read.path)) if node else None
            plan.left_out.files += node is None
        file = files[read.path]
        if file is None or not file.node.chunks or read.offset >= file.node.size:
            plan.left_out.reads += 1
            continue
        end = min(read.offset + read.length, file.node.size)
        if all(chunk == HOLE for chunk in _chunks(file.node, read.offset, end)):
            plan.left_out.holes += 1
            continue
        yield file, read.offset, end


def find_file(root: Node, path: bytes) -> Node | None:
    """Return the regular file at `path` below `root`; follow no symbolic link."""
    node: Node | None = root
    for name in path.split(b"/"):
        node = (node.children or {}).get(name) if node else None
    return node if node and node.is_file else None


def _chunks(node: Node, offset: int, end: int) -> Iterable[int]:
    size = node.chunk_size
    return node.chunks[offset // size : -(-end // size)]


class _Cut(NamedTuple):
    """The chunk size that a file gets, and its chunks that are whole sectors and stay."""

    chunk_size: int
    whole: frozenset[int]


def _cut(node: Node, blocks: Sequence[Span], sector_size: int, granule: int) -> _Cut:
    """Return how a file is cut if a start reads these blocks of it, in any order."""
    merged = covered(sorted(blocks), 1)
    whole: frozenset[int] = frozenset()
    if node.chunk_size == sector_size and node.size >= BULK_SIZE:
        unit = sector_size // BLOCK_SIZE
        full = {n for first, end in merged for n in range(-(-first // unit), end // unit)}
        if len(full) * sector_size >= BULK_SIZE:
            whole = frozenset(full)
            merged = [span for span in _split(merged, unit) if span[0] // unit not in whole]
    return _Cut(_chunk_size(node, merged, granule), whole)


def _split(blocks: Iterable[Span], unit: int) -> Iterator[Span]:
    """Yield `blocks`, split where a unit ends."""
    for first, end in blocks:
        start = first
        while start < end:
            stop = min(end, (start // unit + 1) * unit)
            yield start, stop
            start = stop


def _chunk_size(node: Node, blocks: Sequence[Span], granule: int) -> int:
    """Return the chunk size with which padding and indexes of a file cost the fewest bytes.

    Args:
        node: the file.
        blocks: that are hot, in order of position.
        granule: smallest size to try.
    """
    size = max(BLOCK_SIZE, min(granule, node.chunk_size))
    best, best_cost = node.chunk_size, -1.0
    while size <= min(node.chunk_size, MAX_CHUNK_SIZE):
        if count_chunks(node.size, size) > max(MAX_CHUNKS_PER_FILE, len(node.chunks)):
            size *= 2
            continue
        stored = sum(
            min(end * size, round_up(node.size, BLOCK_SIZE)) - first * size
            for first, end in covered(blocks, size // BLOCK_SIZE)
        )
        cost = PADDING_COST * stored + INDEX_COST * -(-node.size // size)
        if best_cost < 0 or cost <= best_cost:
            best, best_cost = size, cost
        size *= 2
    return best


def _runs(
    file: _File, offset: int, end: int, chunk_size: int, seen: FirstReads
) -> Iterator[HotRun]:
    """Yield the chunks of a read that are neither holes nor `seen` before."""
    node, ratio = file.node, file.node.chunk_size // chunk_size
    first, stop = offset // chunk_size, -(-end // chunk_size)
    whole = TracedRead(0, first * chunk_size, (stop - first) * chunk_size, file.path)
    for part in seen.of(whole):
        chunk, until = part.offset // chunk_size, (part.offset + part.length) // chunk_size
        while chunk < until:
            above = chunk // ratio
            count = min(until, (above + 1) * ratio) - chunk
            if node.chunks[above] != HOLE:
                yield HotRun(node, chunk_size, chunk, count)
            chunk += count
